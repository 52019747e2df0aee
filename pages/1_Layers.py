"""Scrub through the layers: a ridgeline of all of them, one of them large, and prompts to keep an eye on."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui.frame import frame
from refusal_core.ui.layers import instrument, over_layers, panel_options, side_by_side

run = frame(
    "Layers",
    "Projections on the direction, layer by layer: drag on the ridgeline, press Play, or use arrow keys.",
    at_positions=True,
)
instrument(run, panel_options(run))
st.caption(
    "Ridgeline: all layers, in standard deviations, harmful in orange. Panel: the prompts the direction was fitted on; "
    "vertical lines: the two means; shaded: the band in which both labels are plausible. Of each label the panels of "
    "points draw an even choice of prompts with every layer's lowest and highest."
)
over_layers(run, int(address.view().site or 0))
side_by_side(run)
address.write()
