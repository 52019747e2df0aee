"""Projections on directions that were not fitted with the prompt, from inner products alone.

A direction is a weighted sum of activations, ``v = Xᵀ w`` with ``w = 1/n_harmful`` on harmful and ``-1/n_harmless`` on
harmless prompts. All that is asked of it follows from the Gram matrix ``K = X Xᵀ``: ``‖v‖² = wᵀ K w``, and the
projections are ``K w / ‖v‖``. Weights may be multiplicities, so a bootstrap draw is a row of weights too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.effect_sizes import auroc, cohens_d, range_overlap
from refusal_core.analysis.gram import Gram

NO_SPREAD = "the projections do not vary within the labels, so d has no denominator"
TOO_FEW_GROUPS = "cross-fitting needs at least two prompts (or pairs) of either label"

# Squared, relative to the largest squared distance from the mean: a few times what rounding leaves in the Gram matrix.
_NORM_TOLERANCE = 1e-14
_PROJECTED_TOGETHER = 1_000_000
"""Numbers. Inner products that are computed as they are used serve several folds at once."""


@dataclass(frozen=True, eq=False)
class Crossfit:
    """How a direction does on prompts that it was not fitted with, at one site.

    Attributes:
        projection: ``(prompt,)`` cross-fitted projection in activation units, relative to the training folds'
            midpoint, mean over the repeats; positive means the harmful side.
        d: Cohen's d of the cross-fitted projections, mean over the repeats.
        auroc: chance that a harmful prompt projects above a harmless one, mean over the repeats.
        accuracy: share of prompts on their label's side of the training midpoint, both labels weighing the same, mean
            over the repeats.
        range_overlap: prompts of either label inside the other label's range, mean over the repeats.
        folds: how many folds were used.
        repeats: how often the folds were drawn anew.
        reason: why the numbers are NaN, or None.
    """

    projection: np.ndarray
    d: float
    auroc: float
    accuracy: float
    range_overlap: float
    folds: int
    repeats: int
    reason: str | None = None


def assign_folds(
    is_harmful: np.ndarray, groups: np.ndarray, folds: int, repeats: int, rng: np.random.Generator
) -> np.ndarray:
    """Deal whole groups into folds so that every fold has its share of either label.

    Groups that hold both labels (matched pairs) are dealt first, then the others label by label from where the pairs
    ended, so each label is spread evenly. There are never more folds than groups of the rarer label.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what has to stay together, a pair or a prompt by itself.

    Returns:
        ``(repeat, prompt)`` fold of every prompt, ``0 … folds-1``; no rows when a label has fewer than two groups.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    has_harmful = np.bincount(group_of, weights=is_harmful) > 0
    has_harmless = np.bincount(group_of, weights=~is_harmful) > 0
    folds = int(min(folds, has_harmful.sum(), has_harmless.sum()))
    if folds < 2:
        return np.empty((0, len(is_harmful)), dtype=int)
    mixed = np.flatnonzero(has_harmful & has_harmless)
    fold_of_group = np.empty((repeats, len(has_harmful)), dtype=int)
    for repeat in range(repeats):
        fold_of_group[repeat, rng.permutation(mixed)] = np.arange(len(mixed)) % folds
        for alone in (np.flatnonzero(~has_harmless), np.flatnonzero(~has_harmful)):
            fold_of_group[repeat, rng.permutation(alone)] = (len(mixed) + np.arange(len(alone))) % folds
    return fold_of_group[:, group_of]


def contrast_weights(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Weights of the difference of means: each label's multiplicities over their sum.

    Args:
        harmful: ``(draw, prompt)`` how often each prompt counts as a harmful one.
        harmless: ``(draw, prompt)`` the same for harmless.

    Returns:
        ``(draw, prompt)`` float64; NaN in a draw that lacks a label.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return harmful / harmful.sum(axis=1, keepdims=True) - harmless / harmless.sum(axis=1, keepdims=True)


def fold_weights(harmful: np.ndarray, harmless: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """:func:`contrast_weights` of the training part of every fold.

    Args:
        harmful, harmless: ``(draw, prompt)`` multiplicities.
        fold: ``(draw, prompt)`` or ``(1, prompt)``.

    Returns:
        ``(fold, draw, prompt)`` float64.
    """
    weights = np.empty((fold.max() + 1, *np.broadcast_shapes(harmful.shape, fold.shape)))
    for k, training in enumerate(weights):
        training[:] = contrast_weights(harmful * (fold != k), harmless * (fold != k))
    return weights


def project_draws(gram: Gram, weights: np.ndarray, cross_gram: Gram | None = None) -> np.ndarray:
    """Projections on the direction of every draw, relative to the midpoint of that draw's two means.

    Args:
        gram: ``(prompt, prompt)`` of the fitted prompts.
        weights: ``(draw, prompt)`` from :func:`contrast_weights`.
        cross_gram: ``(prompt, other)`` inner products with other prompts, to project those instead.

    Returns:
        ``(draw, prompt)`` or ``(draw, other)`` in activation units; NaN in a draw whose direction has no length.
    """
    products = weights @ gram
    square = np.einsum("dp,dp->d", weights, products)
    midpoint = np.einsum("dp,dp->d", np.abs(weights), products) / 2
    norm = np.sqrt(np.where(square > _NORM_TOLERANCE * gram.diagonal().max(), square, np.nan))
    if cross_gram is not None:
        products = weights @ cross_gram
    products -= midpoint[:, None]
    products /= norm[:, None]
    return products


def crossfit_draws(gram: Gram, weights: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Cross-fitted projections of every draw: each prompt on the direction of the fold that left it out.

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
    together = max(1, _PROJECTED_TOGETHER // pooled.size)
    for start in range(0, len(weights), together):
        training = weights[start : start + together]
        projected = project_draws(gram, training.reshape(-1, training.shape[-1])).reshape(training.shape)
        for k, of_fold in enumerate(projected, start):
            np.copyto(pooled, of_fold, where=fold == k)
    return pooled


def remove_covariate(weights: np.ndarray, counts: np.ndarray, covariate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the direction between residuals, after a regression of the activations on one covariate.

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
    """:func:`crossfit_draws` after a linear regression of the activations on one covariate.

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
        square = np.einsum("dp,dp->d", residual_weights, products)
        norm = np.sqrt(np.where(square > _NORM_TOLERANCE * gram.diagonal().max(), square, np.nan))
        products -= np.einsum("dp,dp->d", slope, products)[:, None] * covariate
        products -= np.einsum("dp,dp->d", np.abs(training), products)[:, None] / 2
        np.copyto(pooled, products / norm[:, None], where=fold == k)
    return pooled


def crossfit(
    gram: Gram,
    is_harmful: np.ndarray,
    groups: np.ndarray,
    folds: int = 10,
    repeats: int = 5,
    seed: int = 0,
) -> Crossfit:
    """Fit the direction without each fold in turn and project that fold on it (Stone 1974).

    Args:
        gram: ``(prompt, prompt)`` from :func:`refusal_core.analysis.gram.gram_matrix`.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what has to stay in one fold: the matched pair, or the prompt by itself.
        folds: lowered to the number of groups of the rarer label.
        repeats: how often the folds are drawn anew; every number is a mean over them.
        seed: of the folds; the same seed gives the same folds at every site.

    Returns:
        The numbers, or NaN and a ``reason``: never an exception for data that has no answer.
    """
    is_harmful = np.asarray(is_harmful, dtype=bool)
    fold = assign_folds(is_harmful, groups, folds, repeats, np.random.default_rng(seed))
    nothing = np.full(len(is_harmful), np.nan)
    if not len(fold):
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, 0, 0, TOO_FEW_GROUPS)
    used = int(fold.max()) + 1
    labels = np.broadcast_to(is_harmful, fold.shape)
    projections = crossfit_draws(gram, fold_weights(labels, ~labels, fold), fold)
    if not np.isfinite(projections).all():
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, used, repeats, no_direction(gram))
    numbers = [
        (cohens_d(a, b), auroc(a, b), ((a > 0).mean() + (b < 0).mean()) / 2, range_overlap(a, b))
        for a, b in zip(projections[:, is_harmful], projections[:, ~is_harmful], strict=True)
    ]
    d, area, accuracy, overlap = (float(value) for value in np.mean(numbers, axis=0))
    return Crossfit(
        projections.mean(axis=0), d, area, accuracy, overlap, used, repeats, None if np.isfinite(d) else NO_SPREAD
    )


def no_direction(gram: Gram) -> str:
    """Why a direction of no length has none, in a sentence."""
    if not gram.any():
        return "the activations are the same for every prompt"
    return "the two labels' mean activations coincide, so there is no direction to project on"


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """Directions fitted on ``size`` of the training prompts of every fold, several times over; the same at every site.

    Attributes:
        size: prompts that each direction sees.
        weights: ``(fold, draw, prompt)`` of the directions.
        fold: ``(draw, prompt)``.
    """

    size: int
    weights: np.ndarray
    fold: np.ndarray


def sample_training_sizes(
    is_harmful: np.ndarray, groups: np.ndarray, draws: int, folds: int, rng: np.random.Generator
) -> list[TrainingSample]:
    """Training samples of 8, 16, 32 … prompts up to all that a fold leaves, whole pairs and labels in proportion.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what stays together.
        draws: samples of every size.

    Returns:
        One :class:`TrainingSample` a size; none when a label has fewer than two groups.
    """
    fold = assign_folds(is_harmful, groups, folds, draws, rng)
    if not len(fold):
        return []
    _, group_of = np.unique(groups, return_inverse=True)
    priority = rng.random((draws, group_of.max() + 1))[:, group_of]
    training = np.stack([fold != k for k in range(fold.max() + 1)])
    available = int(training.sum(axis=2).min())
    sizes = [size for size in 2 ** np.arange(3, 32) if size < available] + [available]
    samples = []
    for size in sizes:
        chosen = np.zeros(training.shape, dtype=bool)
        for label in (is_harmful, ~is_harmful):
            wanted = max(1, round(size * label.mean()))
            # Pairs share their priority, so the first harmful and the first harmless prompts are twins.
            last = np.where(training & label, priority, np.inf)
            rank = last.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable")
            chosen |= (rank < wanted) & training & label
        weights = np.stack([contrast_weights(rows & is_harmful, rows & ~is_harmful) for rows in chosen])
        samples.append(TrainingSample(int(size), weights, fold))
    return samples
