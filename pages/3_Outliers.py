"""The prompts in the ambiguous band: read them, judge them, and refit without those that are wrong."""

from __future__ import annotations

import streamlit as st

from refusal_core.exploration.outliers import in_band, prompts_at, row_of
from refusal_core.ui import address, marks
from refusal_core.ui import outliers as parts
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.prompt_report import report_of_run
from refusal_core.ui.refits import refit_panel

run = frame(
    "Outliers",
    "Drag a band on the histogram, read the prompts that fall into it, and mark what is wrong.",
    at_positions=True,
)
current = marks.current_marks()
controls = st.columns([1, 2, 1, 1], vertical_alignment="bottom")
site = site_picker(run, controls[0])
band = parts.band_picker(run, site, controls[1:])
looking, reading = st.columns([3, 2], gap="medium")
row = row_of(run, address.view().prompt)
# What a click asks for is drawn first: a browser shows it before the chart and the list, which take longer, are there.
with reading, parts.reader():
    parts.the_prompt(run, row, site)
    judging = st.container()
    parts.its_twin(run, row)
passing = parts.filtered(marks.with_marks(prompts_at(run, site), current), run)
# A search is of all prompts, in the band or not.
prompts = passing if address.view().find else in_band(passing, band)
parts.described(prompts, band)
parts.show_separation(run, passing, site)
chosen = parts.prompt_list(run, prompts, band, site)
with looking:
    parts.band_chart(run, site, band, prompts, row)
with judging:
    marks.judge(run, prompts, chosen, row, current)
if row is not None:
    parts.over_layers(run, row, site)
marks.files(current)
refit_panel(run, current)
report_of_run(run)
address.write()
