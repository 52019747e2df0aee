"""Does it predict what people think? How harmful people find the prompts, against where those project."""

from __future__ import annotations

import streamlit as st

from refusal_core.annotations.ratings import rank_differences
from refusal_core.ui import ratings as parts
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.outliers import chosen_prompt, prompt_details

run = frame(
    "Ratings",
    "Whether the projection goes with how harmful people find a prompt.",
    at_positions=True,
)
chosen_ratings = parts.chosen_ratings(run)
parts.overview(chosen_ratings)
site = site_picker(run, st.columns([1, 3])[0])
st.subheader("Over the layers", anchor=False)
parts.over_layers(run, chosen_ratings, site)
st.subheader("Prompt by prompt", anchor=False)
rated = rank_differences(run, chosen_ratings, site)
clicked = [parts.scatter(run, rated, site)]
st.caption("Points are rated prompts; open marks are of the transfer sets. Click one to read it.")
st.subheader("Where people and projection disagree", anchor=False)
st.caption("Ranked by how far a prompt's place by rating is from its place by projection at this layer.")
clicked.append(parts.disagreement_list(run, rated))
parts.download(chosen_ratings)
chosen = chosen_prompt(run, next((row for row in clicked if row is not None), None))
if chosen is not None:
    prompt_details(run, chosen, site)
