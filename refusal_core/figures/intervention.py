"""Effects of interventions: over the layers and by dose, compared with control directions."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    LINE_COLOURS,
    blank,
    interval_line,
    line_at,
    ribbon,
    site_axis,
    site_mark,
    translucent,
)
from refusal_core.intervention import effects
from refusal_core.intervention.conditions import ABLATE, ADD, FOUND
from refusal_core.intervention.effects import MEASURES
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

SWEEPS = {
    "bypass": (ABLATE, "harmful", "change", "Bypass: ablated, harmful prompts"),
    "induce": (ADD, "harmless", "change", "Induce: added once, harmless prompts"),
    "damage": (ABLATE, "harmless", "kl", "Damage: ablated, harmless prompts"),
}
"""The three sweeps over the layers: edit, label of the prompts, default measure, and title."""


def over_layers(
    run: Run, table: pd.DataFrame, sweep: str, measure: str | None = None, site: int | None = None
) -> go.Figure:
    """Return a measure under edits of single layers, with each layer's own direction and the band of the controls.

    Args:
        run: names the layers.
        table: of :func:`refusal_core.intervention.effects.summarise`.
        sweep: one of :data:`SWEEPS`.
        measure: one of :data:`refusal_core.intervention.effects.MEASURES`; by default the sweep's own.
        site: marked with a vertical line.
    """
    edit, label, default, _ = SWEEPS[sweep]
    measure = measure or default
    swept = effects.over_layers(table, edit, label)
    traces = [
        _controls(swept, measure),
        *interval_line(run, swept, measure, "the direction", LABEL_COLOUR[label], LABEL_DASH[label]),
    ]
    shapes = site_mark(site if site is not None and site < run.n_layers else None)
    if measure != "kl":
        plain = effects.select(table, "none", label)[measure].iloc[0]
        shapes = [line_at("y", plain, color=GREY, width=1, dash="dot"), *shapes]
    return blank(320, traces, shapes=shapes, xaxis=site_axis(run), yaxis={"title_text": MEASURES[measure]})


def doses(run: Run, table: pd.DataFrame, layer: int, position: int, measure: str = "log_odds") -> go.Figure:
    """Return a measure of both labels' prompts by how much of the direction is added at one layer."""
    traces = []
    for label in LABELS:
        colour = LABEL_COLOUR[label]
        by_dose = effects.over_doses(table, layer, position, label)
        line = {
            "type": "scatter",
            "x": by_dose["alpha"].to_numpy(),
            "y": by_dose[measure].to_numpy(),
            "mode": "lines+markers",
            "name": label,
            "line": {"color": colour, "width": 2.5, "dash": LABEL_DASH[label]},
            "customdata": by_dose["n"].to_numpy(),
            "hovertemplate": f"α = %{{x:+g}}, %{{customdata}} {label} prompts: %{{y:.2f}}<extra></extra>",
        }
        traces += [
            ribbon(by_dose, f"{measure}_low", f"{measure}_high", colour, "", 0.15, x="alpha"),
            line,
            _controls(by_dose.assign(site=by_dose["alpha"]), measure, f"controls, {label}", colour),
        ]
    return blank(
        360,
        traces,
        xaxis={"title_text": "α (distances between the labels' means)", "zeroline": False},
        yaxis={"title_text": MEASURES[measure]},
    )


def choice(run: Run, candidates: pd.DataFrame, chosen: pd.Series | None) -> go.Figure:
    """Return all candidates of the published rule: bypass over the layers, a line per token position."""
    traces = []
    # The first colour is that of the ring around the chosen one.
    looks = cycle(zip(LINE_COLOURS[1:], ("solid", "dash", "dot", "dashdot", "longdash"), strict=True))
    by_position = sorted(candidates.groupby("position"), reverse=True)
    for (position, rows), (colour, dash) in zip(by_position, looks, strict=False):
        rows = rows.sort_values("read_at")
        line = {
            "x": rows["read_at"].to_numpy(),
            "y": rows["bypass"].to_numpy(),
            "mode": "lines+markers",
            "name": f"token {position}",
            "line": {"color": colour, "width": 2, "dash": dash},
            "marker": {"size": 7, "symbol": ["circle" if allowed else "x-thin-open" for allowed in rows["allowed"]]},
            "customdata": rows[["induce", "kl"]].to_numpy(),
            "hovertemplate": (
                f"token {position}, layer %{{x}}<br>bypass %{{y:.2f}}, induce %{{customdata[0]:.2f}}, "
                "divergence %{customdata[1]:.3f}<extra></extra>"
            ),
        }
        traces.append(line)
    if chosen is not None:
        ring = {
            "x": [chosen["read_at"]],
            "y": [chosen["bypass"]],
            "mode": "markers",
            "name": "chosen",
            "marker": {"size": 16, "symbol": "circle-open", "color": ACCENT, "line": {"width": 3}},
            "hoverinfo": "skip",
        }
        traces.append(ring)
    return blank(
        320,
        [{"type": "scatter", **trace} for trace in traces],
        xaxis=site_axis(run),
        yaxis={"title_text": "refusal log-odds of harmful prompts"},
    )


def _controls(
    table: pd.DataFrame, measure: str, name: str = "controls, 95 % band", colour: str = GREY
) -> dict[str, Any]:
    """Return bars over the band of the controls, at the sites where it was measured."""
    known = table[table["direction"].eq(FOUND)].dropna(subset=[f"{measure}_band_low", f"{measure}_band_high"])
    ends = [
        (row["site"], end)
        for _, row in known.iterrows()
        for end in (row[f"{measure}_band_low"], row[f"{measure}_band_high"], None)
    ]
    return {
        "type": "scatter",
        "x": [x for x, _ in ends],
        "y": [y for _, y in ends],
        "mode": "lines",
        "name": name,
        "line": {"color": translucent(colour, 0.45), "width": 9},
        "hovertemplate": "controls: %{y:.2f}<extra></extra>",
    }
