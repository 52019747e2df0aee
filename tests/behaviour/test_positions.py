"""The read positions of a run: read by the engine, tested, stored beside it, and described."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import RUN, behaviour_manifest, save_positions
from tiny import tiny_model

from refusal_core.activations.extraction import extract
from refusal_core.behaviour.positions import compare_with_new_replies, has_new_replies, record
from refusal_core.errors import ModelError, RunError
from refusal_core.exploration import positions as described
from refusal_core.exploration.kept_lists import keep_list
from refusal_core.options import PositionOptions
from refusal_core.pipeline.refit import refit
from refusal_core.pipeline.scoring import Scorer, score
from refusal_core.runs.additions import (
    POSITION_ACTIVATIONS,
    POSITION_FILES,
    load_position_activations,
    save_addition,
)
from refusal_core.runs.positions import positions_of
from refusal_core.runs.schemas import FITS, FOLLOWS_INTENT, HOLDS
from refusal_core.runs.store import open_run, verify_run
from refusal_core.sharing.archives import pack_run, unpack_run

DRAWS = 99


@pytest.fixture(scope="module")
def measured_once(tiny_run, tiny_chat_model, tmp_path_factory):
    """A copy of the tiny model's run with its read positions."""
    cache = tmp_path_factory.mktemp("positions")
    shutil.copytree(tiny_run.path, cache / tiny_run.run_id)
    run = open_run(tiny_run.run_id, cache)
    record(run, tiny_chat_model, draws=DRAWS)
    return run


@pytest.fixture
def measured(measured_once, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(measured_once.path, tmp_path / measured_once.run_id)
    return open_run(measured_once.run_id, tmp_path)


def test_the_last_position_is_the_runs_own_and_the_first_another(measured_once, tiny_chat_model):
    run, (table, manifest) = measured_once, described.load_positions(measured_once)
    assert list(manifest.closing_tokens) == ["<|im_end|>", "\n", "<|im_start|>", *manifest.closing_tokens[3:]]
    assert set(table["position"]) == set(positions_of(manifest))
    evidence = run.evidence
    for measure, source in ((FITS, evidence.sites), (HOLDS, evidence.sites), ("intent", evidence.quartets)):
        at_post = described.numbers_at((table, manifest), measure).loc[-1]
        np.testing.assert_allclose(at_post, source[measure], atol=2e-3)
    activations = load_position_activations(run, manifest)
    texts = run.prompts["text"].tolist()
    read = extract(tiny_chat_model, texts, closing=True)
    np.testing.assert_allclose(activations[:, 0], read.at_end[0], atol=1e-4)
    np.testing.assert_allclose(activations[:, 1], read.at_end[-1], atol=1e-4)
    assert not np.allclose(activations[:, 0], activations[:, 1], atol=1e-2)
    np.testing.assert_allclose(run.directions.project(activations[:, 1]), run.projections, atol=1e-3)
    assert not (run.path / ".positions").exists()


@pytest.mark.parametrize("name", ["t_inst", "-2"])
def test_prompts_are_scored_at_a_position_as_the_run_is_there(measured_once, tiny_chat_model, name):
    """What is projected on the directions of a position is what was read there, by each way of scoring."""
    run, at = measured_once, measured_once.at(name)
    texts = at.prompts["text"].tolist()
    assert not np.allclose(at.projections, run.projections, atol=0.05)
    (alone,) = score(tiny_chat_model, at, texts[5:6])
    np.testing.assert_allclose(alone.projection, at.projections[5], atol=1e-3)
    assert alone.token_projection.shape == (len(alone.tokens), at.n_sites)
    for row, result in enumerate(score(tiny_chat_model, at, texts[:6])):
        np.testing.assert_allclose(result.projection, at.projections[row], atol=1e-3)
    scorer = Scorer(tiny_chat_model, at)
    (first, *_), length = texts, len(scorer.encode(texts[0]))
    alike = [text for text in texts if len(scorer.encode(text)) == length]
    for text, result in zip(alike, scorer.score_ends(alike), strict=True):
        np.testing.assert_allclose(result.projection, at.projections[texts.index(text)], atol=1e-3)
    assert first in alike


def test_a_run_at_a_position_is_verified_with_the_run_and_goes_with_it(measured, tmp_path):
    assert set(POSITION_FILES) <= set(verify_run(measured.run_id, measured.path.parent))
    packed = io.BytesIO()
    pack_run(measured.run_id, packed, measured.path.parent)
    unpack_run(packed, tmp_path / "elsewhere")
    sent = open_run(measured.run_id, tmp_path / "elsewhere").at("t_inst")
    np.testing.assert_array_equal(sent.projections, measured.at("t_inst").projections)
    path = measured.path / "positions_evidence_sites.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"at t_inst: positions_evidence_sites.parquet is not the file"):
        verify_run(measured.run_id, measured.path.parent)
    with pytest.raises(RunError, match="measure its positions again"):
        measured.at("t_inst")


def test_what_is_measured_with_the_runs_own_direction_is_refused_at_another_position(measured_once, tiny_chat_model):
    at = measured_once.at("t_inst")
    for measure in (
        lambda: record(at, tiny_chat_model),
        lambda: refit(at, at.prompts["prompt_id"][:2]),
        lambda: keep_list(at, "mine", at.prompts[["text", "label"]], at.projections),
    ):
        with pytest.raises(RunError, match="expected a run at t_post"):
            measure()


def test_what_is_said_names_both_positions_and_their_numbers(measured_once):
    loaded = described.load_positions(measured_once)
    said = described.where_read(measured_once, loaded, 3)
    table, _ = loaded
    for position, name in ((table["position"].min(), "t_inst"), (-1, "t_post")):
        rows = table[table["site"].eq(3) & table["position"].eq(position)].set_index("measure")
        assert f"At {name}, layer 3 of 4" in said
        assert f"d {rows.loc[HOLDS, 'number']:.2f} ({rows.loc[HOLDS, 'number_low']:.2f} to" in said
        assert f"intent moves the projection by {rows.loc['intent', 'number']:.2f}" in said
    for low, high, against in ((0.1, 0.2, "more than"), (-0.2, -0.1, "less than"), (-0.1, 0.1, "as against")):
        lead = table["measure"].eq(FOLLOWS_INTENT)
        other = table.assign(
            number_low=table["number_low"].mask(lead, low), number_high=table["number_high"].mask(lead, high)
        )
        assert described.where_read(measured_once, (other, loaded[1]), 3).count(f"{against} alarming wording") == 2
    numbers = described.numbers_table(loaded, 3)
    assert numbers.index.tolist()[:3] == ["t_inst", "<|im_end|>", "\\n"]
    assert numbers.index[-1] == "t_post"
    assert described.questions_of(loaded).keys() == {"fits", "holds", "intent", "refusing"}


def test_activations_are_verified_and_the_run_opens_without_them(measured):
    assert POSITION_ACTIVATIONS in verify_run(measured.run_id, measured.path.parent)
    _, manifest = described.load_positions(measured)
    path = measured.path / POSITION_ACTIVATIONS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="SHA-256 differs"):
        verify_run(measured.run_id, measured.path.parent)
    path.unlink()
    assert load_position_activations(measured, manifest) is None
    assert described.load_positions(measured) is not None
    assert "positions.parquet" in verify_run(measured.run_id, measured.path.parent)
    path.symlink_to(measured.path / "manifest.json")
    with pytest.raises(RunError, match="measure it again"):
        load_position_activations(measured, manifest)


def test_measured_again_without_activations_none_are_left(measured, tiny_chat_model):
    record(measured, tiny_chat_model, PositionOptions(keep_activations=False), draws=DRAWS)
    assert not (measured.path / POSITION_ACTIVATIONS).exists()
    _, manifest = described.load_positions(measured)
    assert manifest.activations_sha256 is None
    assert load_position_activations(measured, manifest) is None


def test_a_table_that_lacks_or_repeats_rows_or_has_other_values_is_refused(measured):
    table, manifest = described.load_positions(measured)
    one = table["position"].eq(-2) & table["site"].eq(1) & table["measure"].eq(HOLDS)
    for broken, message in (
        (table[~one], "lacks positions or sites"),
        (table[~table["position"].eq(-1)], "lacks positions or sites"),
        (table.assign(site=table["site"].mask(one, 2)), "rows twice"),
        (table.assign(position=table["position"].mask(one, 0)), "out of their range"),
        (table.assign(measure=table["measure"].mask(one, "astrology")), "texts of another kind"),
    ):
        save_addition(measured, broken, manifest)
        with pytest.raises(RunError, match=message):
            described.load_positions(measured)
    of_quartets = table["measure"].isin(described.OF_QUARTETS)
    assert not described.is_compared((table, manifest))
    save_addition(measured, table[~of_quartets], manifest)
    without = described.load_positions(measured)
    assert described.questions_of(without).keys() == {"fits", "holds", "refusing"}
    assert "quartets" not in described.where_read(measured, without, 1)
    save_addition(measured, table.assign(subject="refusal"), manifest)
    with pytest.raises(RunError, match="lacks positions or sites"):
        described.load_positions(measured)
    save_addition(measured, table, manifest)
    described_in = json.loads((measured.path / "positions.json").read_text())
    (measured.path / "positions.json").write_text(json.dumps(described_in | {"closing_tokens": []}))
    with pytest.raises(RunError, match="closing_tokens"):
        described.load_positions(measured)


def test_replies_that_are_measured_later_are_compared_by_without_the_model(measured):
    assert not has_new_replies(measured, described.load_positions(measured)[1])
    assert "takes the run's behaviour" in described.verdict(measured, described.load_positions(measured), 1)
    assert described.what_follows(described.load_positions(measured), 1) == ""
    for refuses in (np.arange(len(measured.prompts)) // 2 % 2 == 0, np.zeros(len(measured.prompts), dtype=bool)):
        replies = measured.prompts[["prompt_id"]].assign(
            phrase_log_odds=0.5, opening="Sure", opening_label=np.where(refuses, "refuses", "answers")
        )
        save_addition(measured, replies, behaviour_manifest("Sorry"))
        before, manifest = described.load_positions(measured)
        assert has_new_replies(measured, manifest)
        compare_with_new_replies(measured)
        table, manifest = described.load_positions(measured)
        assert not has_new_replies(measured, manifest)
        pd.testing.assert_frame_equal(described.of_positions(table), described.of_positions(before))
        assert POSITION_ACTIVATIONS in verify_run(measured.run_id, measured.path.parent)
        few = manifest.replies.reason
        said = described.verdict(measured, (table, manifest), 1)
        assert few.startswith(f"the model refuses {6 * refuses.any()} of 12 harmful")
        assert said.endswith(f"cannot be said: {few}.")


def test_a_comparison_that_lacks_a_row_is_refused(synthetic_cache, tmp_path):
    shutil.copytree(synthetic_cache / RUN, tmp_path / RUN)
    run = open_run(RUN, tmp_path)
    save_positions(run, refused=np.arange(len(run.prompts)) // 2 % 2 == 0)
    table, manifest = described.load_positions(run)
    assert manifest.replies.reason is None
    for number in np.flatnonzero(table["site"].eq(1))[::5]:
        save_addition(run, table.drop(index=table.index[number]), manifest)
        with pytest.raises(RunError, match="lacks positions"):
            described.load_positions(run)


def test_another_model_is_refused_and_so_is_a_run_without_closing_tokens(measured, tiny_chat_model):
    with pytest.raises(ModelError, match="in memory is not the one of this run"):
        record(measured, tiny_model("qwen2", num_hidden_layers=2))
    bare = measured.manifest.template.model_copy(update={"sha256": None})
    manifest = measured.manifest.model_copy(update={"template": bare})
    object.__setattr__(measured, "manifest", manifest)
    with pytest.raises(RunError, match="one read position"):
        record(measured, replace(tiny_model("qwen2", template=None), info=tiny_chat_model.info))
