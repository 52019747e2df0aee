"""A run's direction at every read position and layer."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.positions import QUESTIONS, Measured, numbers_at, position_label
from refusal_core.figures.style import blank, safe, site_axis, site_mark
from refusal_core.runs.run import Run

ROW = 26
"""Height of a position, in pixels."""


def over_positions(run: Run, measured: Measured, measure: str, site: int | None = None) -> go.Figure:
    """Return a measure as colour over layers and read positions, one of :data:`.exploration.positions.QUESTIONS`."""
    numbers = numbers_at(measured, measure)
    names = [safe(position_label(int(position), measured[1])) for position in numbers.index]
    values = numbers.to_numpy(float)
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    heat = {
        "type": "heatmap",
        "x": numbers.columns.to_numpy(int),
        "y": list(range(len(names))),
        "z": values,
        "customdata": [[f"{name}, {run.site_label(int(place))}" for place in numbers.columns] for name in names],
        "zmin": -most,
        "zmax": most,
        "colorscale": "RdBu",
        "reversescale": True,
        "colorbar": {"thickness": 12},
        "hovertemplate": "%{customdata}: %{z:.2f}<extra></extra>",
    }
    return blank(
        90 + ROW * len(names),
        [heat],
        title={"text": QUESTIONS[measure][1], "x": 0, "xanchor": "left"},
        shapes=site_mark(site),
        xaxis=site_axis(run),
        yaxis={"autorange": "reversed", "tickvals": list(range(len(names))), "ticktext": names},
    )
