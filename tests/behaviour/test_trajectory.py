"""The projection along replies: what a plain pass over prompt and reply reads, stored, described, refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import save_trajectory, with_tables
from tiny import PLANTED_LAYER, tiny_model

from refusal_core.behaviour.trajectory import record
from refusal_core.errors import ModelError, RunError
from refusal_core.exploration import trajectory as described
from refusal_core.models.opening import load_model
from refusal_core.models.templates import render
from refusal_core.options import TrajectoryOptions
from refusal_core.runs.additions import save_addition
from refusal_core.runs.store import open_run

OPTIONS = TrajectoryOptions(limit_per_label=10, reply_tokens=6)


@pytest.fixture(scope="module")
def tiny(tiny_run, tiny_chat_model, tmp_path_factory):
    """The tiny model's run with its trajectories."""
    cache = tmp_path_factory.mktemp("trajectory")
    shutil.copytree(tiny_run.path, cache / tiny_run.run_id)
    run = open_run(tiny_run.run_id, cache)
    record(run, tiny_chat_model, OPTIONS)
    return run


def test_projections_are_those_of_a_plain_pass_over_prompt_and_greedy_reply(tiny, tiny_chat_model):
    measured = described.load_trajectory(tiny)
    assert measured.manifest.prompts.source == "quartets"
    assert not measured.manifest.fitted
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    for place in (0, 7):
        ids = render(tokenizer, measured.prompts["text"].iloc[place])
        whole = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0].tolist()
        own = whole[:-1] if whole[-1] in (0, 2) else whole
        states = model(torch.tensor([own]), output_hidden_states=True).hidden_states
        for layer in (0, 2):
            # hidden_states begin with the embeddings.
            along = states[layer + 1][0, len(ids) - 1 :].detach().numpy() @ tiny.directions.unit_direction[layer]
            found = measured.projections(layer)[place]
            np.testing.assert_allclose(found[: len(along)], along, atol=1e-4)
            assert np.isnan(found[len(along) :]).all()


def test_the_planted_model_s_own_prompts_end_where_the_run_read_them(planted_run, planted_folder, tmp_path):
    shutil.copytree(planted_run.path, tmp_path / planted_run.run_id)
    run = open_run(planted_run.run_id, tmp_path)
    source = run.contrast_name
    record(run, load_model(planted_folder, dtype="float32"), TrajectoryOptions(source=source, reply_tokens=8))
    measured = described.load_trajectory(run)
    rows = measured.prompts.index
    at_end = np.stack([measured.projections(site)[:, 0] for site in range(run.n_sites)], axis=1)
    np.testing.assert_allclose(at_end, run.projections[rows], atol=1e-3)
    said = measured.prompts.groupby("label")["reply"].unique()
    assert said["harmful"].tolist() == ["refused"]
    assert said["harmless"].tolist() == ["answered"]
    # No label is both refused and answered, so there is no gap within a kind of reply.
    assert "nothing can be said" in described.what_happens(run, measured, PLANTED_LAYER)
    curves = described.curves(measured, PLANTED_LAYER)
    assert set(zip(curves["label"], curves["reply"], strict=True)) == {("harmful", "refused"), ("harmless", "answered")}
    assert measured.manifest.fitted


@pytest.mark.parametrize("gap", [0.0, 3.0])
def test_a_gap_that_falls_along_the_reply_is_said_and_none_is_made_of_noise(run, synthetic_cache, tmp_path, gap):
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied, gap)
    measured = described.load_trajectory(copied)
    said = described.what_happens(copied, measured, 0)
    table = described.gaps(measured, 0).set_index("where")
    if gap:
        assert "the gap is not shown to change" in said
        assert "and falls (" in said
        assert table["gap_low"].iloc[:2].gt(1).all()
    else:
        assert said.count("is not shown to change") == 2
        assert (table["gap_low"] < 0).all()
    assert "Of the prompts that are answered, " in said
    assert "in-sample" in said


def test_a_gap_is_not_said_to_change_because_more_tokens_are_averaged(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied)
    stored = described.load_trajectory(copied)
    # The same gap at every token of 12, whose noise is their own: the mean of three would have a gap twice as large.
    rows = stored.prompts[["prompt_id", "label"]].merge(pd.DataFrame({"token": range(13)}), how="cross")
    rows = rows.merge(pd.DataFrame({"site": range(copied.n_sites)}), how="cross")
    noise = np.random.default_rng(0).normal(size=len(rows)) + 1.5 * rows.pop("label").eq("harmful")
    manifest = stored.manifest.model_copy(update={"reply_tokens": 12})
    save_addition(copied, rows.assign(reply="answers", thought=False, projection=noise), manifest)
    table = described.gaps(described.load_trajectory(copied), 0)
    assert table["gap"].between(1, 2.5).all()
    assert table["gap_change_low"].iloc[1:].lt(0).all()
    assert table["gap_change_high"].iloc[1:].gt(0).all()


def test_labels_that_move_apart_the_other_way_are_not_said_to_fall(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied, -3.0)
    measured = described.load_trajectory(copied)
    said = described.what_happens(copied, measured, 0)
    first = described.gaps(measured, 0).iloc[0]
    ends = f"({-first['gap_high']:.2f} to {-first['gap_low']:.2f})"
    assert f"harmful ones project d {-first['gap']:.2f} {ends} below " in said
    assert "and moves up (+" in said
    assert "falls" not in said
    assert "rises" not in said


def test_a_site_without_a_direction_and_replies_without_a_spread_have_no_numbers(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied)
    stored = described.load_trajectory(copied)
    # Every other pair is refused, and at the first site all of those project alike where the reply begins.
    refused = stored.table["prompt_id"].isin(stored.prompts["prompt_id"][stored.prompts.index // 2 % 2 == 0])
    alike = refused & stored.table["token"].eq(0) & stored.table["site"].eq(0)
    projection = stored.table["projection"].mask(alike, 1.0)
    reply = stored.table["reply"].mask(refused, "refuses")
    save_addition(copied, stored.table.assign(reply=reply, projection=projection), stored.manifest)
    measured = described.load_trajectory(copied)
    said = described.what_happens(copied, measured, 0)
    assert "prompts that are refused nothing can be said" in said
    answered = described.gaps(measured, 0).set_index("reply").loc["answered"]
    assert np.isfinite(answered[["gap_change_low", "gap_change_high"]].iloc[1:]).all(axis=None)
    assert "nan" not in said
    unit_direction = copied.directions.unit_direction * (np.arange(copied.n_sites) > 0)[:, None]
    without = with_tables(copied, directions=replace(copied.directions, unit_direction=unit_direction))
    assert described.what_happens(without, measured, 0).endswith(" there is no direction.")


def test_prompts_of_few_groups_are_few(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied)
    stored = described.load_trajectory(copied)
    assert len(described.gaps(stored, 0)) == 3
    stored.prompts["pair_id"] = [f"{place % 7}" for place in range(len(stored.prompts))]
    assert described.gaps(stored, 0).empty
    assert described.curves(stored, 0).empty


def test_what_few_long_replies_do_is_not_taken_for_what_most_do(run, tmp_path, monkeypatch):
    monkeypatch.setattr(described, "FEWEST", 2)
    shutil.copytree(run.path, tmp_path / run.run_id)
    copied = open_run(run.run_id, tmp_path)
    save_trajectory(copied)
    stored = described.load_trajectory(copied)
    # Two thirds of either label's replies end with token 5; what goes on is far away.
    ends = stored.table["prompt_id"].isin(stored.prompts["prompt_id"][stored.prompts.index % 6 > 1])
    table = stored.table[~(ends & stored.table["token"].gt(5))]
    table = table.assign(projection=table["projection"].where(table["token"].le(5), 100.0))
    save_addition(copied, table, stored.manifest)
    measured = described.load_trajectory(copied)
    assert described.curves(measured, 0).groupby("label")["token"].max().tolist() == [5, 5]
    assert described.gaps(measured, 0)["to_token"].eq(5).all()
    assert described.gaps(measured, 0)["n_harmful"].eq(16).all()
    assert described.curves(measured, 0)["projection"].max() < 10


def test_tables_that_lack_or_repeat_rows_or_are_of_other_prompts_are_refused(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / tiny.run_id)
    run = open_run(tiny.run_id, tmp_path)
    stored = described.load_trajectory(run)
    table, manifest = stored.table, stored.manifest
    one = table["token"].eq(1) & table["prompt_id"].eq(table["prompt_id"][0])
    for broken, message in (
        (table[~(one & table["site"].eq(2))], "lacks tokens or sites"),
        (table[~one], "lacks tokens or sites"),
        (pd.concat([table, table[one]]), "twice"),
        (table.assign(prompt_id="0" * 12), "other prompts"),
        (table.assign(token=table["token"].mask(one, 9)), "more tokens"),
        (table.assign(reply=table["reply"].mask(one, "cannot")), "two replies"),
        (table.assign(projection=np.inf), "infinite"),
        (table[:0], "other prompts"),
        # As many rows as there should be, but one has another's site, or another's token.
        (table.assign(site=table["site"].mask(one & table["site"].eq(2), 1)), "twice"),
        (table.assign(token=table["token"].mask(one, 2)), "twice"),
    ):
        save_addition(run, broken, manifest)
        with pytest.raises(RunError, match=message):
            described.load_trajectory(run)


def test_what_a_stranger_wrote_takes_no_more_memory_than_its_table_and_no_seed_that_cannot_be(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / tiny.run_id)
    run = open_run(tiny.run_id, tmp_path)
    stored = described.load_trajectory(run)
    for update in ({"reply_tokens": 10**6}, {"seed": -1}):
        save_addition(run, stored.table, stored.manifest.model_copy(update=update))
        with pytest.raises(RunError, match=next(iter(update))):
            described.load_trajectory(run)
    # Sites and tokens that are whole numbers, though of another type, and more tokens than any reply has.
    numbers = {"site": stored.table["site"].astype(float), "token": stored.table["token"].astype(float)}
    save_addition(run, stored.table.assign(**numbers), stored.manifest.model_copy(update={"reply_tokens": 4096}))
    measured = described.load_trajectory(run)
    np.testing.assert_array_equal(measured.projections(1), stored.projections(1))
    assert measured.projections(1).shape[1] == 1 + OPTIONS.reply_tokens
    assert described.what_happens(run, measured, 1)
    assert not described.thinking_share(measured)


def test_another_model_and_an_unknown_set_are_refused(tiny, tiny_chat_model):
    with pytest.raises(ModelError, match="in memory is not the one of this run"):
        record(tiny, tiny_model("qwen2", num_hidden_layers=2))
    with pytest.raises(RunError, match="expected a set of this run"):
        record(tiny, tiny_chat_model, TrajectoryOptions(source="nothing"))
