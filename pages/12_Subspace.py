"""Is it one direction? How many the categories of harm need, and which of them share one."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui import subspace as parts
from refusal_core.ui.frame import frame

run = frame("Subspace", "Whether harm is one direction, which categories share it, and whether others are better.")
if run.imported:
    st.caption("This page is about directions that are fitted on the prompts, not about the imported one.")
measured = parts.measured_or_end(run)
site = parts.choose_site(run, measured)
parts.at_site(run, measured, site)
parts.over_layers(run, measured, site)
parts.estimators(run, measured, site)
parts.numbers(run, measured, site)
address.write()
