"""Planes in which prompts are drawn: what a direction leaves of the components, and planes turned to one another."""

from __future__ import annotations

import numpy as np

_HELD = 1e-4
"""The least share of a component that is not the direction's own, for the component to be used without it."""


def residual_component(scores: np.ndarray, projection: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the first principal component of what a direction leaves of the activations, among their components.

    The direction's cosine with a component follows from the two projections, so that neither vectors nor activations
    are needed. Of all axes in the space of the components and the direction that are orthogonal to the direction, the
    one along which the fitted prompts vary most (Rayleigh–Ritz; all of the residual's first component where the
    components hold it).

    Args:
        scores: ``(prompt, component)`` on the fitted prompts' principal components; NaN in a component there is none
            of.
        projection: ``(prompt,)`` on the unit direction, in the same units.
        fitted: ``(prompt,)`` bool, the prompts whose components they are.

    Returns:
        ``(prompt,)`` in activation units, 0 at the fitted prompts' mean; zeros where nothing is left.
    """
    scores = scores[:, np.isfinite(scores[fitted]).all(axis=0)]
    projection = projection - projection[fitted].mean()
    square = (scores[fitted] ** 2).sum(axis=0)
    cosines = scores[fitted].T @ projection[fitted] / np.where(square > 0, square, 1.0)
    residual = scores - np.outer(projection, cosines)
    lengths, axes = np.linalg.eigh(np.eye(len(cosines)) - np.outer(cosines, cosines))
    held = lengths > _HELD
    if not held.any():
        return np.zeros(len(scores))
    along = residual @ (axes[:, held] / np.sqrt(lengths[held]))
    _, components = np.linalg.eigh(along[fitted].T @ along[fitted])
    first: np.ndarray = along @ components[:, -1]
    return first


def turned(points: np.ndarray, fitted: np.ndarray, start: int, axes: int = 2) -> np.ndarray:
    """Return the points of every site turned to lie as those of the site next to it, outwards from one site.

    The orthogonal Procrustes rotation or reflection (Schönemann 1966): of all that keep distances, the one that moves
    the fitted prompts least.

    Args:
        points: ``(prompt, site, 2)``, centred at the fitted prompts; a site with points that are NaN is left out.
        fitted: ``(prompt,)`` bool, the prompts that are brought together.
        start: the site that stays as it is.
        axes: how many of the last axes may be turned; with 1 the second is mirrored at most.

    Returns:
        ``(prompt, site, 2)``.
    """
    result = points.copy()
    free = slice(2 - axes, 2)
    last = points.shape[1]
    for sites in (range(start + 1, last), range(start - 1, -1, -1)):
        before = start
        for site in sites:
            moved, still = (result[fitted, at, free] for at in (site, before))
            if not np.isfinite(moved).all():
                continue
            if np.isfinite(still).all():
                left, _, right = np.linalg.svd(moved.T @ still)
                result[:, site, free] = result[:, site, free] @ (left @ right)
            before = site
    return result
