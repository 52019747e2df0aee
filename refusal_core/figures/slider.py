"""A slider over the sites with Play and Pause, and what it sends the browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from refusal_core.figures.plotly_internals import Uncopied, encoded
from refusal_core.figures.style import ACCENT, GREY, SMALL_SIZE, TITLE_SIZE, translucent
from refusal_core.runs.run import Run
from refusal_core.sites import site_short

_AT_ONCE = {"mode": "immediate", "transition": {"duration": 0}}
_STEP_MS = 400


def with_slider(
    run: Run,
    site: int,
    data: list[dict[str, Any]],
    frames: Sequence[dict[str, Any]],
    layout: dict[str, Any],
    buttons: float,
    framed: bool,
) -> go.Figure:
    """Return a figure with a slider over the sites, from plain data: a figure that is changed checks itself again.

    Args:
        run: the run.
        site: shown at first.
        data: the traces, as they are at that site.
        frames: per site what it changes of ``data``, of which ``traces``, and of the ``layout``.
        layout: what all sites share.
        buttons: share of the width that Play and Pause need.
        framed: whether the figure moves by itself, by a Plotly frame per site. Plotly draws a frame that moves axes
            three times: its curves, then its axes, then all of it. Otherwise the slider holds the numbers of the sites
            and sets them by one update, and Play and Pause only report to the page that they were clicked.
    """
    if framed:
        show = {**_AT_ONCE, "frame": {"duration": 0, "redraw": True}}
        steps: list[dict[str, Any]] = [{"method": "animate", "args": [[frame["name"]], show]} for frame in frames]
    else:
        steps = [{"method": "update", "args": _update(data, frame)} for frame in frames]
    layout = _changed(layout, frames[site]["layout"])
    layout = _changed(layout, _controls(run, site, buttons, steps, "animate" if framed else "skip"))
    return go.Figure(data, layout, frames if framed else None)


def compact(values: np.ndarray) -> np.ndarray:
    """Return numbers in half the size for the browser, finer than a pixel."""
    return values.astype(np.float32)


def _changed(layout: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the layout with some settings replaced; other settings of a part stay."""
    parts = {name: {**layout.get(name, {}), **part} for name, part in changes.items() if isinstance(part, dict)}
    return {**layout, **changes, **parts}


def _controls(run: Run, site: int, buttons: float, steps: Sequence[dict[str, Any]], play_method: str) -> dict[str, Any]:
    """Return layout: a headline, and play, pause and the slider between it and what is below.

    Args:
        run: the run.
        site: where: a layer, or the final norm.
        buttons: share of the width that Play and Pause need.
        steps: what the slider does at each site.
        play_method: Plotly's method of Play and Pause.
    """
    pause = {**_AT_ONCE, "frame": {"duration": 0, "redraw": True}}
    play = {**_AT_ONCE, "fromcurrent": True, "frame": {"duration": _STEP_MS, "redraw": True}}
    clear = "rgba(0,0,0,0)"
    return {
        "title": {
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 20},
            "font": {"size": TITLE_SIZE, "weight": 400},
        },
        "updatemenus": [
            {
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"t": 0, "b": 22, "l": 0},
                "bgcolor": clear,
                "bordercolor": GREY,
                "font": {"size": SMALL_SIZE},
                "buttons": [
                    {"label": "Play", "method": play_method, "args": [None, play]},
                    {"label": "Pause", "method": play_method, "args": [[None], pause]},
                ],
            }
        ],
        "sliders": [
            {
                "active": site,
                "x": buttons,
                "len": 1 - buttons,
                "y": 1,
                "yanchor": "bottom",
                "pad": {"t": 0, "b": 12, "l": 12, "r": 12},
                "currentvalue": {"visible": False},
                "ticklen": 4,
                "minorticklen": 3,
                "tickcolor": GREY,
                "bordercolor": GREY,
                "bgcolor": translucent(GREY, 0.25),
                "activebgcolor": translucent(ACCENT, 0.5),
                "font": {"size": SMALL_SIZE},
                "steps": [step | {"label": site_short(at, run.n_layers)} for at, step in enumerate(steps)],
            }
        ],
    }


def _update(data: list[dict[str, Any]], frame: dict[str, Any]) -> list[Any]:
    """Return the arguments of Plotly's ``update`` that show a frame. A trace keeps what only others change."""
    names = sorted({name for trace in frame["data"] for name in trace} - {"type"})
    changed = {
        name: [
            encoded(trace.get(name, data[place].get(name)))
            for place, trace in zip(frame["traces"], frame["data"], strict=True)
        ]
        for name in names
    }
    layout: dict[str, Any] = {}
    for part, settings in frame["layout"].items():
        layout |= (
            {part: settings} if part == "shapes" else {f"{part}.{name}": value for name, value in settings.items()}
        )
    return [Uncopied(changed), Uncopied(layout), frame["traces"]]
