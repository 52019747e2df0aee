"""What was clicked or chosen in a chart or table, told once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import streamlit as st

from refusal_core.ui.streamlit_internals import select_rows


def newly(name: str, value: Any) -> Any | None:
    """``value`` when it differs from what the same widget reported before, else ``None``.

    Streamlit reports a selection again on every rerun; acting on it twice would undo what was done elsewhere since.
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
    """Show a table of which one row can be chosen; returns the index of the row that was just chosen.

    Args:
        columns: what is shown, in this order, with its ``st.column_config``.
        current: the index of the row that is chosen already, wherever it now stands.
        height: in pixels; by default as many rows as there are, up to ten.
    """
    clicked, listed = f"selection_{key}", f"selection_{key}_listed"

    def choose() -> None:
        # Streamlit tells of a place in the table that was clicked on; the one drawn next may be in another order.
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
        height=height or min(380, 38 + 35 * max(len(table), 1)),
        on_select=choose,
        selection_mode="single-row",
        key=key,
    )
    return chosen
