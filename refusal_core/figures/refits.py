"""A run compared with its refit, over the layers."""

from __future__ import annotations

import plotly.graph_objects as go

from refusal_core.exploration.refits import Change
from refusal_core.figures.layers import QUESTIONS
from refusal_core.figures.style import GREY, blank, site_axis


def change(shown: Change) -> go.Figure:
    """Return the three effect sizes before and after the refit, and below them the cosine of the two directions."""
    figure = blank(460)
    names = [shown.before.site_label(int(site)) for site in shown.table["site"]]
    for measure, (question, colour, *_) in QUESTIONS.items():
        for when, dash, opacity in (("before", "dot", 0.75), ("after", "solid", 1.0)):
            values = shown.table[f"{measure}_{when}"]
            if values.isna().all():
                continue
            figure.add_scatter(
                x=shown.table["site"],
                y=values,
                mode="lines+markers",
                name=f"{question.split('? ')[-1]}, {when}",
                line={"color": colour, "width": 2.5, "dash": dash},
                marker={"size": 5, "symbol": "circle-open" if when == "before" else "circle"},
                opacity=opacity,
                customdata=names,
                hovertemplate=f"%{{customdata}}<br>d = %{{y:.2f}} {when}<extra></extra>",
            )
    figure.add_scatter(
        x=shown.table["site"],
        y=shown.table["cosine"],
        yaxis="y2",
        mode="lines+markers",
        name="cosine of the directions",
        line={"color": GREY, "width": 2},
        marker={"size": 5, "symbol": "square"},
        customdata=names,
        hovertemplate="%{customdata}<br>cosine %{y:.4f}<extra></extra>",
    )
    figure.update_xaxes(site_axis(shown.before), anchor="y2")
    figure.update_layout(
        yaxis={"domain": [0.34, 1], "title_text": "Cohen's d"},
        yaxis2={"domain": [0, 0.26], "anchor": "x", "fixedrange": True, "automargin": True, "title_text": "cosine"},
    )
    return figure
