"""The scrubbing histogram of the Layers page."""

from __future__ import annotations

import plotly.graph_objects as go
import streamlit as st

from refusal_core.figures.layers import scrubber
from refusal_core.runs import Run
from refusal_core.ui import address
from refusal_core.ui.layout import chart
from refusal_core.ui.scrubbing import when_released

_DRAWN = "scrubber_drawn_for"
_CONTAINER = "scrubber"


def scrubbing_histogram(run: Run, site: int, sources: tuple[str, ...]) -> None:
    """Draw the histogram with its slider; releasing the slider moves the page's site along.

    The figure is drawn anew only when the site was changed elsewhere: what the browser already shows stays untouched.
    """
    view = (run.run_id, sources)
    drawn = st.session_state.get(_DRAWN)
    if drawn is None or drawn["view"] != view or drawn["shown"] != site:
        drawn = {"view": view, "start": site, "shown": site}
        st.session_state[_DRAWN] = drawn
    with st.container(key=_CONTAINER):
        chart(_figure(run.run_id, run, drawn["start"], sources), f"{_CONTAINER}_chart_{drawn['start']}")
    when_released(_CONTAINER, _let_go)


def _let_go(site: int) -> None:
    st.session_state[_DRAWN]["shown"] = site
    address.change(site=site)


@st.cache_resource(max_entries=32, show_spinner=False)
def _figure(run_id: str, _run: Run, start: int, sources: tuple[str, ...]) -> go.Figure:
    return scrubber(_run, start, sources)
