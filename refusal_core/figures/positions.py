"""A run's directions of harm and refusal at its read positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.positions import (
    QUESTIONS,
    Measured,
    apart_at,
    cosines_over_layers,
    ends_of,
    numbers_at,
)
from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_SYMBOL,
    PROBE,
    blank,
    interval_line,
    line_at,
    safe,
    site_axis,
    site_mark,
)
from refusal_core.runs.positions import position_label
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import CELLS, HARM, QUARTET_CELLS, REFUSAL

ROW = 26
"""Height of a position, in pixels."""
_GAP = 0.03
_COLOURS = {"t_inst": PROBE, "t_post": ACCENT}


def cells(measured: Measured, site: int) -> go.Figure:
    """Return the mean held-out projection of every cell on harm and refusal at either end, with 95 % intervals.

    Cells are those of label and reply, and of quartets where the run has them: a panel per direction and position.
    """
    numbers, ends = apart_at(measured, site), ends_of(measured[1])
    counts = measured[1].replies.counts if measured[1].replies is not None else {}
    known = set(numbers.index.get_level_values("measure"))
    names = [name for name in (*CELLS, *QUARTET_CELLS) if name in known]
    spelt = [f"{name.replace('_', ', ')}{f' ({counts[name]})' if name in counts else ''}" for name in names]
    subjects = [each for each in (HARM, REFUSAL) if each in numbers.index.get_level_values("subject")]
    panels = [(subject, where) for subject in subjects for where in ends]
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    shapes: list[dict[str, Any]] = []
    width = (1 - _GAP * (len(panels) - 1)) / len(panels)
    for number, (subject, where) in enumerate(panels):
        suffix = str(number + 1) if number else ""
        start = number * (width + _GAP)
        axes[f"xaxis{suffix}"] = {
            "domain": [start, start + width],
            "anchor": "y",
            "title_text": f"{subject}<br>at {where}",
            "nticks": 4,
            "tickangle": 0,
            "zeroline": False,
        }
        shapes.append(line_at("x", 0, color=GREY, width=1) | {"xref": f"x{suffix}"})
        rows = numbers.loc[[(ends[where], subject, name) for name in names]]
        value, low, high = (rows[f"number{end}"].to_numpy(float) for end in ("", "_low", "_high"))
        labels = [next(label for label in ("harmless", "harmful") if label in name) for name in names]
        colours = [LABEL_COLOUR[label] for label in labels]
        traces.append(
            {
                "type": "scatter",
                "x": value,
                "y": list(range(len(names))),
                "xaxis": f"x{suffix}",
                "mode": "markers",
                "marker": {"color": colours, "size": 9, "symbol": [LABEL_SYMBOL[label] for label in labels]},
                "error_x": {
                    "type": "data",
                    "array": high - value,
                    "arrayminus": value - low,
                    "color": GREY,
                    "width": 0,
                },
                "customdata": np.column_stack([low, high]),
                "text": spelt,
                "hovertemplate": "%{text}: %{x:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})<extra></extra>",
                "showlegend": False,
            }
        )
    return blank(
        136 + 24 * len(names),
        traces,
        shapes=shapes,
        title={"text": "Mean projection, in standard deviations", "x": 0, "xanchor": "left"},
        yaxis={
            "autorange": "reversed",
            "tickvals": list(range(len(names))),
            "ticktext": spelt,
            "zeroline": False,
        },
        **axes,
    )


def cosines(run: Run, measured: Measured, site: int | None = None) -> go.Figure:
    """Return the corrected cosine of harm and refusal over the layers, at either end, where both exist."""
    traces: list[dict[str, Any]] = []
    for name, table in cosines_over_layers(measured).items():
        traces += interval_line(run, table, "number", name, _COLOURS[name])
    return blank(
        90 + ROW * 7,
        traces,
        shapes=[line_at("y", 1, color=GREY, width=1, dash="dot"), *site_mark(site)],
        xaxis=site_axis(run),
        yaxis={"title_text": "corrected cosine", "range": [-1.05, 1.35]},
    )


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
