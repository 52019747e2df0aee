"""The pictures of Experiment 0, of any run: its three figures and its histogram per layer."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_core.figures.layers import eight_layers, separation, three_questions, together
from refusal_core.figures.panels import linked
from refusal_core.figures.style import TEXT_SIZE, dress, site_axis
from refusal_core.runs.run import Run

HISTOGRAMS = "layer_distributions"


def direction_analysis(run: Run) -> go.Figure:
    """Return the study's first figure: magnitude, effect size, and both together, over the layers."""
    parts = {"separation": separation(run), "Cohen's d": three_questions(run), "share of maximum": together(run)}
    figure = make_subplots(1, 3, subplot_titles=list(parts), horizontal_spacing=0.07)
    dress(figure, 400)
    for column, part in enumerate(parts.values(), start=1):
        for trace in part.data:
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(site_axis(run), row=1, col=column)
    figure.data[0].showlegend = False
    figure.update_yaxes(type="log", dtick=1, row=1, col=1)
    figure.update_yaxes(tickformat=".0%", row=1, col=3)
    figure.update_annotations(font_size=TEXT_SIZE)
    figure.update_layout(legend={"y": -0.24, "yanchor": "top"})
    return figure


def pictures(run: Run) -> dict[str, tuple[go.Figure, str | None]]:
    """Return the figures by file name without its ending, with the frame to draw, under the study's names.

    The study counts the final norm as its last layer and never read the last block's output; that one's histogram is
    named ``…_before_norm``.
    """
    last = run.n_layers - 1
    strongest = int(np.nan_to_num(run.layer_stats["in_sample_d"], nan=-np.inf).argmax())
    histograms = linked(run, 0, ("histogram",))
    named = {site: f"layer_{site:02d}_histogram" for site in range(last)}
    named |= {last: f"layer_{last:02d}_histogram_before_norm", run.n_layers: f"layer_{last:02d}_histogram"}
    return {
        "direction_analysis": (direction_analysis(run), None),
        "projection_distributions": (linked(run, strongest, ("histogram", "box"), stacked=True), str(strongest)),
        "progressive_distributions": (eight_layers(run), None),
        **{f"{HISTOGRAMS}/{name}": (histograms, str(site)) for site, name in named.items()},
    }
