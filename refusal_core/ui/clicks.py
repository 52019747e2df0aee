"""Clicks on points of a figure that can be dragged on: of such a figure Streamlit reports drags alone."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from refusal_core.ui.streamlit_internals import component


def on_point(chart: str, clicked: Callable[[str], None]) -> None:
    """Call back when a point of a figure is clicked.

    Args:
        chart: the figure's ``key``.
        clicked: called with the point's ``customdata``, where that is text, before the rerun that follows.
    """
    key = f"{chart}-clicks"

    def forward() -> None:
        identifier = st.session_state[key].point
        if identifier is not None:
            clicked(str(identifier))

    component("figure_clicks")(key=key, data={"chart": chart}, on_point_change=forward)
