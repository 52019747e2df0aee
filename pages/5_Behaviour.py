"""Does it go with refusing? The model's replies to the run's prompts, against where those project."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui import behaviour as parts
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.layout import part_picker
from refusal_core.ui.outliers import chosen_prompt, prompt_details
from refusal_core.ui.trajectory import replies

PROMPTS, LAYERS, SURE, SURPRISES, ALONG, MEASURES = (
    "Prompts",
    "Over the layers",
    "How sure is a projection?",
    "Surprises",
    "Along the reply",
    "Do the measures agree?",
)

run = frame(
    "Behaviour",
    "What the model does with the prompts, refuse or answer, against where they project.",
    at_positions=True,
)
table, key = parts.recorded_replies(run)
parts.shares(run, table)
layer, shown = st.columns([1, 3], vertical_alignment="bottom")
site = site_picker(run, layer)
with shown:
    part = part_picker([PROMPTS, LAYERS, SURE, SURPRISES, ALONG, MEASURES])
clicked = None
if part == PROMPTS:
    clicked = parts.scatter(run, table, key, site)
elif part == LAYERS:
    parts.over_layers(run, table, key, site)
elif part == SURE:
    parts.calibration(run, table, key, site)
elif part == SURPRISES:
    st.caption("Harmful prompts that were answered and harmless ones that were refused, the clearest first.")
    clicked = parts.surprises(run, table, key)
elif part == ALONG:
    clicked = replies(run, site)
else:
    parts.measures(run, table, key)
    with st.expander("Verdicts from elsewhere", icon=":material/gavel:"):
        parts.verdicts_from_elsewhere(run, table)
    with st.expander("Prompts on which they disagree", icon=":material/call_split:"):
        clicked = parts.disagreements(run, table, key)
address.write()
if part in (PROMPTS, SURPRISES, ALONG, MEASURES):
    chosen = chosen_prompt(run, clicked)
    if chosen is not None:
        st.text(f"The reply opens: {table['opening'][chosen]!r} ({table['opening_label'][chosen]})")
        prompt_details(run, chosen, site)
