"""A run's prompts in a plane of every site, coloured by what is known of them, and the projections of chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from refusal_core.exploration.planes import AXIS_TITLES, Plane
from refusal_core.figures.plotly_internals import layout_of
from refusal_core.figures.slider import compact, with_slider
from refusal_core.figures.style import (
    ACCENT,
    CONTROLS,
    GREY,
    LABEL_COLOUR,
    LABEL_SYMBOL,
    LINE_COLOURS,
    SMALL_SIZE,
    blank,
    safe,
    translucent,
)
from refusal_core.runs.run import Run

LABEL = "label"
"""The column by which prompts are coloured at first."""
MOST_POINTS, MOST_PLACES = 1500, 80_000
"""The most prompts that are drawn, and the most places at all sites together; of more prompts, an even choice."""
HEIGHT = 560
_SYMBOLS = ("circle", "diamond", "cross")
_SIGNS = {"circle": "●", "diamond": "◆", "cross": "✚", "triangle-up": "▲", "square": "■"}
_SCALE = "Viridis"
_MISSING, _OTHERS = "none", "other values"
_HEADLINE, _LEGEND_ROW, _LEGEND_WIDTH = 54, 20, 520
_BINS = 40


def drawn_rows(run: Run, sources: Sequence[str] = ()) -> np.ndarray:
    """Return the rows of the prompts that the map draws: fitted ones and those of transfer sets, evenly chosen."""
    rows = np.flatnonzero(np.logical_or.reduce([run.rows(), *(run.rows(source=source) for source in sources)]))
    most = max(min(MOST_POINTS, MOST_PLACES // run.n_sites), 2)
    if len(rows) <= most:
        return rows
    even: np.ndarray = rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]
    return even


def looks(values: pd.Series) -> dict[str, tuple[str, str]]:
    """Return colour and symbol of each value of a column of texts, the most frequent first, what is left over grey.

    Args:
        values: per row of the run, named as the column.
    """
    if values.name == LABEL:
        return {
            label: (colour, LABEL_SYMBOL[label]) for label, colour in LABEL_COLOUR.items() if (values == label).any()
        }
    counts = values.value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    styles = [(colour, symbol) for symbol in _SYMBOLS for colour in LINE_COLOURS]
    return {str(value): style for value, style in zip(counts.index, styles, strict=False)}


def groups_of(values: pd.Series) -> tuple[pd.Series, dict[str, tuple[str, str]]]:
    """Return the group in which each row is drawn, and the groups' colours and symbols in the order of the legend."""
    known = looks(values)
    texts = values.astype(object)
    groups = texts.where(texts.isin(list(known)), _OTHERS).where(values.notna(), _MISSING)
    rest = {name: (GREY, "circle") for name in (_OTHERS, _MISSING) if groups.eq(name).any() and name not in known}
    return groups, known | rest


def colours_of(values: pd.Series, rows: np.ndarray) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Return colour and symbol per row, and a legend: name, colour and sign.

    Args:
        values: per row of the run: texts or numbers.
        rows: that are drawn.
    """
    if not pd.api.types.is_numeric_dtype(values):
        groups, styles = groups_of(values)
        there = set(groups.iloc[rows])
        legend = [(name, colour, _SIGNS[symbol]) for name, (colour, symbol) in styles.items() if name in there]
        return [styles[group] for group in groups.iloc[rows]], legend
    numbers, (low, high) = values.iloc[rows].to_numpy(float), _ends(values, rows)
    places = np.clip((numbers - low) / (high - low), 0, 1)
    colours = sample_colorscale(_SCALE, np.nan_to_num(places), colortype="rgb")
    points = [(colour if known else GREY, "circle") for colour, known in zip(colours, np.isfinite(places), strict=True)]
    first, last = sample_colorscale(_SCALE, [0, 1], colortype="rgb")
    return points, [(f"{low:.3g} and less", first, _SIGNS["circle"]), (f"{high:.3g} and more", last, _SIGNS["circle"])]


def plane_range(plane: Plane, rows: np.ndarray, site: int) -> list[list[float]]:
    """Return the ends of both axes at a site."""
    points = plane.points[rows, site]
    known = points[np.isfinite(points).all(axis=1)]
    low, high = (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.ones(2))
    margin = 0.04 * np.maximum(high - low, 1e-9)
    ends: list[list[float]] = np.stack([low - margin, high + margin], axis=1).tolist()
    return ends


def share_in_words(plane: Plane, site: int) -> str:
    """Return how much of the variance the two axes hold, in words."""
    share = plane.shares[site]
    return (
        f"the two axes hold {100 * share:.0f} % of the variance"
        if np.isfinite(share)
        else "activations do not vary here"
    )


def prompt_map(
    run: Run,
    plane: Plane,
    name: str,
    site: int,
    values: pd.Series,
    sources: Sequence[str] = (),
    chosen: Sequence[int] = (),
    narrow: bool = False,
    framed: bool = True,
) -> go.Figure:
    """Return the prompts in a plane, with a slider over the sites, play and pause; a lasso chooses among them.

    A point's ``customdata`` is its ``prompt_id``.

    Args:
        run: the run.
        plane: of the run.
        name: which of :data:`refusal_core.exploration.planes.PLANES` it is.
        site: shown at first.
        values: per row of the run, what a point is coloured by: texts, or numbers, which have a scale.
        sources: transfer sets that are drawn too.
        chosen: rows that are ringed.
        narrow: whether the screen is, so that Play and Pause need more of it.
        framed: whether the figure moves by itself; see :func:`~refusal_core.figures.slider.with_slider`.
    """
    rows = drawn_rows(run, sources)
    ringed = np.intersect1d(rows, np.asarray(chosen, dtype=int))
    traces: list[tuple[dict[str, Any], np.ndarray]] = []
    if pd.api.types.is_numeric_dtype(values):
        traces.append((_scaled(run, values, rows), rows))
        legend = 0
    else:
        groups, styles = groups_of(values)
        for group, (colour, symbol) in styles.items():
            of_group = rows[groups.iloc[rows].eq(group).to_numpy()]
            if len(of_group):
                marker = {"color": colour, "symbol": symbol, "opacity": 0.75, "size": 7}
                traces.append((_points(run, of_group, group, marker, values), of_group))
        # Plotly gives every entry the width of the longest.
        widest = max((len(str(trace["name"])) for trace, _ in traces), default=0)
        columns = max(_LEGEND_WIDTH // (48 + 7 * widest), 1)
        legend = -(-(len(traces) + (len(ringed) > 0)) // columns)
    if len(ringed):
        traces.append((_rings(), ringed))
    frames = [
        {
            "name": str(at),
            "data": [{"type": "scatter", **_places(plane, of_trace, at)} for _, of_trace in traces],
            "traces": list(range(len(traces))),
            "layout": _of_site(run, plane, rows, at),
        }
        for at in range(run.n_sites)
    ]
    data = [{"type": "scatter", **still, **_places(plane, of_trace, site)} for still, of_trace in traces]
    return with_slider(run, site, data, frames, _layout(name, legend), 0.36 if narrow else 0.25, framed)


def projections_histogram(
    run: Run, projection: np.ndarray, rows: np.ndarray, chosen: np.ndarray, site: int
) -> go.Figure:
    """Return counts of the drawn prompts' projections at a site, and of the chosen ones among them.

    Args:
        run: the run.
        projection: ``(prompt,)`` 0 at the midpoint of the labels.
        rows: the prompts that are drawn.
        chosen: those of them that are chosen; none draws all of them alone.
        site: where they project.
    """
    values = projection[rows]
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    bars = []
    for counted, called, colour in (
        (values, "all", translucent(GREY, 0.45)),
        (projection[chosen], "selected", translucent(ACCENT, 0.85)),
    ):
        if called == "all" or len(chosen):
            bar = {
                "type": "bar",
                "x": edges[:-1],
                "y": np.histogram(counted, edges)[0],
                "width": edges[1] - edges[0],
                "offset": 0,
                "name": called,
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertext": edges[1:],
                "hovertemplate": f"%{{y}} {called}<br>%{{x:.4g}} to %{{hovertext:.4g}}<extra></extra>",
            }
            bars.append(bar)
    return blank(
        150,
        bars,
        barmode="overlay",
        bargap=0,
        showlegend=len(bars) > 1,
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "prompts"},
    )


def _points(run: Run, rows: np.ndarray, name: str, marker: dict[str, Any], values: pd.Series) -> dict[str, Any]:
    known = [safe(_said(value)) for value in values.iloc[rows]]
    texts = [safe(text, limit=120) for text in run.prompts["text"].iloc[rows]]
    opacity = marker.get("opacity", 0.75)
    return {
        "mode": "markers",
        "name": safe(name),
        "marker": marker,
        "selected": {"marker": {"opacity": opacity}},
        "unselected": {"marker": {"opacity": opacity}},
        "customdata": run.prompts["prompt_id"].iloc[rows].tolist(),
        "text": [f"{text}<br>{safe(str(values.name))}: {value}" for text, value in zip(texts, known, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _scaled(run: Run, values: pd.Series, rows: np.ndarray) -> dict[str, Any]:
    """Return points on a scale of numbers, whose extremes do not decide it."""
    numbers, (low, high) = values.iloc[rows].to_numpy(float), _ends(values, rows)
    marker = {
        "color": numbers.astype(np.float32),
        "colorscale": _SCALE,
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": {"text": safe(str(values.name)), "side": "right"}, "thickness": 12},
        "size": 7,
        "opacity": 0.85,
    }
    return _points(run, rows, str(values.name), marker, values)


def _ends(values: pd.Series, rows: np.ndarray) -> tuple[float, float]:
    """Return the ends of a scale of numbers, beyond the few lowest and highest."""
    numbers = values.iloc[rows].to_numpy(float)
    low, high = np.nanpercentile(numbers, [5, 95]) if np.isfinite(numbers).any() else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-9))


def _rings() -> dict[str, Any]:
    return {
        "mode": "markers",
        "name": "selected",
        "marker": {"symbol": "circle-open", "size": 13, "color": ACCENT, "line": {"width": 2}},
        "selected": {"marker": {"opacity": 1}},
        "unselected": {"marker": {"opacity": 1}},
        "hoverinfo": "skip",
    }


def _said(value: object) -> str:
    if pd.isna(value):
        return _MISSING
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _places(plane: Plane, rows: np.ndarray, site: int) -> dict[str, Any]:
    return {name: compact(plane.points[rows, site, axis]) for axis, name in enumerate("xy")}


def _of_site(run: Run, plane: Plane, rows: np.ndarray, site: int) -> dict[str, Any]:
    """Return what a site changes of the layout: the headline and the ranges."""
    across, up = plane_range(plane, rows, site)
    return {
        "title": {
            "text": f"<b>{run.site_label(site)}</b><br>"
            f"<span style='font-size:{SMALL_SIZE}px;font-weight:400'>{share_in_words(plane, site)}</span>"
        },
        "xaxis": {"range": across},
        "yaxis": {"range": up},
    }


def _layout(name: str, legend: int) -> dict[str, Any]:
    across, up = AXIS_TITLES[name]
    # Margins that follow the tick labels would have the browser draw every step twice.
    settled = {"automargin": False, "zeroline": False, "title_standoff": 6}
    below = 52 + _LEGEND_ROW * legend
    height = HEIGHT + _LEGEND_ROW * max(legend - 1, 0)
    plot = height - _HEADLINE - CONTROLS - below
    figure = blank(
        height,
        xaxis={"title_text": across, **settled},
        yaxis={"title_text": up, **settled},
        margin={"l": 66, "r": 8, "t": _HEADLINE + CONTROLS, "b": below},
        hovermode="closest",
        dragmode="lasso",
        newselection={"line": {"color": ACCENT, "width": 2}},
        clickmode="event",
        showlegend=legend > 0,
    )
    figure.update_layout(legend={"y": -44 / plot, "yanchor": "top"})
    return layout_of(figure)
