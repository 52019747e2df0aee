"""A run's prompts in two dimensions at every site: principal components, or the direction and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.planes import residual_component, turned
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

COMPONENTS, DIRECTION = "components", "direction"
PLANES = {COMPONENTS: "principal components", DIRECTION: "direction and residual"}
"""The planes and their names."""
AXIS_TITLES = {
    COMPONENTS: ("principal plane, across", "principal plane, up"),
    DIRECTION: ("projection on the direction", "first component of the residual"),
}
"""Titles of a plane's axes, in activation units both."""
_SCORES = ("pc1", "pc2", "pc3")


@dataclass(frozen=True, eq=False)
class Plane:
    """Where the prompts of a run lie in a plane of every site.

    Attributes:
        points: ``(prompt, site, 2)`` in activation units, rows as in the run; NaN where a site has no such plane.
        shares: ``(site,)`` of the fitted prompts' variance, what the plane holds.
    """

    points: np.ndarray
    shares: np.ndarray


def plane_of(run: Run, name: str) -> Plane:
    """Return one of :data:`PLANES`; from layer to layer the points are turned as little as can be.

    - ``components``: the plane of the first two principal components of the fitted prompts' activations. At the run's
      best layer they are the axes, the harmful prompts on the right; elsewhere the plane is turned or mirrored to lie
      as that of the layer next to it, which keeps distances and the share of variance.
    - ``direction``: the projection, cross-fitted for the prompts that the direction was fitted on, 0 at the midpoint
      of the labels; and the first principal component of what the direction leaves of the first three components and
      itself, mirrored where that brings it nearer to the layer next to it.

    Raises:
        RunError: when the run has no evidence, or it cannot be read.
    """
    scores, fitted = _scores(run), run.rows()
    sites = run.evidence.sites.set_index("site").reindex(range(run.n_sites))
    first = (scores[fitted, :, 0] ** 2).sum(axis=0)
    if name == COMPONENTS:
        shares = sites["pc1_share"].to_numpy(float) + sites["pc2_share"].fillna(0.0).to_numpy(float)
        points = scores[:, :, :2].copy()
        # Activations along one line have no second component.
        points[np.isfinite(points[:, :, 0]) & np.isnan(points[:, :, 1]), 1] = 0.0
        return Plane(_turned(run, points, axes=2), shares)
    residual = np.full(scores.shape[:2], np.nan)
    for site in np.flatnonzero(np.isfinite(first)):
        residual[:, site] = residual_component(scores[:, site], run.projections[:, site], fitted)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = first / sites["pc1_share"].to_numpy(float)
        shares = (run.projections[fitted].var(axis=0) * fitted.sum() + (residual[fitted] ** 2).sum(axis=0)) / total
    points = np.stack([midpoint_projections(run), residual], axis=2)
    return Plane(_turned(run, points, axes=1), np.minimum(shares, 1.0))


def _turned(run: Run, points: np.ndarray, axes: int) -> np.ndarray:
    """Turn the points of all sites to those of the best site, on which the harmful prompts lie on the right."""
    start = run.best_site()
    rightwards = np.subtract(*(points[run.rows(label), start, 0].mean() for label in LABELS))
    if axes == 2 and rightwards < 0:
        points[:, start, 0] *= -1
    return turned(points, run.rows(), start, axes)


def midpoint_projections(run: Run) -> np.ndarray:
    """Return ``(prompt, site)`` projections, 0 at the midpoint, cross-fitted where the prompt was fitted on."""
    stats = run.layer_stats
    midpoint = (stats["harmful_projection_mean"] + stats["harmless_projection_mean"]).to_numpy(float) / 2
    crossfit = run.projections_crossfit
    return np.where(np.isfinite(crossfit), crossfit, run.projections - midpoint)


def _scores(run: Run) -> np.ndarray:
    """Return ``(prompt, site, component)`` scores on the first principal components."""
    table = run.evidence.components
    scores = np.full((len(run.prompts), run.n_sites, len(_SCORES)), np.nan)
    rows = pd.Index(run.prompts["prompt_id"]).get_indexer(table["prompt_id"])
    sites = table["site"].to_numpy(int)
    for place, name in enumerate(_SCORES):
        if name in table:
            scores[rows, sites, place] = table[name].to_numpy(float)
    return scores
