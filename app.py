"""The home page: what this run says, in one screen."""

from __future__ import annotations

import streamlit as st

from refusal_core.figures.layers import three_questions
from refusal_core.findings import verdict
from refusal_core.ui.evidence import evidence_of
from refusal_core.ui.frame import frame
from refusal_core.ui.layout import chart, heading, run_facts, run_in_a_line, strongest_layers

run = frame(
    "Refusal directions",
    "How a chat model tells harmful requests from harmless ones, layer by layer, and whether that is about harm.",
)
st.text(run_in_a_line(run))
heading(verdict(evidence_of(run)))
strongest_layers(run)
chart(three_questions(run), "home_curves")
st.caption(
    f"{run.n_layers} layers and the final norm. Grey: the number papers print. Where the pink line stays near 0 the "
    "direction tells two kinds of text apart, not harm."
)
look, doubt, read, replies, try_it = st.columns(5)
look.page_link("pages/1_Layers.py", label="Scrub through the layers", icon=":material/layers:")
doubt.page_link("pages/2_Evidence.py", label="Ask whether it is real", icon=":material/fact_check:")
read.page_link("pages/3_Outliers.py", label="Read the ambiguous prompts", icon=":material/find_in_page:")
replies.page_link("pages/5_Behaviour.py", label="See what it refuses", icon=":material/forum:")
try_it.page_link("pages/4_Live_score.py", label="Score a prompt of your own", icon=":material/edit_note:")
run_facts(run)
