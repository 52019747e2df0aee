"""Projections on differences of means, from inner products alone.

A direction is a weighted sum of activations, ``v = Xᵀ w`` with ``w = 1/n_harmful`` on harmful and ``-1/n_harmless`` on
harmless prompts. All that is asked of it follows from the Gram matrix ``K = X Xᵀ``: ``‖v‖² = wᵀ K w``, and the
projections are ``K w / ‖v‖``. Weights may be multiplicities, so a bootstrap draw is a row of weights too.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from refusal_core.analysis.gram import Gram

# Squared, relative to the largest squared distance from the mean: a few times what rounding leaves in the Gram matrix.
_NORM_TOLERANCE = 1e-14
# Relative to the sum of squares: more than rounding leaves of a variance.
_VARIANCE_TOLERANCE = 1e-12
_MOST_TOGETHER = 1_000_000
"""Numbers. Inner products that are computed as they are used serve several folds at once."""


def contrast_weights(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return the weights of the difference of means: each label's multiplicities over their sum.

    Args:
        harmful: ``(draw, prompt)`` how often each prompt counts as a harmful one.
        harmless: ``(draw, prompt)`` the same for harmless.

    Returns:
        ``(draw, prompt)`` float64; NaN in a draw that lacks a label.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        weights: np.ndarray = harmful / harmful.sum(axis=1, keepdims=True) - harmless / harmless.sum(
            axis=1, keepdims=True
        )
    return weights


def fold_weights(harmful: np.ndarray, harmless: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return :func:`contrast_weights` of the training part of every fold.

    Args:
        harmful: ``(draw, prompt)`` multiplicities.
        harmless: ``(draw, prompt)`` multiplicities.
        fold: ``(draw, prompt)`` or ``(1, prompt)``.

    Returns:
        ``(fold, draw, prompt)`` float64.
    """
    weights = np.empty((fold.max() + 1, *np.broadcast_shapes(harmful.shape, fold.shape)))
    for k, training in enumerate(weights):
        training[:] = contrast_weights(harmful * (fold != k), harmless * (fold != k))
    return weights


def project_draws(gram: Gram, weights: np.ndarray, cross_gram: Gram | None = None) -> np.ndarray:
    """Return projections on the direction of every draw, relative to the midpoint of that draw's two means.

    Args:
        gram: ``(prompt, prompt)`` of the fitted prompts.
        weights: ``(draw, prompt)`` from :func:`contrast_weights`.
        cross_gram: ``(prompt, other)`` inner products with other prompts, to project those instead.

    Returns:
        ``(draw, prompt)`` or ``(draw, other)`` in activation units; NaN in a draw whose direction has no length.
    """
    products = weights @ gram
    norm = _norm(gram, weights, products)
    midpoint = np.einsum("dp,dp->d", np.abs(weights), products) / 2
    if cross_gram is not None:
        products = weights @ cross_gram
    products -= midpoint[:, None]
    products /= norm[:, None]
    return products


def crossfit_draws(gram: Gram, weights: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return cross-fitted projections of every draw: each prompt on the direction of the fold that left it out.

    Each fold is centred on its training midpoint before the folds are pooled: activations share a large mean that
    every fold's direction sees differently.

    Args:
        gram: ``(prompt, prompt)``.
        weights: ``(fold, draw, prompt)`` from :func:`fold_weights`.
        fold: ``(draw, prompt)`` or ``(1, prompt)`` the fold of every prompt.

    Returns:
        ``(draw, prompt)`` in activation units.
    """
    pooled = np.empty(weights.shape[1:])
    together = max(1, _MOST_TOGETHER // pooled.size)
    for start in range(0, len(weights), together):
        training = weights[start : start + together]
        projected = project_draws(gram, training.reshape(-1, training.shape[-1])).reshape(training.shape)
        for k, projections in enumerate(projected, start):
            np.copyto(pooled, projections, where=fold == k)
    return pooled


def remove_covariate(weights: np.ndarray, counts: np.ndarray, covariate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the direction between residuals of a regression of the activations on one covariate.

    The slope is that of all prompts whatever their label, so what label and covariate share goes to the covariate.

    Args:
        weights: ``(draw, prompt)`` from :func:`contrast_weights`.
        counts: ``(draw, prompt)`` multiplicities of the prompts the regression is fitted on.
        covariate: ``(prompt,)``.

    Returns:
        ``(draw, prompt)`` weights of the direction, and ``(draw, prompt)`` weights ``b`` of the slope ``Xᵀ b``.
    """
    with np.errstate(invalid="ignore"):
        mean = counts @ covariate / counts.sum(axis=1)
    slope = covariate - mean[:, None]
    square = np.einsum("dp,dp,dp->d", counts, slope, slope)
    slope *= counts
    slope /= np.where(square > 0, square, np.inf)[:, None]
    return weights - (weights @ covariate)[:, None] * slope, slope


def crossfit_refitted(
    gram: Gram, harmful: np.ndarray, harmless: np.ndarray, fold: np.ndarray, covariate: np.ndarray | None = None
) -> np.ndarray:
    """Return what :func:`crossfit_draws` does of the labels' means, where all draws share the folds.

    What a fold leaves of a label's sum of activations is the whole sum less the fold's own part, so that all folds
    together take about as many products as one direction.

    Args:
        gram: ``(prompt, prompt)``.
        harmful: ``(draw, prompt)`` multiplicities.
        harmless: ``(draw, prompt)`` multiplicities.
        fold: ``(prompt,)``.
        covariate: ``(prompt,)``, centred for precision: what a linear regression on it explains is taken off first. The
            regression is fitted on the training folds; fitted on all prompts it would make what is left of the test
            fold the opposite of what is left of the others.

    Returns:
        ``(draw, prompt)`` in activation units.
    """
    order = np.argsort(fold, kind="stable")
    ends = np.cumsum(np.bincount(fold))
    gram, harmful, harmless = gram[np.ix_(order, order)], harmful[:, order], harmless[:, order]
    ordered = np.zeros(len(fold)) if covariate is None else covariate[order]
    # Rows of numbers that prompts are added up with: one, the covariate, and its square.
    powers = np.stack([np.ones(len(fold)), ordered, ordered**2], axis=1)
    sums = np.stack([harmful, harmless] if covariate is None else [harmful, harmless, (harmful + harmless) * ordered])
    # A label's multiplicities are those of its own prompts, unless labels are permuted.
    counted = [part.any(axis=0) for part in sums]
    totals = np.stack([part[:, rows] @ gram[rows] for part, rows in zip(sums, counted, strict=True)])
    whole, all_moments = _inner(sums, totals), sums[:2] @ powers
    smallest = _smallest_square(gram)
    projections = np.empty(harmful.shape)
    for start, end in pairwise([0, *ends.tolist()]):
        own = slice(start, end)
        left_out = sums[..., own]
        products = left_out @ gram[own, own]
        shared = _inner(left_out, totals[..., own])
        # Of the training prompts' sums with each other, and with every prompt of the fold.
        inner = whole - shared - shared.swapaxes(0, 1) + _inner(left_out, products)
        held_out = totals[..., own] - products
        moments = all_moments - left_out[:2] @ powers[own]
        sizes, means = moments[..., 0], moments[..., 1]
        shares = 1 / np.where(sizes > 0, sizes, np.nan)
        direction = np.zeros((len(sums), len(harmful)))
        direction[:2] = shares * [[1], [-1]]
        if covariate is not None:
            means = means * shares
            slope = _slope(moments.sum(axis=0))
            direction -= (means[0] - means[1]) * slope
        square = _along(direction, inner, direction)
        direction /= np.sqrt(np.where(square > smallest, square, np.nan))
        midpoint = _along(shares, inner[:2], direction) / 2
        found = (direction[..., None] * held_out).sum(axis=0)
        if covariate is not None:
            tilt = _along(slope, inner, direction)
            found -= tilt[:, None] * ordered[own]
            midpoint -= tilt * means.sum(axis=0) / 2
        projections[:, order[own]] = found - midpoint[:, None]
    return projections


def _slope(moments: np.ndarray) -> np.ndarray:
    """Return the slope of a regression on a covariate, as weights of the three sums of :func:`crossfit_refitted`.

    Args:
        moments: ``(draw, 3)``: how many prompts it is fitted on, the sum of their covariate, and of its square.

    Returns:
        ``(sum, draw)``; zeros where the covariate does not vary.
    """
    size, total, squares = moments.T
    mean = total / np.maximum(size, 1)
    square = squares - total * mean
    varies = square > _VARIANCE_TOLERANCE * squares
    slope: np.ndarray = np.stack([-mean, -mean, np.ones(len(mean))]) / np.where(varies, square, np.inf)
    return slope


def _inner(sums: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return inner products of ``(sum, draw, prompt)`` sums, given those with the prompts: ``(sum, sum, draw)``."""
    inner: np.ndarray = np.einsum("adp,bdp->abd", sums, products)
    return inner


def _along(first: np.ndarray, inner: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` the inner product of two vectors that are ``(sum, draw)`` weights of sums."""
    product: np.ndarray = np.einsum("ad,abd,bd->d", first, inner, second)
    return product


def _smallest_square(gram: Gram) -> float:
    """Return the least squared length that rounding alone would not have left."""
    return float(_NORM_TOLERANCE * gram.diagonal().max())


def _norm(gram: Gram, weights: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` lengths of the directions, ``√wᵀKw``; NaN where rounding alone could have left as much."""
    square = np.einsum("dp,dp->d", weights, products)
    norm: np.ndarray = np.sqrt(np.where(square > _smallest_square(gram), square, np.nan))
    return norm
