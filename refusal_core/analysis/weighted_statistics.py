"""Statistics of projections in which every prompt counts as often as a draw has it: one number per draw.

The draws are rows of multiplicities, of a bootstrap or of permuted labels.
"""

from __future__ import annotations

import numpy as np


def weighted_d(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return :func:`.effect_sizes.cohens_d` of every draw.

    Args:
        projections: ``(draw, prompt)``.
        harmful: ``(draw, prompt)`` or ``(1, prompt)``, how often each prompt counts as a harmful one.
        harmless: the same for harmless.

    Returns:
        ``(draw,)``; NaN without spread or without a label.
    """
    moments = []
    for counts in (harmful, harmless):
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.broadcast_to(counts / counts.sum(axis=1, keepdims=True), projections.shape)
        mean = np.einsum("dp,dp->d", shares, projections)
        moments.append((mean, np.einsum("dp,dp,dp->d", shares, projections, projections) - mean**2))
    (mean_harmful, variance_harmful), (mean_harmless, variance_harmless) = moments
    variance = (variance_harmful + variance_harmless) / 2
    scale = np.abs(projections).max(axis=1, initial=np.finfo(float).tiny)
    with np.errstate(invalid="ignore"):
        pooled = np.sqrt(np.where(variance > 1e-14 * scale**2, variance, np.nan))
    d: np.ndarray = (mean_harmful - mean_harmless) / pooled
    return d


def weighted_auroc(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return :func:`.effect_sizes.auroc` of every draw, ``(draw,)``; arguments as in :func:`weighted_d`."""
    harmful, harmless = (np.broadcast_to(counts, projections.shape) for counts in (harmful, harmless))
    area = auroc_of_ranks(weighted_ranks(projections, harmful + harmless), harmful, harmless)
    return np.where(np.isfinite(projections).all(axis=1), area, np.nan)


def auroc_of_ranks(ranks: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve from ranks among both labels (Mann & Whitney 1947).

    Args:
        ranks: ``(draw, prompt)`` of :func:`weighted_ranks`.
        harmful: ``(draw, prompt)`` multiplicities.
        harmless: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw,)``; NaN without a label.
    """
    n_harmful, n_harmless = harmful.sum(axis=1), harmless.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: np.ndarray = (np.einsum("dp,dp->d", harmful, ranks) - n_harmful * (n_harmful + 1) / 2) / (
            n_harmful * n_harmless
        )
    return area


def weighted_accuracy(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return the share of prompts on their label's side of 0, both labels weighing the same, as :func:`weighted_d`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        right = (harmful * (projections > 0)).sum(axis=1) / harmful.sum(axis=1)
        right = right + (harmless * (projections < 0)).sum(axis=1) / harmless.sum(axis=1)
    return np.where(np.isfinite(projections).all(axis=1), right / 2, np.nan)


def weighted_range_overlap(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return :func:`.effect_sizes.range_overlap` of every draw, ``(draw,)``; arguments as in :func:`weighted_d`."""
    total = np.zeros(len(projections))
    for counts, other in ((harmful, harmless), (harmless, harmful)):
        lowest = np.where(other > 0, projections, np.inf).min(axis=1, keepdims=True)
        highest = np.where(other > 0, projections, -np.inf).max(axis=1, keepdims=True)
        total += (counts * ((projections >= lowest) & (projections <= highest))).sum(axis=1)
    return np.where(np.isfinite(projections).all(axis=1), total, np.nan)


def weighted_pair_accuracy(projections: np.ndarray, twins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the share of pairs whose harmful twin projects above the harmless one, ties counted half.

    Args:
        projections: ``(draw, prompt)``.
        twins: ``(pair, 2)`` positions of the harmful and the harmless prompt.
        counts: ``(draw, prompt)`` multiplicities, the same for both twins.

    Returns:
        ``(draw,)``; NaN without pairs.
    """
    if not len(twins):
        return np.full(len(projections), np.nan)
    difference = projections[:, twins[:, 0]] - projections[:, twins[:, 1]]
    drawn = counts[:, twins[:, 0]]
    share = (drawn * ((difference > 0) + 0.5 * (difference == 0))).sum(axis=1) / drawn.sum(axis=1)
    return np.where(np.isfinite(difference).all(axis=1), share, np.nan)


def weighted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return midranks within every draw.

    Args:
        values: ``(draw, prompt)``; or ``(prompt,)`` when no draw changes them, so that they are put in order once.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw, prompt)`` ranks from 1; those of prompts that were not drawn mean nothing.
    """
    return _ranks_of_shared(values, counts) if values.ndim == 1 else _ranks_within_draws(values, counts)


def _ranks_within_draws(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    draws, prompts = values.shape
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    weights = np.take_along_axis(counts, order, axis=1)
    starts = np.ones((draws, prompts), dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    tie = np.cumsum(starts.ravel()) - 1
    size = np.bincount(tie, weights=weights.ravel())
    before = (np.cumsum(weights, axis=1) - weights)[starts]
    ranks = np.empty_like(values, dtype=np.float64)
    np.put_along_axis(ranks, order, (before + (size + 1) / 2)[tie].reshape(draws, prompts), axis=1)
    return ranks


def _ranks_of_shared(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    _, value_of_prompt = np.unique(values, return_inverse=True)
    sizes = tied_counts(values, counts)
    # In place: at a thousand draws these are megabytes, and it is memory that they wait for.
    ranks = np.cumsum(sizes, axis=1)
    sizes *= 0.5
    ranks -= sizes
    ranks += 0.5
    return np.take(ranks, value_of_prompt, axis=1)


def tied_counts(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return how often each distinct value was drawn.

    Args:
        values: ``(prompt,)``.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw, value)``, a new array, values in ascending order.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = counts[:, order]
    return drawn if len(starts) == len(values) else np.add.reduceat(drawn, starts, axis=1)


def weighted_correlation(ranks: np.ndarray, other_ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation of two sets of ranks, which is Spearman's of the values (Spearman 1904).

    Args:
        ranks: ``(draw, prompt)`` of :func:`weighted_ranks`.
        other_ranks: ``(draw, prompt)``.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw,)``; NaN where either does not vary.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    first = ranks - np.einsum("dp,dp->d", shares, ranks)[:, None]
    second = other_ranks - np.einsum("dp,dp->d", shares, other_ranks)[:, None]
    weighted = shares * first
    covariance = np.einsum("dp,dp->d", weighted, second)
    variances = np.einsum("dp,dp->d", weighted, first) * np.einsum("dp,dp->d", shares * second, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 1e-18, covariance / np.sqrt(variances), np.nan)
