"""Tells Python where a Plotly slider was let go of.

The browser moves the figure's frames by itself, without the server. This component listens to the figure's own public
``plotly_sliderend`` event, so that the address and the numbers beside the figure can follow.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

_LISTEN = """
export default function({ data, setTriggerValue }) {
    let chart = null;
    const report = (event) => setTriggerValue("site", event.slider.active);
    const attach = () => {
        const found = document.querySelector(`.st-key-${data.container} .js-plotly-plot`);
        if (!found || found === chart || typeof found.on !== "function") return;
        chart = found;
        chart.on("plotly_sliderend", report);
    };
    attach();
    const timer = setInterval(attach, 250);
    return () => {
        clearInterval(timer);
        if (chart && chart.removeListener) chart.removeListener("plotly_sliderend", report);
    };
}
"""


def when_released(container: str, changed: Callable[[int], None]) -> None:
    """Call ``changed(site)`` when the slider of the figure in a keyed container is released, then rerun.

    Args:
        container: the ``key`` of the ``st.container`` that holds the figure.
    """
    key = f"{container}-released"

    def forward() -> None:
        site = st.session_state[key].site
        if site is not None:
            changed(int(site))

    _listener()(key=key, data={"container": container}, on_site_change=forward)


def _listener():
    return st.components.v2.component("slider_release", js=_LISTEN)
