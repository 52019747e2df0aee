"""Projections on differences of means, from inner products alone.

A direction is a weighted sum of activations, ``v = Xᵀ w`` with ``w = 1/n_harmful`` on harmful and ``-1/n_harmless`` on
harmless prompts. All that is asked of it follows from the Gram matrix ``K = X Xᵀ``: ``‖v‖² = wᵀ K w``, and the
projections are ``K w / ‖v‖``. Weights may be multiplicities, so a bootstrap draw is a row of weights too.
"""

from __future__ import annotations

import numpy as np

from refusal_core.analysis.gram import Gram

# Squared, relative to the largest squared distance from the mean: a few times what rounding leaves in the Gram matrix.
_NORM_TOLERANCE = 1e-14
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


def crossfit_draws_without(
    gram: Gram, weights: np.ndarray, counts: np.ndarray, fold: np.ndarray, covariate: np.ndarray
) -> np.ndarray:
    """Return :func:`crossfit_draws` after a linear regression of the activations on one covariate.

    The regression is fitted on the training folds. Fitted on all prompts it would make what is left of the test fold
    the opposite of what is left of the others.

    Args:
        gram: ``(prompt, prompt)``.
        weights: ``(fold, draw, prompt)`` from :func:`fold_weights`.
        counts: ``(draw, prompt)`` multiplicities.
        fold: ``(draw, prompt)`` or ``(1, prompt)``.
        covariate: ``(prompt,)``, centred for precision.

    Returns:
        ``(draw, prompt)`` in activation units.
    """
    pooled = np.empty(weights.shape[1:])
    for k, training in enumerate(weights):
        residual_weights, slope = remove_covariate(training, counts * (fold != k), covariate)
        products = residual_weights @ gram
        norm = _norm(gram, residual_weights, products)
        products -= np.einsum("dp,dp->d", slope, products)[:, None] * covariate
        products -= np.einsum("dp,dp->d", np.abs(training), products)[:, None] / 2
        np.copyto(pooled, products / norm[:, None], where=fold == k)
    return pooled


def _norm(gram: Gram, weights: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` lengths of the directions, ``√wᵀKw``; NaN where rounding alone could have left as much."""
    square = np.einsum("dp,dp->d", weights, products)
    norm: np.ndarray = np.sqrt(np.where(square > _NORM_TOLERANCE * gram.diagonal().max(), square, np.nan))
    return norm
