"""All layers at once: both labels' distributions, one above the other."""

from __future__ import annotations

import numpy as np

from refusal_core.exploration.outliers import standardised
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

BINS = 48
_EDGE = 0.1
"""Percent of the prompts that may lie beyond either end, where they are counted in the last bin."""
_SMOOTH = np.array([0.25, 0.5, 0.25])


def ridges(run: Run) -> dict[str, list[list[int]]]:
    """Return the heights of the ridges of both labels' fitted prompts, in percent of the site's highest.

    Projections are in pooled standard deviations from the midpoint, so that layers compare.

    Returns:
        ``harmful`` and ``harmless``, each ``(site, bin)``, smoothed over three bins.
    """
    values = np.nan_to_num(standardised(run, run.projections[run.rows()]))
    labels = run.prompts["label"][run.rows()].to_numpy()
    low, high = np.percentile(values, [_EDGE, 100 - _EDGE])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    inside = np.clip(values, edges[0], edges[-1])
    counts = {
        label: np.stack([_smoothed(np.histogram(at_site, edges)[0]) for at_site in inside[labels == label].T])
        for label in LABELS
    }
    highest = np.maximum(np.max([heights.max(axis=1) for heights in counts.values()], axis=0), 1e-9)
    return {label: (100 * heights / highest[:, None]).round().astype(int).tolist() for label, heights in counts.items()}


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Return counts averaged with their neighbours; the ends keep what would fall beyond them."""
    return np.convolve(np.pad(counts, 1, mode="edge"), _SMOOTH, mode="valid")
