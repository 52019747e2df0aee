"""A refit is the run that its prompts would have made without those left out, however their activations are had."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from making import make_run

from refusal_core.annotations import marks
from refusal_core.annotations.marks import Mark
from refusal_core.cli.main import main
from refusal_core.errors import PromptError, RefusalError, RunError
from refusal_core.evidence.claims import probe_source
from refusal_core.exploration import refits
from refusal_core.models.opening import load_model
from refusal_core.pipeline.refit import leave_out, refit, refit_id
from refusal_core.runs import store
from refusal_core.runs.manifest import ACTIVATIONS, MANIFEST
from refusal_core.runs.run import LEFT_OUT

OPTIONS = {"dtype": "float32", "device": "cpu", "transfer": ("borderline",)}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A contrast set of 14 pairs and 6 unpaired prompts, as a file."""
    from refusal_core.prompts.sets import load_contrast_set

    table = load_contrast_set("pairs", limit=14).table[["text", "label", "category", "pair_id"]]
    more = pd.DataFrame(
        [
            (f"Tell me of {word} {label}", label, "Odd", None)
            for word in ("a", "b", "c")
            for label in ("harmful", "harmless")
        ],
        columns=table.columns,
    )
    path = tmp_path_factory.mktemp("prompts") / "mine.csv"
    pd.concat([table, more]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def parent(prompts, tiny_folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return make_run(tiny_folder, str(prompts), keep_activations=True, cache=cache, **OPTIONS).run


@pytest.fixture(scope="module")
def out(parent):
    """One prompt of a pair, one without a twin, and one of a transfer set."""
    table = parent.prompts
    return [
        table["prompt_id"][4],
        table.loc[table["category"].eq("Odd"), "prompt_id"].iloc[0],
        table.loc[table["source"].eq("borderline"), "prompt_id"].iloc[3],
    ]


@pytest.fixture(scope="module")
def plain(parent, out, prompts, tiny_folder, tmp_path_factory):
    """The run on a file without those prompts."""
    gone = parent.prompts[parent.prompts["prompt_id"].isin(out)]
    table = pd.read_csv(prompts)
    table = table[~table["text"].isin(gone["text"]) & ~table["pair_id"].isin(gone["pair_id"].dropna())]
    path = tmp_path_factory.mktemp("less") / "mine.csv"
    table.to_csv(path, index=False)
    return make_run(tiny_folder, str(path), cache=path.parent / "cache", **OPTIONS).run


@pytest.fixture(scope="module")
def once(parent, out):
    """A refit without the first of them."""
    return refit(parent, out[:1]).run


def without_activations(run: store.Run, cache) -> store.Run:
    """The run as it would be had its activations not been kept."""
    cache.mkdir()
    shutil.copytree(run.path, cache / run.run_id)
    (cache / run.run_id / ACTIVATIONS).unlink()
    path = cache / run.run_id / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["files"][ACTIVATIONS]
    path.write_text(json.dumps(manifest))
    return store.open_run(run.run_id, cache)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["stored", "extracted again"])
def test_a_refit_is_the_run_without_those_prompts(parent, out, plain, tiny_folder, tmp_path, kept, monkeypatch):
    run = parent if kept else without_activations(parent, tmp_path / "cache")
    if kept:
        monkeypatch.setattr(
            "refusal_core.pipeline.scoring.load_model_for", lambda *a: pytest.fail("the model was loaded")
        )
    made = refit(run, out, model=tiny_folder, device="cpu").run
    fitted = made.prompts["fitted"].to_numpy()
    columns = ["prompt_id", "text", "label", "category", "pair_id"]
    pd.testing.assert_frame_equal(
        made.prompts.loc[fitted, columns].reset_index(drop=True), plain.prompts.loc[plain.rows(), columns]
    )
    np.testing.assert_allclose(made.directions.harmful_mean, plain.directions.harmful_mean, atol=1e-5)
    for number in ("magnitude", "in_sample_d", "crossfit_d", "probe_d", "probe_auroc", "mean_crossings"):
        np.testing.assert_allclose(made.layer_stats[number], plain.layer_stats[number], rtol=1e-3, err_msg=number)
    np.testing.assert_allclose(
        made.projections_crossfit[fitted], plain.projections_crossfit[plain.rows()], rtol=1e-3, atol=1e-3
    )
    ours, theirs = (run.evidence.transfer.query("source == 'quartets'") for run in (made, plain))
    np.testing.assert_allclose(ours["d_low"], theirs["d_low"], rtol=1e-3, atol=1e-3)
    # A pair whole, the one without a twin, and the one of the transfer set.
    left_out = made.prompts[made.prompts["source"].eq(LEFT_OUT)]
    assert set(out) < set(left_out["prompt_id"])
    assert len(left_out) == 4
    assert not left_out["fitted"].any()
    assert made.transfer_sources[-1] == LEFT_OUT
    assert np.isfinite(made.projections).all()
    described = made.manifest.refit
    assert described.parent == parent.run_id
    assert described.left_out == 4
    assert described.activations == ("stored" if kept else "extracted again")
    assert made.manifest.prompts.counts == plain.manifest.prompts.counts
    assert {scored.name: sum(scored.counts.values()) for scored in made.manifest.transfer} == {
        "quartets": 536,
        "borderline": 47,
        LEFT_OUT: 4,
    }
    assert store.verify_run(made.run_id, made.path.parent)


def test_the_same_refit_is_found_again_and_another_is_another(parent, out):
    made = refit(parent, out).run
    again = refit(parent, out[::-1])
    assert again.cached
    assert again.run.run_id == made.run_id == refit_id(parent, out)
    assert refit_id(parent, out[:2]) != made.run_id
    twin = parent.prompts["prompt_id"][5]
    assert refit_id(parent, [twin, *out[1:]]) == made.run_id


def test_a_refit_of_a_refit_is_one_of_the_original(parent, once, out):
    assert refit_id(once, out[1:]) == refit_id(parent, out) == refit(parent, out).run.run_id
    assert refit(once, out[1:]).run.manifest.refit.parent == parent.run_id


@pytest.mark.slow
def test_a_refit_whose_original_is_gone_is_a_run_like_any_other(once, out, tiny_folder, tmp_path):
    shutil.copytree(once.path, tmp_path / once.run_id)
    alone = store.open_run(once.run_id, tmp_path)
    made = refit(alone, out[1:2], model=tiny_folder, device="cpu").run
    assert made.manifest.refit.parent == once.run_id
    assert made.prompts["source"].eq(LEFT_OUT).sum() == 3


def test_pairs_go_whole_and_pairs_of_two_sets_are_not_confused(parent):
    table = parent.prompts.copy()
    probe = table.index[table["source"].eq("quartets")][0]
    table["pair_id"] = table["pair_id"].replace(table["pair_id"][probe], table["pair_id"][0])
    left = leave_out(table, [table["prompt_id"][0]])
    gone = left[left["source"].eq(LEFT_OUT)]
    assert sorted(gone.index) == [0, 1]
    assert left.index[-2:].tolist() == sorted(gone.index)
    both = leave_out(table, table["prompt_id"][[0, probe]])
    gone = both[both["source"].eq(LEFT_OUT)]
    # Of the quartet, one pair has a name of the contrast set by now, so that it is none any more.
    assert gone["pair_id"].value_counts().tolist() == [2, 2]


def test_a_quartet_goes_whole(parent):
    alarming = parent.prompts[parent.prompts["pair_id"].str.endswith("-alarming", na=False)].iloc[0]
    left = leave_out(parent.prompts, [alarming["prompt_id"]])
    gone = left[left["source"].eq(LEFT_OUT)]
    quartet = f"quartets {alarming['pair_id'].removesuffix('-alarming')}"
    assert sorted(gone["pair_id"]) == [f"{quartet}-alarming"] * 2 + [f"{quartet}-calm"] * 2


def test_what_cannot_be_left_out_is_one_sentence(parent):
    harmful = parent.prompts.loc[parent.rows("harmful"), "prompt_id"]
    with pytest.raises(PromptError, match=r"0 harmful ones are left to fit on, expected at least 8: leave fewer out"):
        refit(parent, harmful)
    with pytest.raises(PromptError, match="expected prompts of this run"):
        refit(parent, ["0" * 12])


def test_the_model_is_asked_for_when_activations_were_not_kept(parent, out, tmp_path):
    run = without_activations(parent, tmp_path / "cache")
    with pytest.raises(RunError, match="say where it is"):
        refit(run, out)
    assert len(store.list_runs(tmp_path / "cache")[0]) == 1


def test_stored_activations_are_read_from_the_file_and_checked(parent, out, tiny_folder, tmp_path):
    hidden = parent.load_activations()
    assert isinstance(hidden, np.memmap)
    harmful = hidden[parent.rows("harmful")].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(harmful, parent.directions.harmful_mean, rtol=1e-5, atol=1e-6)
    shutil.copytree(parent.path, tmp_path / parent.run_id)
    path = tmp_path / parent.run_id / ACTIVATIONS
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"activations.safetensors is not the file the manifest describes"):
        refit(store.open_run(parent.run_id, tmp_path), out)


def test_a_transfer_set_cannot_take_the_name_of_what_is_left_out(tiny_folder, tmp_path):
    (tmp_path / "left-out.csv").write_text("text,label\nA prompt,harmful\n")
    with pytest.raises(RefusalError, match="that a refit leaves out"):
        make_run(tiny_folder, "pairs", limit_per_label=8, transfer=(str(tmp_path / "left-out.csv"),), cache=tmp_path)


def test_a_change_is_told_site_by_site(parent, out):
    after = refit(parent, out).run
    change = refits.compare(parent, after)
    assert change.table["in_sample_d_before"].equals(parent.layer_stats["in_sample_d"].rename("in_sample_d_before"))
    assert change.table["probe_d_after"].equals(after.layer_stats["probe_d"].rename("probe_d_after"))
    site = 2
    one, two = (run.directions.harmful_mean[site] - run.directions.harmless_mean[site] for run in (parent, after))
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert change.table["cosine"][site] == pytest.approx(cosine, rel=1e-4)
    assert change.table["cosine"].lt(1 - 1e-6).all()
    said = refits.describe_change(change)
    best = int(after.layer_stats["crossfit_d"].idxmax())
    assert f"{after.layer_stats['crossfit_d'][best]:.2f} after" in said
    assert after.site_label(best) in said
    assert len(change.left_out) == 4
    with pytest.raises(RunError, match="no refit of"):
        refits.compare(after, parent)


def test_what_is_left_out_is_no_set_to_ask_about_harm(once):
    evidence = once.evidence
    assert probe_source(evidence) == "quartets"
    alone = replace(evidence, transfer=evidence.transfer[evidence.transfer["source"].eq(LEFT_OUT)])
    assert len(alone.transfer)
    assert probe_source(alone) is None


def test_the_command_line_refits_without_what_is_marked(parent, once, out, tmp_path, capsys):
    cache = parent.path.parent
    command = ["refit", parent.run_id, "--cache", str(cache)]
    assert main(command) == 1
    assert "expected prompts of this run to leave out" in capsys.readouterr().err
    text = parent.prompts.set_index("prompt_id")["text"]
    kinds = ("mislabelled", "ambiguous", "ambiguous")
    marks.save_marks([Mark(each, text[each], kind) for each, kind in zip(out, kinds, strict=True)], cache)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == once.run_id
    assert "Left out: 1 harmful, 1 harmless." in printed
    assert main([*command, "--marked", "mislabelled,ambiguous"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == refit_id(parent, out)
    (tmp_path / "ids.csv").write_text(f"prompt_id\n{out[0]}\n")
    assert main([*command, "--without", str(tmp_path / "ids.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == once.run_id
    assert main([*command, "--marked", "odd"]) == 1
    assert "found 'odd'" in capsys.readouterr().err


def test_a_stranger_s_manifest_is_checked(parent, out, tmp_path):
    made = refit(parent, out).run
    shutil.copytree(made.path, tmp_path / made.run_id)
    path = tmp_path / made.run_id / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"refit": {**manifest["refit"], "parent": "../../elsewhere"}}))
    alone = store.open_run(made.run_id, tmp_path)
    assert refit_id(alone, out[:0] or [alone.prompts["prompt_id"][0]])
    path.write_text(json.dumps(manifest | {"refit": {"parent": 3}}))
    with pytest.raises(RunError, match="refit"):
        store.open_run(made.run_id, tmp_path)


def test_what_is_scored_of_the_left_out_is_their_projection(parent, out, tiny_folder):
    made = refit(parent, out).run
    chat_model = load_model(tiny_folder, dtype="float32", device="cpu")
    from refusal_core.pipeline.scoring import score

    row = int(np.flatnonzero(made.prompts["source"].eq(LEFT_OUT))[0])
    found = score(chat_model, made, [made.prompts["text"][row]])[0]
    np.testing.assert_allclose(found.projection, made.projections[row], rtol=1e-3, atol=1e-3)
