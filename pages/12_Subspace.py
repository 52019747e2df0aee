"""Is it one direction? How many the categories of harm need, which share one, and what adds to it."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui import subspace as parts
from refusal_core.ui.attribution import PART as BLOCKS_AND_WORDS
from refusal_core.ui.attribution import blocks_and_words
from refusal_core.ui.frame import frame
from refusal_core.ui.layout import part_picker

run = frame("Subspace", "Whether harm is one direction, which categories share it, which blocks and words make it.")
if part_picker(["Directions", BLOCKS_AND_WORDS]) == BLOCKS_AND_WORDS:
    blocks_and_words(run)
else:
    if run.imported:
        st.caption("This part is about directions that are fitted on the prompts, not about the imported one.")
    elif run.estimator_note:
        st.caption("This part is about mean differences and compares estimators with them, whichever the run is of.")
    measured = parts.measured_or_end(run)
    site = parts.choose_site(run, measured)
    parts.at_site(run, measured, site)
    parts.over_layers(run, measured, site)
    parts.estimators(run, measured, site)
    parts.numbers(run, measured, site)
address.write()
