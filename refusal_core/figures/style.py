"""The look all figures share: two label colours that colour-blind readers can tell apart, with marks and dashes."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.plotly_internals import layout_of
from refusal_core.runs.run import Run
from refusal_core.sites import site_short

HARMFUL = "#D55E00"
HARMLESS = "#0072B2"
GREY = "#8C8C8C"
ACCENT = "#2A9D83"
PROBE = "#C2569B"

LABEL_COLOUR = {"harmful": HARMFUL, "harmless": HARMLESS, "grey": GREY}
LABEL_SYMBOL = {"harmful": "triangle-up", "harmless": "circle", "grey": "square"}
LABEL_DASH = {"harmful": "solid", "harmless": "dash", "grey": "dot"}
LABEL_PATTERN = {"harmful": "", "harmless": "/"}

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 16, 13, 12
"""The type scale, in pixels: a figure's title; axis titles, hover text and notes; ticks and legends."""

_AXIS = {
    "automargin": True,
    "fixedrange": True,
    "tickfont": {"size": SMALL_SIZE},
    "title": {"font": {"size": TEXT_SIZE}},
}

CONTROLS = 56
"""Height of a slider with its buttons above a figure that has frames, in pixels."""

_PAGE = {False: ("#FFFFFF", "#111715", "#5B6663", "#E4E8E5"), True: ("#14191A", "#E6EAE8", "#A9B4B1", "#2B3536")}
"""Background, text, muted text and grid of the light and the dark theme, as in .streamlit/config.toml."""

LINE_COLOURS = ("#2A9D83", "#CC79A7", "#B8860B", "#3D8BC9", "#7B5EA7", "#8C5A2B")


def translucent(colour: str, alpha: float) -> str:
    """Return a ``#rrggbb`` colour with an opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def bars_of(label: str) -> dict[str, object]:
    """Return the look of a label's histogram bars, which keep their pattern and colour under a selection.

    A bar's ``x`` is the lower edge of its bin, its ``hovertext`` the upper.
    """
    colour = LABEL_COLOUR[label]
    return {
        "name": label,
        "offset": 0,
        "marker": {
            "color": translucent(colour, 0.55),
            "line": {"width": 0},
            "pattern": {"shape": LABEL_PATTERN[label], "fgcolor": colour, "size": 6, "solidity": 0.25},
        },
        "selected": {"marker": {"opacity": 1}},
        "unselected": {"marker": {"opacity": 1}},
        "hovertemplate": f"%{{y}} {label} prompts<br>%{{x:.4g}} to %{{hovertext:.4g}}<extra></extra>",
    }


def blank(height: int, traces: Sequence[dict[str, Any]] = (), **layout: Any) -> go.Figure:
    """Return a figure in the shared look, empty or with its traces; with all of them at once it is made much faster."""
    named = {"xaxis", "yaxis", *(name for name in layout if name.startswith(("xaxis", "yaxis")))}
    axes = {name: {**_AXIS, **layout.pop(name, {})} for name in sorted(named)}
    return go.Figure(list(traces), {**_look(height), **axes, **layout})


def line_at(axis: str, value: float, **line: Any) -> dict[str, Any]:
    """Return a shape across a figure at a value of its ``x`` or ``y`` axis."""
    across = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{across}0": 0, f"{across}1": 1}
    return {"type": "line", "xref": "x", "yref": "y", f"{across}ref": f"{across} domain", **ends, "line": line}


def dress(figure: go.Figure, height: int, **layout: object) -> go.Figure:
    """Give a figure of several panels the shared look; text and grid colours are left to the page's theme."""
    there = layout_of(figure)
    axes = {name: {**_AXIS, **axis} for name, axis in there.items() if name.startswith(("xaxis", "yaxis"))}
    # Replacing the layout takes a tenth of the time of updating it.
    figure.layout = {**there, **_look(height), **axes, **layout}
    return figure


def _look(height: int) -> dict[str, object]:
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 36, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": TEXT_SIZE},
        "title": {"font": {"size": TITLE_SIZE}},
        "legend": {
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.02,
            "xanchor": "left",
            "x": 0,
            "font": {"size": SMALL_SIZE},
        },
        "hoverlabel": {"align": "left", "font": {"size": TEXT_SIZE}},
        "dragmode": False,
    }


def page_look(dark: bool) -> dict[str, Any]:
    """Return the look of the dashboard's theme as layout, for a figure that is saved as a file."""
    background, text, muted, grid = _PAGE[dark]
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "tickfont": {"color": muted},
        "title": {"font": {"color": muted}},
    }
    return {
        "paper_bgcolor": background,
        "plot_bgcolor": background,
        "template": {
            "layout": {
                "font": {"family": "Source Sans, system-ui, sans-serif", "color": text},
                "colorway": [ACCENT, *LINE_COLOURS[1:]],
                "hoverlabel": {"bgcolor": background, "bordercolor": grid, "font": {"color": text}},
                "xaxis": {**axis, "showgrid": False},
                "yaxis": axis,
            }
        },
    }


def site_axis(run: Run) -> dict[str, Any]:
    """Return the axis of a figure over the layers: layer numbers, then ``norm``."""
    ticks = [*range(0, run.n_layers, max(1, run.n_layers // 7)), run.n_layers]
    if ticks[-1] - ticks[-2] < 2 and len(ticks) > 2:
        del ticks[-2]
    return {
        "title_text": "layer",
        "tickvals": ticks,
        "ticktext": [site_short(site, run.n_layers) for site in ticks],
        "range": [-0.5, run.n_layers + 0.5],
        "zeroline": False,
    }


def site_mark(site: int | None) -> list[dict[str, Any]]:
    """Return the vertical line that marks a site in a figure over the layers, as shapes; none for None."""
    return [] if site is None else [line_at("x", site, color=ACCENT, width=1.5, dash="dot")]


def move_mark(figure: go.Figure, site: int) -> go.Figure:
    """Move the line of :func:`site_mark` in a figure that has no shape after it; returns the figure."""
    mark = figure.layout.shapes[-1]
    mark.x0 = mark.x1 = site
    return figure


def interval_line(
    run: Run,
    table: pd.DataFrame,
    number: str,
    name: str,
    colour: str,
    dash: str = "solid",
) -> list[dict[str, Any]]:
    """Return traces of a column over the layers, drawn over its interval where the table has one.

    Args:
        run: names the layers.
        table: has ``site`` and the column.
        number: the column.
        name: in the legend.
        colour: of line and interval.
        dash: of the line.
    """
    traces = []
    if f"{number}_low" in table:
        traces.append(ribbon(table, f"{number}_low", f"{number}_high", colour, "", 0.15))
    line = {
        "type": "scatter",
        "x": table["site"].to_numpy(),
        "y": table[number].to_numpy(),
        "mode": "lines+markers",
        "name": name,
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "marker": {"size": 5},
        "customdata": [run.site_label(int(site)) for site in table["site"]],
        "hovertemplate": f"%{{customdata}}<br>{name}: %{{y:.2f}}<extra></extra>",
    }
    return [*traces, line]


def ribbon(
    table: pd.DataFrame,
    low: str,
    high: str,
    colour: str,
    name: str,
    alpha: float,
    x: str = "site",
) -> dict[str, Any]:
    """Return a trace of the area between two columns.

    Args:
        table: has the columns.
        low: the column of the lower ends.
        high: the column of the upper ends.
        colour: of the area.
        name: puts it into the legend, unless empty.
        alpha: its opacity.
        x: the column along which it runs.
    """
    known = table[[x, low, high]].to_numpy(float)
    along, lower, upper = known[np.isfinite(known).all(axis=1)].T
    return {
        "type": "scatter",
        "x": np.concatenate([along, along[::-1]]),
        "y": np.concatenate([upper, lower[::-1]]),
        "fill": "toself",
        "fillcolor": translucent(colour, alpha),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "name": name,
        "showlegend": bool(name),
    }


@lru_cache(maxsize=8192)
def safe(text: str, width: int = 60, limit: int = 240) -> str:
    """Return a prompt for hover text, where Plotly reads HTML: escaped, wrapped at ``width``, cut at ``limit``."""
    one_line = " ".join(text.split())
    shown = one_line if len(one_line) <= limit else one_line[: limit - 1] + "…"
    escaped = "<br>".join(html.escape(line) for line in textwrap.wrap(shown, width)) or "(blank)"
    # In a hover template %{…} names a number of the point.
    return escaped.replace("%{", "%&#123;")
