"""The parts of the Map page: prompts in a plane that the browser moves, and those a lasso chose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from pandas.util import hash_array
from streamlit.delta_generator import DeltaGenerator

from refusal_core.behaviour.measurement import load_behaviour
from refusal_core.errors import RunError
from refusal_core.exploration.outliers import row_of
from refusal_core.exploration.planes import COMPONENTS, DIRECTION, PLANES, Plane, midpoint_projections, plane_of
from refusal_core.figures import map as figures
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.markdown import plain
from refusal_core.runs.manifest import BehaviourManifest
from refusal_core.runs.run import Run
from refusal_core.sharing.map_page import map_html
from refusal_core.ui import address
from refusal_core.ui.clicks import on_point
from refusal_core.ui.layout import addition_identity, chart, csv_button, identity, shared
from refusal_core.ui.outliers import the_prompt
from refusal_core.ui.scrubbing import first_site, is_narrow, keep_together
from refusal_core.ui.selection import chosen_row

_CONTAINER, _CHART = "map-place", "map"
_SELECTED = "map_selected"
_MOST_VALUES = 60
_LIST_HEIGHT, _READER_HEIGHT = 160, 210


@dataclass(frozen=True, eq=False)
class Options:
    """What the map shows.

    Attributes:
        plane: one of :data:`refusal_core.exploration.planes.PLANES`.
        values: per row of the run, what a point is coloured by.
        sources: transfer sets that are drawn too.
    """

    plane: str
    values: pd.Series
    sources: tuple[str, ...]


def options(run: Run, columns: Sequence[DeltaGenerator]) -> Options:
    """Show fields for the plane, the colours and the sets; return what was chosen."""
    view = address.view()
    known = shared((*addition_identity(run, BehaviourManifest.kind), "colourings"), lambda: _colourings(run))
    plane, colour = address.one_of(list(PLANES), "plane"), address.one_of(list(known), "colour")
    columns[0].segmented_control(
        "Axes",
        list(PLANES),
        format_func=lambda name: PLANES[name].capitalize(),
        required=True,
        key=address.fill("map_plane", plane),
        on_change=lambda: address.change(plane=st.session_state["map_plane"]),
        help="Principal components: the plane in which the prompts of the contrast set vary most. Direction and "
        "residual: the projection, cross-fitted, and the first component of what the direction leaves.",
    )
    columns[1].selectbox(
        "Colour",
        list(known),
        key=address.fill("map_colour", colour),
        on_change=lambda: address.change(colour=st.session_state["map_colour"]),
    )
    sources = tuple(name for name in run.transfer_sources if name in (view.over or ()))
    columns[2].pills(
        "Overlay",
        run.transfer_sources,
        selection_mode="multi",
        format_func=plain,
        key=address.fill("map_sources", list(sources)),
        on_change=lambda: address.change(over=tuple(st.session_state["map_sources"]) or None),
        help="Transfer sets lie in the plane of the contrast set; nothing was fitted on them.",
    )
    return Options(plane, known[colour], sources)


def prompt_map(run: Run, options: Options, site: int) -> None:
    """Show the map with its slider; a lasso or box chooses prompts, a click opens one."""
    plane, chosen, narrow = _plane(*identity(run), options.plane, run), _selected(run), is_narrow(_CONTAINER)
    # Replies may be measured anew on the same run.
    hashes = hash_array(options.values.astype(str).to_numpy(object))
    coloured = str(options.values.name), hashlib.sha256(hashes.tobytes()).hexdigest()
    shown = *identity(run), options.plane, coloured, options.sources, chosen, narrow
    start = first_site(_CONTAINER, site, shown)
    draw = partial(figures.prompt_map, run, plane, options.plane, values=options.values, sources=options.sources)
    make_page = partial(map_html, run, plane, options.plane, values=options.values, sources=options.sources)
    dark = st.context.theme.type == "dark"
    with st.container(key=_CONTAINER):
        chart(
            _figure((*shown, start), lambda: draw(site=start, chosen=chosen, narrow=narrow, framed=False)),
            _CHART,
            saved=lambda: draw(site=site, chosen=chosen),
            page=lambda: make_page(site=site, dark=dark),
            on_select=lambda: _use_lasso(run),
            selection_mode=("box", "lasso"),
        )
    on_point(_CHART, lambda prompt_id: address.change(prompt=prompt_id))
    keep_together(_CONTAINER, site)
    turned = {
        COMPONENTS: "Axes: the plane of the contrast set's first two principal components, from layer to layer turned "
        f"and mirrored to move the prompts least (orthogonal Procrustes), from {run.site_label(run.best_site())} on.",
        DIRECTION: "Across: the projection, 0 at the midpoint of the labels. Up: the first principal component of what "
        "the direction leaves, mirrored where that moves the prompts less from layer to layer.",
    }
    drawn_count, count = len(figures.drawn_rows(run, options.sources)), _count(run, options)
    of_all = f" Of {count} prompts {drawn_count} are drawn." if drawn_count < count else ""
    st.caption(f"{turned[options.plane]}{of_all}")


def selection(run: Run, options: Options) -> np.ndarray:
    """Say how many prompts are chosen, with a button that lets them go; return their rows, none for no choice."""
    rows = figures.drawn_rows(run, options.sources)
    chosen = np.intersect1d(rows, np.array(_selected(run), dtype=int))
    counts = run.prompts["label"].iloc[chosen if len(chosen) else rows].value_counts()
    labels = ", ".join(f"{count} {label}" for label, count in counts.items())
    with st.container(horizontal=True, vertical_alignment="center", key="map_counts"):
        st.markdown(f"**{len(chosen)} selected: {labels}**" if len(chosen) else f"**None selected; all: {labels}**")
        if len(chosen):
            st.button("Clear", icon=":material/close:", type="tertiary", on_click=_let_go, key="map_clear")
    return chosen


def histogram(run: Run, options: Options, chosen: np.ndarray, site: int) -> None:
    """Show where the chosen prompts project among all that are drawn."""
    rows = figures.drawn_rows(run, options.sources)
    projection = midpoint_projections(run)[:, site]
    chart(figures.projections_histogram(run, projection, rows, chosen, site), "map_histogram")


def prompt_list(run: Run, options: Options, chosen: np.ndarray, site: int) -> None:
    """Show the chosen prompts, or all that are drawn, by projection, and one of them in full."""
    rows = chosen if len(chosen) else figures.drawn_rows(run, options.sources)
    table = run.prompts.iloc[rows].assign(projection=midpoint_projections(run)[rows, site])
    table = table.sort_values("projection", ascending=False).set_index("prompt_id")
    columns = {
        "text": st.column_config.TextColumn("prompt", width=190),
        "label": st.column_config.TextColumn("label", width="small"),
        "projection": st.column_config.NumberColumn(
            "projection",
            format="%.2f",
            width="small",
            help="0 at the midpoint of the labels; cross-fitted for the contrast set.",
        ),
        "category": "category",
        "source": "set",
    }
    clicked = chosen_row(table, columns, "map_list", address.view().prompt, height=_LIST_HEIGHT)
    if clicked is not None:
        address.change(prompt=clicked)
    row = row_of(run, address.view().prompt)
    with st.container(height=_READER_HEIGHT, border=False, key="map_reader"):
        if row is None:
            st.caption("Click a point of the map or a row of the list to read its prompt here.")
        else:
            the_prompt(run, row, site)
    csv_button(lambda: table.reset_index()[["prompt_id", *columns]], f"{run.run_id}--site-{site}--map")


def _colourings(run: Run) -> dict[str, pd.Series]:
    """Return what points can be coloured by, by name: texts of a few values, or numbers."""
    prompts = run.prompts
    known = {figures.LABEL: prompts["label"], "category": prompts["category"], "set": prompts["source"]}
    try:
        stored = load_behaviour(run)
    except RunError:
        stored = None
    if stored is not None:
        known["reply"] = stored[0]["opening_label"].set_axis(prompts.index)
    known |= {"refusal log-odds": prompts["refusal_log_odds"], "tokens": prompts["n_tokens"]}
    known |= {str(name): run.extra[name] for name in run.extra if str(name) not in known}
    return {
        name: values.rename(name)
        for name, values in known.items()
        if pd.api.types.is_numeric_dtype(values) or 1 <= values.nunique() <= _MOST_VALUES
    }


def _count(run: Run, options: Options) -> int:
    return int(run.rows().sum()) + sum(int(run.rows(source=source).sum()) for source in options.sources)


def _selected(run: Run) -> tuple[int, ...]:
    """Return the rows that this visitor's lasso chose on this run."""
    of, rows = st.session_state.get(_SELECTED, (None, ()))
    return tuple(rows) if of == identity(run) else ()


def _use_lasso(run: Run) -> None:
    # A figure that was drawn anew reports that nothing is selected.
    points = st.session_state[_CHART]["selection"]["points"]
    ids = {point["customdata"] for point in points if isinstance(point.get("customdata"), str)}
    if ids:
        rows = np.flatnonzero(run.prompts["prompt_id"].isin(ids).to_numpy())
        st.session_state[_SELECTED] = identity(run), rows.tolist()


def _let_go() -> None:
    st.session_state.pop(_SELECTED, None)


@st.cache_resource(max_entries=8, show_spinner=False)
def _plane(run_id: str, changed: int, name: str, _run: Run) -> Plane:
    return plane_of(_run, name)


@st.cache_resource(max_entries=16, show_spinner=False)
def _figure(shown: tuple[Hashable, ...], _draw: Callable[[], go.Figure]) -> go.Figure:
    # Of many selections few are kept: each is drawn in some hundredths of a second.
    return serialise_once(_draw())
