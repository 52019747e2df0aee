"""The map of a run's prompts as one small HTML page with all layers and a slider: no server, no network, no Plotly."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pandas as pd

from refusal_core.exploration.planes import AXIS_TITLES, PLANES, Plane
from refusal_core.figures.map import colours_of, drawn_rows, plane_range, share_in_words
from refusal_core.figures.style import page_look
from refusal_core.runs.run import Run

_MISSING = 65535
_LONGEST = 100
"""Characters of a prompt that are shown on hover."""
_STYLE = """
:root { color-scheme: %(scheme)s; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1000px; padding: 1rem; color: %(text)s;
    background: %(background)s; }
h1 { font-size: 1.3rem; margin: 0; } p { margin: 0.2rem 0; color: %(muted)s; }
canvas { width: 100%%; height: min(62vh, 600px); display: block; }
.controls { display: flex; gap: 0.8rem; align-items: center; flex-wrap: wrap; margin-top: 0.6rem; }
.controls input { flex: 1 1 200px; } .controls output { min-width: 7em; font-weight: 600; }
ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; list-style: none; padding: 0; margin: 0.4rem 0; }
#tip { position: absolute; max-width: 320px; padding: 0.4rem 0.6rem; border: 1px solid %(muted)s; border-radius: 4px;
    background: %(background)s; overflow-wrap: anywhere; pointer-events: none; }
"""


def map_html(
    run: Run, plane: Plane, name: str, site: int, values: pd.Series, sources: Sequence[str] = (), dark: bool = False
) -> bytes:
    """Return the page; texts of the run are data of its script, which writes them as text.

    Args:
        run: the run.
        plane: of the run.
        name: which of :data:`refusal_core.exploration.planes.PLANES` it is.
        site: shown at first.
        values: what the points are coloured by; see :func:`refusal_core.figures.map.prompt_map`.
        sources: transfer sets that are drawn too.
        dark: whether it is in the dark theme.
    """
    rows = drawn_rows(run, sources)
    points, legend = colours_of(values, rows)
    look = page_look(dark)
    axis = look["template"]["layout"]["yaxis"]
    colours = {
        "scheme": "dark" if dark else "light",
        "text": look["template"]["layout"]["font"]["color"],
        "background": look["paper_bgcolor"],
        "muted": axis["tickfont"]["color"],
        "grid": axis["gridcolor"],
    }
    sites, places = [], []
    for at in range(run.n_sites):
        ranges = plane_range(plane, rows, at)
        sites.append({"label": run.site_label(at), "share": share_in_words(plane, at), "ranges": ranges})
        places.append(_quantised(plane.points[rows, at], ranges))
    texts = [" ".join(text.split())[:_LONGEST] for text in run.prompts["text"].iloc[rows]]
    shown = {
        "axes": [f"{title} (activation units)" for title in AXIS_TITLES[name]],
        "sites": sites,
        "places": b64encode(np.stack(places).astype("<u2").tobytes()).decode(),
        "points": points,
        "texts": texts,
        "look": colours,
    }
    entries = "".join(
        f'<li><span style="color:{colour}" aria-hidden="true">{mark}</span> {html.escape(value)}</li>'
        for value, colour, mark in legend
    )
    title = html.escape(f"{run.model_name} on {run.contrast_name}")
    what = f"{len(rows)} prompts by {PLANES[name]}, coloured by {values.name}. Made {run.manifest.created[:10]}."
    # No text of the run may end the script.
    data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE % colours}</style></head>\n<body><h1>{title}</h1><p>{html.escape(what)}</p>\n"
        '<div class="controls"><button id="play">Play</button><input id="layer" type="range" min="0" '
        f'max="{run.n_sites - 1}" value="{site}" aria-label="Layer"><output id="name"></output></div>\n'
        '<p id="share"></p><canvas id="map" role="img" aria-label="Map of the prompts"></canvas>\n'
        f'<ul>{entries}</ul><div id="tip" hidden></div>\n'
        f'<script type="application/json" id="data">{data}</script>\n'
        f"<script>{(files('refusal_core.sharing') / 'map_page.js').read_text(encoding='utf-8')}</script>\n"
        "</body></html>\n"
    ).encode("utf-8", "replace")


def _quantised(points: np.ndarray, ranges: list[list[float]]) -> np.ndarray:
    """Return ``(axis, prompt)`` places as shares of the axes in 65,534 steps, finer than a pixel."""
    ends = np.array(ranges)
    shares = (points - ends[:, 0]) / (ends[:, 1] - ends[:, 0])
    steps = np.round(np.clip(shares, 0, 1) * (_MISSING - 1))
    return np.where(np.isfinite(steps), steps, _MISSING).T
