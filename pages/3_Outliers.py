"""The prompts in the ambiguous band: read them, and follow one over the layers beside its twin."""

from __future__ import annotations

import streamlit as st

from refusal_core.outliers import prompts_in_band
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.outliers import band_picker, chosen_prompt, filtered, prompt_details, prompt_table

run = frame("Outliers", "Choose a layer and a band of projections, and read the prompts that fall into it.")
choose, presets = st.columns([1, 3], vertical_alignment="bottom")
site = site_picker(run, choose)
band = band_picker(run, site, presets)
found = filtered(prompts_in_band(run, site, band), run)
chosen = chosen_prompt(run, prompt_table(run, found, band, site))
if chosen is not None:
    prompt_details(run, chosen, site)
