"""What was clicked or chosen in a chart or table, told once."""

from __future__ import annotations

from typing import Any

import streamlit as st


def newly(name: str, value: Any) -> Any | None:
    """``value`` when it differs from what the same widget reported before, else ``None``.

    Streamlit reports a selection again on every rerun; acting on it twice would undo what was done elsewhere since.
    """
    key = f"selection_{name}"
    if st.session_state.get(key) == value:
        return None
    st.session_state[key] = value
    return value


def clicked_site(event: Any, name: str) -> int | None:
    """The site of the point that was just clicked in a figure over the layers."""
    points = event["selection"]["points"]
    value = newly(name, round(points[0]["x"]) if points else None)
    return None if value is None else int(value)
