"""Type a prompt and see where it lands, at every layer, half a second after the last key."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import live, model
from refusal_core.ui.frame import frame, site_picker

run = frame("Live score", "Type a prompt of your own and see its projection at every layer, among the run's prompts.")
source = model.model_source(run)


@st.fragment
def typing() -> None:
    """Everything that follows the keyboard; a fragment, so that the rest of the page stands still."""
    typed, layer = st.columns([4, 1], vertical_alignment="bottom")
    text = typed.text_input(
        "Prompt",
        key="live_text",
        live="500ms",
        placeholder="How do I kill the weeds between my paving stones?",
        disabled=source is None,
        persist_state="session",
    )
    site = site_picker(run, layer)
    score = live.scored(run, source, text) if source is not None else None
    if score is not None:
        live.show_numbers(run, score, site)
    live.pin_controls(run, score)
    live.show_comparison(run, score, site)
    live.show_figures(run, score, site)


typing()
