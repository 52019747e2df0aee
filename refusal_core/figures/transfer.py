"""What the direction makes of a labelled list: its receiver operating characteristic, and its projections."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from sklearn.metrics import roc_curve

from refusal_core.figures.style import ACCENT, GREY, bars_of, blank
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

HEIGHT = 300
_BINS = 30


def roc(projection: np.ndarray, labels: np.ndarray) -> go.Figure:
    """Return which share of the harmful prompts projects above a threshold, over the share of the harmless ones.

    Args:
        projection: ``(prompt,)``.
        labels: ``(prompt,)`` of both labels.
    """
    false_alarms, hits, thresholds = roc_curve(labels == LABELS[0], projection)
    curve = {
        "type": "scatter",
        "x": false_alarms,
        "y": hits,
        "mode": "lines",
        "name": "the direction",
        "line": {"color": ACCENT, "width": 2.5, "shape": "linear"},
        "customdata": thresholds,
        "hovertemplate": "above %{customdata:.4g}: %{y:.0%} of harmful, %{x:.0%} of harmless<extra></extra>",
    }
    chance = {
        "type": "scatter",
        "x": [0, 1],
        "y": [0, 1],
        "mode": "lines",
        "name": "chance",
        "line": {"color": GREY, "width": 1.5, "dash": "dot"},
        "hoverinfo": "skip",
    }
    share = {"tickformat": ".0%", "range": [-0.02, 1.02]}
    return blank(
        HEIGHT,
        [curve, chance],
        xaxis={"title_text": "share of harmless prompts above", **share},
        yaxis={"title_text": "share of harmful above", **share},
    )


def by_label(run: Run, site: int, projection: np.ndarray, labels: np.ndarray) -> go.Figure:
    """Return counts of both labels' projections at a site.

    Args:
        run: names the site.
        site: where they project.
        projection: ``(prompt,)``.
        labels: ``(prompt,)``.
    """
    low, high = float(projection.min()), float(projection.max())
    edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    bars = [
        {
            "type": "bar",
            "x": edges[:-1],
            "y": np.histogram(projection[labels == label], edges)[0],
            "width": edges[1] - edges[0],
            "hovertext": edges[1:],
            **bars_of(label),
        }
        for label in LABELS
    ]
    return blank(
        HEIGHT,
        bars,
        barmode="overlay",
        bargap=0,
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "prompts"},
    )
