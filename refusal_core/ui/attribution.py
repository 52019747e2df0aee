"""The part of the Subspace page on what adds to the direction and which words it would write."""

from __future__ import annotations

from functools import partial

import streamlit as st

from refusal_core.exploration import attribution
from refusal_core.exploration.attribution import Measured
from refusal_core.figures import attribution as figures
from refusal_core.runs.manifest import AttributionManifest
from refusal_core.runs.run import Run
from refusal_core.ui.frame import site_beside_verdict
from refusal_core.ui.layout import chart, csv_button, identity, marked, sentences, shared_figure
from refusal_core.ui.model import recorded_or_end
from refusal_core.ui.numbers import numbers_table

KIND = AttributionManifest.kind
PART = "Blocks and words"


def measured_or_end(run: Run) -> Measured:
    """Return what adds to the run's directions; without it the page ends with how to measure it."""
    return recorded_or_end(
        run,
        attribution.load_attribution,
        KIND,
        "attribution",
        "Which attentions and MLPs add to the direction, and which words it would write, has not been measured yet. It "
        "needs the run's model.",
        ":material/account_tree:",
    )


def blocks_and_words(run: Run) -> None:
    """Show what adds to the direction at a site that is chosen, and which tokens it would write there."""
    measured = measured_or_end(run)
    site = site_beside_verdict(run, partial(attribution.verdict, run, measured))
    key = (KIND, measured[1].sha256)
    st.subheader("Which blocks add to it?", anchor=False)
    st.markdown(sentences(attribution.what_adds(run, measured, site)))
    parts = attribution.part_table(measured, site)
    if len(parts):
        draw = partial(figures.parts, run, measured, site)
        chart(shared_figure((*identity(run), *key, "parts", site), draw), "attribution_parts")
        st.caption(
            "What a part adds where prompts are read, along directions fitted on other prompts; the bars add up to "
            "the difference of the labels. It is what a part adds by itself, not what later parts make of it; "
            "attention may bring what earlier blocks wrote at other tokens. Intervals redraw prompts, whole pairs, "
            "and hold for all bars at once; the directions are as they are."
        )
    st.subheader("Which words would it write?", anchor=False)
    left, right = st.columns(2, gap="medium")
    with left:
        numbers_table(attribution.token_table(measured, site))
    with right:
        draw_tokens = partial(figures.tokens, run, measured)
        chart(marked(run, (*key, "tokens"), site, draw_tokens), "attribution_tokens")
    st.caption(
        sentences(
            f"{attribution.which_tokens(run, measured, site)} The direction through the final norm's weight and the "
            "vocabulary projection: what it would write if no later block changed it, which is seldom so in early "
            f"layers. {attribution.what_controls_are(run)}"
        )
    )
    with st.expander("The numbers", icon=":material/table_rows:"):
        numbers_table(parts)
        csv_button(lambda: measured[0], f"{run.run_id}--{KIND}")
