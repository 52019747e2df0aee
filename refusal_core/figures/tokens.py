"""One prompt token by token, at every site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from refusal_core.exploration.outliers import standardised
from refusal_core.figures.style import HARMFUL, HARMLESS, blank, safe, site_axis
from refusal_core.runs.run import T_POST, Run

END_OF_PROMPT = "end of prompt"
ROW_HEIGHT = 17
_MARGINS = {"l": 8, "r": 8, "t": 48, "b": 48}
_LABEL_LENGTH = 16
COLOURS_END = 4.0
"""Standard deviations from the midpoint at which the colours end."""


def token_heatmap(
    run: Run, tokens: Sequence[str], token_projection: np.ndarray, projection: np.ndarray, site: int | None = None
) -> go.Figure:
    """Return a heat map of a prompt: a row per token, a column per site, as tall as the prompt is long.

    The last row is the run's read position: the end of the prompt, unless another was chosen. Colours are
    :func:`.outliers.standardised`, so that layers compare, and the same for every prompt, so that prompts
    do: in the first layers tokens lie tens of standard deviations out, and a scale that reached there would leave the
    rest blank.

    Args:
        run: the prompt is compared with.
        tokens: of the prompt.
        token_projection: ``(token, site)`` in activation units.
        projection: ``(site,)`` at the run's read position.
        site: marked with a frame.
    """
    raw = np.vstack([token_projection.reshape(-1, run.n_sites), projection])
    values = standardised(run, raw)
    names = [_shown(token) for token in tokens] + [END_OF_PROMPT if run.read_at == T_POST else run.read_at]
    rows = np.arange(len(names))
    customdata = np.empty((*raw.shape, 3), dtype=object)
    customdata[..., 0] = [[f"{value:.4g}" for value in row] for row in raw]
    customdata[..., 1] = np.array(names, dtype=object)[:, None]
    customdata[..., 2] = [run.site_label(site) for site in range(run.n_sites)]
    figure = blank(_MARGINS["t"] + _MARGINS["b"] + ROW_HEIGHT * len(names))
    figure.update_layout(margin=_MARGINS)
    figure.add_heatmap(
        x=np.arange(run.n_sites),
        y=rows,
        z=values.round(3),
        zmin=-COLOURS_END,
        zmax=COLOURS_END,
        # Between the label's colours the page itself shows through, light or dark.
        colorscale=[[0.0, HARMLESS], [0.5, "rgba(140,140,140,0.08)"], [1.0, HARMFUL]],
        xgap=1,
        ygap=1,
        customdata=customdata,
        hovertemplate="%{customdata[1]}<br>%{customdata[2]}<br>projection %{customdata[0]}<br>"
        "%{z:.2f} standard deviations from the midpoint<extra></extra>",
        colorbar={
            "orientation": "h",
            "thickness": 8,
            "len": 0.9,
            "x": 0.5,
            "xanchor": "center",
            "y": 1,
            "yanchor": "bottom",
            "ypad": 4,
            "tickvals": [-COLOURS_END, -COLOURS_END / 2, 0, COLOURS_END / 2, COLOURS_END],
            "ticktext": [
                f"≤ −{COLOURS_END:.0f}",
                f"−{COLOURS_END / 2:.0f}",
                "0",
                f"{COLOURS_END / 2:.0f}",
                f"≥ {COLOURS_END:.0f}",
            ],
        },
    )
    figure.add_hline(y=len(tokens) - 0.5, line={"width": 1.5, "color": "#8C8C8C"})
    if site is not None:
        figure.add_shape(
            type="rect",
            x0=site - 0.5,
            x1=site + 0.5,
            y0=-0.5,
            y1=len(tokens) + 0.5,
            line={"width": 1.5, "dash": "dot", "color": "#8C8C8C"},
        )
    figure.update_xaxes(site_axis(run))
    figure.update_yaxes(
        tickvals=rows, ticktext=names, range=[len(tokens) + 0.5, -0.5], showgrid=False, zeroline=False, automargin=True
    )
    figure.update_xaxes(showgrid=False)
    return figure


def _shown(token: str) -> str:
    """Return a token as a label that shows blanks and line ends, in which many tokens differ."""
    marked = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return safe(marked, width=_LABEL_LENGTH + 1, limit=_LABEL_LENGTH)
