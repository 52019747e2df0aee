"""Every page shows a run whose direction is another estimator's, says so, and offers a refit with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from synthetic import PAGES_OF_A_RUN, save_with_activations

from refusal_core.options import ESTIMATORS
from refusal_core.pipeline.refit import refit
from refusal_core.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
TITLE = ESTIMATORS["whitened"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A made-up run with its activations."""
    cache = tmp_path_factory.mktemp("estimators") / "cache"
    return save_with_activations(cache)


@pytest.fixture(scope="module")
def whitened(parent: Run) -> Run:
    return refit(parent, estimator="whitened").run


@pytest.fixture(autouse=True)
def _cache(parent: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFUSAL_CACHE", str(parent.path.parent))
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    st.cache_data.clear()
    st.cache_resource.clear()


def page_of(run: Run, page: str | None, site: int = 3) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    app.query_params["run"], app.query_params["site"] = run.run_id, str(site)
    app.run()
    if page is not None:
        app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("page", PAGES_OF_A_RUN)
def test_every_page_opens_and_names_the_estimator(page: str | None, whitened: Run) -> None:
    app = page_of(whitened, page)
    assert any(f"Direction ({TITLE}): not the mean difference" in text.value for text in app.text)
    if page == "2_Evidence":
        assert any("fitted anew without every fold" in caption.value for caption in app.caption)
    if page == "12_Subspace":
        assert any("is about mean differences" in caption.value for caption in app.caption)


@pytest.mark.parametrize("page", [None, "2_Evidence"])
def test_a_run_of_mean_differences_says_nothing_of_it(page: str | None, parent: Run) -> None:
    app = page_of(parent, page)
    assert not any("not the mean difference" in text.value for text in app.text)
    assert not any("fitted anew without every fold" in caption.value for caption in app.caption)


def test_a_refit_is_offered_with_another_estimator_and_opened_where_there_is_one(parent: Run, whitened: Run) -> None:
    app = page_of(parent, "2_Evidence")
    app.session_state["estimator_open"] = True
    app.run()
    choice = app.selectbox(key=f"refit_estimator_{parent.run_id}")
    assert choice.value == "mean-difference"
    choice.select("orthogonal").run()
    assert not app.exception, app.exception
    assert any("without the model" in caption.value for caption in app.caption)
    assert any(button.label == "Refit with it" for button in app.button)
    app.selectbox(key=f"refit_estimator_{parent.run_id}").select("whitened").run()
    assert any(f"{TITLE} in place of mean difference" in text.value for text in app.markdown)
    app.button(key="open_estimator").click().run()
    assert app.query_params["run"] in (whitened.run_id, [whitened.run_id])
    # And back again.
    app.selectbox(key=f"refit_estimator_{whitened.run_id}").select("mean-difference").run()
    app.button(key="open_estimator").click().run()
    assert app.query_params["run"] in (parent.run_id, [parent.run_id])
