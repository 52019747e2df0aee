"""What the dashboard uses of Streamlit beyond its documented interface, gathered where an upgrade would break it.

What the browser's side uses of Streamlit's and Plotly's pages is in ``dom.js``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import streamlit as st
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx


def came_by_history() -> bool:
    """Return whether the browser's Back or Forward led to this script run."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def is_page() -> bool:
    """Return whether this is called by a page, and not by a program that uses what pages use."""
    return get_script_run_ctx(suppress_warning=True) is not None


def component(name: str, css: str | None = None, isolate_styles: bool = True) -> Callable[..., Any]:
    """Return the component whose script is the file ``name.js`` of this package.

    Args:
        name: of the script and of the component.
        css: its styles.
        isolate_styles: whether those are kept from the rest of the page.
    """
    script = f"{resource('dom.js')}\n{resource(f'{name}.js')}"
    mount: Callable[..., Any] = st.components.v2.component(name, js=script, css=css, isolate_styles=isolate_styles)
    return mount


@lru_cache(maxsize=16)
def resource(name: str) -> str:
    """Return the text of a file of this package."""
    return (files("refusal_core.ui") / name).read_text(encoding="utf-8")


def uploaded_bytes(session: str) -> int:
    """Return how many bytes of uploaded files the server holds of a session."""
    if not Runtime.exists():
        return 0
    files_of = getattr(Runtime.instance().uploaded_file_mgr, "file_storage", {}).get(session, {})
    return sum(len(file.data) for file in list(files_of.values()))


def select_rows(key: str, rows: Iterable[int]) -> None:
    """Select rows of a table that is about to be drawn: of a widget's state Streamlit documents reading alone."""
    st.session_state[key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
