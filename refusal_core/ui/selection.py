"""Clicks and choices in charts and tables, reported once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import streamlit as st

from refusal_core.ui.streamlit_internals import select_rows


def newly(name: str, value: Any) -> Any | None:
    """Return a value when it differs from what the same widget reported before, else ``None``.

    Streamlit reports a selection again on every rerun; acting on it twice would undo later changes elsewhere.

    Args:
        name: of the widget.
        value: that it reports.
    """
    key = f"selection_{name}"
    if st.session_state.get(key) == value:
        return None
    st.session_state[key] = value
    return value


def chosen_row(
    table: pd.DataFrame,
    columns: Mapping[str, Any],
    key: str,
    current: Any | None,
    height: int | Literal["content"] | None = None,
) -> Any | None:
    """Show a table of which one row can be chosen; return the index of the row that was just chosen.

    Args:
        table: its rows.
        columns: the columns to show, in this order, with their ``st.column_config``.
        key: of the table.
        current: the index of the row that is chosen already, wherever it now is.
        height: in pixels; by default as many rows as there are, up to ten.
    """
    clicked, listed = f"selection_{key}", f"selection_{key}_listed"

    def choose() -> None:
        # Streamlit reports a position in the table that was clicked on; the next one may be in another order.
        rows = st.session_state[key]["selection"]["rows"]
        if rows and rows[0] < len(st.session_state[listed]):
            st.session_state[clicked] = st.session_state[listed][rows[0]]

    chosen = st.session_state.pop(clicked, None)
    st.session_state[listed] = table.index.tolist()
    current = current if chosen is None else chosen
    rows = [st.session_state[listed].index(current)] if current in st.session_state[listed] else []
    select_rows(key, rows)
    st.dataframe(
        table,
        column_order=list(columns),
        column_config=dict(columns),
        hide_index=True,
        width="stretch",
        placeholder="–",
        height=height or min(380, 38 + 35 * max(len(table), 1)),
        on_select=choose,
        selection_mode="single-row",
        key=key,
    )
    return chosen
