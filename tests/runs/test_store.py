from __future__ import annotations

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from synthetic import behaviour_manifest, save_large_run, synthetic_manifest

from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.effect_sizes import layer_statistics
from refusal_core.errors import RunError
from refusal_core.runs import run_files, store
from refusal_core.runs.additions import read_addition, save_addition
from refusal_core.runs.manifest import ACTIVATIONS, BehaviourManifest
from refusal_core.runs.run import Run
from refusal_core.runs.run_files import RunTables

RUN_ID = "tiny--pairs--8x8--0123abcd--float32"


def save(cache, run_id: str = RUN_ID, activations: bool = False) -> Run:
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2 == 0
    hidden = (rng.normal(size=(16, 4, 6)) + labels[:, None, None]).astype(np.float32)
    directions = fit_directions(hidden, labels)
    projections = directions.project(hidden)
    prompts = pd.DataFrame(
        {
            "prompt_id": [f"{i:012x}" for i in range(16)],
            "text": [f"prompt {i}" for i in range(16)],
            "label": np.where(labels, "harmful", "harmless"),
            "category": None,
            "pair_id": None,
            "source": "pairs",
            "note": None,
            "fitted": True,
            "n_tokens": 12,
            "first_token": "I",
            "refusal_log_odds": 0.5,
        }
    )
    return store.save_run(
        synthetic_manifest(prompts, n_layers=3, d_model=6, run_id=run_id),
        RunTables(
            prompts,
            projections,
            projections - 1,
            layer_statistics(projections, labels, directions.magnitude),
            directions,
        ),
        evidence={},
        activations=hidden if activations else None,
        cache=cache,
    )


def test_what_is_saved_is_what_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "BLOCK", 5)
    saved = save(tmp_path, activations=True)
    opened = store.open_run(RUN_ID, tmp_path)
    np.testing.assert_array_equal(saved.projections, opened.projections)
    np.testing.assert_array_equal(opened.projections_crossfit, opened.projections - 1)
    hidden = opened.load_activations()
    assert hidden.shape == (16, 4, 6)
    np.testing.assert_array_equal(load_file(opened.path / ACTIVATIONS)["activations"], hidden)
    np.testing.assert_allclose(opened.directions.project(hidden), opened.projections)
    assert (opened.n_layers, opened.n_sites) == (3, 4)
    assert set(store.verify_run(RUN_ID, tmp_path)) == {
        "prompts.parquet",
        "projections.parquet",
        "layer_stats.parquet",
        "directions.safetensors",
        "activations.safetensors",
    }


@pytest.mark.slow
def test_a_run_of_25000_prompts_opens_in_less_than_a_second(tmp_path):
    run_id = save_large_run(tmp_path)
    # Of the processor, since other programs may be using it too.
    started = time.process_time()
    run = store.open_run(run_id, tmp_path)
    assert time.process_time() - started < 1
    assert run.projections.shape == (25_000, 29)
    assert len(run.evidence.components) == 25_000 * 29


def test_only_whole_runs_are_ever_seen(tmp_path, monkeypatch):
    def dies(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_files, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert store.list_runs(tmp_path) == ([], [])


@pytest.mark.parametrize(
    "file", ["prompts.parquet", "projections.parquet", "layer_stats.parquet", "directions.safetensors"]
)
def test_a_changed_file_is_reported_by_name_and_the_others_still_open(tmp_path, file):
    save(tmp_path)
    save(tmp_path, "another--run")
    path = tmp_path / RUN_ID / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"{RUN_ID}.*{file}"):
        store.open_run(RUN_ID, tmp_path)
    found, broken = store.list_runs(tmp_path)
    assert [summary.run_id for summary in found] == ["another--run"]
    assert [problem.name for problem in broken] == [RUN_ID]
    assert file in broken[0].reason
    assert path.read_bytes() == bytes(content)


def test_runs_are_held_to_their_schemas_once_and_their_files_to_the_manifest_at_every_listing(tmp_path, monkeypatch):
    save(tmp_path)
    opened, listed = [], store._opened
    monkeypatch.setattr(store, "_opened", lambda path, *rest: opened.append(path.name) or listed(path, *rest))

    def in_a_new_process() -> list[str]:
        monkeypatch.setattr(store, "_SOUND", set())
        return [summary.run_id for summary in store.list_runs(tmp_path)[0]]

    assert in_a_new_process() == in_a_new_process() == [RUN_ID]
    assert opened == [RUN_ID]
    for unreadable in ("{", "3", "[[]]"):
        (tmp_path / ".sound.json").write_text(unreadable)
        assert in_a_new_process() == in_a_new_process() == [RUN_ID]
    assert opened == [RUN_ID] * 4
    monkeypatch.setattr(store, "__version__", "another")
    assert in_a_new_process() == [RUN_ID]
    assert opened == [RUN_ID] * 5
    (tmp_path / RUN_ID / "layer_stats.parquet").write_bytes(b"other")
    assert in_a_new_process() == []
    assert json.loads((tmp_path / ".sound.json").read_text()) == []
    # A link is not followed: what lies behind it is a stranger's, or has no end.
    (tmp_path / ".sound.json").unlink()
    (tmp_path / ".sound.json").symlink_to("/dev/zero")
    assert in_a_new_process() == []


def _edit_manifest(cache, **changes) -> None:
    path = cache / RUN_ID / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_is_left_alone(tmp_path):
    save(tmp_path)
    _edit_manifest(tmp_path, format_version=99)
    with pytest.raises(RunError, match="format version 99"):
        store.open_run(RUN_ID, tmp_path)


@pytest.mark.parametrize("name", ["../../secret", "prompts.pkl", "/etc/passwd"])
def test_a_manifest_cannot_point_elsewhere(tmp_path, name):
    save(tmp_path)
    manifest = json.loads((tmp_path / RUN_ID / "manifest.json").read_text())
    _edit_manifest(tmp_path, files={**manifest["files"], name: "0" * 64})
    with pytest.raises(RunError, match="do not belong together"):
        store.open_run(RUN_ID, tmp_path)


def test_links_are_not_followed(tmp_path):
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    save(outside)
    cache.mkdir()
    (cache / "linked").symlink_to(outside / RUN_ID)
    with pytest.raises(RunError, match="link"):
        store.open_run("linked", cache)
    with pytest.raises(RunError, match="link"):
        store.delete_run("linked", cache)
    save(cache)
    file = cache / RUN_ID / "prompts.parquet"
    file.unlink()
    file.symlink_to(outside / RUN_ID / "prompts.parquet")
    with pytest.raises(RunError, match=r"prompts\.parquet"):
        store.open_run(RUN_ID, cache)


@pytest.mark.parametrize("run_id", ["..", "../x", "a/b", "", ".hidden", "A"])
def test_names_cannot_leave_the_cache(tmp_path, run_id):
    for action in (store.open_run, store.verify_run, store.delete_run):
        with pytest.raises(RunError):
            action(run_id, tmp_path)


def test_delete_removes_one_run_even_a_damaged_one(tmp_path):
    save(tmp_path)
    save(tmp_path, "another--run")
    (tmp_path / RUN_ID / "manifest.json").write_text("{")
    store.delete_run(RUN_ID, tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["another--run"]
    with pytest.raises(RunError, match="no run called"):
        store.delete_run(RUN_ID, tmp_path)


def test_a_deleted_run_comes_back_whole_within_a_week(tmp_path):
    save(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / RUN_ID).iterdir()}
    store.delete_run(RUN_ID, tmp_path)
    assert store.list_runs(tmp_path) == ([], [])
    assert store.deleted_runs(tmp_path) == [RUN_ID]
    store.restore_run(RUN_ID, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / RUN_ID).iterdir()} == before
    assert store.deleted_runs(tmp_path) == []
    with pytest.raises(RunError, match="no deleted run"):
        store.restore_run(RUN_ID, tmp_path)


def test_a_run_that_is_there_again_is_not_replaced_by_the_deleted_one(tmp_path):
    save(tmp_path)
    store.delete_run(RUN_ID, tmp_path)
    save(tmp_path)
    with pytest.raises(RunError, match="there again"):
        store.restore_run(RUN_ID, tmp_path)
    store.delete_run(RUN_ID, tmp_path)
    assert store.deleted_runs(tmp_path) == [RUN_ID]


def test_a_week_after_it_was_deleted_a_run_is_gone_however_old_it_was(tmp_path):
    path = save(tmp_path).path
    os.utime(path, (0, 0))
    store.delete_run(RUN_ID, tmp_path)
    store.writable_cache(tmp_path)
    assert store.deleted_runs(tmp_path) == [RUN_ID]
    eight_days_ago = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / f".deleted-{RUN_ID}", (eight_days_ago, eight_days_ago))
    store.writable_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_deleted_forever_is_gone_at_once(tmp_path):
    save(tmp_path)
    store.delete_run(RUN_ID, tmp_path, forever=True)
    assert list(tmp_path.iterdir()) == []


def test_saving_a_run_twice_keeps_the_first(tmp_path):
    save(tmp_path)
    before = (tmp_path / RUN_ID / "manifest.json").stat().st_mtime_ns
    save(tmp_path)
    assert (tmp_path / RUN_ID / "manifest.json").stat().st_mtime_ns == before
    assert len(list(tmp_path.iterdir())) == 1


def test_stray_files_in_the_cache_are_not_runs(tmp_path):
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "empty").mkdir()
    found, broken = store.list_runs(tmp_path)
    assert found == []
    assert [problem.name for problem in broken] == ["empty"]


@pytest.mark.parametrize("lacks", ["created", "prompts", "model", "template", "transfer"])
def test_a_manifest_that_lacks_what_pages_rely_on_is_no_run(tmp_path, lacks):
    save(tmp_path)
    path = tmp_path / RUN_ID / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[lacks]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=f"lacks {lacks}"):
        store.open_run(RUN_ID, tmp_path)
    assert store.list_runs(tmp_path)[1][0].name == RUN_ID


@pytest.mark.parametrize(("part", "value"), [("n_layers", "3"), ("n_layers", 7), ("quantisation", ["x"]), ("name", 3)])
def test_a_manifest_with_other_kinds_of_values_is_no_run(tmp_path, part, value):
    save(tmp_path)
    path = tmp_path / RUN_ID / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"][part] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError):
        store.open_run(RUN_ID, tmp_path)


def test_a_linked_manifest_is_not_followed(tmp_path):
    save(tmp_path)
    path = tmp_path / RUN_ID / "manifest.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(RunError, match="is a link"):
        store.verify_run(RUN_ID, tmp_path)


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder"):
        store.writable_cache(tmp_path / "file")


def test_what_a_killed_process_left_behind_goes_when_nobody_goes_on_with_it(tmp_path):
    day = 86_400
    gone = {".partial-old": 1.1, ".unfinished-old": 31, ".unfinished-made": 0.1, "made/.behaviour": 31}
    stays = {".partial-new": 0.1, ".unfinished-new": 29, "made/.positions": 29}
    (tmp_path / "made").mkdir()
    for name, days in (gone | stays).items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - days * day,) * 2)
    store.writable_cache(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {*stays, "made"}


def test_a_later_measurement_lies_beside_the_run_and_changes_nothing_of_it(tmp_path):
    run = save(tmp_path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    for value in (1.0, 2.0):
        replies = run.prompts[["prompt_id"]].assign(phrase_log_odds=value, opening="Sure", opening_label="answers")
        save_addition(run, replies, behaviour_manifest())
        table, manifest = read_addition(run, BehaviourManifest)
        assert set(table["phrase_log_odds"]) == {value}
        assert manifest.run_id == RUN_ID
    assert {name: (run.path / name).read_bytes() for name in before} == before
    assert "behaviour.parquet" in store.verify_run(RUN_ID, tmp_path)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_damaged_or_foreign_measurement_is_refused(tmp_path):
    run, other = save(tmp_path), save(tmp_path, "other")
    save_addition(run, pd.DataFrame({"x": [1.0]}), behaviour_manifest())
    for name in ("behaviour.json", "behaviour.parquet"):
        (other.path / name).write_bytes((run.path / name).read_bytes())
    with pytest.raises(RunError, match="is not the table"):
        read_addition(other, BehaviourManifest)
    (run.path / "behaviour.parquet").write_bytes(b"x")
    with pytest.raises(RunError, match="is not the table"):
        store.verify_run(RUN_ID, tmp_path)
    (run.path / "behaviour.parquet").unlink()
    with pytest.raises(RunError, match="do not belong together"):
        read_addition(run, BehaviourManifest)


def test_a_title_is_shown_and_the_run_stays_as_it_is(tmp_path):
    save(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / RUN_ID).iterdir()}
    store.rename_run(RUN_ID, "  My  first\nrun ", tmp_path)
    assert store.list_runs(tmp_path)[0][0].title == "My first run"
    assert {path.name: path.read_bytes() for path in (tmp_path / RUN_ID).iterdir()} == before
    assert store.list_runs(tmp_path)[1] == []
    store.rename_run(RUN_ID, "", tmp_path)
    assert store.run_titles(tmp_path) == {}


def test_a_note_is_kept_beside_the_run_and_not_in_the_place_of_its_title(tmp_path):
    save(tmp_path)
    store.rename_run(RUN_ID, "My run", tmp_path)
    store.note_run(RUN_ID, " #paper\nfigure 2 ", tmp_path)
    (summary,), _ = store.list_runs(tmp_path)
    assert (summary.title, summary.note, summary.origin) == ("My run", "#paper figure 2", "")
    with pytest.raises(RunError, match="at most 300 printable"):
        store.note_run(RUN_ID, "x" * 301, tmp_path)
    store.note_run(RUN_ID, "", tmp_path)
    assert store.run_notes(tmp_path) == {}
    assert store.run_titles(tmp_path) == {RUN_ID: "My run"}


@pytest.mark.parametrize("title", ["x" * 81, "a\x1b[31m", "a\u202eb"])
def test_a_title_that_cannot_be_shown_is_refused(tmp_path, title):
    save(tmp_path)
    with pytest.raises(RunError, match="printable"):
        store.rename_run(RUN_ID, title, tmp_path)
    with pytest.raises(RunError, match="nothing was changed"):
        store.rename_run("another--run", "x", tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\xff"])
def test_titles_that_cannot_be_read_are_none_and_are_not_written_over(tmp_path, content):
    save(tmp_path)
    kept = tmp_path / ".titles.json"
    kept.write_bytes(content.encode("latin-1"))
    assert store.list_runs(tmp_path)[0][0].title == ""
    with pytest.raises(RunError, match=r"titles\.json.*nothing was changed"):
        store.rename_run(RUN_ID, "My run", tmp_path)
    assert kept.read_bytes() == content.encode("latin-1")


def test_a_title_that_cannot_be_shown_hides_no_other_and_a_save_removes_none(tmp_path):
    save(tmp_path)
    kept = {"a": "Another", "b": "\u0007", "c": "x" * 81}
    (tmp_path / ".titles.json").write_text(json.dumps(kept))
    assert store.run_titles(tmp_path) == {"a": "Another"}
    store.rename_run(RUN_ID, "My run", tmp_path)
    assert json.loads((tmp_path / ".titles.json").read_text()) == {**kept, RUN_ID: "My run"}
