"""Runs side by side: where they separate harm, how alike they rank the same prompts, and on which they differ."""

from __future__ import annotations

import streamlit as st

from refusal_core.exploration.comparison import describe_probe_d
from refusal_core.ui import comparison as parts
from refusal_core.ui.evidence import evidence_or_none
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.layout import heading

run = frame("Compare", "Two to five runs side by side: where they separate harm, and how they rank the same prompts.")
compared = parts.chosen_sides(run)
evidence = [evidence_or_none(side.run) for side in compared]
tables = parts.tables_over_depth(compared, evidence)
heading(describe_probe_d([side.run for side in compared], [side.letter for side in compared], tables))
parts.controls(compared, evidence)
parts.overview(compared, evidence, tables)
parts.differences(compared)
st.subheader("Over relative depth", anchor=False)
parts.over_depth(compared, evidence, tables)
st.caption("Shaded: 95 % bootstrap intervals. Stars: detectable from there. The final norm stands apart.")


@st.fragment
def at_this_depth() -> None:
    """Follow the layer without the rest of the page."""
    st.subheader("Do they rank the prompts alike?", anchor=False)
    site = site_picker(run, st.columns([1, 3])[0])
    other, shared, other_site = parts.chosen_pair(compared, site)
    parts.rank_agreement(compared, other, shared, site, other_site)
    st.subheader("Where they disagree", anchor=False)
    st.caption("The shared prompts, those first that the two runs rank most differently. Choose a row to read one.")
    parts.disagreement_table(compared[0], other, shared, site, other_site)
    parts.chosen_prompt(compared, site)
    st.subheader("By category", anchor=False)
    parts.by_category(compared, site, shared.source)


at_this_depth()
st.subheader("Do their directions point the same way?", anchor=False)
parts.direction_cosines(compared)
