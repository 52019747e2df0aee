"""How far steering along harm and along refusal moves judgement and refusing, beside control directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.style import GREY, LABEL_COLOUR, LABEL_SYMBOL, blank, line_at, translucent
from refusal_core.intervention.conditions import ABLATE, ADD
from refusal_core.intervention.judgement_effects import ASKED, JUDGEMENT, REFUSING

_GAP = 0.04
_DONE = {ADD: "added", ABLATE: "ablated"}


def moved(summary: pd.DataFrame) -> go.Figure:
    """Return the mean change of judgement and of refusing under each edit, with 95 % intervals and the controls' band.

    Args:
        summary: of :func:`refusal_core.intervention.judgement_effects.summarise`.
    """
    asked = summary[summary["label"].eq(summary["edit"].map(ASKED))]
    panels = {JUDGEMENT: "judgement that it is harmful", REFUSING: "refusing"}
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    shapes: list[dict[str, Any]] = []
    width = (1 - _GAP) / len(panels)
    for number, (outcome, title) in enumerate(panels.items()):
        rows = asked[asked["outcome"].eq(outcome)].sort_values(["direction", "edit"], ascending=[True, False])
        spelt = [f"{row['direction']}, {_DONE[row['edit']]}" for _, row in rows.iterrows()]
        suffix = str(number + 1) if number else ""
        start = number * (width + _GAP)
        axes[f"xaxis{suffix}"] = {
            "domain": [start, start + width],
            "anchor": "y",
            "title_text": f"{title}<br>change, in standard deviations",
            "zeroline": False,
            "nticks": 6,
        }
        shapes.append(line_at("x", 0, color=GREY, width=1) | {"xref": f"x{suffix}"})
        value, low, high, band_low, band_high = (
            rows[column].to_numpy(float)
            for column in ("moved", "moved_low", "moved_high", "controls_low", "controls_high")
        )
        places = np.arange(len(rows))
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "base": band_low,
                "x": band_high - band_low,
                "y": places,
                "width": 0.7,
                "xaxis": f"x{suffix}",
                "marker": {"color": translucent(GREY, 0.3)},
                "name": "controls",
                "hoverinfo": "skip",
                "showlegend": number == 0,
            }
        )
        for label in LABEL_COLOUR:
            own = rows["label"].eq(label).to_numpy()
            if not own.any():
                continue
            traces.append(
                {
                    "type": "scatter",
                    "x": value[own],
                    "y": places[own],
                    "xaxis": f"x{suffix}",
                    "mode": "markers",
                    "marker": {"color": LABEL_COLOUR[label], "size": 9, "symbol": LABEL_SYMBOL[label]},
                    "error_x": {
                        "type": "data",
                        "array": (high - value)[own],
                        "arrayminus": (value - low)[own],
                        "color": LABEL_COLOUR[label],
                        "width": 0,
                    },
                    "name": f"{label} prompts",
                    "customdata": np.column_stack([low, high, band_low, band_high])[own],
                    "text": [each for each, shown in zip(spelt, own, strict=True) if shown],
                    "hovertemplate": (
                        "%{text}: %{x:+.2f} (%{customdata[0]:+.2f} to %{customdata[1]:+.2f}), controls "
                        "%{customdata[2]:+.2f} to %{customdata[3]:+.2f}<extra></extra>"
                    ),
                    "showlegend": number == 0,
                }
            )
    return blank(
        140 + 26 * len(places),
        traces,
        shapes=shapes,
        yaxis={"autorange": "reversed", "tickvals": list(places), "ticktext": spelt, "zeroline": False},
        **axes,
    )
