"""The view and the address without a browser: what is read anew when the browser goes back, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from synthetic import RUN

from refusal_core.ui import address

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _cache(synthetic_cache, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))
    st.cache_data.clear()
    st.cache_resource.clear()


def visit(**query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for name, value in {"run": RUN, "site": "2", **query}.items():
        app.query_params[name] = value
    app.run().switch_page("pages/3_Outliers.py").run()
    assert not app.exception
    return app


def come_to(app: AppTest, **query: str) -> AppTest:
    """Run the page again with an address that is not the one it wrote last."""
    app.query_params.clear()
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def test_going_back_brings_back_the_view_of_the_address_with_its_search_and_filters(monkeypatch):
    app = visit(find="a", labels="harmful")
    app.number_input(key="site_field").set_value(4).run()
    app.text_input(key=f"outliers_find_{RUN}").set_value("b").run()
    app.multiselect(key=f"outliers_labels_{RUN}").set_value(["harmless"]).run()
    assert [app.query_params[name] for name in ("site", "find", "labels")] == ["4", "b", "harmless"]
    monkeypatch.setattr(address, "came_by_history", lambda: True)
    come_to(app, run=RUN, site="2", find="a")
    assert app.number_input(key="site_field").value == 2
    assert app.text_input(key=f"outliers_find_{RUN}").value == "a"
    assert app.multiselect(key=f"outliers_labels_{RUN}").value == []
    assert dict(app.query_params) == {"run": RUN, "site": "2", "find": "a"}


def test_going_back_to_a_page_s_bare_address_keeps_the_view(monkeypatch):
    app = visit()
    monkeypatch.setattr(address, "came_by_history", lambda: True)
    come_to(app, embed_options="light_theme")
    assert app.number_input(key="site_field").value == 2
    assert app.query_params["site"] == "2"


def test_an_old_address_that_comes_with_a_later_click_is_not_gone_back_to():
    app = visit()
    app.number_input(key="site_field").set_value(4).run()
    come_to(app, run=RUN, site="2")
    assert app.number_input(key="site_field").value == 4
    assert app.query_params["site"] == "4"
