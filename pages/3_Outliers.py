"""The prompts in the ambiguous band: read them, judge them, and refit without those that are wrong."""

from __future__ import annotations

import streamlit as st

from refusal_core.exploration.outliers import prompts_in_band, row_of
from refusal_core.ui import address, marks
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.outliers import band_chart, band_picker, described, filtered, over_layers, prompt_list, the_prompt
from refusal_core.ui.refits import refit_panel

run = frame("Outliers", "Drag a band on the histogram, read the prompts that fall into it, and mark what is wrong.")
current = marks.current_marks()
controls = st.columns([1, 2, 1, 1], vertical_alignment="bottom")
site = site_picker(run, controls[0])
band = band_picker(run, site, controls[1:])
chart = st.container()
prompts = filtered(marks.with_marks(prompts_in_band(run, site, band), current), run)
row = row_of(run, address.view().prompt)
with chart:
    band_chart(run, site, band, prompts, row)
described(prompts, band)
reading, judging = st.columns([3, 2], gap="medium")
with reading:
    chosen = prompt_list(run, prompts, site)
with judging:
    the_prompt(run, row, site)
    marks.judge(run, prompts, chosen, row, current)
if row is not None:
    over_layers(run, row, site)
marks.files(current)
refit_panel(run, current)
address.write()
