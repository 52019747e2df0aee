"""Clicks on points of a figure that can be dragged on: of such a figure Streamlit tells of drags alone."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

_LISTEN = """
export default function({ data, setTriggerValue }) {
    let chart = null;
    const clicked = ({ points }) => {
        const told = points.length ? [points[0].customdata].flat()[0] : null;
        if (typeof told === "string") setTriggerValue("point", told);
    };
    const let_go = () => chart && chart.removeListener && chart.removeListener("plotly_click", clicked);
    const look = () => {
        const found = document.querySelector(`.st-key-${data.chart} .js-plotly-plot`);
        if (!found || found === chart || typeof found.on !== "function") return;
        let_go();
        chart = found;
        chart.on("plotly_click", clicked);
    };
    look();
    const looking = setInterval(look, 200);
    return () => {
        clearInterval(looking);
        let_go();
    };
}
"""


def on_point(chart: str, clicked: Callable[[str], None]) -> None:
    """Tell which point of a figure is clicked; of one that can be dragged on, Streamlit tells of drags alone.

    Args:
        chart: the figure's ``key``.
        clicked: called with the point's ``customdata``, where that is text, before the rerun that follows.
    """
    key = f"{chart}-clicks"

    def forward() -> None:
        told = st.session_state[key].point
        if told is not None:
            clicked(str(told))

    st.components.v2.component("figure_clicks", js=_LISTEN)(key=key, data={"chart": chart}, on_point_change=forward)
