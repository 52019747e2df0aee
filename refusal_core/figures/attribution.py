"""What each part of a model adds to a direction, and how far the tokens that it would write stand out."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from refusal_core.exploration.attribution import Measured, added_at, kind_name, tokens_over_layers
from refusal_core.figures.style import ACCENT, GREY, PROBE, blank, interval_line, ribbon, site_axis, site_mark
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import ATTENTION, BLOCK, EMBEDDING, LOWERED_MEAN, MLP, RAISED_MEAN

HEIGHT = 350
_COLOURS = {EMBEDDING: GREY, ATTENTION: PROBE, MLP: ACCENT, BLOCK: ACCENT}


def parts(run: Run, measured: Measured, site: int) -> go.Figure:
    """Return what each part adds to the held-out difference of the labels at a layer, with simultaneous intervals."""
    table = added_at(measured, site)
    traces: list[dict[str, Any]] = []
    for part in (EMBEDDING, ATTENTION, MLP, BLOCK):
        own = table[table["part"].eq(part)]
        if own.empty:
            continue
        name = kind_name(measured, part)
        # Before the first block lies its input.
        places = own["block"].fillna(-1).astype(int)
        number, low, high = (own[f"number{end}"].to_numpy(float) for end in ("", "_low", "_high"))
        traces.append(
            {
                "type": "bar",
                "x": places.to_numpy(),
                "y": number,
                "name": name,
                "marker": {"color": _COLOURS[part]},
                "error_y": {
                    "type": "data",
                    "array": high - number,
                    "arrayminus": number - low,
                    "color": GREY,
                    "thickness": 1,
                    "width": 0,
                },
                "customdata": list(zip(low, high, strict=True)),
                "hovertemplate": f"{name} %{{x}}: %{{y:.2f}} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"
                "<extra></extra>",
            }
        )
    return blank(
        HEIGHT,
        traces,
        barmode="group",
        xaxis={"title_text": "block", "range": [-1.6, run.n_layers - 0.4], "zeroline": False},
        yaxis={"title_text": f"added at {run.site_label(site)}"},
    )


def tokens(run: Run, measured: Measured, site: int | None = None) -> go.Figure:
    """Return how far the tokens that a direction raises and lowers most stand out, over that of control directions."""
    table = tokens_over_layers(measured)
    traces = [ribbon(table, "chance_low", "chance_high", GREY, "control directions (95 %)", 0.3)]
    for column, name, colour in ((RAISED_MEAN, "raised", ACCENT), (LOWERED_MEAN, "lowered", PROBE)):
        traces += interval_line(run, table, column, name, colour)
    return blank(
        HEIGHT,
        traces,
        shapes=site_mark(site),
        xaxis=site_axis(run),
        yaxis={"title_text": "mean logit of the ten tokens"},
    )
