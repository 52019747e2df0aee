"""Projections along replies, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.trajectory import ANSWERED, REFUSED, Trajectories, curves
from refusal_core.figures.style import GREY, LABEL_COLOUR, blank, ribbon
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

HEIGHT = 420
_DASH = {REFUSED: "solid", ANSWERED: "dash"}


def along_replies(run: Run, measured: Trajectories, site: int, row: int | None = None) -> go.Figure:
    """Return the mean projection of every label and reply at each token, over its 95 % interval.

    Args:
        run: the run.
        measured: along its replies.
        site: where it is projected.
        row: of a prompt of the run whose own curve is drawn too; tokens of a thought are open marks.
    """
    table = curves(measured, site)
    traces: list[dict[str, Any]] = []
    for label in LABELS:
        for reply, dash in _DASH.items():
            own = table[table["label"].eq(label) & table["reply"].eq(reply)]
            if own.empty:
                continue
            name, colour = f"{label}, {reply}", LABEL_COLOUR[label]
            traces.append(ribbon(own, "projection_low", "projection_high", colour, "", 0.12, x="token"))
            traces.append(
                {
                    "type": "scatter",
                    "x": own["token"].to_numpy(),
                    "y": own["projection"].to_numpy(),
                    "mode": "lines",
                    "name": name,
                    "line": {"color": colour, "width": 2.5, "dash": dash},
                    "customdata": own["n"].to_numpy(),
                    "hovertemplate": f"{name}, token %{{x}}: %{{y:.2f}} (%{{customdata}} prompts)<extra></extra>",
                }
            )
    if row is not None and row in measured.prompts.index:
        place = measured.prompts.index.get_loc(row)
        values, thought = measured.projections(site)[place], measured.thought()[place]
        known = np.isfinite(values)
        traces.append(
            {
                "type": "scatter",
                "x": np.flatnonzero(known),
                "y": values[known],
                "mode": "lines+markers",
                "name": "chosen prompt",
                "line": {"color": GREY, "width": 2},
                "marker": {"size": 6, "symbol": np.where(thought[known], "circle-open", "circle").tolist()},
                "hovertemplate": "chosen prompt, token %{x}: %{y:.2f}<extra></extra>",
            }
        )
    return blank(
        HEIGHT,
        traces,
        xaxis={"title_text": "token of the reply; 0 is the prompt's last", "rangemode": "tozero", "zeroline": False},
        yaxis={"title_text": f"projection at {run.site_label(site)}"},
    )
