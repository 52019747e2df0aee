"""Single prompts over the layers, against the two labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.outliers import standardised
from refusal_core.figures.style import (
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    blank,
    line_at,
    safe,
    site_axis,
    translucent,
)
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

_RIBBONS = ((5, 95, 0.13), (25, 75, 0.22))


@dataclass(frozen=True, eq=False)
class Course:
    """One prompt over the layers: its text, ``(site,)`` projections in activation units, and how to draw its line."""

    text: str
    projection: np.ndarray
    name: str
    colour: str
    dash: str = "solid"


def courses(run: Run, lines: Sequence[Course], site: int | None = None, raw: bool = False) -> go.Figure:
    """Return a figure of prompts over the layers, drawn over ribbons that hold 50 and 90 % of each label's prompts.

    Args:
        run: the prompts are compared with.
        lines: the prompts.
        site: marked with a vertical line.
        raw: activation units instead of :func:`~refusal_core.exploration.outliers.standardised` ones.
    """
    return blank(
        400,
        course_traces(run, lines, raw),
        shapes=[] if site is None else [line_at("x", site, width=1.5, dash="dot", color=GREY)],
        xaxis=site_axis(run),
        yaxis={"title_text": "activation units" if raw else "standard deviations from the midpoint"},
    )


def course_traces(run: Run, lines: Sequence[Course], raw: bool = False) -> list[dict[str, Any]]:
    """Return the ribbons and prompts of :func:`courses` as plain data, the prompts last."""
    sites = np.arange(run.n_sites)
    labels = [run.site_label(int(site)) for site in sites]
    traces = [*_ribbons(run, raw)]
    for line in lines:
        trace = {
            "x": sites,
            "y": line.projection if raw else standardised(run, line.projection),
            "mode": "lines+markers",
            "name": line.name,
            "line": {"color": line.colour, "width": 2.5, "dash": line.dash},
            "marker": {"size": 5},
            "customdata": np.column_stack([labels, line.projection.round(4)]),
            "hovertemplate": f"{safe(line.text)}<br>%{{customdata[0]}}: %{{customdata[1]}}<extra></extra>",
        }
        traces.append(trace)
    return [{"type": "scatter", **trace} for trace in traces]


def _ribbons(run: Run, raw: bool) -> list[dict[str, Any]]:
    """Return both labels over the layers, behind the prompts."""
    traces: list[dict[str, Any]] = []
    sites = np.arange(run.n_sites)
    for label in reversed(LABELS):
        values = run.projections[run.rows(label)]
        if not raw:
            values = standardised(run, values)
        for low, high, alpha in _RIBBONS:
            bounds = np.percentile(values, [low, high], axis=0)
            ribbon = {
                "x": np.concatenate([sites, sites[::-1]]),
                "y": np.concatenate([bounds[1], bounds[0][::-1]]),
                "mode": "lines",
                "fill": "toself",
                "fillcolor": translucent(LABEL_COLOUR[label], alpha),
                "line": {"width": 0},
                "hoverinfo": "skip",
                "name": f"{high - low} % of {label}",
                "showlegend": low == 5,
            }
            traces.append(ribbon)
        mean = {
            "x": sites,
            "y": values.mean(axis=0),
            "mode": "lines",
            "line": {"color": LABEL_COLOUR[label], "width": 1.2, "dash": LABEL_DASH[label]},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        traces.append(mean)
    return traces
