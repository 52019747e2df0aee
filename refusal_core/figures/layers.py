"""Curves over the layers: effect size, separation, spread, crossings; and eight layers side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_core.exploration.published import PUBLISHED_LAYERS
from refusal_core.figures.histograms import histogram
from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    LABEL_SYMBOL,
    PROBE,
    TEXT_SIZE,
    blank,
    dress,
    site_axis,
    site_mark,
)
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

_SMALL = 300

QUESTIONS = {
    "in_sample_d": ("does it fit? in-sample", GREY, "dot", "circle"),
    "crossfit_d": ("does it hold on new prompts? cross-fitted", ACCENT, "dash", "square"),
    "probe_d": ("is it about harm? matched pairs", PROBE, "solid", "diamond"),
}


def asked(run: Run) -> dict[str, tuple[str, str, str, str]]:
    """Return :data:`QUESTIONS` as they are put to a run: an imported direction has one number on the contrast set."""
    if not run.directions.imported:
        return QUESTIONS
    _, colour, dash, symbol = QUESTIONS["crossfit_d"]
    own = ("imported, on the contrast set", colour, dash, symbol)
    return {"crossfit_d": own, "probe_d": QUESTIONS["probe_d"]}


def three_questions(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Cohen's d over the layers by each of the three questions; clicking a point selects its site.

    Args:
        run: the run.
        site: marked with a vertical line.
        published: the table of Experiment 0, drawn over it at relative depth when the layer counts differ.
    """
    figure = blank(380)
    for column, (name, colour, dash, symbol) in asked(run).items():
        figure.add_scatter(
            x=run.layer_stats["site"],
            y=run.layer_stats[column],
            customdata=_labels(run),
            hovertemplate=f"%{{customdata}}<br>{name}: d = %{{y:.2f}}<extra></extra>",
            **_line(name, colour, dash, symbol),
        )
    if published is not None:
        _add_published(figure, run, published, "in_sample_d", "d")
    _finish(figure, run, site, "Cohen's d")
    return figure


def separation(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Distance of the two labels' means over the layers, in activation units, logarithmic."""
    figure = blank(_SMALL)
    figure.add_scatter(
        x=run.layer_stats["site"],
        y=run.layer_stats["magnitude"],
        customdata=_labels(run),
        hovertemplate="%{customdata}<br>separation %{y:.3g}<extra></extra>",
        **_line("this run", ACCENT),
    )
    if published is not None:
        _add_published(figure, run, published, "magnitude", "separation")
    _finish(figure, run, site, "mean separation")
    figure.update_yaxes(type="log", dtick=1)
    return figure


def together(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Separation and in-sample d, each as a share of its maximum: whether they grow together."""
    figure = blank(_SMALL)
    table = run.layer_stats
    for column, name, colour, dash in (
        ("magnitude", "separation", ACCENT, "solid"),
        ("in_sample_d", "d in-sample", GREY, "dot"),
    ):
        figure.add_scatter(
            x=table["site"],
            y=table[column] / table[column].max(),
            customdata=np.column_stack([_labels(run), table[column].map("{:.3g}".format)]),
            hovertemplate=f"%{{customdata[0]}}<br>{name} %{{customdata[1]}}, %{{y:.0%}} of its maximum<extra></extra>",
            **_line(name, colour, dash),
        )
    if published is not None:
        for column, dash in (("magnitude", "dashdot"), ("in_sample_d", "longdashdot")):
            _add_published(
                figure,
                run,
                published.assign(**{column: published[column] / published[column].max()}),
                column,
                column,
                dash,
            )
    _finish(figure, run, site, "share of maximum")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.05])
    return figure


def spread(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Standard deviation of each label's projections over the layers, in activation units, logarithmic."""
    figure = blank(_SMALL)
    for label in LABELS:
        figure.add_scatter(
            x=run.layer_stats["site"],
            y=run.layer_stats[f"{label}_projection_std"],
            customdata=_labels(run),
            hovertemplate=f"%{{customdata}}<br>standard deviation of the {label} prompts %{{y:.3g}}<extra></extra>",
            **_line(label, LABEL_COLOUR[label], LABEL_DASH[label], LABEL_SYMBOL[label]),
        )
        if published is not None:
            _add_published(
                figure, run, published, f"{label}_projection_std", f"standard deviation, {label}", LABEL_DASH[label]
            )
    _finish(figure, run, site, "standard deviation")
    figure.update_yaxes(type="log", dtick=1)
    return figure


def crossings(run: Run, site: int | None = None, published: pd.DataFrame | None = None) -> go.Figure:
    """Mean crossings, the report's overlap count, over the layers."""
    figure = blank(_SMALL)
    figure.add_scatter(
        x=run.layer_stats["site"],
        y=run.layer_stats["mean_crossings"],
        customdata=_labels(run),
        hovertemplate="%{customdata}<br>%{y} prompts beyond the other label's mean<extra></extra>",
        **_line("this run", ACCENT),
    )
    if published is not None:
        _add_published(figure, run, published, "mean_crossings", "mean crossings")
    _finish(figure, run, site, "mean crossings")
    figure.update_yaxes(rangemode="tozero")
    return figure


def eight_layers(run: Run, columns: int = 4) -> go.Figure:
    """Histograms of eight sites from the first to the last, side by side: how the labels come apart."""
    sites = np.unique(np.linspace(0, run.n_sites - 1, 8).round().astype(int))
    rows = -(-len(sites) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=[run.site_label(int(each)) for each in sites], vertical_spacing=0.4 / rows
    )
    dress(figure, 64 + 190 * rows, barmode="overlay", bargap=0)
    for place, site in enumerate(sites):
        for bars in histogram(run, int(site)).data:
            bars.showlegend = not place
            figure.add_trace(bars, row=place // columns + 1, col=place % columns + 1)
    figure.update_annotations(font_size=TEXT_SIZE)
    figure.update_layout(margin={"t": 64}, legend={"y": 1 + 28 / (190 * rows)})
    return figure


SUMMARIES = {"separation": separation, "together": together, "spread": spread, "crossings": crossings}
"""What the report's first figure and its table of variances show, over the layers."""


def _labels(run: Run) -> list[str]:
    return [run.site_label(each) for each in range(run.n_sites)]


def _line(name: str, colour: str, dash: str = "solid", symbol: str = "circle") -> dict[str, object]:
    return {
        "mode": "lines+markers",
        "name": name,
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "marker": {"size": 6, "symbol": symbol},
    }


def _add_published(
    figure: go.Figure, run: Run, published: pd.DataFrame, column: str, name: str, dash: str = "dashdot"
) -> None:
    figure.add_scatter(
        x=published["site"] * run.n_layers / PUBLISHED_LAYERS,
        y=published[column],
        mode="lines",
        name="Experiment 0, published",
        line={"color": "#B8860B", "width": 2, "dash": dash},
        customdata=published["layer"],
        hovertemplate=f"Experiment 0, its layer %{{customdata}} of 28: {name} %{{y:.3g}}<extra></extra>",
    )


def _finish(figure: go.Figure, run: Run, site: int | None, y_title: str) -> None:
    figure.update_xaxes(site_axis(run))
    figure.update_yaxes(title_text=y_title)
    figure.update_layout(clickmode="event+select", hovermode="closest", shapes=site_mark(site))
