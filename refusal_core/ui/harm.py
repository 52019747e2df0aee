"""The parts of the Harm and refusal page."""

from __future__ import annotations

from functools import partial

import streamlit as st

from refusal_core.errors import RefusalError
from refusal_core.exploration import positions
from refusal_core.exploration.positions import Measured
from refusal_core.figures.positions import over_positions
from refusal_core.runs.manifest import PositionsManifest
from refusal_core.runs.run import Run
from refusal_core.ui.frame import site_picker
from refusal_core.ui.layout import chart, csv_button, marked, part_picker, sentences, show_error
from refusal_core.ui.model import measure_here
from refusal_core.ui.numbers import numbers_table

KIND = PositionsManifest.kind


def measured_or_end(run: Run) -> Measured:
    """Return what was measured at the run's read positions; without any the page ends with how to measure it."""
    try:
        measured = positions.load_positions(run)
    except RefusalError as error:
        show_error("The read positions measured on this run cannot be used.", error)
        st.stop()
    if measured is None:
        st.info(
            "Whether the model knows harm where the instruction ends, before it turns to refusing, has not been "
            "measured yet: this run's prompts were read where the reply begins alone. It needs the run's model.",
            icon=":material/call_split:",
        )
        measure_here(run, KIND)
        with st.expander("On the command line", icon=":material/terminal:"):
            st.code(f"refusal measure {KIND} {run.run_id}", language=None)
        st.stop()
    return measured


def choose_site(run: Run, measured: Measured) -> int:
    """Show a field for the site, and beside it what is read there at either end; return the site."""
    place, says = st.columns([1, 3], gap="medium", vertical_alignment="bottom")
    site = site_picker(run, place)
    says.markdown(sentences(positions.where_read(run, measured, site)))
    return site


def over_layers(run: Run, measured: Measured, site: int) -> None:
    """Show a question's number at every layer and read position."""
    questions = positions.questions_of(measured)
    measure = questions[part_picker(list(questions))]
    key = (KIND, measured[1].sha256, measure)
    chart(marked(run, key, site, partial(over_positions, run, measured, measure)), f"positions_{measure}")
    st.caption(
        "The direction is fitted anew at each position and layer. t_inst is the last token of the instruction, t_post "
        "the last of the template, where the run reads its prompts; between them lie the template's closing tokens."
    )


def numbers(run: Run, measured: Measured, site: int) -> None:
    """Show all numbers at a site, and offer those of all sites."""
    with st.expander("The numbers", icon=":material/table_rows:"):
        numbers_table(positions.numbers_table(measured, site).reset_index())
        csv_button(lambda: measured[0], f"{run.run_id}--{KIND}")
