"""The part of the Harm and refusal page on what steering moves: the model's judgement, or its refusing alone."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.figures import judgement as figures
from refusal_core.intervention import judgement, judgement_effects
from refusal_core.intervention.judgement import Measured
from refusal_core.markdown import plain
from refusal_core.runs.manifest import JudgementManifest
from refusal_core.runs.run import Run
from refusal_core.ui.layout import chart, csv_button, folded, identity, sentences, shared, shared_figure
from refusal_core.ui.model import recorded
from refusal_core.ui.numbers import numbers_table

KIND = JudgementManifest.kind


def judged(run: Run) -> None:
    """Show what steering along harm and along refusal moves, or how to measure it."""
    st.subheader("What does steering move: the judgement, or refusing?")
    measured = recorded(
        run,
        judgement.load_judgement,
        KIND,
        "judgements",
        "Whether steering along harm or along refusal moves what the model judges a request to be, or only whether it "
        "refuses it, has not been measured yet. It needs the run's model, and time.",
        ":material/balance:",
    )
    if measured is None:
        return
    manifest = measured[1]
    summary = _summary(manifest.sha256, run, measured)
    key = (*identity(run), KIND, manifest.sha256)
    st.markdown(sentences(shared((*key, "headline"), lambda: judgement_effects.headline(run, measured, summary))))
    chart(shared_figure(key, lambda: figures.moved(summary)), "judgement_moved")
    n_prompts = measured[0]["prompt_id"].nunique()
    judged_by, refused_by = shared((*key, "spreads"), lambda: judgement_effects.spreads(measured))
    st.caption(
        sentences(
            f"{n_prompts} prompts of {plain(manifest.prompts.source)}, on none of which the directions were fitted; "
            "all tokens edited. Each direction is ablated at all layers, or added once at "
            f"{run.site_label(manifest.layer)}, by the distance of the labels' means there. The judgement is half the "
            "difference of the log-odds of Yes against No to two questions, whether the request is harmful and whether "
            f"it is harmless. Its standard deviation is {judged_by:.2f}, that of refusal log-odds {refused_by:.2f}. "
            "A change counts only outside the controls' band, which is wide enough for all comparisons here together."
        )
    )
    with folded("Every edit in a sentence, and the numbers", "judgement_numbers_open") as part:
        if not part.open:
            return
        st.markdown("\n".join(f"- {sentences(line)}" for line in judgement_effects.reading(run, measured, summary)))
        numbers_table(summary)
        st.caption("How probable Yes or No is, at the questions, on average:")
        answered = judgement_effects.answered(measured)
        numbers_table(answered[~answered.index.isin(manifest.controls)].reset_index())
        csv_button(lambda: measured[0], f"{run.run_id}--{KIND}")


@st.cache_resource(max_entries=8, show_spinner="Comparing with the controls …")
def _summary(sha256: str, _run: Run, _measured: Measured) -> pd.DataFrame:
    return judgement_effects.summarise(_run, _measured)
