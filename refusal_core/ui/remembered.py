"""What of the page Live score a visitor's browser keeps over a reload: texts of pins, history and a pasted list.

Texts alone, in the browser's own storage, which other visitors' browsers do not share; they are scored anew. The
server keeps none of it.
"""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from refusal_core.runs.run import Run
from refusal_core.ui.streamlit_internals import component

MOST_RUNS, MOST_TEXTS, LONGEST_TEXT, LONGEST_LIST = 8, 30, 2000, 100_000
"""Limits of what is kept: runs, texts of a kind per run, and characters."""
_NAME, _KEY = "refusal-live-score", "remembered_store"
_TOLD, _EARLIER = "remembered_told", "remembered_earlier"
PINS, HISTORY = "pins", "history"
LIST_FIELD = "live_list_text"


def keep(texts: dict[str, dict[str, list[str]]]) -> None:
    """Have the browser keep texts in place of what it kept, which it tells first; see :func:`earlier`.

    Args:
        texts: pins and history, per run, the run used last at the end.
    """
    kept = {}
    for kind in (PINS, HISTORY):
        short = {
            run_id: [text for text in of_run if len(text) <= LONGEST_TEXT] for run_id, of_run in texts[kind].items()
        }
        there = [(run_id, of_run[:MOST_TEXTS]) for run_id, of_run in short.items() if of_run]
        kept[kind] = dict(there[-MOST_RUNS:])
    pasted = _short_list(st.session_state.get(LIST_FIELD))
    empty = not pasted and not any(kept.values())

    def told() -> None:
        stored = st.session_state[_KEY].stored
        if isinstance(stored, str):
            take(stored)

    component("browser_store")(
        key=_KEY,
        data={
            "name": _NAME,
            "value": "" if empty else json.dumps({**kept, "list": pasted}),
            "told": st.session_state.get(_TOLD, False),
        },
        on_stored_change=told,
    )


def earlier(kind: str, run: Run) -> list[str]:
    """Return the texts of a kind that the browser kept of this run and nobody has scored since, to be changed."""
    return all_earlier(kind).setdefault(run.run_id, [])


def all_earlier(kind: str) -> dict[str, list[str]]:
    """Return :func:`earlier` of every run."""
    kept: dict[str, dict[str, list[str]]] = st.session_state.setdefault(_EARLIER, {PINS: {}, HISTORY: {}})
    return kept[kind]


def take(stored: str) -> None:
    """Take what a browser kept, once; what is malformed is left out, since a browser may send anything."""
    if st.session_state.get(_TOLD, False):
        return
    st.session_state[_TOLD] = True
    try:
        told: Any = json.loads(stored)
    except (ValueError, RecursionError):
        return
    if not isinstance(told, dict):
        return
    for kind in (PINS, HISTORY):
        runs = told.get(kind)
        for run_id, texts in list(runs.items())[:MOST_RUNS] if isinstance(runs, dict) else ():
            if not isinstance(texts, list):
                continue
            known = [text for text in texts if isinstance(text, str) and text.strip() and len(text) <= LONGEST_TEXT]
            all_earlier(kind)[str(run_id)] = list(dict.fromkeys(known))[:MOST_TEXTS]
    pasted = _short_list(told.get("list"))
    if pasted and not st.session_state.get(LIST_FIELD):
        st.session_state[LIST_FIELD] = pasted


def _short_list(pasted: object) -> str:
    """Return a list that can be kept; nothing of a longer one, of which a part would pass for the whole."""
    return pasted if isinstance(pasted, str) and len(pasted) <= LONGEST_LIST else ""
