"""Refits of a run without the marked prompts or with another estimator, and what they changed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.annotations.marks import marked_prompt_ids
from refusal_core.errors import RefusalError
from refusal_core.exploration import refits
from refusal_core.figures.refits import change as change_figure
from refusal_core.options import DEFAULT_ESTIMATOR, ESTIMATORS
from refusal_core.pipeline.refit import leave_out, original_of, refit_id
from refusal_core.runs.run import LEFT_OUT, Run
from refusal_core.runs.store import cache_folder
from refusal_core.ui import address
from refusal_core.ui.background import offer
from refusal_core.ui.frame import own_position_only, shared_run
from refusal_core.ui.jobs import Command
from refusal_core.ui.layout import chart, sentences, show_error
from refusal_core.ui.model import model_source


def refit_panel(run: Run, marks: pd.DataFrame) -> None:
    """Show what a refit changed, where the run is one, and a button for a refit without the marked prompts."""
    st.subheader("Refit without marked prompts", anchor=False)
    if own_position_only(run, "A run is refitted"):
        return
    if run.manifest.direction is not None:
        st.caption("The direction of this run was imported, so leaving out prompts does not change it.")
        return
    original = original_of(run)
    if original is not run:
        st.text(f"This run is a refit of {original.run_id}.")
        _show_change(original, run.run_id)
    kinds = ["mislabelled"]
    if st.toggle("Leave out ambiguous prompts too", key="refit_ambiguous"):
        kinds.append("ambiguous")
    without = marked_prompt_ids(marks, kinds)
    marked = int(run.prompts.loc[~run.prompts["source"].eq(LEFT_OUT), "prompt_id"].isin(without).sum())
    if not marked:
        st.caption(
            f"No prompt of this run is marked {' or '.join(kinds)}. Marked ones can be left out here: directions and "
            "evidence are then computed again, as a new run."
        )
        return
    try:
        run_id, left = refit_id(run, without), leave_out(original.prompts, without)
    except RefusalError as error:
        show_error("These prompts cannot be left out.", error, severe=False)
        return
    out = int(left["source"].eq(LEFT_OUT).sum())
    pairs = ", since pairs and quartets stay together" if out > marked else ""
    st.markdown(
        f"Prompts of this run that are marked: {marked}. Left out{pairs}: {out}.",
        help="A single twin would tilt the forms and topics of the two labels, which pairs and quartets hold equal. "
        f"Prompts that are left out are scored in the new run as a transfer set called {LEFT_OUT}, never fitted on. "
        "Behaviour and interventions do not carry over: measure them again.",
    )
    if (cache_folder() / run_id).is_dir():
        st.button("Open that run", icon=":material/open_in_new:", type="primary", on_click=_open, args=(run_id,))
        _show_change(original, run_id)
        return
    _offer(run, original, f"--marked={','.join(kinds)}", "Refit without them")


def estimator_panel(run: Run) -> None:
    """Show a choice of estimators, and a button for a refit of the run with another one than its own."""
    if own_position_only(run, "A run is refitted"):
        return
    if run.manifest.direction is not None:
        st.caption("The direction of this run was imported: no estimator fits it.")
        return
    own = run.manifest.estimator
    chosen = st.selectbox(
        "Estimator",
        list(ESTIMATORS),
        index=list(ESTIMATORS).index(own),
        format_func=lambda name: ESTIMATORS[name],
        key=f"refit_estimator_{run.run_id}",
        help="How the direction is got from the activations. The refit is a run of its own, whose projections, "
        "evidence, scores and exports are of that direction.",
    )
    if chosen == own:
        st.caption(f"This run's direction: {ESTIMATORS[own]}. Choose another one to make a run of it.")
        return
    original = original_of(run)
    if not run.prompts["source"].eq(LEFT_OUT).any() and chosen == original.manifest.estimator:
        st.button("Open that run", type="primary", on_click=_open, args=(original.run_id,), key="open_estimator")
        return
    try:
        run_id = refit_id(run, estimator=chosen)
    except RefusalError as error:
        show_error("This estimator cannot be fitted.", error, severe=False)
        return
    if (cache_folder() / run_id).is_dir():
        st.button("Open that run", type="primary", on_click=_open, args=(run_id,), key="open_estimator")
        _show_change(original, run_id)
        return
    if chosen != DEFAULT_ESTIMATOR:
        st.caption("Its evidence takes fits of its own, fewer of them: a few minutes.")
    _offer(run, original, f"--estimator={chosen}", "Refit with it")


def _offer(run: Run, original: Run, argument: str, label: str) -> None:
    arguments = [argument]
    if original.keeps_activations:
        st.caption("From the run's stored activations, without the model.")
    else:
        st.caption("Activations were not stored with this run, so its model reads the prompts again: minutes.")
        source = model_source(original)
        if source is None:
            return
        if source != original.model_name:
            arguments.append(f"--model={source}")
    offer(
        Command(f"Refit {original.run_id}", "refit", (*arguments, "--", run.run_id)),
        label,
        ":material/refresh:",
    )


def _show_change(before: Run, refitted: str) -> None:
    try:
        after = shared_run(refitted)
        change = refits.compare(before, after)
    except RefusalError as error:
        show_error("What the refit changed cannot be shown.", error)
        return
    st.markdown(sentences(refits.describe_change(change)))
    chart(change_figure(change), f"refit_change_{after.run_id}")
    st.caption("Cohen's d before (dotted) and after (solid); below, the cosine of the two directions.")
    with st.expander("The numbers, and the prompts left out", icon=":material/table_rows:"):
        st.dataframe(
            refits.change_table(change),
            hide_index=True,
            width="stretch",
            placeholder="–",
            key=f"refit_numbers_{after.run_id}",
        )
        st.dataframe(
            change.left_out,
            column_order=["text", "label", "category", "pair_id"],
            hide_index=True,
            width="stretch",
            placeholder="–",
            key=f"refit_left_out_{after.run_id}",
        )


def _open(run_id: str) -> None:
    address.change(run=run_id, band=None, prompt=None)
