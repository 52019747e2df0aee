"""The band on its histogram, its prompts as points to click, and where one prompt ranks over the layers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.histograms import histogram
from refusal_core.figures.style import GREY, LABEL_COLOUR, LABEL_SYMBOL, LINE_COLOURS, blank, line_at, safe, site_axis
from refusal_core.runs.run import Run

MOST_POINTS = 400
"""The most prompts that are drawn as points; of more, an even choice along the projection."""
_LANES = {"harmless": 0.0, "harmful": 1.0, "grey": 2.0}


def band(
    run: Run,
    site: int,
    ends: tuple[float, float],
    found: pd.DataFrame,
    chosen: int | None = None,
    height: int = 420,
    groups: pd.Series | None = None,
) -> go.Figure:
    """Return the histogram at a site, its band to drag, and below it a point per listed prompt, to click.

    A point's ``customdata`` is its ``prompt_id``.

    Args:
        run: the run.
        site: where: a layer, or the final norm.
        ends: the ends of the band, in activation units.
        found: rows of :func:`refusal_core.exploration.outliers.prompts_at` with ``mark``; marked ones are drawn hollow.
        chosen: a row of the run, drawn ringed wherever it projects.
        height: of the figure, in pixels.
        groups: per row of the run, what its point is coloured by in place of its label; missing is grey.
    """
    figure = histogram(run, site, ends, height=height)
    points: list[dict[str, Any]] = []
    there = {*found["label"], *([] if chosen is None else [run.prompts["label"][chosen]])}
    labels = [label for label in _LANES if label in there]
    shown = found
    if len(found) > MOST_POINTS:
        shown = found.iloc[np.unique(np.linspace(0, len(found) - 1, MOST_POINTS).round().astype(int))]
    for label in labels:
        part = shown[shown["label"].eq(label)]
        symbol = LABEL_SYMBOL[label]
        # One symbol for all is checked in no time, and a list of them each by itself.
        symbols = [f"{symbol}-open" if mark else symbol for mark in part["mark"]] if part["mark"].any() else symbol
        of_label = {
            "x": part["projection"],
            "y": [_LANES[label] + _jitter(prompt_id) for prompt_id in part["prompt_id"]],
            "name": label,
            "showlegend": False,
            "marker": {"color": LABEL_COLOUR[label], "symbol": symbols, "size": 8, "opacity": 0.85},
            "selected": {"marker": {"opacity": 0.85}},
            "unselected": {"marker": {"opacity": 0.85}},
            "customdata": part["prompt_id"],
            "text": [
                safe(text) + (f"<br>marked {mark}" if mark else "")
                for text, mark in zip(part["text"], part["mark"], strict=True)
            ],
            "hovertemplate": "%{text}<br>%{x:.4g}<extra></extra>",
        }
        if groups is not None:
            of_rows = groups[part.index]
            of_label["marker"]["color"] = [_group_colours(groups).get(value, GREY) for value in of_rows]
            of_label["text"] = [
                f"{text}<br>{safe(str(value))}"
                for text, value in zip(of_label["text"], of_rows.fillna("–"), strict=True)
            ]
        points.append(of_label)
    for value, colour in _group_colours(groups).items():
        points.append({"x": [None], "y": [None], "name": safe(value), "marker": {"color": colour}, "hoverinfo": "skip"})
    if chosen is not None:
        prompt = run.prompts.loc[chosen]
        ringed = {
            "x": [run.projections[chosen, site]],
            "y": [_LANES[prompt["label"]] + _jitter(prompt["prompt_id"])],
            "name": "the chosen prompt",
            "marker": {
                "color": LABEL_COLOUR[prompt["label"]],
                "symbol": LABEL_SYMBOL[prompt["label"]],
                "size": 14,
                "line": {"color": GREY, "width": 3},
            },
            "selected": {"marker": {"opacity": 1}},
            "unselected": {"marker": {"opacity": 1}},
            "customdata": [prompt["prompt_id"]],
            "text": [safe(prompt["text"])],
            "hovertemplate": "%{text}<br>%{x:.4g}<extra>chosen</extra>",
        }
        points.append(ringed)
    if not points:
        # Without a trace on it Plotly drops the lower axis, and the band falls over the title of the other.
        points.append({"x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip"})
    figure.add_traces([{"type": "scatter", "mode": "markers", "yaxis": "y2", **each} for each in points])
    figure.update_layout(
        yaxis={"domain": [0.36, 1]},
        yaxis2={
            "domain": [0, 0.3],
            "anchor": "x",
            "fixedrange": True,
            "automargin": True,
            "tickvals": [_LANES[label] for label in labels],
            "ticktext": labels,
            "range": [-0.6, max((_LANES[label] for label in labels), default=0) + 0.6],
            "showgrid": False,
            "zeroline": False,
        },
        xaxis={"anchor": "y2"},
        clickmode="event+select",
    )
    return figure


def ranks(run: Run, table: pd.DataFrame, label: str, site: int) -> go.Figure:
    """Where one prompt ranks over the layers, in percent of the fitted prompts that project below it.

    Args:
        run: the run.
        table: of :func:`refusal_core.exploration.outliers.percentile_ranks`.
        label: the prompt's.
        site: marked with a vertical line.
    """
    names = [run.site_label(each) for each in range(run.n_sites)]
    lines = []
    for column, name, colour, dash in (
        ("own", f"among {label} prompts", LABEL_COLOUR[label], "solid"),
        ("all", "among all", GREY, "dot"),
    ):
        if table[column].isna().all():
            continue
        line = {
            "type": "scatter",
            "x": table["site"],
            "y": table[column],
            "mode": "lines+markers",
            "name": name,
            "line": {"color": colour, "width": 2.5, "dash": dash},
            "marker": {"size": 5},
            "customdata": names,
            "hovertemplate": f"%{{customdata}}<br>%{{y:.0f}} % {name} project below it<extra></extra>",
        }
        lines.append(line)
    return blank(
        400,
        lines,
        shapes=[line_at("x", site, width=1.5, dash="dot", color=GREY)],
        xaxis=site_axis(run),
        yaxis={"title_text": "percent that project below it", "range": [-3, 103]},
    )


def _group_colours(groups: pd.Series | None) -> dict[str, str]:
    """Return the colour of each value, the most frequent first; what is left over is grey."""
    return {} if groups is None else dict(zip(groups.value_counts().index, LINE_COLOURS, strict=False))


def _jitter(prompt_id: str) -> float:
    """A point's place within its lane, the same whenever it is drawn."""
    return (int(hashlib.sha256(prompt_id.encode()).hexdigest()[:4], 16) / 0xFFFF - 0.5) * 0.7
