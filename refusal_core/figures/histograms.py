"""The projections at one site, with a band to drag or prompts to place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go

from refusal_core.figures.courses import Course
from refusal_core.figures.style import GREY, bars_of, blank
from refusal_core.runs import Run

BINS = 50


def histogram(
    run: Run, site: int, band: tuple[float, float] | None = None, placed: Sequence[Course] = (), height: int = 300
) -> go.Figure:
    """Counts of both labels' fitted prompts at a site.

    Args:
        band: shaded interval of projections; the figure then lets a new one be dragged.
        placed: prompts marked with a vertical line where they fall.
    """
    figure = blank(height, barmode="overlay", bargap=0)
    values = run.projections[run.rows(), site]
    ends = [values.min(), values.max(), *(line.projection[site] for line in placed)]
    edges = np.linspace(min(ends), max(max(ends), min(ends) + 1e-9), BINS + 1)
    ranges = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    for label in ("harmful", "harmless"):
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=np.histogram(run.projections[run.rows(label), site], edges)[0],
            width=edges[1] - edges[0],
            hovertext=ranges,
            **bars_of(label),
        )
    if band is not None:
        figure.add_vrect(x0=band[0], x1=band[1], line={"width": 1, "color": GREY}, fillcolor=GREY, opacity=0.2)
        figure.update_layout(dragmode="select", selectdirection="h")
    for line in placed:
        figure.add_vline(x=line.projection[site], line={"color": line.colour, "width": 2.5, "dash": line.dash})
    figure.update_xaxes(title_text=f"projection at {run.site_label(site)} (activation units)")
    figure.update_yaxes(title_text="prompts")
    return figure
