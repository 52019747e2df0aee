"""Figures as files in the dashboard's look: PNG and SVG drawn by a headless browser, HTML that needs no network."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import plotly.graph_objects as go
import plotly.io

from refusal_core.errors import RenderingError
from refusal_core.figures.style import CONTROLS, SMALL_SIZE, page_look

MIME = {"png": "image/png", "svg": "image/svg+xml", "html": "text/html"}
"""The formats of figures."""

WIDTH = 960
SIZES = {"slide": 1920, "column": 1440}
"""What a picture is drawn for and the pixels that its PNG is wide: a slide of 16 to 9, a column of 85 mm at 430 dpi."""
_COLUMN = 480
_EDGE = 16
_HEADING = 26
_LINE = 18
_LEGEND = 20
"""Pixels that a title, a line below it and a further line of the legend take."""
_SCALE = {"png": 2, "svg": 1}
# One browser at a time: each takes some 200 MB and a core.
_DRAWING = Lock()


def browser_found() -> bool:
    """Return whether there is a browser to draw PNG and SVG with."""
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return path is not None and Path(path).is_file()


def render_image(
    figure: go.Figure, kind: str, dark: bool = False, use: str = "slide", heading: tuple[str, str] = ("", "")
) -> bytes:
    """Return a figure as PNG or SVG, in a size for a slide or for a column of a page.

    Args:
        figure: the figure.
        kind: ``png`` or ``svg``.
        dark: whether to draw it in the dark theme.
        use: of :data:`SIZES`.
        heading: plain texts: a title for a figure that has none, and what stands below the title.

    Raises:
        RenderingError: when there is no browser, or it fails.
    """
    import kaleido

    _check_browser()
    drawn = _still(figure, dark)
    height = _head(drawn, heading, WIDTH if use == "slide" else _COLUMN)
    # A figure that is higher than a slide becomes smaller, and keeps its shape.
    width = max(WIDTH, round(height * 16 / 9)) if use == "slide" else _COLUMN
    height = round(width * 9 / 16) if use == "slide" else height
    drawn["layout"]["height"] = height
    size = {"format": kind, "width": width, "height": height, "scale": 1 if kind == "svg" else SIZES[use] / width}
    try:
        with _DRAWING:
            # Without MathJax nothing is loaded from the network, and prompts stay text.
            return bytes(kaleido.calc_fig_sync(drawn, opts=size, kopts={"mathjax": False}))
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


def render_page(figure: go.Figure, heading: tuple[str, str], dark: bool = False) -> bytes:
    """Return a figure as an interactive HTML page that contains Plotly's script and needs no network.

    Args:
        figure: the figure.
        heading: plain texts: the page's title, and what stands below it.
        dark: whether to draw it in the dark theme.
    """
    look, (title, line) = page_look(dark), map(html.escape, heading)
    font = look["template"]["layout"]["font"]
    body = plotly.io.to_html(
        _dressed(figure, look),
        full_html=False,
        validate=False,
        # It stands where it was saved until somebody plays it.
        auto_play=False,
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>\n'
        f'<body style="margin:0;background:{look["paper_bgcolor"]};color:{font["color"]};'
        f'font-family:{font["family"]}"><header style="padding:16px 24px 0">'
        f'<h1 style="margin:0;font-size:18px">{title}</h1><p style="margin:4px 0 0;font-size:{SMALL_SIZE}px">{line}</p>'
        f"</header>{body}</body></html>\n"
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


def _head(drawn: dict[str, Any], heading: tuple[str, str], width: int) -> int:
    """Put a heading above a figure and its legend; the figure becomes as much higher. Return its height."""
    layout, (title, line) = drawn["layout"], heading
    there = layout["title"].get("text", "")
    below = textwrap.wrap(line, width // 7)
    more = (0 if there or not title else _HEADING) + _LINE * len(below)
    layout["title"] |= {
        "text": there or html.escape(title),
        "subtitle": {"text": "<br>".join(map(html.escape, below)), "font": {"size": SMALL_SIZE}},
        "x": 0,
        "xanchor": "left",
        "yref": "container",
        "y": 1,
        "yanchor": "top",
        "pad": {"l": _EDGE, "t": 1.5 * _EDGE},
    }
    more += 2 * _EDGE + _LEGEND * max(_legend_lines(drawn, width) - 1, 0)
    layout["margin"]["t"] = layout["margin"].get("t", 0) + more
    layout["height"] += more
    return int(layout["height"])


def _legend_lines(drawn: dict[str, Any], width: int) -> int:
    """Return about how many lines a legend takes that lies above its figure, 0 for one that lies elsewhere."""
    if drawn["layout"].get("legend", {}).get("y", 0) < 1:
        return 0
    names = {
        trace.get("legendgroup", trace["name"]): 48 + 7 * len(trace["name"])
        for trace in drawn["data"]
        if trace.get("name") and trace.get("showlegend", True)
    }
    if sum(names.values()) <= width - 6 * _EDGE:
        return min(len(names), 1)
    # What does not fit into a line is set in columns as wide as the widest entry.
    columns = max((width - 6 * _EDGE) // max(names.values()), 1)
    return -(-len(names) // columns)


def _dressed(figure: go.Figure, look: dict[str, Any]) -> dict[str, Any]:
    drawn: dict[str, Any] = json.loads(figure.to_json())
    drawn["layout"] |= look
    # On a page the layout around a figure keeps it off the edges.
    margin = drawn["layout"].setdefault("margin", {})
    margin.update({side: max(margin.get(side, 0), _EDGE) for side in "lrb"})
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
