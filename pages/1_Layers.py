"""Scrub through the layers: linked panels, the layer's numbers, and the curves over all layers."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui.frame import frame
from refusal_core.ui.layers import at_this_layer, linked_panels, panel_options, side_by_side

run = frame(
    "Layers",
    "Every prompt's projection on the direction, layer by layer: drag the slider, press play, or use the arrow keys.",
)
linked_panels(run, panel_options(run))
st.caption(
    "Bars and curves: the prompts the direction was fitted on. Vertical lines: the two means. Shaded: the band in "
    "which both labels are plausible, from the 5th percentile of the harmful to the 95th of the harmless prompts. "
    "Points: of each label every layer's lowest and highest prompt and an even choice of the others; click one to "
    "follow it over the layers."
)
at_this_layer(run)
side_by_side(run)
