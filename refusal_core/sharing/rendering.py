"""Figures as files in the dashboard's look: PNG and SVG drawn by a headless browser, HTML that needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import plotly.graph_objects as go
import plotly.io

from refusal_core.errors import RenderingError
from refusal_core.figures.style import CONTROLS, page_look

MIME = {"png": "image/png", "svg": "image/svg+xml", "html": "text/html"}
"""The formats of figures."""

WIDTH = 960
_EDGE = 16
_SCALE = {"png": 2, "svg": 1}
# One browser at a time: each takes some 200 MB and a core.
_DRAWING = Lock()


def browser_found() -> bool:
    """Return whether there is a browser to draw PNG and SVG with."""
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return path is not None and Path(path).is_file()


def render_image(figure: go.Figure, kind: str, dark: bool = False, width: int = WIDTH) -> bytes:
    """Return a figure as PNG, at twice its size in pixels, or SVG.

    Args:
        figure: the figure.
        kind: ``png`` or ``svg``.
        dark: whether to draw it in the dark theme.
        width: of the figure, in pixels.

    Raises:
        RenderingError: when there is no browser, or it fails.
    """
    import kaleido

    _check_browser()
    size = {"format": kind, "width": width, "height": figure.layout.height, "scale": _SCALE[kind]}
    try:
        with _DRAWING:
            # Without MathJax nothing is loaded from the network, and prompts stay text.
            return bytes(kaleido.calc_fig_sync(_still(figure, dark), opts=size, kopts={"mathjax": False}))
    except Exception as error:
        raise _failed(error) from error


def write_images(figures: Mapping[Path, tuple[go.Figure, str | None]], width: int = WIDTH) -> None:
    """Write figures as PNG or SVG in the light theme, with one browser for all of them.

    Args:
        figures: figure and the name of the frame to draw, by the file to write.
        width: of the figures, in pixels.

    Raises:
        RenderingError: when there is no browser, or it fails.
    """
    import kaleido

    _check_browser()
    drawings = [
        {
            "fig": _still(figure, frame=frame),
            "path": path,
            "opts": {
                "format": path.suffix[1:],
                "width": width,
                "height": figure.layout.height,
                "scale": _SCALE[path.suffix[1:]],
            },
        }
        for path, (figure, frame) in figures.items()
    ]
    try:
        with _DRAWING:
            kaleido.write_fig_from_object_sync(drawings, cancel_on_error=True, kopts={"mathjax": False})
    except Exception as error:
        raise _failed(error) from error


def render_page(figure: go.Figure, title: str, dark: bool = False) -> bytes:
    """Return a figure as an interactive HTML page that contains Plotly's script and needs no network.

    Args:
        figure: the figure.
        title: the page's title, plain text.
        dark: whether to draw it in the dark theme.
    """
    look = page_look(dark)
    body = plotly.io.to_html(
        _dressed(figure, look),
        full_html=False,
        validate=False,
        # It stands where it was saved until somebody plays it.
        auto_play=False,
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>\n'
        f'<body style="margin:0;background:{look["paper_bgcolor"]}">{body}</body></html>\n'
    ).encode()


def _still(figure: go.Figure, dark: bool = False, frame: str | None = None) -> dict[str, Any]:
    """Return a figure as it looks when a frame is shown, without its slider and buttons."""
    drawn = _dressed(figure, page_look(dark))
    for candidate in drawn.pop("frames", []):
        if candidate["name"] == frame:
            data = candidate["data"]
            for trace, changes in zip(candidate.get("traces", range(len(data))), data, strict=True):
                drawn["data"][trace] |= changes
            _update(drawn["layout"], candidate.get("layout", {}))
    if drawn["layout"].pop("sliders", None):
        drawn["layout"]["margin"]["t"] -= CONTROLS
    drawn["layout"].pop("updatemenus", None)
    return drawn


def _dressed(figure: go.Figure, look: dict[str, Any]) -> dict[str, Any]:
    drawn: dict[str, Any] = json.loads(figure.to_json())
    drawn["layout"] |= look
    # On a page the layout around a figure keeps it off the edges.
    drawn["layout"].setdefault("margin", {}).update(l=_EDGE, r=_EDGE, b=_EDGE)
    drawn["layout"].setdefault("title", {}).setdefault("pad", {})["l"] = _EDGE
    return drawn


def _update(layout: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(layout.get(name), dict):
            _update(layout[name], value)
        else:
            layout[name] = value


def _check_browser() -> None:
    if not browser_found():
        raise RenderingError(
            "PNG and SVG are drawn by a headless Chrome or Chromium, and none was found: install one "
            "(Debian: apt-get install chromium), or name it in the environment variable BROWSER_PATH"
        )


def _failed(error: Exception) -> RenderingError:
    return RenderingError(f"the browser did not draw the figure ({str(error) or type(error).__name__:.200}); try again")
