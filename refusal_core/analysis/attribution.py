"""How much each part of a model adds to the difference of the labels along the direction, on held-out prompts.

The residual stream is the sum of what was added to it, so that the projection is the sum of the parts' projections
(Elhage et al. 2021): what follows is exact, and says nothing of why a part adds what it adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.inference import interval, simultaneous_margin
from refusal_core.analysis.projections import contrast_weights


@dataclass(frozen=True, eq=False)
class Attribution:
    """The difference of the labels' mean projections at one site, part by part, in activation units.

    Attributes:
        number: ``(part,)``; they add up to ``total``.
        low, high: ``(part,)`` ends of intervals that hold for all parts at once in 95 % of redrawn prompts, so that
            the largest part may be picked out.
        total, total_low, total_high: of all parts together, with its 95 % interval.
    """

    number: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: float
    total_low: float
    total_high: float


def held_out_directions(hidden_site: np.ndarray, is_harmful: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the unit direction of every fold, fitted on the others: ``(fold, d_model)``; zeros where there is none.

    Args:
        hidden_site: ``(prompt, d_model)``.
        is_harmful: ``(prompt,)`` bool.
        fold: ``(prompt,)`` int.
    """
    weights = _training_weights(is_harmful, fold)
    return unit(contrast_weights(weights * is_harmful, weights * ~is_harmful) @ hidden_site.astype(np.float64))


def attribute(
    stream: Callable[[int], np.ndarray],
    n_parts: int,
    directions: np.ndarray,
    is_harmful: np.ndarray,
    fold: np.ndarray,
    counts: np.ndarray,
    n_groups: int,
) -> Attribution:
    """Return how much each part adds to the difference of the labels at a site.

    Every prompt is projected on its own fold's direction, relative to the midpoint of the training folds, as
    cross-fitted projections are; on one direction, which is no fold's own, as it is. Intervals are of redrawn prompts,
    the directions as they are: that of all parts together is too narrow where the labels are alike, since two prompts
    are in each other's directions.

    Args:
        stream: returns the residual stream ``(prompt, d_model)`` after so many parts, 0 for none: the first block's
            input, which counts as the first part.
        n_parts: up to the site, the first block's input included.
        directions: ``(fold, d_model)`` of :func:`held_out_directions`, or ``(1, d_model)`` fitted on other prompts.
        is_harmful: ``(prompt,)`` bool.
        fold: ``(prompt,)`` int.
        counts: ``(1 + draw, prompt)`` multiplicities, every prompt once in the first row.
        n_groups: how many prompts, or pairs, there are of the rarer label.
    """
    projections = np.stack([stream(place).astype(np.float64) @ directions.T for place in range(n_parts)])
    added = np.diff(projections, axis=0, prepend=0.0)
    if len(directions) == 1:
        own = added[:, :, 0]
    else:
        training = _training_weights(is_harmful, fold)
        midpoint = np.abs(contrast_weights(training * is_harmful, training * ~is_harmful)) / 2
        # (part, fold): what a prompt in the middle of the training folds would have.
        centre = np.einsum("ptf,ft->pf", added, midpoint)
        own = added[:, np.arange(len(fold)), fold] - centre[:, fold]
    draws = contrast_weights(counts * is_harmful, counts * ~is_harmful) @ own.T
    number = draws[0]
    margin = simultaneous_margin(draws[1:], number, n_groups)
    low, high = interval(draws[1:].sum(axis=1), number.sum())
    return Attribution(number, number - margin, number + margin, float(number.sum()), float(low), float(high))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors ``(vector, d_model)`` of norm 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: np.ndarray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return units


def _training_weights(is_harmful: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return ``(fold, prompt)`` 1 for the prompts of the other folds, else 0."""
    weights: np.ndarray = 1.0 * (fold != np.arange(fold.max() + 1)[:, None])
    return weights
