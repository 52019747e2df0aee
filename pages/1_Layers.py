"""Scrub through the layers: histograms, the layer's numbers, and the curves over all layers."""

from __future__ import annotations

import streamlit as st

from refusal_core.figures.layers import separation, three_questions
from refusal_core.published import published_table
from refusal_core.ui import address
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.layers import scrubbing_histogram
from refusal_core.ui.layout import chart, layer_numbers
from refusal_core.ui.selection import clicked_site

run = frame(
    "Layers", "Drag the slider under the histogram: every prompt's projection on the direction, layer by layer."
)
choose, options = st.columns([1, 3], vertical_alignment="bottom")
site = site_picker(run, choose)
sources = options.pills(
    "Draw over it",
    run.transfer_sources,
    selection_mode="multi",
    help="Transfer sets are scored and never fitted on; they are drawn as outlines.",
    key="layers_sources",
    persist_state="session",
)
picture, numbers = st.columns([3, 1], gap="large")
with picture:
    scrubbing_histogram(run, site, tuple(sources))
    st.caption(
        "Bars: the prompts the direction was fitted on. Vertical lines: the two means. Shaded: the band in which both "
        "labels are plausible, from the 5th percentile of the harmful to the 95th of the harmless prompts."
    )
with numbers:
    st.subheader(run.site_label(site), anchor=False)
    layer_numbers(run, site)
st.subheader("Over the layers", anchor=False)
overlay = st.toggle(
    "Experiment 0, published",
    key="layers_published",
    help="Qwen2.5-1.5B-Instruct on AdvBench and Alpaca prompts (Pierucci 2025); its layer 27 is a final norm.",
)
published = published_table() if overlay else None
for name, figure in (
    ("effect", three_questions(run, site, published)),
    ("separation", separation(run, site, published)),
):
    clicked = clicked_site(chart(figure, f"layers_{name}", on_select="rerun", selection_mode="points"), name)
    if clicked is not None and clicked != site:
        address.change(site=clicked)
        st.rerun()
st.caption("Click a point to go to its layer.")
