"""Every page shows a run on imported vectors, and says what it is."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from synthetic import N_LAYERS, PAGES_OF_A_RUN, WIDTH, save_with_activations

from refusal_core.pipeline.imported import import_direction
from refusal_core.runs import store
from refusal_core.runs.run import Run
from refusal_core.ui import jobs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The planted direction of three layers and none of the others, imported into a made-up run."""
    cache = tmp_path_factory.mktemp("imported") / "cache"
    run = save_with_activations(cache)
    file = cache.parent / "theirs.npy"
    vectors = np.zeros((N_LAYERS, WIDTH), np.float32)
    vectors[2:5, 0] = 1
    np.save(file, vectors)
    return import_direction(run, file, "blocks").run


@pytest.fixture(autouse=True)
def _cache(imported: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFUSAL_CACHE", str(imported.path.parent))
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.mark.parametrize("site", [0, 3, N_LAYERS])
@pytest.mark.parametrize("page", PAGES_OF_A_RUN)
def test_every_page_opens_and_names_the_file(page: str | None, site: int, imported: Run) -> None:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params["run"], app.query_params["site"] = imported.run_id, str(site)
    app.run()
    if page is not None:
        app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    assert any(
        "theirs.npy" in text.value and "made from these prompts is not known here" in text.value for text in app.text
    )
    if page == "3_Outliers":
        assert any("was imported, so leaving out" in caption.value for caption in app.caption)
    if page == "2_Evidence":
        assert any("made from these prompts is not known here" in caption.value for caption in app.caption)
    if page == "12_Subspace":
        assert any("not about the imported one" in caption.value for caption in app.caption)


def send(run_id: str, name: str, content: bytes, numbering: str | None = None, layer: int | None = None) -> AppTest:
    """The Runs page of a new visitor who has sent a file of vectors for a run."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params["run"] = run_id
    app.run().switch_page("pages/10_Runs.py").run()
    app.selectbox(key="vectors_numbering").set_value(numbering)
    app.number_input(key="vectors_layer").set_value(layer)
    app.file_uploader(key="vectors_file").upload(name, content, "application/octet-stream").run()
    assert not app.exception, app.exception
    return app


def started(app: AppTest) -> jobs.Job:
    """Press the button and return the job it began, when that has ended."""
    before = {job.name for job in jobs.all_jobs()}
    next(button for button in app.button if button.label == "Import the vectors").click().run()
    assert not app.exception, app.exception
    (job,) = [job for job in jobs.all_jobs() if job.name not in before]
    until = time.monotonic() + 120
    while (now := jobs.status(job.name)).state == "running" and time.monotonic() < until:
        time.sleep(0.2)
    return now


def test_vectors_are_imported_in_the_browser(imported: Run) -> None:
    parent = imported.manifest.direction.parent
    content = io.BytesIO()
    np.save(content, np.eye(WIDTH, dtype=np.float32)[0] * 3)
    sent = parent, "My <b>vector.npy", content.getvalue(), "blocks", -2
    job = started(send(*sent))
    assert job.state == "done", jobs.log(job.name)
    app = send(*sent)
    assert any("Imported, as a run of its own" in box.value for box in app.success)
    app.button(key="open_vectors").click().run()
    made = store.open_run(app.query_params["run"], imported.path.parent)
    assert made.manifest.direction.parent == parent
    assert made.manifest.direction.sites == (N_LAYERS - 2,)
    assert made.layer_stats["crossfit_d"].notna().sum() == 1


def test_a_file_that_is_no_vectors_is_refused_by_its_job(imported: Run) -> None:
    app = send(imported.manifest.direction.parent, "x.safetensors", b"no tensors")
    assert "x.safetensors cannot be read" in started(app).message
    assert "x.safetensors cannot be read" in "\n".join(each.value for each in [*app.run().text, *app.error])
