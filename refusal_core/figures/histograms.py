"""The projections at one site, with a band to drag or prompts to place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.figures.courses import Course
from refusal_core.figures.style import GREY, bars_of, blank, line_at
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

BINS = 50


def histogram(
    run: Run, site: int, band: tuple[float, float] | None = None, placed: Sequence[Course] = (), height: int = 300
) -> go.Figure:
    """Return counts of both labels' fitted prompts at a site.

    Args:
        run: whose prompts are counted.
        site: where they project.
        band: shaded interval of projections; the figure then lets a new one be dragged.
        placed: prompts marked with a vertical line at their projection.
        height: of the figure, in pixels.
    """
    values = run.projections[run.rows(), site]
    ends = [values.min(), values.max(), *(line.projection[site] for line in placed)]
    edges = np.linspace(min(ends), max(max(ends), min(ends) + 1e-9), BINS + 1)
    bars = [
        {
            "type": "bar",
            "x": edges[:-1],
            "y": np.histogram(run.projections[run.rows(label), site], edges)[0],
            "width": edges[1] - edges[0],
            "hovertext": edges[1:],
            **bars_of(label),
        }
        for label in LABELS
    ]
    shapes = [line_at("x", line.projection[site], color=line.colour, width=2.5, dash=line.dash) for line in placed]
    dragged: dict[str, Any] = {}
    if band is not None:
        look = {"line": {"width": 1, "color": GREY}, "fillcolor": GREY, "opacity": 0.2}
        shapes.insert(0, {"type": "rect", "x0": band[0], "x1": band[1], "yref": "paper", "y0": 0, "y1": 1, **look})
        dragged = {"dragmode": "select", "selectdirection": "h"}
    return blank(
        height,
        bars,
        barmode="overlay",
        bargap=0,
        shapes=shapes,
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "prompts"},
        **dragged,
    )
