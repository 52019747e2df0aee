"""The parts of the Layers page: a ridgeline and a panel that the browser moves, pinned prompts, and curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from refusal_core.exploration.outliers import row_of
from refusal_core.exploration.published import published_table
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.layers import SUMMARIES, eight_layers, three_questions
from refusal_core.figures.panels import AXES, DISTRIBUTIONS, PANELS, SYMBOLS, linked
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.figures.ridgeline import ridges
from refusal_core.figures.style import LABEL_COLOUR, LINE_COLOURS, safe
from refusal_core.markdown import plain
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run
from refusal_core.sites import site_short
from refusal_core.ui import address
from refusal_core.ui.frame import site_picker
from refusal_core.ui.layout import chart, csv_button, folded, identity, layer_numbers, marked, raw_units, shared
from refusal_core.ui.scrubbing import first_site, is_narrow, keep_together
from refusal_core.ui.selection import newly
from refusal_core.ui.streamlit_internals import component, resource

_CONTAINER, _CHART = "panels-place", "panels"
_PINNED_HEIGHT = 360
_MOST_OFFERED = 2000
"""The most prompts that the field for pinning offers; a browser is slow with more."""
_MARKS = {"star": "★", "diamond": "◆", "square": "■", "cross": "✚", "hexagram": "✡", "x": "✖"}
MOST_FOLLOWED = 6


def panel_options(run: Run) -> dict[str, Any]:
    """Show fields for what the panel shows; return options of :func:`~refusal_core.figures.panels.linked`."""
    view = address.view()
    panels = list(PANELS) if run.has_evidence else list(DISTRIBUTIONS)
    switch, scale, overlay = st.columns([9, 5, 6], gap="medium", vertical_alignment="bottom")
    panel = switch.pills(
        "Panel",
        panels,
        format_func=lambda panel: PANELS[panel].capitalize(),
        required=True,
        key=address.fill("layers_panel", address.one_of(panels, "panel")),
        on_change=lambda: address.change(panel=st.session_state["layers_panel"]),
    )
    axes = scale.selectbox(
        "Axes",
        list(AXES),
        format_func=lambda axes: AXES[axes].capitalize(),
        key=address.fill("layers_axes", address.one_of(list(AXES), "axes")),
        on_change=lambda: address.change(axes=st.session_state["layers_axes"]),
        help="Activations grow over the layers, so with the same axes in activation units early layers shrink to a "
        "line. Standard deviations, counted from the midpoint of the two means, compare layers.",
    )
    sources = overlay.pills(
        "Overlay",
        run.transfer_sources,
        selection_mode="multi",
        format_func=plain,
        key=address.fill("layers_sources", [name for name in run.transfer_sources if name in (view.over or ())]),
        on_change=lambda: address.change(over=tuple(st.session_state["layers_sources"]) or None),
        help="Transfer sets are scored and never fitted on; they are drawn as outlines and thin curves.",
    )
    return {"panels": (panel,), "axes": axes, "sources": tuple(sources)}


def instrument(run: Run, options: dict[str, Any]) -> None:
    """Show the ridgeline, the panel and the pinned prompts side by side.

    The panel is drawn for the site it was first asked for and is not drawn again when the site changes: the browser
    moves it there.
    """
    followed = _followed(run)
    depth, panel, side = st.columns([11, 30, 13], gap="small")
    site = int(address.view().site or 0)
    with depth:
        component("ridgeline", css=resource("ridgeline.css"))(
            key="layers_ridgeline", data={"container": _CONTAINER, "site": site, **_ridges(*identity(run), run)}
        )
    with panel:
        _panel(run, options | {"followed": tuple(followed), "stacked": is_narrow(_CONTAINER)}, site)
    with side:
        site_picker(run, st.container())
        _pinned(run, followed, site)
    keep_together(_CONTAINER, site)


def over_layers(run: Run, site: int) -> None:
    """Show the pinned prompts and the run's numbers over the layers."""
    followed = _followed(run)
    st.subheader("Over the layers", anchor=False)
    with st.container(horizontal=True, gap="medium"):
        overlay = st.toggle(
            "Experiment 0, published",
            key=address.fill("layers_published", address.view().published is not None),
            on_change=lambda: address.change(published="yes" if st.session_state["layers_published"] else None),
            help="Qwen2.5-1.5B-Instruct on AdvBench and Alpaca prompts (Pierucci 2025); its layer 27 is a final norm.",
        )
        raw = raw_units() if followed else False
    published = published_table() if overlay else None
    columns = st.columns(2 if followed else 1)
    with columns[0]:
        _curve(run, "effect", three_questions, site, published)
    if followed:
        with columns[1]:
            _pinned_courses(run, followed, site, raw)
    for left, right in (("separation", "together"), ("spread", "crossings")):
        for column, name in zip(st.columns(2), (left, right), strict=True):
            with column:
                _curve(run, name, SUMMARIES[name], site, published)
    st.caption("Click a point to go to its layer.")
    with folded(f"All numbers of {run.site_label(site)}", "layers_numbers_open") as part:
        if part.open:
            layer_numbers(run, site)
    csv_button(lambda: run.layer_stats, f"{run.run_id}--layers", "Download the numbers of all layers")


def _pinned_courses(run: Run, followed: list[int], site: int, raw: bool) -> None:
    lines = [
        Course(text, run.projections[row], safe(text, limit=24), colour)
        for row, text, colour in zip(followed, run.prompts["text"][followed], LINE_COLOURS, strict=False)
    ]
    chart(courses(run, lines, site, raw), "layers_courses")


def side_by_side(run: Run) -> None:
    """Show eight layers at once, once unfolded."""
    with folded("Eight layers side by side", "layers_eight_open", ":material/grid_view:") as part:
        if part.open:
            columns = 2 if is_narrow(_CONTAINER) else 4
            chart(_eight(*identity(run), run, columns), "layers_eight")


def _panel(run: Run, options: dict[str, Any], site: int) -> None:
    """Show the panel with its slider; a click on a prompt's point pins it."""
    start = first_site(_CONTAINER, site, (run.run_id, *map(str, options.values())))
    with st.container(key=_CONTAINER):
        event = chart(
            _figure(*identity(run), run, start, **options),
            _CHART,
            saved=lambda: linked(run, site, **options),
            on_select="rerun",
            selection_mode="points",
        )
    points = event["selection"]["points"]
    clicked = newly(_CHART, points[0]["customdata"] if points else None)
    if isinstance(clicked, (list, tuple)):
        _follow(run, [*options["followed"], int(clicked[0])])
        st.rerun()


def _pinned(run: Run, followed: list[int], site: int) -> None:
    """Show the pinned prompts in full, with their projection, and a field that pins another."""
    offered = shared((*identity(run), "offered"), lambda: _offered(run))
    st.selectbox(
        "Pin a prompt",
        range(len(offered)),
        index=None,
        format_func=offered.__getitem__,
        placeholder="type part of it",
        help=f"Of more than {_MOST_OFFERED} prompts the first; the page Outliers searches all."
        if len(run.prompts) > _MOST_OFFERED
        else None,
        key=address.fill("layers_pin", None),
        on_change=_pin,
        args=(run, followed),
    )
    narrow = is_narrow(_CONTAINER)
    with st.container(height="content" if narrow else _PINNED_HEIGHT, border=False, key="layers_pinned"):
        if not followed:
            st.caption("Pinned prompts stand here. A click on a point pins its prompt, too.")
        for row, colour, symbol in zip(followed, LINE_COLOURS, SYMBOLS, strict=False):
            prompt = run.prompts.loc[row]
            mark = f':color[{_MARKS[symbol]}]{{foreground="{colour}"}}'
            projection = f"{run.projections[row, site]:.3g}".replace("-", "\u2212")
            st.markdown(f"{mark} {prompt['label']}, projection **{projection}**")
            st.text(prompt["text"])
            st.button(
                "Unpin",
                key=f"layers_unpin_{prompt['prompt_id']}",
                type="tertiary",
                icon=":material/keep_off:",
                on_click=_unpin,
                args=(run, followed, row),
            )


def _offered(run: Run) -> list[str]:
    """Return the prompts that the field offers, each as one line."""
    return [" ".join(text.split())[:100] for text in run.prompts["text"][:_MOST_OFFERED]]


def _curve(run: Run, name: str, drawn: Callable[..., go.Figure], site: int, published: pd.DataFrame | None) -> None:
    key = f"layers_{name}"

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if points:
            address.change(site=round(points[0]["x"]))

    variant = key if published is None else f"{key}_published"
    figure = marked(run, variant, site, lambda site: drawn(run, site, published))
    chart(figure, key, on_select=clicked, selection_mode="points")


def _followed(run: Run) -> list[int]:
    """Return the rows of the pinned prompts: those pinned here, and the one chosen on any page."""
    named = (row_of(run, prompt_id) for prompt_id in address.view().followed or ())
    rows = [row for row in named if row is not None]
    chosen = row_of(run, address.view().prompt)
    if chosen is not None and chosen not in rows:
        return _follow(run, [*rows, chosen])
    return rows


def _pin(run: Run, followed: list[int]) -> None:
    row = st.session_state["layers_pin"]
    if row is not None:
        _follow(run, [*followed, int(row)])


def _unpin(run: Run, followed: list[int], row: int) -> None:
    _follow(run, [other for other in followed if other != row])


def _follow(run: Run, rows: Sequence[int]) -> list[int]:
    """Pin these prompts, the latest of them at most, and return them; the last becomes the chosen prompt."""
    unique = list(dict.fromkeys(rows))[-MOST_FOLLOWED:]
    ids = [str(prompt_id) for prompt_id in run.prompts["prompt_id"][unique]]
    address.change(followed=tuple(ids) or None, prompt=ids[-1] if ids else None)
    return unique


@st.cache_resource(max_entries=8, show_spinner=False)
def _ridges(run_id: str, changed: int, _run: Run) -> dict[str, Any]:
    sites = range(_run.n_sites)
    return {
        **ridges(_run),
        "labels": [_run.site_label(site) for site in sites],
        "shorts": [site_short(site, _run.n_layers) for site in sites],
        "colours": {label: LABEL_COLOUR[label] for label in LABELS},
    }


@st.cache_resource(max_entries=16, show_spinner=False)
def _figure(run_id: str, changed: int, _run: Run, start: int, **options: Any) -> go.Figure:
    return serialise_once(linked(_run, start, framed=False, **options))


@st.cache_resource(max_entries=16, show_spinner=False)
def _eight(run_id: str, changed: int, _run: Run, columns: int) -> go.Figure:
    return serialise_once(eight_layers(_run, columns))
