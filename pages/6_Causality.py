"""Does it cause refusing? The direction ablated and added, layer by layer, compared with control directions."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import intervention as parts
from refusal_core.ui.frame import frame, site_picker
from refusal_core.ui.layout import chart, heading

run = frame(
    "Causality",
    "What changes when the direction is ablated or added, compared with what any direction does.",
    at_positions=True,
)
site = site_picker(run, st.columns([1, 3])[0])
st.subheader("Try it", anchor=False)


@st.fragment
def trying() -> None:
    """Follow the keyboard and the slider without the rest of the page."""
    parts.try_it(run, site)


trying()
st.subheader("Measured on the run's prompts", anchor=False)
recorded = parts.recorded_interventions(run)
if recorded is not None:
    table, manifest = recorded
    summary = parts.summary_of(run, table, manifest)
    heading(summary.headline)
    parts.how_measured(run, table, manifest)
    st.subheader("Layer by layer", anchor=False)
    parts.sweeps(run, summary, site)
    st.caption(
        "Every layer's own direction, edited at that layer alone. Shaded: 95 % bootstrap intervals over prompts. Grey "
        "bars: where control directions fall. Dotted: the unedited model."
    )
    with st.expander(
        "Findings: the study's layers, several together, and the published choice", icon=":material/notes:"
    ):
        parts.findings(summary)
    st.subheader(f"Dose and response at {run.site_label(manifest.dose_layer)}", anchor=False)
    chart(summary.doses, "causality_doses")
    st.subheader("Which layer and token would the published rule choose?", anchor=False)
    st.caption(
        "Arditi et al. 2024: each candidate direction is ablated at every layer; the least refusing on harmful prompts "
        "wins among those that change harmless replies little (divergence at most 0.1) and induce refusing when added. "
        "Crosses do not qualify."
    )
    parts.choice(summary)
    with st.expander("All conditions in numbers", icon=":material/table_rows:"):
        parts.numbers(summary)
