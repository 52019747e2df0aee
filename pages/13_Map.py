"""All prompts in two dimensions at every layer: what lies together, what a lasso holds, and where it projects."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui import map as parts
from refusal_core.ui.evidence import evidence_or_end
from refusal_core.ui.frame import frame, site_picker

run = frame(
    "Map",
    "All prompts in two dimensions, layer by layer: drag a lasso around some to list them.",
    at_positions=True,
)
evidence_or_end(run)
choices = st.columns([3, 2, 3, 1], vertical_alignment="bottom")
site = site_picker(run, choices[3])
options = parts.options(run, choices)
drawing, listing = st.columns([3, 2], gap="medium")
with drawing:
    parts.prompt_map(run, options, site)
with listing:
    selected = parts.selection(run, options)
    parts.histogram(run, options, selected, site)
    parts.prompt_list(run, options, selected, site)
address.write()
