"""Projection against what the model does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    LABEL_SYMBOL,
    PROBE,
    blank,
    interval_line,
    line_at,
    safe,
    site_axis,
    site_mark,
)
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

MOST_POINTS = 500
"""The most prompts of a label that are drawn as points; of more, an even choice along the projection."""
NUMBERS = {
    "rho": ("Spearman's ρ", 0.0, "Projection and the log-odds of refusal phrases, ranked within each label."),
    "auroc": ("AUROC", 0.5, "Chance that a refused prompt projects above an answered one of its label."),
}
"""Columns of :func:`refusal_core.behaviour.measurement.correlation_by_site`: axis title, chance level, and meaning."""


def against_refusing(run: Run, table: pd.DataFrame, site: int) -> go.Figure:
    """Return the fitted prompts, at most :data:`MOST_POINTS` per label: projection against refusal phrases.

    Points carry the prompt's row in the run as ``customdata[0]``.
    """
    traces = []
    for label in reversed(LABELS):
        rows = np.flatnonzero(run.rows(label))
        if len(rows) > MOST_POINTS:
            rows = rows[np.argsort(run.projections[rows, site], kind="stable")]
            rows = rows[np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(int)]
        replies = table.iloc[rows]
        hover = [
            f"{safe(text)}<br><br>opens: {safe(opening)}"
            for text, opening in zip(run.prompts["text"].iloc[rows], replies["opening"], strict=True)
        ]
        trace = {
            "type": "scatter",
            "x": run.projections[rows, site],
            "y": replies["phrase_log_odds"].to_numpy(),
            "mode": "markers",
            "name": label,
            "marker": {"color": LABEL_COLOUR[label], "symbol": LABEL_SYMBOL[label], "size": 8, "opacity": 0.75},
            "selected": {"marker": {"opacity": 1}},
            "unselected": {"marker": {"opacity": 0.75}},
            "customdata": list(zip(rows.tolist(), hover, strict=True)),
            "hovertemplate": "%{customdata[1]}<extra></extra>",
        }
        traces.append(trace)
    return blank(
        420,
        traces,
        shapes=[line_at("y", 0, color=GREY, width=1, dash="dot")],
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "log-odds of refusal phrases"},
        clickmode="event+select",
    )


def over_layers(run: Run, by_site: pd.DataFrame, number: str, site: int) -> go.Figure:
    """Return a number of :data:`NUMBERS` over the layers within each label, the AUROC with that on matched pairs."""
    title, chance, _ = NUMBERS[number]
    traces = []
    for label in LABELS:
        table = by_site[by_site["label"].eq(label)]
        traces += interval_line(run, table, number, f"within {label}", LABEL_COLOUR[label], LABEL_DASH[label])
    if number == "auroc" and run.layer_stats["probe_auroc"].notna().any():
        traces += interval_line(run, run.layer_stats, "probe_auroc", "harm on matched pairs", PROBE, "dashdot")
    return blank(
        340,
        traces,
        shapes=[line_at("y", chance, color=GREY, width=1, dash="dot"), *site_mark(site)],
        xaxis=site_axis(run),
        yaxis={"title_text": title},
    )


def calibration(run: Run, curve: pd.DataFrame, site: int) -> go.Figure:
    """Return the share of refusing replies in bins of projection at a site."""
    line = {
        "type": "scatter",
        "x": curve["projection"].to_numpy(),
        "y": curve["refused"].to_numpy(),
        "mode": "lines+markers",
        "line": {"color": ACCENT, "width": 2.5},
        "marker": {"size": 9},
        "customdata": curve["n"].to_numpy(),
        "hovertemplate": "%{customdata} prompts around %{x:.4g}: %{y:.0%} refused<extra></extra>",
        "showlegend": False,
    }
    return blank(
        340,
        [line],
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "openings that refuse", "tickformat": ".0%", "range": [-0.03, 1.03]},
    )
