"""The home page: what this run says, in one screen."""

from __future__ import annotations

import streamlit as st

from refusal_core.evidence.findings import verdict
from refusal_core.figures.layers import three_questions
from refusal_core.ui.downloads import downloads
from refusal_core.ui.evidence import evidence_or_none
from refusal_core.ui.frame import frame
from refusal_core.ui.layout import chart, heading, run_facts, run_in_a_line, strongest_layers

run = frame(
    "Refusal directions",
    "How a chat model tells harmful requests from harmless ones, layer by layer, and whether that is about harm.",
)
st.text(run_in_a_line(run))
evidence = evidence_or_none(run)
heading("This run has no evidence that can be read." if evidence is None else verdict(evidence))
strongest_layers(run)
chart(three_questions(run), "home_curves")
st.caption(
    f"{run.n_layers} layers and the final norm. Grey: the number papers print. Where the pink line stays near 0 the "
    "direction tells two kinds of text apart, not harm."
)
with st.container(horizontal=True):
    for page, label, icon in (
        ("1_Layers", "Scrub through the layers", "layers"),
        ("2_Evidence", "Ask whether it is real", "fact_check"),
        ("3_Outliers", "Read the ambiguous prompts", "find_in_page"),
        ("5_Behaviour", "See what it refuses", "forum"),
        ("6_Causality", "Take the direction out", "science"),
        ("7_Ratings", "Compare with people", "reviews"),
        ("8_Rate", "Rate prompts blind", "rate_review"),
        ("4_Live_score", "Score a prompt of your own", "edit_note"),
        ("9_Compare", "Put runs side by side", "compare"),
        ("10_Runs", "Start, send or import a run", "folder_open"),
    ):
        st.page_link(f"pages/{page}.py", label=label, icon=f":material/{icon}:", width="content")
downloads(run)
run_facts(run)
