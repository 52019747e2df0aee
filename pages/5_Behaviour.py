"""Does it go with refusing? The model's replies to the run's prompts, against where those project."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import behaviour as parts
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.outliers import chosen_prompt, prompt_details

run = frame("Behaviour", "What the model does with the prompts, refuse or answer, against where they project.")
table, key = parts.recorded_replies(run)
parts.shares(run, table)
site = site_picker(run, st.columns([1, 3])[0])
clicked = [parts.scatter(run, table, key, site)]
st.subheader("Over the layers", anchor=False)
parts.over_layers(run, table, key, site)
st.subheader("How sure is a projection?", anchor=False)
parts.calibration(run, table, key, site)
st.subheader("Surprises", anchor=False)
st.caption("Harmful prompts that were answered and harmless ones that were refused, the clearest first.")
clicked.append(parts.surprises(run, table, key))
st.subheader("Do the measures agree?", anchor=False)
parts.measures(run, table, key)
with st.expander("Prompts on which they disagree", icon=":material/call_split:"):
    clicked.append(parts.disagreements(run, table, key))
chosen = chosen_prompt(run, next((row for row in clicked if row is not None), None))
if chosen is not None:
    st.text(f"The reply opens: {table['opening'][chosen]!r} ({table['opening_label'][chosen]})")
    prompt_details(run, chosen, site)
