"""Who may only look is told of nothing where it is on the machine, whatever is broken and whatever was started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from synthetic import RUN

from refusal_core.access.guard import ROLE_HEADER
from refusal_core.errors import AccessError, RefusalError
from refusal_core.ui import jobs, server, slow_downloads
from refusal_core.ui.frame import PAGES

ROOT = Path(__file__).resolve().parents[2]
SECRET = "secret place"


def texts(app: AppTest) -> str:
    """All that the browser is sent of a page."""
    return "\n".join(str(getattr(node, "proto", "")) for block in (app.main, app.sidebar) for node in block)


@pytest.fixture
def broken(synthetic_cache, tmp_path, monkeypatch) -> Path:
    """A cache in which little but a run can be read, and jobs and errors with a model's path in all that they say."""
    cache = tmp_path / SECRET / "cache"
    shutil.copytree(synthetic_cache, cache)
    monkeypatch.setenv("REFUSAL_CACHE", str(cache))
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / SECRET / "models"))
    st.cache_data.clear()
    st.cache_resource.clear()
    for name, file in (("damaged", "manifest.json"), ("broken", "layer_stats.parquet")):
        shutil.copytree(cache / RUN, cache / name)
        (cache / name / file).write_text("{")
    for name in ("behaviour", "intervention", "subspace", "positions", "trajectory", "attribution", "lists"):
        (cache / RUN / f"{name}.json").write_text("{")
    for name in (".marks.jsonl", ".titles.json", ".notes.json"):
        (cache / name).write_text("[")
    (cache / ".ratings").mkdir()
    (cache / ".ratings" / "ana.csv").write_text("x")
    model = f"{tmp_path / SECRET}/llama"
    monkeypatch.setattr(RefusalError, "__str__", lambda error: f"{Exception.__str__(error)}: {model}")
    jobs_folder = cache / ".jobs"
    jobs_folder.mkdir()
    for number, (state, title) in enumerate((("failed", model), ("failed", "x"), ("cancelled", model))):
        command = jobs.Command(f"{title} on pairs", "run", (f"--model={model}", str(number)))
        record = {"title": command.title, "verb": "run", "arguments": command.arguments, "pid": None, "began": 0.0}
        (jobs_folder / f"{command.name}.json").write_text(json.dumps(record | {"cancelled": False}))
        progress = {"state": state, "message": f"{model}: no weights", "updated": 1.0}
        (jobs_folder / f"{command.name}.progress").write_text(json.dumps(progress))
        (jobs_folder / f"{command.name}.log").write_text(f"error: {model}: no weights")
    return cache


def seen(page: str, role: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(type(st.context), "headers", property(lambda self: {ROLE_HEADER: role}))
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params["run"] = RUN
    app.run()
    if page != "app.py":
        app.switch_page(page).run()
    assert not app.exception, app.exception
    return texts(app)


@pytest.mark.parametrize("page", [file for file, *_ in PAGES])
def test_a_viewer_is_told_of_no_place(broken, monkeypatch, page):
    assert SECRET not in seen(page, "viewer", monkeypatch)


def test_the_owner_is_told_of_places(broken, monkeypatch):
    assert seen("pages/10_Runs.py", "owner", monkeypatch).count(SECRET) >= 4


def test_a_page_that_was_closed_while_its_program_runs_is_nobody_s(synthetic_cache, monkeypatch):
    """Streamlit has no headers of it any more, and so no role."""
    monkeypatch.setattr(server, "is_page", lambda: True)
    monkeypatch.setattr(server, "_guarded", True)
    monkeypatch.setattr(type(st.context), "headers", property(lambda self: {}))
    assert not server.may_change()
    with pytest.raises(AccessError, match="owner's"):
        jobs.start(jobs.Command("x", "run", ("--help",)))


@pytest.mark.parametrize(
    ("page", "label"),
    [
        ("app.py", "Everything, as one zip"),
        ("pages/1_Layers.py", "Save as PNG for a slide"),
        ("pages/10_Runs.py", "Pack and download"),
    ],
)
def test_what_takes_long_to_make_waits_for_others_where_one_may_only_look(synthetic_cache, monkeypatch, page, label):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))
    monkeypatch.setattr(slow_downloads, "MOST_AT_ONCE", 0)
    offered, real = {}, st.download_button

    def recorded(name, data, *given, **options):
        offered[name] = data
        return real(name, data, *given, **options)

    monkeypatch.setattr(st, "download_button", recorded)
    seen(page, "viewer", monkeypatch)
    with pytest.raises(RefusalError, match="as many downloads"):
        offered[label]()
