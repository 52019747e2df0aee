"""Runs side by side: where they separate harm, how alike they rank the same prompts, and on which they differ."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui import comparison as parts
from refusal_core.ui.evidence import evidence_or_none
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.layout import part_picker

DEPTH, RANKS, DISPUTED, CATEGORIES, DIRECTIONS = (
    "Over relative depth",
    "Rank of the prompts",
    "Where they disagree",
    "By category",
    "Directions",
)

run = frame(
    "Compare",
    "Two to five runs side by side: where they separate harm, and how they rank the same prompts.",
    at_positions=True,
)
compared = parts.chosen_sides(run)
evidence = [evidence_or_none(side.run) for side in compared]
tables = parts.tables_over_depth(compared, evidence)
parts.headline(compared, tables)
parts.controls(compared, evidence)
parts.overview(compared, evidence, tables)
parts.differences(compared)
part = part_picker([DEPTH, RANKS, DISPUTED, CATEGORIES, DIRECTIONS])
address.write()


@st.fragment
def at_this_depth() -> None:
    """Follow the layer without the rest of the page."""
    layer, pair = st.columns([1, 3])
    site = site_picker(run, layer)
    with pair:
        other, shared, other_site = parts.chosen_pair(compared, site)
    if part == RANKS:
        parts.rank_agreement(compared, other, shared, site, other_site)
    elif part == DISPUTED:
        st.caption("The shared prompts, those first that the two runs rank most differently. Choose a row to read one.")
        parts.disagreement_table(compared[0], other, shared, site, other_site)
        parts.chosen_prompt(compared, site)
    else:
        parts.by_category(compared, site, shared.source)


if part == DEPTH:
    parts.over_depth(compared, evidence, tables)
elif part == DIRECTIONS:
    parts.direction_cosines(compared)
else:
    at_this_depth()
