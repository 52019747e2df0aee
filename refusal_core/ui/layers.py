"""The parts of the Layers page: linked panels that the browser moves, and what follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from refusal_core.exploration.outliers import row_of
from refusal_core.exploration.published import published_table
from refusal_core.figures.layers import SUMMARIES, eight_layers, three_questions
from refusal_core.figures.panels import AXES, PANELS, linked
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.frame import site_picker
from refusal_core.ui.layout import chart, csv_button, identity, layer_numbers, marked
from refusal_core.ui.markdown import plain
from refusal_core.ui.scrubbing import keep_together
from refusal_core.ui.selection import newly

_CONTAINER, _CHART = "panels-place", "panels"
_NARROW = "layers_narrow"
_STARTS, _SHOWN = "layers_starts", "layers_shown"
MOST_FOLLOWED = 6


def panel_options(run: Run) -> dict[str, Any]:
    """Fields for what the panels show; returns options of :func:`~refusal_core.figures.panels.linked`."""
    view = address.view()
    wanted = [each for each in PANELS if each in (view.panels or PANELS)]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        panels = st.pills(
            "Panels",
            list(PANELS),
            format_func=lambda panel: PANELS[panel].capitalize(),
            selection_mode="multi",
            key=address.fill("layers_panels", wanted or list(PANELS)),
            on_change=lambda: address.change(panels=tuple(st.session_state["layers_panels"]) or ("histogram",)),
            width="content",
            help="All of them move with the one slider.",
        )
        axes = st.selectbox(
            "Axes",
            list(AXES),
            format_func=lambda axes: AXES[axes].capitalize(),
            key=address.fill("layers_axes", address.one_of(list(AXES), "axes")),
            on_change=lambda: address.change(axes=st.session_state["layers_axes"]),
            width=260,
            help="Activations grow over the layers, so with the same axes in activation units early layers shrink to a "
            "line. Standard deviations, counted from the midpoint of the two means, compare layers.",
        )
        sources = st.pills(
            "Draw over it",
            run.transfer_sources,
            selection_mode="multi",
            format_func=plain,
            key=address.fill("layers_sources", [each for each in run.transfer_sources if each in (view.over or ())]),
            on_change=lambda: address.change(over=tuple(st.session_state["layers_sources"]) or None),
            width="content",
            help="Transfer sets are scored and never fitted on; they are drawn as outlines and thin curves.",
        )
    return {"panels": tuple(panels), "axes": axes, "sources": tuple(sources)}


def linked_panels(run: Run, options: dict[str, Any]) -> None:
    """Draw the panels with their slider; a click on a prompt's point follows it over the layers.

    The figure is drawn for the site it was first asked for and is not drawn again when the site changes: the browser
    moves it there.
    """
    followed = _followed(run)
    options = options | {"followed": tuple(followed), "stacked": st.session_state.get(_NARROW, False)}
    site = int(address.view().site or 0)
    starts = st.session_state.setdefault(_STARTS, {})
    start = starts.setdefault((run.run_id, *map(str, options.values())), site)
    # Read when a file is asked for, which may be after the browser has moved the figure.
    shown = st.session_state.setdefault(_SHOWN, {})
    shown.update(site=site, stacked=options["stacked"])
    with st.container(key=_CONTAINER):
        event = chart(
            _figure(*identity(run), run, start, **options),
            _CHART,
            saved=lambda: linked(run, shown["site"], **options),
            on_select="rerun",
            selection_mode="points",
        )
    points = event["selection"]["points"]
    clicked = newly(_CHART, points[0]["customdata"] if points else None)
    if isinstance(clicked, (list, tuple)):
        _follow(run, [*followed, int(clicked[0])])
        st.rerun()
    if followed:
        st.multiselect(
            "Prompts followed",
            followed,
            format_func=lambda row: " ".join(run.prompts["text"][row].split())[:80],
            key=address.fill("layers_followed_field", followed),
            on_change=_only_follow,
            args=(run,),
            help="Their course over the layers, in pooled standard deviations from the midpoint of the two means.",
        )


@st.fragment
def at_this_layer(run: Run) -> None:
    """What follows the slider: the layer's numbers and its mark in the curves; the panels are left as they are."""
    shown = st.session_state[_SHOWN]
    if shown["stacked"] != st.session_state.get(_NARROW, False):
        st.rerun()
    address.write()
    site = shown["site"] = int(address.view().site or 0)
    heading, field = st.columns([3, 1], vertical_alignment="bottom")
    heading.subheader(run.site_label(site), anchor=False)
    site_picker(run, field)
    keep_together(_CONTAINER, site, _go_to, _narrow)
    layer_numbers(run, site)
    st.subheader("Over the layers", anchor=False)
    overlay = st.toggle(
        "Experiment 0, published",
        key=address.fill("layers_published", address.view().published is not None),
        on_change=lambda: address.change(published="yes" if st.session_state["layers_published"] else None),
        help="Qwen2.5-1.5B-Instruct on AdvBench and Alpaca prompts (Pierucci 2025); its layer 27 is a final norm.",
    )
    published = published_table() if overlay else None
    _curve(run, "effect", three_questions, site, published)
    for left, right in (("separation", "together"), ("spread", "crossings")):
        for column, name in zip(st.columns(2), (left, right), strict=True):
            with column:
                _curve(run, name, SUMMARIES[name], site, published)
    st.caption("Click a point to go to its layer.")
    csv_button(lambda: run.layer_stats, f"{run.run_id}--layers", "Download the numbers of every layer")


def side_by_side(run: Run) -> None:
    """Eight layers at once, for those who do not want to scrub."""
    st.subheader("Eight layers side by side", anchor=False)
    columns = 2 if st.session_state.get(_NARROW, False) else 4
    chart(_eight(*identity(run), run, columns), "layers_eight")


def _curve(run: Run, name: str, drawn: Callable[..., go.Figure], site: int, published: pd.DataFrame | None) -> None:
    key = f"layers_{name}"

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if points:
            address.change(site=round(points[0]["x"]))

    variant = key if published is None else f"{key}_published"
    figure = marked(run, variant, site, lambda site: drawn(run, site, published))
    chart(figure, key, on_select=clicked, selection_mode="points")


def _go_to(site: int) -> None:
    address.change(site=site)


def _narrow(narrow: bool) -> None:
    st.session_state[_NARROW] = narrow


def _followed(run: Run) -> list[int]:
    """Rows of the prompts that are followed: those clicked here, and the one chosen on any page."""
    named = (row_of(run, each) for each in address.view().followed or ())
    rows = [row for row in named if row is not None]
    chosen = row_of(run, address.view().prompt)
    if chosen is not None and chosen not in rows:
        return _follow(run, [*rows, chosen])
    return rows


def _only_follow(run: Run) -> None:
    _follow(run, st.session_state["layers_followed_field"])


def _follow(run: Run, rows: Sequence[int]) -> list[int]:
    """Follow these prompts, the latest of them at most, and return them; the last becomes the chosen prompt."""
    unique = list(dict.fromkeys(rows))[-MOST_FOLLOWED:]
    ids = [str(each) for each in run.prompts["prompt_id"][unique]]
    address.change(followed=tuple(ids) or None, prompt=ids[-1] if ids else None)
    return unique


@st.cache_resource(max_entries=16, show_spinner=False)
def _figure(run_id: str, changed: int, _run: Run, start: int, **options: Any) -> go.Figure:
    return serialise_once(linked(_run, start, framed=False, **options))


@st.cache_resource(max_entries=16, show_spinner=False)
def _eight(run_id: str, changed: int, _run: Run, columns: int) -> go.Figure:
    return serialise_once(eight_layers(_run, columns))
