"""The parts of the Harm and refusal page."""

from __future__ import annotations

from functools import partial

import streamlit as st

from refusal_core.behaviour.positions import has_new_replies
from refusal_core.exploration import positions
from refusal_core.exploration.positions import Measured
from refusal_core.figures import positions as figures
from refusal_core.runs.additions import keeps_position_activations
from refusal_core.runs.manifest import BehaviourManifest, PositionsManifest
from refusal_core.runs.run import Run
from refusal_core.ui.frame import site_beside_verdict
from refusal_core.ui.layout import (
    addition_identity,
    chart,
    csv_button,
    folded,
    identity,
    marked,
    part_picker,
    sentences,
    shared,
    shared_figure,
)
from refusal_core.ui.model import measure_here, recorded
from refusal_core.ui.numbers import numbers_table

KIND = PositionsManifest.kind


def measured(run: Run) -> Measured | None:
    """Return what was measured at the run's read positions; ``None`` after showing how to measure it."""
    return recorded(
        run,
        positions.load_positions,
        KIND,
        "read positions",
        "Whether the model knows harm where the instruction ends, before it turns to refusing, has not been measured "
        "yet: this run's prompts were read where the reply begins alone. It needs the run's model.",
        ":material/call_split:",
    )


def choose_site(run: Run, measured: Measured) -> int:
    """Show a field for the site, and beside it how alike harm and refusal are there; return the site."""
    key = (*identity(run), KIND, measured[1].sha256, "verdict")
    return site_beside_verdict(run, lambda site: shared((*key, site), lambda: positions.verdict(run, measured, site)))


def apart(run: Run, measured: Measured, site: int) -> None:
    """Show what the directions of harm and refusal make of each kind of prompt, at either end, and their cosines."""
    key = (*identity(run), KIND, measured[1].sha256)
    replies = addition_identity(run, BehaviourManifest.kind)
    if shared((*key, replies, "new replies"), lambda: has_new_replies(run, measured[1])):
        known = positions.is_compared(measured)
        st.info(
            f"The model's replies were measured {'again ' if known else ''}after its prompts were read. Measured once "
            "more, harm and refusal are compared by them.",
            icon=":material/call_split:",
        )
        measure_here(run, KIND, with_model=not keeps_position_activations(run, measured[1]))
    elif not positions.is_compared(measured):
        st.page_link("pages/5_Behaviour.py", label="Measure the behaviour", icon=":material/forum:")
    if not positions.is_compared(measured):
        return
    chart(shared_figure((*key, "cells", site), lambda: figures.cells(measured, site)), "positions_cells")
    follows = shared((*key, "follows", site), lambda: positions.what_follows(measured, site))
    st.caption(sentences(f"{follows} The other is held equal."))


def over_layers(run: Run, measured: Measured, site: int) -> None:
    """Show a question's number at every layer and read position, and beside it the cosine of harm and refusal."""
    questions = positions.questions_of(measured)
    measure = questions[part_picker(list(questions))]
    key = (KIND, measured[1].sha256)
    compared = shared((*key, "cosines"), lambda: bool(positions.cosines_over_layers(measured)))
    left, right = st.columns(2, gap="medium") if compared else (st.container(), None)
    said = (*identity(run), *key, site)
    with left:
        draw = partial(figures.over_positions, run, measured, measure)
        chart(marked(run, (*key, measure), site, draw), f"positions_{measure}")
        st.caption(sentences(shared((*said, "where read"), lambda: positions.where_read(run, measured, site))))
    if right is None:
        return
    with right:
        chart(marked(run, (*key, "cosines"), site, partial(figures.cosines, run, measured)), "positions_cosines")
        st.caption(sentences(shared((*said, "how alike"), lambda: positions.how_alike(measured, site))))


def numbers(run: Run, measured: Measured, site: int) -> None:
    """Show all numbers at a site, and offer those of all sites."""
    with folded("The numbers", "positions_numbers_open") as part:
        if part.open:
            st.caption(
                "The direction is fitted anew at each position and layer. t_inst is the last token of the instruction, "
                "t_post the last of the template, where the run reads its prompts; between them lie closing tokens."
            )
            numbers_table(positions.numbers_table(measured, site).reset_index())
            if positions.is_compared(measured):
                numbers_table(positions.apart_table(measured, site))
            csv_button(lambda: measured[0], f"{run.run_id}--{KIND}")
