"""How many directions a run has, and how alike those of its categories are."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.subspace import Measured, cosine_matrix, differing, left_over_at, ranks
from refusal_core.figures.style import ACCENT, GREY, blank, line_at, ribbon, safe, site_axis, site_mark
from refusal_core.runs.run import Run

HEIGHT = 350


def left_over(run: Run, measured: Measured, site: int) -> go.Figure:
    """Return the held-out AUROC after more and more directions were projected out, over what permuted labels reach."""
    left, found = left_over_at(measured[0], site), ranks(measured[0])[site]
    # An open mark where nothing is left: the number of directions that are found.
    line = {
        "type": "scatter",
        "x": left["removed"].to_numpy(int),
        "y": left["number"].to_numpy(),
        "mode": "lines+markers",
        "name": "categories' own directions",
        "line": {"color": ACCENT, "width": 2.5},
        "marker": {"size": 9, "symbol": np.where(left.index < found, "circle", "circle-open").tolist()},
        "customdata": left["p"].to_numpy(),
        "hovertemplate": "%{x} projected out: AUROC %{y:.3f}, p = %{customdata:.3f}<extra></extra>",
    }
    mark: dict[str, Any] = {}
    if found < len(left):
        note = {"text": "nothing is left", "showarrow": False, "yref": "y domain", "y": 1, "yanchor": "top"}
        mark = {
            "shapes": [line_at("x", found, color=ACCENT, width=1.5, dash="dot")],
            "annotations": [{**note, "x": found, "xanchor": "left", "xshift": 4}],
        }
    return blank(
        HEIGHT,
        [ribbon(left, "chance_low", "chance_high", GREY, "permuted labels (95 %)", 0.3, x="removed"), line],
        xaxis={"title_text": f"directions projected out at {run.site_label(site)}", "dtick": 1},
        yaxis={"title_text": "held-out AUROC within a category"},
        **mark,
    )


def category_cosines(run: Run, measured: Measured, site: int) -> go.Figure:
    """Return the cosine of every two categories' directions; a cross where they do not share one."""
    matrix, apart = cosine_matrix(measured, site), differing(measured, site)
    names, places = [safe(name) for name in matrix.index], list(range(1, len(matrix) + 1))
    text = [["×" if (first, other) in apart else "" for other in matrix.columns] for first in matrix.index]
    heat = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "customdata": [[f"{first}<br>{other}" for other in names] for first in names],
        "z": matrix.to_numpy(),
        "text": text,
        "texttemplate": "%{text}",
        "zmin": -1,
        "zmax": 1,
        "colorscale": "RdBu",
        "reversescale": True,
        "colorbar": {"title": {"text": "cosine"}, "thickness": 12},
        "hovertemplate": "%{customdata}<br>cosine %{z:.2f}<extra></extra>",
    }
    return blank(
        HEIGHT,
        [heat],
        xaxis={"tickvals": places, "title_text": f"category at {run.site_label(site)}; × do not share one"},
        yaxis={
            "autorange": "reversed",
            "tickvals": places,
            "ticktext": [f"{name} {place}" for name, place in zip(names, places, strict=True)],
        },
    )


def ranks_over_layers(run: Run, measured: Measured, site: int) -> go.Figure:
    """Return how many directions are found at every site."""
    found = ranks(measured[0])
    bars = {
        "type": "bar",
        "x": found.index.to_numpy(),
        "y": found.to_numpy(),
        "marker": {"color": ACCENT},
        "customdata": [run.site_label(int(place)) for place in found.index],
        "hovertemplate": "%{customdata}: at least %{y}<extra></extra>",
        "showlegend": False,
    }
    return blank(
        260,
        [bars],
        shapes=site_mark(site),
        xaxis=site_axis(run),
        yaxis={"title_text": "directions found", "rangemode": "tozero"},
    )
