"""Panels of projections at one site, with a slider by which the browser moves them through the sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_core.analysis.effect_sizes import plausible_band
from refusal_core.exploration.outliers import standardised
from refusal_core.exploration.planes import AXIS_TITLES, COMPONENTS, plane_of
from refusal_core.figures.plotly_internals import layout_of
from refusal_core.figures.slider import compact, with_slider
from refusal_core.figures.style import (
    CONTROLS,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    LABEL_SYMBOL,
    LINE_COLOURS,
    SMALL_SIZE,
    bars_of,
    dress,
    safe,
    translucent,
)
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

PANELS = {
    "histogram": "histogram",
    "cumulative": "cumulative",
    "box": "box",
    "sorted": "sorted prompts",
    "map": "map",
}
"""The panels and their names. The map, in the principal plane, needs the run's evidence."""
DISTRIBUTIONS = ("histogram", "cumulative", "box", "sorted")
"""The panels that every run has."""
AXES = {
    "own": "each layer's own",
    "same": "same at all layers",
    "standardised": "same, in standard deviations",
}
"""The span of the panels' axes, and the unit of projections."""

BINS, SAME_BINS = 40, 80
MAP_POINTS = 150
"""The most prompts of a label that the map draws; of more, an even choice."""
POINTS = 60
"""The most prompts of a label that are drawn as points: all, or a sample with extremes, for the browser's sake."""
LEVELS = 200
"""The most points of a curve over the prompts of a label."""

SYMBOLS = ("star", "diamond", "square", "cross", "hexagram", "x")
"""Marks of pinned prompts, in the order of :data:`refusal_core.figures.style.LINE_COLOURS`."""
_HEADLINE, _LEFT = 76, 66
_HEIGHT = {False: 250, True: 230}
_SOURCE_DASHES = ("dot", "dashdot", "longdash", "longdashdot")
_LANES = {"harmful": 1.0, "harmless": 0.0}
"""Where a label's box lies in the panel of boxes."""


@dataclass(frozen=True, eq=False)
class _Trace:
    """A trace of a panel: what all sites share, and what a site changes of it."""

    panel: str
    still: dict[str, Any]
    at: Callable[[int], dict[str, Any]]


def linked(
    run: Run,
    site: int,
    panels: Sequence[str] = DISTRIBUTIONS,
    sources: Sequence[str] = (),
    axes: str = "own",
    followed: Sequence[int] = (),
    stacked: bool = False,
    framed: bool = True,
) -> go.Figure:
    """Return the projections at one site in one or more panels, with a slider over the sites, play and pause.

    Points carry the prompt's row in the run as ``customdata[0]``. However many prompts a run has, a panel holds at most
    :data:`POINTS` points and :data:`LEVELS` steps of a curve per label, so that the figure stays small.

    Args:
        run: the run.
        site: shown at first.
        panels: of :data:`PANELS`.
        sources: transfer sets drawn over the contrast set, as outlines and curves.
        axes: of :data:`AXES`.
        followed: rows of prompts that are marked in the panels.
        stacked: one panel above the other, for narrow screens.
        framed: whether the figure moves by itself; see :func:`~refusal_core.figures.slider.with_slider`.
    """
    panels = tuple(panel for panel in PANELS if panel in panels)
    shown = _Shown(run, axes, tuple(sources))
    makers = {"histogram": _histogram, "cumulative": _cumulative, "box": _box, "sorted": _sorted, "map": _map}
    traces = [trace for panel in panels for trace in (*makers[panel](shown), *_followed(panel, shown, followed))]
    # Plain data until the end: a figure that is changed checks itself again, which takes most of the time.
    layout, refs = _grid(panels, stacked, shown.scaled)
    frames: list[dict[str, Any]] = [
        {
            "name": str(at),
            "data": [{"type": trace.still["type"], **trace.at(at)} for trace in traces],
            "traces": list(range(len(traces))),
            "layout": _layout(shown, at, refs),
        }
        for at in range(run.n_sites)
    ]
    data = [{**trace.still, **trace.at(site), **_on(refs[trace.panel])} for trace in traces]
    buttons = 0.36 if stacked else 0.25 if len(panels) == 1 else 0.13
    return with_slider(run, site, data, frames, layout, buttons, framed)


def _on(refs: tuple[str, str]) -> dict[str, str]:
    return {"xaxis": refs[0], "yaxis": refs[1]}


def _axis(ref: str) -> str:
    """Return the layout's name of the axis that a trace refers to as ``x2``."""
    return ref[0] + "axis" + ref[1:]


class _Shown:
    """The numbers of a run that the panels draw, on one scale."""

    def __init__(self, run: Run, axes: str, sources: tuple[str, ...]):
        self.run = run
        self.same, self.scaled = axes != "own", axes == "standardised"
        # A site without spread has all its prompts at the midpoint.
        self.values = np.nan_to_num(standardised(run, run.projections)) if self.scaled else run.projections
        self.rows = {label: np.flatnonzero(run.rows(label)) for label in LABELS}
        order = {label: np.argsort(self.values[rows], axis=0) for label, rows in self.rows.items()}
        self.rising = {label: np.take_along_axis(self.values[self.rows[label]], order[label], 0) for label in LABELS}
        self.ranks = {label: np.argsort(order[label], axis=0) + 1 for label in LABELS}
        self.band = plausible_band(*(self.rising[label] for label in LABELS))
        self.sample = {label: _sample(len(rows), order[label]) for label, rows in self.rows.items()}
        self.transfer = [
            (source, label, self.values[run.rows(label, source)])
            for source in sources
            for label in LABEL_COLOUR
            if run.rows(label, source).any()
        ]
        everything = np.concatenate([*self.rising.values(), *(values for *_, values in self.transfer)])
        low, high = everything.min(axis=0), everything.max(axis=0)
        if self.same:
            low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        margin = 0.02 * np.maximum(high - low, 1e-9)
        bins = SAME_BINS if self.same else BINS
        self.edges = np.linspace(low - margin, high + margin, bins + 1)
        self.counts = {label: self._counted(self.rising[label]) for label in LABELS}
        self.transfer_counts = [self._counted(values) for *_, values in self.transfer]
        tallest = np.max([counts.max(axis=0) for counts in (*self.counts.values(), *self.transfer_counts)], axis=0)
        self.top = np.full_like(tallest, tallest.max()) if self.same else np.maximum(tallest, 1)

    @cached_property
    def components(self) -> dict[str, np.ndarray]:
        """Per label the ``(prompt, site, 2)`` places in the principal plane of the sample that the map draws."""
        points = plane_of(self.run, COMPONENTS).points
        return {label: points[rows] for label, rows in self.map_rows.items()}

    @cached_property
    def map_rows(self) -> dict[str, np.ndarray]:
        """The run's rows that the map draws, per label."""
        return {
            label: rows[np.linspace(0, len(rows) - 1, min(len(rows), MAP_POINTS)).round().astype(int)]
            for label, rows in self.rows.items()
        }

    def map_ranges(self, site: int) -> tuple[list[float], list[float]]:
        """Return the ends of the map's axes at a site."""
        points = np.concatenate([values if self.same else values[:, [site]] for values in self.components.values()])
        low, high = np.nanmin(points, axis=(0, 1)), np.nanmax(points, axis=(0, 1))
        margin = 0.04 * np.maximum(high - low, 1e-9)
        (left, bottom), (right, top) = low - margin, high + margin
        return [float(left), float(right)], [float(bottom), float(top)]

    def range(self, site: int) -> list[float]:
        """Return the ends of the axis of projections at a site."""
        return [float(self.edges[0, site]), float(self.edges[-1, site])]

    def _counted(self, values: np.ndarray) -> np.ndarray:
        """``(bin, site)`` counts of ``(prompt, site)`` values."""
        return np.stack(
            [np.histogram(of_site, edges)[0] for of_site, edges in zip(values.T, self.edges.T, strict=True)], 1
        )


def _sample(count: int, order: np.ndarray) -> np.ndarray:
    """Return positions of a label's prompts to draw: all, or every site's extremes and an even choice of the others."""
    if count <= POINTS:
        return np.arange(count)
    extremes = np.unique(order[[0, -1]])
    even = np.linspace(0, count - 1, max(POINTS - len(extremes), POINTS // 3)).astype(int)
    return np.union1d(extremes, even)


def _steps(rising: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most :data:`LEVELS` order statistics ``(prompt, site)``, and how many prompts reach up to them."""
    count = len(rising)
    levels = min(count, LEVELS)
    reached = -(-np.arange(1, levels + 1) * count // levels)
    return rising[reached - 1], reached


def _histogram(shown: _Shown) -> list[_Trace]:
    edges = shown.edges
    centres, widths = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]

    def bars(label: str) -> Callable[[int], dict[str, Any]]:
        return lambda site: {
            "x": compact(edges[:-1, site]),
            "y": shown.counts[label][:, site].astype(np.int32),
            "width": float(widths[site]),
            # Where texts are expected Plotly sends numbers as float64, whatever they were.
            "hovertext": edges[1:, site].astype(np.float64),
        }

    def mean(label: str) -> Callable[[int], dict[str, Any]]:
        means = shown.rising[label].mean(axis=0)
        return lambda site: {"x": [float(means[site])] * 2, "y": [0, float(shown.top[site])]}

    def outline(place: int) -> Callable[[int], dict[str, Any]]:
        return lambda site: {
            "x": compact(centres[:, site]),
            "y": shown.transfer_counts[place][:, site].astype(np.int32),
        }

    traces = [
        _Trace("histogram", {"type": "bar", "legendgroup": label, **bars_of(label)}, bars(label)) for label in LABELS
    ]
    for label in LABELS:
        still = {
            "type": "scatter",
            "mode": "lines",
            "name": f"{label} mean",
            "legendgroup": label,
            "showlegend": False,
            "line": {"color": LABEL_COLOUR[label], "width": 2, "dash": LABEL_DASH[label]},
            "hovertemplate": f"mean of the {label} prompts: %{{x:.4g}}<extra></extra>",
        }
        traces.append(_Trace("histogram", still, mean(label)))
    for place, (source, label, _) in enumerate(shown.transfer):
        still = {
            "type": "scatter",
            "mode": "lines",
            **_transfer_look(shown, source, label, "hvh"),
            "hovertemplate": f"%{{y}} {label} prompts of {safe(source)}<extra></extra>",
        }
        traces.append(_Trace("histogram", still, outline(place)))
    return traces


def _cumulative(shown: _Shown) -> list[_Trace]:
    def curve(rising: np.ndarray) -> Callable[[int], dict[str, Any]]:
        steps, reached = _steps(rising)
        x = np.vstack([steps[:1], steps])
        share = np.concatenate([[0.0], reached / len(rising)])
        return lambda site: {"x": compact(x[:, site]), "y": compact(share)}

    traces = []
    for label in LABELS:
        still = {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "legendgroup": label,
            "showlegend": False,
            "line": {"color": LABEL_COLOUR[label], "width": 2.5, "dash": LABEL_DASH[label], "shape": "hv"},
            "hovertemplate": f"%{{y:.1%}} of the {label} prompts up to %{{x:.4g}}<extra></extra>",
        }
        traces.append(_Trace("cumulative", still, curve(shown.rising[label])))
    for source, label, values in shown.transfer:
        still = {
            "type": "scatter",
            "mode": "lines",
            **_transfer_look(shown, source, label, "hv"),
            "showlegend": False,
            "hovertemplate": f"%{{y:.1%}} of the {label} prompts of {safe(source)} up to %{{x:.4g}}<extra></extra>",
        }
        traces.append(_Trace("cumulative", still, curve(np.sort(values, axis=0))))
    return traces


def _box(shown: _Shown) -> list[_Trace]:
    jitter = np.random.default_rng(0).uniform(-0.14, 0.14, len(shown.run.prompts))

    def quartiles(label: str) -> Callable[[int], dict[str, Any]]:
        low, middle, high = np.percentile(shown.rising[label], [25, 50, 75], axis=0)
        reach = 1.5 * (high - low)
        inside = (shown.rising[label] >= low - reach) & (shown.rising[label] <= high + reach)
        ends = np.where(inside, shown.rising[label], np.nan)
        whiskers = np.nanmin(ends, axis=0), np.nanmax(ends, axis=0)
        named = {"q1": low, "median": middle, "q3": high, "lowerfence": whiskers[0], "upperfence": whiskers[1]}
        return lambda site: {name: [float(values[site])] for name, values in named.items()}

    traces = []
    for label in LABELS:
        still = {
            "type": "box",
            "orientation": "h",
            "y": [_LANES[label] + 0.16],
            "width": 0.3,
            "name": label,
            "legendgroup": label,
            "showlegend": False,
            "line": {"color": LABEL_COLOUR[label], "width": 1.5},
            "fillcolor": translucent(LABEL_COLOUR[label], 0.25),
            "hoveron": "boxes",
        }
        traces.append(_Trace("box", still, quartiles(label)))
    for label in LABELS:
        rows = shown.rows[label][shown.sample[label]]
        still = {**_points(shown.run, label, rows), "y": compact(_LANES[label] - 0.2 + jitter[rows])}
        traces.append(_Trace("box", still, _at_rows(shown, rows, "x")))
    return traces


def _sorted(shown: _Shown) -> list[_Trace]:
    def curve(label: str) -> Callable[[int], dict[str, Any]]:
        steps, _ = _steps(shown.rising[label])
        return lambda site: {"y": compact(steps[:, site])}

    traces = []
    for label in LABELS:
        still = {
            "type": "scatter",
            "mode": "lines",
            "x": _steps(shown.rising[label])[1].astype(np.int32),
            "name": label,
            "legendgroup": label,
            "showlegend": False,
            "hoverinfo": "skip",
            "line": {"color": LABEL_COLOUR[label], "width": 1, "dash": LABEL_DASH[label]},
        }
        traces.append(_Trace("sorted", still, curve(label)))
    for label in LABELS:
        still = _points(shown.run, label, shown.rows[label][shown.sample[label]])
        still["hovertemplate"] = "%{text}<br>rank %{x}, projection %{y:.4g}<extra></extra>"
        traces.append(_Trace("sorted", still, _ranked(shown, label, shown.sample[label])))
    return traces


def _map(shown: _Shown) -> list[_Trace]:
    def cloud(label: str) -> Callable[[int], dict[str, Any]]:
        components = shown.components[label]
        return lambda site: {"x": compact(components[:, site, 0]), "y": compact(components[:, site, 1])}

    traces = []
    for label in reversed(LABELS):
        still = _points(shown.run, label, shown.map_rows[label])
        still |= {"showlegend": True, "hovertemplate": "%{text}<extra></extra>"}
        traces.append(_Trace("map", still, cloud(label)))
    return traces


def _points(run: Run, label: str, rows: np.ndarray) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "legendgroup": label,
        "showlegend": False,
        "marker": {"color": LABEL_COLOUR[label], "symbol": LABEL_SYMBOL[label], "size": 6, "opacity": 0.6},
        "selected": {"marker": {"opacity": 0.6}},
        "unselected": {"marker": {"opacity": 0.6}},
        "customdata": [[int(row)] for row in rows],
        "text": [safe(text, limit=120) for text in run.prompts["text"].iloc[rows]],
        "hovertemplate": "%{text}<br>projection %{x:.4g}<extra></extra>",
    }


def _at_rows(shown: _Shown, rows: np.ndarray, axis: str) -> Callable[[int], dict[str, Any]]:
    return lambda site: {axis: compact(shown.values[rows, site])}


def _ranked(shown: _Shown, label: str, places: np.ndarray) -> Callable[[int], dict[str, Any]]:
    """Return ranks and projections of some of a label's prompts."""
    values = shown.values[shown.rows[label][places]]
    ranks = shown.ranks[label][places]
    return lambda site: {"x": ranks[:, site].astype(np.int32), "y": compact(values[:, site])}


def _followed(panel: str, shown: _Shown, followed: Sequence[int]) -> list[_Trace]:
    """Return the marks of pinned prompts: a line across a distribution, a symbol among points.

    A prompt that the direction was not fitted on has no rank and is not on the map.
    """
    traces = []
    for row, (colour, symbol) in zip(followed, cycle(zip(LINE_COLOURS, SYMBOLS, strict=True)), strict=False):
        still: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "showlegend": False,
            "marker": {"color": colour, "symbol": symbol, "size": 13, "line": {"color": "#FFFFFF", "width": 1.5}},
            "hoverinfo": "skip",
        }
        label = next((label for label in LABELS if row in shown.rows[label]), None)
        if panel in ("histogram", "cumulative"):
            still |= {"mode": "lines+markers", "line": {"color": colour, "width": 1.5}}
            still["marker"] = still["marker"] | {"size": [0, 13]}
            traces.append(_Trace(panel, still, _upright(shown, row, panel)))
        elif panel == "box":
            still["y"] = [_LANES.get(str(shown.run.prompts["label"][row]), 0.5) - 0.2]
            traces.append(_Trace(panel, still, _at_rows(shown, np.array([row]), "x")))
        elif panel == "sorted" and label is not None:
            traces.append(_Trace(panel, still, _ranked(shown, label, np.flatnonzero(shown.rows[label] == row))))
        elif panel == "map" and label is not None and row in shown.map_rows[label]:
            place = np.flatnonzero(shown.map_rows[label] == row)
            traces.append(_Trace(panel, still, _on_map(shown, label, place)))
    return traces


def _upright(shown: _Shown, row: int, panel: str) -> Callable[[int], dict[str, Any]]:
    """Return a line over the whole panel at a prompt's projection, its symbol at the top."""

    def at(site: int) -> dict[str, Any]:
        top = 1.0 if panel == "cumulative" else float(shown.top[site])
        return {"x": [float(shown.values[row, site])] * 2, "y": [0.0, top]}

    return at


def _on_map(shown: _Shown, label: str, place: np.ndarray) -> Callable[[int], dict[str, Any]]:
    components = shown.components[label][place]
    return lambda site: {"x": compact(components[:, site, 0]), "y": compact(components[:, site, 1])}


def _transfer_look(shown: _Shown, source: str, label: str, shape: str) -> dict[str, Any]:
    """Return the look of a transfer set's outline: its label's colour, and dashes of its own."""
    sources = list(dict.fromkeys(name for name, *_ in shown.transfer))
    return {
        "name": f"{safe(source)}, {label}",
        "legendgroup": f"{source}, {label}",
        "line": {
            "color": LABEL_COLOUR[label],
            "width": 1.75,
            "dash": _SOURCE_DASHES[sources.index(source) % len(_SOURCE_DASHES)],
            "shape": shape,
        },
    }


@lru_cache(maxsize=32)
def _grid(panels: tuple[str, ...], stacked: bool, scaled: bool) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Return a layout with a place per panel, two per row, the last alone when their number is odd; and its axes."""
    columns = 1 if stacked or len(panels) < 2 else 2
    places = {panel: (i // columns + 1, i % columns + 1) for i, panel in enumerate(panels)}
    rows = -(-len(panels) // columns)
    specs: list[list[dict[str, Any] | None]] = [[{} for _ in range(columns)] for _ in range(rows)]
    if len(panels) % columns:
        specs[-1] = [{"colspan": 2}, None]
    plot = _HEIGHT[stacked] * rows + (90 if rows == 1 else 0)
    gap = 58
    figure = make_subplots(
        rows, columns, specs=specs, vertical_spacing=gap / plot if rows > 1 else 0, horizontal_spacing=0.09
    )
    dress(figure, _HEADLINE + CONTROLS + plot + 74, barmode="overlay", bargap=0, clickmode="event+select")
    # Margins that follow the tick labels would have the browser draw every step twice.
    settled = {"automargin": False, "zeroline": False, "title_standoff": 6}
    figure.update_xaxes(**settled).update_yaxes(**settled)
    figure.update_layout(
        margin={"l": _LEFT, "r": 8, "t": _HEADLINE + CONTROLS, "b": 74},
        legend={"y": -52 / plot, "yanchor": "top"},
        hovermode="closest",
    )
    refs = {}
    for panel, place in places.items():
        x, y = (axis.plotly_name for axis in figure.get_subplot(*place))
        refs[panel] = (x.replace("axis", ""), y.replace("axis", ""))
        figure.update_layout(dict(zip((x, y), _axes(panel, scaled), strict=True)))
    return layout_of(figure), refs


def _axes(panel: str, scaled: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return titles and settings of a panel's axes that all sites share."""
    if panel == "map":
        across, up = AXIS_TITLES[COMPONENTS]
        return {"title_text": across}, {"title_text": up}
    unit = "standard deviations" if scaled else "activation units"
    if panel == "sorted":
        return {"title_text": "rank within the label"}, {"title_text": f"projection ({unit})"}
    along = {"title_text": f"projection ({unit} from the midpoint)" if scaled else f"projection ({unit})"}
    other: dict[str, dict[str, Any]] = {
        "histogram": {"title_text": "prompts"},
        "cumulative": {"title_text": "share of the label", "tickformat": ".0%", "range": [0, 1.02]},
        "box": {
            "tickvals": [0, 1],
            "ticktext": ["harmless", "harmful"],
            "range": [-0.5, 1.45],
            "showgrid": False,
        },
    }
    return along, other[panel]


def _layout(shown: _Shown, site: int, refs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return what a site changes of the layout: headline, ranges and the band."""
    layout: dict[str, Any] = {"title": {"text": _headline(shown.run, site)}, "shapes": []}
    for panel, (x, y) in refs.items():
        names = _axis(x), _axis(y)
        if panel == "map":
            layout[names[0]], layout[names[1]] = ({"range": ends} for ends in shown.map_ranges(site))
        elif panel == "sorted":
            layout[names[1]] = {"range": shown.range(site)}
        else:
            layout[names[0]] = {"range": shown.range(site)}
        if panel in ("histogram", "cumulative"):
            low, high = (float(ends[site]) for ends in shown.band)
            layout["shapes"].append(
                {
                    "type": "rect",
                    "xref": x,
                    "yref": f"{y} domain",
                    "x0": low,
                    "x1": high,
                    "y0": 0,
                    "y1": 1,
                    "line": {"width": 0},
                    "fillcolor": translucent(GREY, 0.18),
                    "layer": "below",
                }
            )
        if panel == "histogram":
            layout[names[1]] = {"range": [0, 1.08 * float(shown.top[site])]}
    return layout


def _headline(run: Run, site: int) -> str:
    row = run.layer_stats.loc[site]
    return (
        f"<b>{run.site_label(site)}</b><br>"
        f"<span style='font-size:{SMALL_SIZE}px;font-weight:400'>in-sample d {_number(row['in_sample_d'])} "
        f"· cross-fitted d {_number(row['crossfit_d'])} · d on matched pairs {_number(row['probe_d'])}"
        f"<br>mean crossings {row['mean_crossings']} · range overlap {row['range_overlap']}</span>"
    )


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"
