"""A run in one picture, as notebooks show it: what it says, and effect size over the layers."""

from __future__ import annotations

import html
from collections.abc import Iterable

import numpy as np

from refusal_core.evidence.findings import verdict
from refusal_core.options import ESTIMATORS
from refusal_core.runs.run import Run

_CURVES = (
    ("in_sample_d", "in-sample", "#8A8F98", "2 4"),
    ("crossfit_d", "cross-fitted", "#1B8A6B", "7 4"),
    ("probe_d", "matched pairs", "#C2529D", ""),
)
"""Column, name, colour and dashes, as on the dashboard's Home page."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 190, 40, 26, 8, 110


def card_html(run: Run) -> str:
    """Return a run as a card: model and prompts, the verdict, and the three effect sizes over the layers.

    Everything that a run's manifest or prompts say is escaped.
    """
    manifest = run.manifest
    counts = " + ".join(f"{count} {label}" for label, count in manifest.prompts.counts.items())
    title = f"{manifest.model.name}, {run.n_layers} layers, on {manifest.prompts.name}"
    if run.estimator_note:
        title += f": direction ({ESTIMATORS[manifest.estimator]})"
    return (
        '<div style="font-family:sans-serif;max-width:640px;border:1px solid #8884;border-radius:6px;'
        'padding:12px 16px">'
        f'<div style="font-weight:600">{html.escape(title)}</div>'
        f'<div style="opacity:.7;font-size:90%">{html.escape(counts)} prompts · {html.escape(run.run_id)}</div>'
        f'<p style="margin:8px 0">{html.escape(verdict(run.evidence))}</p>{_curves(run)}</div>'
    )


def _curves(run: Run) -> str:
    stats = run.layer_stats
    curves: tuple[tuple[str, str, str, str], ...] = _CURVES
    if run.directions.imported:
        # Its number on the contrast set is one, whatever it is called.
        curves = tuple(
            (column, name.replace("cross-fitted", "imported"), colour, dashes)
            for column, name, colour, dashes in _CURVES[1:]
        )
    known = [curve for curve in curves if stats[curve[0]].notna().any()]
    if not known:
        return ""
    values = np.concatenate([stats[column].to_numpy(float) for column, *_ in known])
    low, high = min(0.0, float(np.nanmin(values))), float(np.nanmax(values))
    span = (high - low) or 1.0

    def place(site: int, value: float) -> tuple[float, float]:
        x = _LEFT + site / max(run.n_sites - 1, 1) * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - (value - low) / span * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    names = sorted(
        (place(run.n_sites - 1, float(stats[column].to_numpy(float)[-1]))[1], name, colour)
        for column, name, colour, _ in known
        if np.isfinite(stats[column].to_numpy(float)[-1])
    )
    for column, _, colour, dashes in known:
        points = [place(site, value) for site, value in enumerate(stats[column].to_numpy(float)) if np.isfinite(value)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
    for y, (name, colour) in zip(_spread([y for y, *_ in names]), [rest for _, *rest in names], strict=True):
        x = float(_WIDTH - _RIGHT + 6)
        parts.append(f'<text x="{x}" y="{y + 4:.1f}" fill="{colour}" font-size="12">{name}</text>')
    for value in sorted({low, 0.0, high}):
        _, y = place(0, value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".2"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor" font-size="11">'
            f"{value:.1f}</text>"
        )
    for site in (0, run.n_layers):
        anchor, x = ("start", place(site, 0)[0]) if site == 0 else ("end", place(site, 0)[0])
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}" fill="currentColor" font-size="11">'
            f"{html.escape(run.site_label(site))}</text>"
        )
    described = "Cohen's d over the layers: " + ", ".join(name for _, name, *_ in known)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" aria-label="{html.escape(described)}">'
        f"{''.join(parts)}</svg>"
    )


def _spread(heights: Iterable[float], least: float = 14.0) -> list[float]:
    """Return heights, in ascending order, moved apart so that labels of one line each do not overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + least) if placed else height)
    return placed
