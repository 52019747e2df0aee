"""Projection against how harmful people find a prompt."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.style import (
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
from refusal_core.runs.run import Run

_GROUPS = {
    "all": ("all rated prompts", GREY, "dot"),
    "harmful": ("within harmful", LABEL_COLOUR["harmful"], LABEL_DASH["harmful"]),
    "harmless": ("within harmless", LABEL_COLOUR["harmless"], LABEL_DASH["harmless"]),
    "transfer": ("transfer sets", PROBE, "dashdot"),
}


def over_layers(run: Run, by_site: pd.DataFrame, site: int) -> go.Figure:
    """Return Spearman's rho of projection and rating over the layers, a line per group of prompts.

    Args:
        run: names the layers.
        by_site: of :func:`refusal_core.annotations.ratings.correlation_by_site`.
        site: marked with a vertical line.
    """
    traces = []
    for group, (name, colour, dash) in _GROUPS.items():
        table = by_site[by_site["group"].eq(group)]
        if table["rho"].notna().any():
            traces += interval_line(run, table, "rho", name, colour, dash)
    return blank(
        380,
        traces,
        shapes=[line_at("y", 0, color=GREY, width=1, dash="dot"), *site_mark(site)],
        xaxis=site_axis(run),
        yaxis={"title_text": "Spearman's ρ"},
    )


def against_rating(run: Run, rated: pd.DataFrame, site: int) -> go.Figure:
    """Return the rated prompts, projection at a site against mean rating; transfer prompts are drawn open.

    Points carry the prompt's row in the run as ``customdata[0]``.

    Args:
        run: names the site.
        rated: of :func:`refusal_core.annotations.ratings.rank_differences` at this site.
        site: where the prompts project.
    """
    traces = []
    for fitted, kind in ((True, ""), (False, ", transfer")):
        for label in ("harmless", "grey", "harmful"):
            table = rated[rated["label"].eq(label) & rated["fitted"].eq(fitted)]
            if table.empty:
                continue
            hover = [
                f"{safe(text)}<br><br>rated {rating:.3g} by {n}"
                for text, rating, n in zip(table["text"], table["rating"], table["n_raters"], strict=True)
            ]
            trace = {
                "type": "scatter",
                "x": table["projection"].to_numpy(),
                "y": table["rating"].to_numpy(),
                "mode": "markers",
                "name": label + kind,
                "marker": {
                    "color": LABEL_COLOUR[label],
                    "symbol": LABEL_SYMBOL[label] + ("" if fitted else "-open"),
                    "size": 8,
                    "opacity": 0.75,
                },
                "selected": {"marker": {"opacity": 1}},
                "unselected": {"marker": {"opacity": 0.75}},
                "customdata": list(zip(table.index.tolist(), hover, strict=True)),
                "hovertemplate": "%{customdata[1]}<extra></extra>",
            }
            traces.append(trace)
    return blank(
        420,
        traces,
        xaxis={"title_text": f"projection at {run.site_label(site)} (activation units)"},
        yaxis={"title_text": "mean rating"},
        clickmode="event+select",
    )
