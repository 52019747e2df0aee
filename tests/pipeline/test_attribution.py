"""What adds to a run's direction and which words it would write: planted in a model, stored, described, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import PLANTED_LAYER, READING_LAYER, tiny_model

from refusal_core.activations import lens
from refusal_core.errors import ModelError, RunError
from refusal_core.exploration import attribution as described
from refusal_core.figures import attribution as figures
from refusal_core.models.opening import load_model
from refusal_core.pipeline import attribution
from refusal_core.pipeline.attribution import record
from refusal_core.runs.additions import save_addition
from refusal_core.runs.schemas import ADDED, ATTENTION, DIFFERENCE, LOWERED, MLP, RAISED, RAISED_MEAN
from refusal_core.runs.store import open_run

DRAWS, CONTROLS, FEW = 199, 39, 12


def measured_copy(run, chat_model, cache):
    shutil.copytree(run.path, cache / run.run_id)
    copied = open_run(run.run_id, cache)
    record(copied, chat_model, draws=DRAWS, controls=CONTROLS)
    return copied


@pytest.fixture(scope="module", autouse=True)
def few_prompts_suffice():
    """Runs of tests are smaller than those of which parts have numbers."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(attribution, "FEWEST_GROUPS", FEW)
        yield


@pytest.fixture(scope="module")
def planted(planted_run, planted_folder, tmp_path_factory):
    """The planted model's run with its attribution."""
    return measured_copy(planted_run, load_model(planted_folder, dtype="float32"), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def tiny(tiny_run, tiny_chat_model, tmp_path_factory):
    """The tiny model's run with its attribution."""
    return measured_copy(tiny_run, tiny_chat_model, tmp_path_factory.mktemp("tiny"))


def test_the_attention_and_the_mlp_that_were_planted_are_found_from_their_blocks_on(planted):
    measured = described.load_attribution(planted)
    for layer in range(PLANTED_LAYER, planted.n_layers):
        part = ("attention", PLANTED_LAYER) if layer < READING_LAYER else ("MLP", READING_LAYER)
        assert "the {} of block {} adds more to the direction than any other part".format(*part) in (
            described.verdict(planted, measured, layer)
        )
    said = described.what_adds(planted, measured, READING_LAYER)
    assert f"the attention of block {PLANTED_LAYER} " in said
    parts = described.added_at(measured, READING_LAYER).set_index(["part", "block"])
    assert parts.loc[(MLP, READING_LAYER), "number_low"] > 0
    assert parts.loc[(ATTENTION, READING_LAYER), "number"] == pytest.approx(0, abs=1e-6)
    assert described.part_table(measured, READING_LAYER)["added_share"].sum() == pytest.approx(1)


def test_the_token_that_refusals_open_with_is_raised_where_the_model_reads_the_direction(planted):
    tokens = described.token_table(described.load_attribution(planted), READING_LAYER)
    assert tokens["raised_token"][0] == repr("I")
    assert tokens["raised_again"][0] == 1
    assert tokens["raised_by"].is_monotonic_decreasing


def test_control_directions_are_those_of_permuted_labels_and_keep_what_they_share_with_the_direction(
    tiny_run, tiny_chat_model, tmp_path, monkeypatch
):
    read: list[np.ndarray] = []
    read_lens = lens.read_lens
    monkeypatch.setattr(
        lens, "read_lens", lambda model, given, *rest: read.append(given) or read_lens(model, given, *rest)
    )
    measured_copy(tiny_run, tiny_chat_model, tmp_path)
    for direction, *others in read:
        controls = np.stack(others[:CONTROLS])
        # Taken off, they would share nothing; the direction is a difference of the same prompts' means.
        assert np.abs(controls @ direction).max() > 0.1
    assert len(read) == tiny_run.n_sites


def test_parts_add_up_to_the_difference_and_that_is_the_runs_own(planted):
    measured = described.load_attribution(planted)
    table = measured[0]
    harmful, harmless = (planted.rows(label) for label in ("harmful", "harmless"))
    for layer in range(planted.n_layers):
        added = described.added_at(measured, layer)["number"]
        if added.empty:
            continue
        whole = table.loc[table["measure"].eq(DIFFERENCE) & table["site"].eq(layer), "number"].item()
        assert added.sum() == pytest.approx(whole, abs=1e-4)
        crossfit = planted.projections_crossfit[:, layer]
        assert whole == pytest.approx(crossfit[harmful].mean() - crossfit[harmless].mean(), rel=0.05, abs=0.05)


def test_a_direction_that_is_not_shown_to_separate_has_no_parts_named_and_tokens_no_farther_than_controls(
    tiny, monkeypatch
):
    measured = described.load_attribution(tiny)
    table, manifest = measured
    assert manifest.parts == (("attention", "mlp"),) * 4
    difference = table["measure"].eq(DIFFERENCE)
    above, below, unknown = (
        (table.assign(number_low=table["number_low"].mask(difference, low)), manifest) for low in (0.1, -0.1, np.nan)
    )
    for of_table, d_low, shown in (
        (above, 0.1, True),
        (above, -0.1, False),
        (below, 0.1, False),
        (unknown, 0.1, False),
    ):
        held_out(monkeypatch, tiny, d_low)
        for says in (described.verdict, described.what_adds):
            refused = says(tiny, of_table, 2) == (
                "At layer 2 of 4 it is not shown that the direction separates held-out prompts "
                f"(d 0.50, {d_low:.2f} to 1.00)."
            )
            assert refused is not shown
            assert "no sum" in says(tiny, measured, tiny.n_layers)
    assert described.part_table(above, 2)["added_share"].notna().all()
    assert described.part_table(below, 2)["added_share"].isna().all()
    chance = table.assign(p=1.0), manifest
    assert described.which_tokens(tiny, chance, 1).count("not shown to be farther than") == 2
    sure = table.assign(p=0.01), manifest
    assert "not shown" not in described.which_tokens(tiny, sure, 1)


def held_out(monkeypatch, run, d_low):
    """Let a run's evidence have a cross-fitted d of 0.5 whose interval begins there."""
    ends = {"crossfit_d": 0.5, "crossfit_d_low": d_low, "crossfit_d_high": 1.0}
    evidence = replace(run.evidence, sites=run.evidence.sites.assign(**ends))
    monkeypatch.setattr(type(run), "evidence", property(lambda run: evidence))


def test_the_largest_part_is_named_as_such_only_where_no_other_may_be_larger(tiny, monkeypatch):
    held_out(monkeypatch, tiny, 0.1)
    table, manifest = described.load_attribution(tiny)
    first = table["measure"].eq(ADDED) & table["site"].eq(1) & table["part"].eq(MLP) & table["block"].eq(0)
    of_site = table["measure"].eq(ADDED) & table["site"].eq(1)
    for high, said in (
        (7.0, "the MLP of block 0 adds more to the direction than any other part."),
        (8.5, "the MLP of block 0 adds most to the direction, not told apart from 4 other parts."),
    ):
        shown = table.copy()
        shown.loc[of_site, ["number", "number_low", "number_high"]] = [1.0, 0.5, high]
        shown.loc[table["measure"].eq(DIFFERENCE), "number_low"] = 1.0
        shown.loc[first, ["number", "number_low", "number_high"]] = [9.0, 8.0, 10.0]
        assert described.verdict(tiny, (shown, manifest), 1).endswith(said)


def test_a_model_whose_stream_is_no_sum_has_words_and_a_reason(tiny_run, tiny_chat_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.run_id)
    run = open_run(tiny_run.run_id, tmp_path)
    # As a model that divides its stream does.
    block = tiny_chat_model.blocks[1]
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda *given, **options: _halved(forward(*given, **options)))
    record(run, tiny_chat_model, draws=DRAWS, controls=CONTROLS)
    measured = described.load_attribution(run)
    assert set(measured[0]["measure"]).isdisjoint({ADDED, DIFFERENCE})
    assert "block 1 of" in described.what_adds(run, measured, 2)
    assert "cannot be said" in described.verdict(run, measured, 2)
    assert len(described.token_table(measured, 2)) == 10


def test_what_takes_the_place_of_attention_in_a_model_that_hands_on_a_state_is_called_a_mixer(planted):
    table, manifest = described.load_attribution(planted)
    assert not manifest.recurrent
    recurrent = table, manifest.model_copy(update={"recurrent": True})
    assert f"the mixer of block {PLANTED_LAYER} " in described.what_adds(planted, recurrent, READING_LAYER)
    assert "attention" not in " ".join(described.part_table(recurrent, READING_LAYER)["part"])
    assert {"mixer", "MLP"} <= {trace.name for trace in figures.parts(planted, recurrent, READING_LAYER).data}


def test_of_fewer_prompts_than_intervals_hold_for_there_are_words_and_a_reason(
    tiny_run, tiny_chat_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(attribution, "FEWEST_GROUPS", FEW + 1)
    run = measured_copy(tiny_run, tiny_chat_model, tmp_path)
    measured = described.load_attribution(run)
    assert set(measured[0]["measure"]).isdisjoint({ADDED, DIFFERENCE})
    assert described.what_adds(run, measured, 2) == "Missing: it takes 13 prompts, or pairs, of either label."
    assert len(described.token_table(measured, 2)) == 10


def _halved(output):
    return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2


def test_tables_that_lack_or_repeat_rows_are_refused(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / tiny.run_id)
    run = open_run(tiny.run_id, tmp_path)
    table, manifest = described.load_attribution(run)
    at = table["site"].eq(2)
    for broken in (
        table[~(at & table["part"].eq(MLP) & table["block"].eq(1))],
        table[~(at & table["measure"].eq(DIFFERENCE))],
        table[~(at & table["measure"].eq(RAISED) & table["rank"].eq(3))],
        table[~(at & table["measure"].eq(LOWERED) & table["rank"].eq(10))],
        table[~(at & table["measure"].eq(RAISED_MEAN))],
        table.iloc[np.repeat(np.arange(len(table)), 1 + (at & table["measure"].eq(DIFFERENCE)))],
    ):
        save_addition(run, broken, manifest)
        with pytest.raises(RunError, match="incomplete at site 2 or has rows twice"):
            described.load_attribution(run)
    save_addition(run, table, manifest.model_copy(update={"parts": manifest.parts[:2]}))
    with pytest.raises(RunError, match="other depth"):
        described.load_attribution(run)
    save_addition(run, table, manifest)
    stored = json.loads((run.path / "attribution.json").read_text())
    (run.path / "attribution.json").write_text(json.dumps(stored | {"parts": [["<b>", "mlp"]] * 4}))
    with pytest.raises(RunError, match="parts"):
        described.load_attribution(run)


def test_a_strangers_table_of_whole_floats_or_without_rows_is_shown(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / tiny.run_id)
    run = open_run(tiny.run_id, tmp_path)
    table, manifest = described.load_attribution(run)
    save_addition(run, table.astype(dict.fromkeys(("site", "block", "rank"), "float64")), manifest)
    pd.testing.assert_frame_equal(described.load_attribution(run)[0], table)
    for rows in (table["measure"].isin([]), table["measure"].isin([ADDED, DIFFERENCE])):
        save_addition(run, table[rows], manifest)
        measured = described.load_attribution(run)
        assert figures.tokens(run, measured).data
        assert "there is no direction" in described.which_tokens(run, measured, 1)
        assert described.token_table(measured, 1).empty


def test_another_model_is_refused(tiny):
    with pytest.raises(ModelError, match="in memory is not the one of this run"):
        record(tiny, tiny_model("qwen2", num_hidden_layers=2))


def test_an_imported_direction_is_attributed_as_it_is(tiny_run, tiny_chat_model, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.run_id)
    run = open_run(tiny_run.run_id, tmp_path)
    object.__setattr__(run.directions, "imported", True)
    record(run, tiny_chat_model, draws=DRAWS, controls=CONTROLS)
    table, _ = measured = described.load_attribution(run)
    harmful, harmless = (run.rows(label) for label in ("harmful", "harmless"))
    for layer in range(run.n_layers):
        whole = run.projections[harmful, layer].mean() - run.projections[harmless, layer].mean()
        assert described.added_at(measured, layer)["number"].sum() == pytest.approx(whole, abs=1e-3)
    assert table["again"].isna().all()
    assert "raised_again" not in described.token_table(measured, 1)
