"""From a model folder and prompts to a run, by the API and by the command line, on a tiny random model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_run
from scipy import stats
from synthetic import changed

from refusal_core import exploration
from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import PACKED, ResidualReader
from refusal_core.errors import PromptError, RefusalError, RunError
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.pipeline import steps
from refusal_core.runs import store
from refusal_core.sharing.export import export_run
from refusal_core.ui import layout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A run of 12 + 12 bundled pairs, and the cache it is in."""
    cache = tmp_path_factory.mktemp("cache")
    result = make_run(
        tiny_folder, "pairs", limit_per_label=12, dtype="float32", device="cpu", keep_activations=True, cache=cache
    )
    assert not result.cached
    return result.run, cache


@pytest.fixture(scope="module")
def chat_model(tiny_folder) -> ChatModel:
    return load_model(tiny_folder, dtype="float32", device="cpu")


def test_a_run_holds_what_a_plain_computation_gives(made, chat_model):
    run, _ = made
    fitted = run.prompts[run.prompts["fitted"]]
    hidden = extract(chat_model, fitted["text"].tolist()).hidden.astype(float)
    harmful = fitted["label"].eq("harmful").to_numpy()
    for site in range(run.n_sites):
        difference = hidden[harmful, site].mean(0) - hidden[~harmful, site].mean(0)
        magnitude = np.linalg.norm(difference)
        assert run.layer_stats["magnitude"][site] == pytest.approx(magnitude, rel=1e-5)
        np.testing.assert_allclose(
            run.projections[: len(fitted), site], hidden[:, site] @ difference / magnitude, rtol=1e-4
        )


def test_transfer_prompts_are_scored_and_not_fitted(made):
    run, _ = made
    assert run.transfer_sources == ["quartets"]
    assert run.rows().sum() == 24
    assert np.isnan(run.projections_crossfit[~run.rows()]).all()
    assert np.isfinite(run.projections).all()
    probes = {label: run.projections[run.rows(label, "quartets"), 2] for label in ("harmful", "harmless")}
    greater = (probes["harmful"][:, None] > probes["harmless"]).mean()
    assert run.layer_stats["probe_auroc"][2] == pytest.approx(greater)


def test_the_same_request_finds_the_run_without_the_weights(made, tiny_folder, monkeypatch):
    run, cache = made
    monkeypatch.setattr(steps, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    again = make_run(tiny_folder, "pairs", limit_per_label=12, device="cpu", cache=cache)
    assert again.cached
    assert again.run.run_id == run.run_id


@pytest.mark.parametrize(
    "change", [{"limit_per_label": 13}, {"prompts": "everyday"}, {"seed": 1}, {"system_prompt": "Be brief."}]
)
def test_another_request_is_another_run(made, tiny_folder, change, monkeypatch):
    _, cache = made

    class Loaded(Exception):
        pass

    def load(*arguments, **options):
        raise Loaded

    monkeypatch.setattr(steps, "load_model", load)
    with pytest.raises(Loaded):
        make_run(tiny_folder, **{"prompts": "pairs", "limit_per_label": 12, "cache": cache, **change})


def test_the_manifest_says_what_was_done_and_nothing_of_the_machine(made, tiny_folder):
    run, cache = made
    text = (run.path / "manifest.json").read_text()
    manifest = json.loads(text)
    assert str(tiny_folder.parent) not in text
    assert str(cache) not in text
    assert manifest["model"]["sha256"]
    assert manifest["template"]["default_system_prompt"] == "You are a tiny model."
    assert manifest["prompts"]["counts"] == {"harmful": 12, "harmless": 12}
    assert manifest["compute"]["prefix_tokens"] > 0
    assert (
        manifest["compute"]["prefix_note"] == f"{manifest['compute']['prefix_tokens']} tokens, run once for all prompts"
    )
    assert manifest["compute"]["pack_note"] == PACKED
    assert set(manifest["timings"]) == {"load_seconds", "extract_seconds", "prompts_per_second"}


def test_what_a_run_is_made_of_says_how_prompts_were_read_together(made, monkeypatch):
    run, _ = made
    shown = []
    monkeypatch.setattr("streamlit.dataframe", lambda table, **_: shown.append(dict(table.to_numpy())))
    layout.run_facts(run)
    layout.run_facts(changed(run, compute={"pack_note": None}))
    assert [facts["prompts per pass"] for facts in shown] == [PACKED, "not recorded"]


def test_exported_files_have_the_published_form(made, tmp_path):
    from refusal_core.sharing.export import export_run

    run, _ = made
    export_run(run, tmp_path)
    names = ("validation_results.csv", "variance_by_layer.csv", "top10_layers.csv")
    tables = [pd.read_csv(tmp_path / name) for name in names]
    published = Path(exploration.__file__).parent / "published_tables"
    assert [list(table) for table in tables] == [list(pd.read_csv(published / name)) for name in names]
    validation, variance, _ = tables
    assert (variance["mean_separation"] == variance["harmful_mean"] - variance["harmless_mean"]).all()
    test = stats.ttest_ind(run.projections[run.rows("harmful")], run.projections[run.rows("harmless")])
    np.testing.assert_allclose(validation["p_value"], test.pvalue[[0, 1, 2, 4]], rtol=1e-12)
    # The study's last layer is our final norm; it never read our last layer.
    assert validation["layer"].tolist() == [0, 1, 2, 3]
    assert validation["magnitude"].iloc[-1] == pytest.approx(run.layer_stats["magnitude"][4])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["n_layers"] == 4
    assert summary["strongest_layer"] == int(validation.loc[validation["cohens_d"].idxmax(), "layer"])
    assert len(pd.read_csv(tmp_path / "layer_stats.csv")) == 5


def test_a_cached_run_without_activations_does_not_pass_for_one_with_them(tiny_folder, tmp_path):
    request = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path}
    make_run(tiny_folder, "pairs", **request)
    with pytest.raises(RefusalError, match="without its activations"):
        make_run(tiny_folder, "pairs", keep_activations=True, **request)


def test_a_cached_run_is_found_in_a_cache_that_cannot_be_written(made, tiny_folder, monkeypatch):
    def refuse(cache):
        raise RunError("read-only")

    monkeypatch.setattr("refusal_core.runs.store.writable_cache", refuse)
    request = {"dtype": "float32", "device": "cpu", "cache": made[1]}
    assert make_run(tiny_folder, "pairs", limit_per_label=12, **request).cached
    with pytest.raises(RunError, match="read-only"):
        make_run(tiny_folder, "pairs", limit_per_label=9, **request)


def test_a_run_is_never_exported_into(made):
    run, _ = made
    before = sorted(run.path.iterdir())
    with pytest.raises(RunError, match="never changed"):
        export_run(run, run.path)
    assert sorted(run.path.iterdir()) == before


KILLED = """
import os, signal, sys
from refusal_core.activations import passes
from refusal_core.cli.main import main

add, left = passes.FinishedPasses.add, int(sys.argv[1])

def add_and_die(self, *found):
    global left
    add(self, *found)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

passes.FinishedPasses.add = add_and_die
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "killed_at"), [(None, (8, 16, 24)), (2_000, (10, 20, 30))])
def test_a_run_that_is_killed_goes_on_where_it_was(size, killed_at, tiny_folder, tmp_path, monkeypatch):
    """Three processes are killed while they extract; the last one reads what they did not, and the run is the same."""
    cache, prompts = tmp_path / "cache", "pairs"
    if size is not None:
        prompts = str(tmp_path / "many.csv")
        texts = [f"Tell me {'more ' * (place % 40)}about number {place}" for place in range(size)]
        pd.DataFrame({"text": texts, "label": ["harmful", "harmless"] * (size // 2)}).to_csv(prompts, index=False)
    command = ["run", "--model", str(tiny_folder), "--prompts", prompts, "--dtype", "float32", "--device", "cpu"]
    for before, batches in pairwise((0, *killed_at)):
        # From within, since a process that watches may look too late.
        script = [sys.executable, "-c", KILLED, str(batches - before), *command, "--cache", str(cache)]
        assert subprocess.run(script, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
        assert len(finished_batches(cache)) == batches
    assert not store.list_runs(cache)[0]
    before = [prompt["row"] for batch in finished_batches(cache) for prompt in batch["prompts"]]
    assert len(before) == len(set(before))
    read, read_last = [], ResidualReader.read_last
    monkeypatch.setattr(
        ResidualReader, "read_last", lambda self, given, last=1: read.append(len(given)) or read_last(self, given, last)
    )
    killed = make_run(tiny_folder, prompts, dtype="float32", device="cpu", cache=cache).run
    now = sum(read)
    whole = make_run(tiny_folder, prompts, dtype="float32", device="cpu", cache=tmp_path / "other").run
    assert sum(read) - 2 * now == len(before)
    np.testing.assert_array_equal(killed.projections, whole.projections)
    np.testing.assert_array_equal(killed.prompts["refusal_log_odds"], whole.prompts["refusal_log_odds"])
    assert not list(cache.glob(".unfinished-*"))


def finished_batches(cache: Path) -> list[dict]:
    """The batches that an extraction that is under way has on disk."""
    kept = next(cache.glob(".unfinished-*/passes.jsonl"), None)
    # What follows the last line's end was being written.
    lines = [] if kept is None else kept.read_text(encoding="utf-8").split("\n")[1:-1]
    return [json.loads(line) for line in lines]


def test_two_processes_do_not_make_one_run_at_a_time(tmp_path):
    folder = store.unfinished_run("a-run", tmp_path)
    with (
        store.unfinished_work(folder, "the run a-run"),
        pytest.raises(RunError, match="the run a-run is under way in another process"),
        store.unfinished_work(folder, "the run a-run"),
    ):
        pass


@pytest.mark.parametrize(("error", "stays"), [(KeyboardInterrupt, True), (RunError, True), (PromptError, False)])
def test_unfinished_work_stays_unless_it_would_be_refused_again(tmp_path, error, stays):
    folder = store.unfinished_run("a-run", tmp_path)

    def work() -> None:
        with store.unfinished_work(folder, "the run a-run"):
            (folder / "passes.jsonl").write_text("{}")
            raise error

    with pytest.raises(error):
        work()
    assert folder.exists() is stays
    with store.unfinished_work(folder, "the run a-run"):
        pass
    assert not folder.exists()


def test_work_that_cannot_be_kept_is_an_error_in_words(tmp_path):
    folder = store.unfinished_run("a-run", tmp_path)
    folder.write_text("a file")
    with pytest.raises(RunError, match="work cannot be kept in"), store.unfinished_work(folder, "the run a-run"):
        pass
    folder.unlink()
    folder.symlink_to(tmp_path)
    with pytest.raises(RunError, match="links are not followed"), store.unfinished_work(folder, "the run a-run"):
        pass
