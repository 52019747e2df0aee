"""Histograms one can scrub through, and curves over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    PROBE,
    bars_of,
    blank,
    safe,
    site_axis,
    translucent,
)
from refusal_core.published import PUBLISHED_LAYERS
from refusal_core.runs import Run
from refusal_core.sites import site_short
from refusal_core.statistics import plausible_band

BINS = 40

QUESTIONS = {
    "cohens_d": ("does it fit? in-sample", GREY, "dot"),
    "crossfit_d": ("does it hold on new prompts? cross-fitted", ACCENT, "dash"),
    "probe_d": ("is it about harm? probe pairs", PROBE, "solid"),
}


def scrubber(run: Run, site: int, sources: Sequence[str] = ()) -> go.Figure:
    """Projection histograms of both labels, one Plotly frame a site, with a slider the browser moves by itself.

    Args:
        site: the frame shown at first.
        sources: transfer sets drawn as outlines over the contrast set's bars.
    """
    frames = [_frame(run, each, sources) for each in range(run.n_sites)]
    figure = blank(430, barmode="overlay", bargap=0)
    figure.add_traces(frames[site].data)
    figure.update_layout(frames[site].layout)
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 84, "b": 8},
        sliders=[
            {
                "active": site,
                "pad": {"t": 46, "b": 4},
                "currentvalue": {"visible": False},
                "ticklen": 4,
                "steps": [
                    {
                        "label": site_short(each, run.n_layers),
                        "method": "animate",
                        "args": [
                            [str(each)],
                            {
                                "mode": "immediate",
                                "frame": {"duration": 0, "redraw": True},
                                "transition": {"duration": 0},
                            },
                        ],
                    }
                    for each in range(run.n_sites)
                ],
            }
        ],
    )
    figure.update_xaxes(title_text="projection (activation units)", title_standoff=6)
    figure.update_yaxes(title_text="prompts")
    figure.frames = frames
    return figure


def _frame(run: Run, site: int, sources: Sequence[str]) -> go.Frame:
    shown = [run.rows(), *(run.rows(source=source) for source in sources)]
    values = run.projections[np.logical_or.reduce(shown), site]
    span = max(float(np.ptp(values)), 1e-9)
    edges = np.linspace(values.min() - 0.02 * span, values.max() + 0.02 * span, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    ranges = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    traces: list = []
    by_label = {label: run.projections[run.rows(label), site] for label in ("harmful", "harmless")}
    counts = {label: np.histogram(of_label, edges)[0] for label, of_label in by_label.items()}
    outlines = []
    for source in sources:
        for label, colour in LABEL_COLOUR.items():
            rows = run.rows(label, source)
            if rows.any():
                outlines.append((source, label, colour, np.histogram(run.projections[rows, site], edges)[0]))
    top = float(max([1, *(c.max() for c in counts.values()), *(c.max() for *_, c in outlines)]))
    for label, of_label in counts.items():
        traces.append(go.Bar(x=centres, y=of_label, width=edges[1] - edges[0], customdata=ranges, **bars_of(label)))
    for label, of_label in by_label.items():
        mean = float(of_label.mean())
        traces.append(
            go.Scatter(
                x=[mean, mean],
                y=[0, top],
                mode="lines",
                name=f"{label} mean",
                showlegend=False,
                line={"color": LABEL_COLOUR[label], "width": 2, "dash": LABEL_DASH[label]},
                hovertemplate=f"mean of the {label} prompts: %{{x:.4g}}<extra></extra>",
            )
        )
    for source, label, colour, binned in outlines:
        traces.append(
            go.Scatter(
                x=centres,
                y=binned,
                mode="lines",
                name=f"{safe(source)}, {label}",
                line={"color": colour, "width": 1.5, "shape": "hvh", "dash": LABEL_DASH[label]},
                hovertemplate=f"%{{y}} {label} prompts of {safe(source)}<extra></extra>",
            )
        )
    low, high = plausible_band(by_label["harmful"], by_label["harmless"])
    band = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": low,
        "x1": high,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "fillcolor": translucent(GREY, 0.18),
        "layer": "below",
    }
    layout = {
        "title": {"text": _headline(run, site), "x": 0, "xanchor": "left", "y": 0.97, "font": {"size": 15}},
        "shapes": [band],
        "xaxis": {"range": [edges[0], edges[-1]], "title": {"text": "projection (activation units)"}},
        "yaxis": {"range": [0, top * 1.08], "title": {"text": "prompts"}},
    }
    return go.Frame(name=str(site), data=traces, layout=layout)


def _headline(run: Run, site: int) -> str:
    row = run.layer_stats.loc[site]
    return (
        f"<b>{run.site_label(site)}</b><br>"
        f"<span style='font-size:12px'>d in-sample {_number(row['cohens_d'])} · cross-fitted "
        f"{_number(row['crossfit_d'])} · probe pairs {_number(row['probe_d'])}"
        f"<br>mean crossings {row['overlap_count']} · in the other label's range {row['range_overlap']}</span>"
    )


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"


def three_questions(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Cohen's d over the layers by each of the three questions; clicking a point selects its site.

    Args:
        site: marked with a vertical line.
        published: the table of Experiment 0, drawn over it at relative depth when the layer counts differ.
    """
    figure = blank(380)
    for column, (name, colour, dash) in QUESTIONS.items():
        figure.add_scatter(
            x=run.layer_stats["site"],
            y=run.layer_stats[column],
            mode="lines+markers",
            name=name,
            line={"color": colour, "dash": dash, "width": 2.5},
            marker={"size": 6},
            customdata=[run.site_label(each) for each in range(run.n_sites)],
            hovertemplate=f"%{{customdata}}<br>{name}: d = %{{y:.2f}}<extra></extra>",
        )
    if published is not None:
        _add_published(figure, run, published, "cohens_d", "d")
    _finish(figure, run, site, "Cohen's d")
    return figure


def separation(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Distance of the two labels' means over the layers, in activation units, logarithmic."""
    figure = blank(300)
    figure.add_scatter(
        x=run.layer_stats["site"],
        y=run.layer_stats["magnitude"],
        mode="lines+markers",
        name="this run",
        line={"color": ACCENT, "width": 2.5},
        marker={"size": 6},
        customdata=[run.site_label(each) for each in range(run.n_sites)],
        hovertemplate="%{customdata}<br>separation %{y:.3g}<extra></extra>",
    )
    if published is not None:
        _add_published(figure, run, published, "magnitude", "separation")
    _finish(figure, run, site, "mean separation")
    figure.update_yaxes(type="log", dtick=1)
    return figure


def _add_published(figure: go.Figure, run: Run, published: pd.DataFrame, column: str, name: str) -> None:
    figure.add_scatter(
        x=published["site"] * run.n_layers / PUBLISHED_LAYERS,
        y=published[column],
        mode="lines",
        name="Experiment 0, published",
        line={"color": "#B8860B", "width": 2, "dash": "dashdot"},
        customdata=published["layer"],
        hovertemplate=f"Experiment 0, its layer %{{customdata}} of 28: {name} %{{y:.3g}}<extra></extra>",
    )


def _finish(figure: go.Figure, run: Run, site: int | None, y_title: str) -> None:
    site_axis(figure, run)
    figure.update_yaxes(title_text=y_title)
    figure.update_layout(clickmode="event+select", hovermode="closest")
    if site is not None:
        figure.add_vline(x=site, line={"color": ACCENT, "width": 1.5, "dash": "dot"})
