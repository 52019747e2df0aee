"""The parts of the Subspace page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import plotly.graph_objects as go
import streamlit as st

from refusal_core.exploration import subspace
from refusal_core.exploration.subspace import Measured
from refusal_core.figures import subspace as figures
from refusal_core.runs.manifest import SubspaceManifest
from refusal_core.runs.run import Run
from refusal_core.ui.frame import site_beside_verdict
from refusal_core.ui.layout import chart, csv_button, folded, identity, marked, sentences, shared, shared_figure
from refusal_core.ui.model import recorded_or_end
from refusal_core.ui.numbers import numbers_table

T = TypeVar("T")

KIND = SubspaceManifest.kind


def measured_or_end(run: Run) -> Measured:
    """Return what was measured of the run's directions; without any the page ends with how to measure it."""
    needed = "" if run.keeps_activations else " It needs the run's model, since the run has no activations stored."
    return recorded_or_end(
        run,
        subspace.load_subspace,
        KIND,
        "directions",
        f"How many directions this run has, and which categories share one, has not been measured yet.{needed}",
        ":material/account_tree:",
        with_model=not run.keeps_activations,
    )


def choose_site(run: Run, measured: Measured) -> int:
    """Show a field for the site, and beside it how many directions are found there; return the site."""

    def verdict(site: int) -> str:
        return _said(run, measured, site, "verdict", lambda: subspace.verdict(run, measured, site))

    return site_beside_verdict(run, verdict)


def at_site(run: Run, measured: Measured, site: int) -> None:
    """Show what is left after more and more directions, and which categories share one, at a site."""
    if measured[1].reason is not None:
        st.markdown(sentences(subspace.how_many(measured, site)))
        return
    left, right = st.columns(2, gap="medium")
    with left:
        chart(_drawn(run, measured, site, figures.left_over), "subspace_left_over")
        st.caption(sentences(_said(run, measured, site, "how many", lambda: subspace.how_many(measured, site))))
    with right:
        chart(_drawn(run, measured, site, figures.category_cosines), "subspace_categories")
        st.caption(sentences(_said(run, measured, site, "which share", lambda: subspace.which_share(measured, site))))


def over_layers(run: Run, measured: Measured, site: int) -> None:
    """Show how many directions are found at every site."""
    if measured[1].reason is not None:
        return
    st.subheader("Over the layers", anchor=False)
    key = ("subspace", measured[1].sha256)
    chart(marked(run, key, site, lambda site: figures.ranks_over_layers(run, measured, site)), "subspace_ranks")
    st.caption(
        "The fewest directions after whose removal what is left is within chance: a lower bound, at each layer by "
        "itself. More prompts or categories may find more. Like the first direction, the others may be of wording."
    )


def estimators(run: Run, measured: Measured, site: int) -> None:
    """Show what other estimators of the direction make of the same prompts at a site."""
    table = _said(run, measured, site, "estimators", lambda: subspace.estimator_table(measured, site))
    st.subheader("Is the difference of means the best direction?", anchor=False)
    which = _said(run, measured, site, "which", lambda: subspace.which_estimator(run, measured, site))
    st.markdown(sentences(which))
    if table.empty:
        return
    numbers_table(table[table.columns.intersection(subspace.SUMMARY, sort=False)].reset_index())
    st.caption(
        "Fitted and tuned in the training folds; intervals are of redrawn prompts, the directions as they are. "
        "Separating better is not causing more: what these directions do when they are ablated was not measured."
    )


def numbers(run: Run, measured: Measured, site: int) -> None:
    """Show all numbers of the estimators and of the pairs of categories, and offer those of all sites."""
    with folded("The numbers", "subspace_numbers_open") as part:
        if part.open:
            numbers_table(subspace.estimator_table(measured, site).reset_index())
            if measured[1].reason is None:
                numbers_table(subspace.pair_table(measured, site))
            csv_button(lambda: measured[0], f"{run.run_id}--{KIND}")


def _said(run: Run, measured: Measured, site: int, name: str, make: Callable[[], T]) -> T:
    """Return what is said of a site, computed once for all visitors."""
    return shared((*identity(run), KIND, measured[1].sha256, name, site), make)


def _drawn(run: Run, measured: Measured, site: int, draw: Callable[[Run, Measured, int], go.Figure]) -> go.Figure:
    key = (*identity(run), measured[1].sha256, draw.__name__, site)
    return shared_figure(key, lambda: draw(run, measured, site))
