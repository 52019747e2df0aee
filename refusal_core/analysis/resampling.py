"""Bootstrap draws and label permutations as rows of weights, and the statistics of projections under such weights.

One set of draws serves every site, so that maxima over sites and onsets come from the same resampled prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refusal_core.analysis.crossfit import (
    contrast_weights,
    crossfit_draws,
    crossfit_draws_without,
    fold_weights,
    project_draws,
)
from refusal_core.analysis.gram import Gram

LEVEL = 0.95
EVERY = slice(None)
"""The positions of all prompts, where draws are not of a sample."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Resampled or relabelled versions of one contrast set, on each of which the direction is fitted anew.

    Attributes:
        harmful, harmless: ``(draw, prompt)`` float64, how often each prompt counts as either.
        fold: ``(draw, prompt)`` or ``(1, prompt)``; without rows when there are too few prompts for folds. Copies of a
            prompt share its fold, so none is in training and test at once.
    """

    harmful: np.ndarray
    harmless: np.ndarray
    fold: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """``(draw, prompt)`` how often each prompt counts at all."""
        return self.harmful + self.harmless

    @cached_property
    def weights(self) -> np.ndarray:
        """``(draw, prompt)`` of the direction fitted on the whole draw."""
        return contrast_weights(self.harmful, self.harmless)

    @property
    def fold_weights(self) -> np.ndarray:
        """``(fold, draw, prompt)`` of the directions fitted without each fold; large, so made when it is used."""
        return fold_weights(self.harmful, self.harmless, self.fold)

    def project(self, gram: Gram) -> np.ndarray:
        """``(draw, prompt)`` in-sample projections."""
        return project_draws(gram, self.weights)

    def project_held_out(self, gram: Gram) -> np.ndarray:
        """``(draw, prompt)`` cross-fitted projections; NaN where there are no folds."""
        if not len(self.fold):
            return np.full(self.harmful.shape, np.nan)
        return crossfit_draws(gram, self.fold_weights, self.fold)

    def project_held_out_without(self, gram: Gram, covariate: np.ndarray) -> np.ndarray:
        """``(draw, prompt)`` cross-fitted projections, the ``(prompt,)`` covariate regressed out; needs folds."""
        return crossfit_draws_without(gram, self.fold_weights, self.counts, self.fold, covariate)


def sample_groups(
    is_harmful: np.ndarray, groups: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray | slice:
    """Positions of about ``most`` prompts for draws of a larger set: whole groups, every kind of them in its share.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what stays together: the matched pair, or the prompt by itself.

    Returns:
        ``(sampled,)`` int in order, or :data:`EVERY` when there are no more than ``most``.
    """
    if len(is_harmful) <= most:
        return EVERY
    _, group_of = np.unique(groups, return_inverse=True)
    has_harmful = np.bincount(group_of, weights=is_harmful) > 0
    has_harmless = np.bincount(group_of, weights=~is_harmful) > 0
    chosen = np.zeros(len(has_harmful), dtype=bool)
    for kind in (has_harmful & has_harmless, ~has_harmless, ~has_harmful):
        size = int(kind.sum())
        wanted = min(size, max(2, size * most // len(is_harmful)))
        chosen[rng.permutation(np.flatnonzero(kind))[:wanted]] = True
    return np.flatnonzero(chosen[group_of])


def draw_bootstrap(
    is_harmful: np.ndarray, groups: np.ndarray, fold: np.ndarray, draws: int, rng: np.random.Generator
) -> Draws:
    """Bootstrap draws of a contrast set; the whole cross-fitting is repeated in each (Fu, Carroll & Wang 2005).

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is drawn as one.
        fold: ``(1, prompt)``, kept, or without rows.
    """
    counts = bootstrap_counts(is_harmful, groups, draws, rng)
    return Draws(counts * is_harmful, counts * ~is_harmful, fold)


def draw_permutations(
    is_harmful: np.ndarray, groups: np.ndarray, fold: np.ndarray, draws: int, rng: np.random.Generator
) -> Draws:
    """A contrast set under :func:`permute_labels`; the folds move with the labels, so they stay stratified."""
    order = permute_labels(is_harmful, groups, draws, rng)
    permuted = is_harmful[order].astype(np.float64)
    return Draws(permuted, 1 - permuted, fold[0][order] if len(fold) else fold)


def bootstrap_counts(is_harmful: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often every prompt is drawn when whole groups are drawn with replacement (Efron 1979).

    Pairs are drawn as pairs, the others within their label, so every draw has both labels.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is drawn as one: the matched pair, or the prompt by itself.

    Returns:
        ``(draw, prompt)`` float64 multiplicities.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    has_harmful = np.bincount(group_of, weights=is_harmful) > 0
    has_harmless = np.bincount(group_of, weights=~is_harmful) > 0
    counts = np.zeros((draws, len(has_harmful)))
    for kind in (has_harmful & has_harmless, ~has_harmless, ~has_harmful):
        size = int(kind.sum())
        if size:
            counts[:, kind] = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    return counts[:, group_of]


def permute_labels(is_harmful: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Orders of the prompts that are equally likely when the label means nothing.

    Within a matched pair the labels are flipped or not; groups of one label are exchanged whole with others of their
    size (restricted permutations, Anderson & ter Braak 2003).

    Returns:
        ``(draw, prompt)`` int: ``is_harmful[order]`` are the permuted labels, and ``fold[order]`` are folds that are
        as well stratified by them as ``fold`` is by the true ones.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    order = np.tile(np.arange(len(is_harmful)), (draws, 1))
    alone: dict[int, list[np.ndarray]] = {}
    by_group = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    for members in by_group[: len(names)]:
        if 0 < is_harmful[members].sum() < len(members):
            order[:, members] = rng.permuted(order[:, members], axis=1)
        else:
            alone.setdefault(len(members), []).append(members)
    for exchangeable in alone.values():
        block = np.array(exchangeable)
        shuffled = rng.permuted(np.tile(np.arange(len(block)), (draws, 1)), axis=1)
        order[:, block] = block[shuffled]
    return order


def interval(draws: np.ndarray, point: float | np.ndarray, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """95 % bootstrap percentile interval, recentred on the estimate and clipped to what is possible.

    A direction refitted on a bootstrap draw has seen only 63 % of the prompts and does worse than the one it stands
    for; the spread of the draws is right, their centre is not (Jiang, Varma & Simon 2008, on exactly this bias when
    cross-validation is bootstrapped).

    Args:
        draws: ``(draw, …)``.
        point: ``(…)`` the estimate.
        low, high: bounds of the number itself.

    Returns:
        ``(2, …)`` lower and upper bound; NaN where the estimate or half of the draws do not exist.
    """
    if not draws.size:  # NumPy's quantiles of nothing lose their first axis
        return np.full((2, *draws.shape[1:]), np.nan)
    exist = np.isfinite(draws)
    filled = np.where(exist, draws, np.nan)
    enough = exist.mean(axis=0) >= 0.5
    safe = np.where(enough, filled, 0.0)
    bounds = np.nanquantile(safe, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    shifted = bounds + (point - np.nanmedian(safe, axis=0))
    return np.where(enough & np.isfinite(point), np.clip(shifted, low, high), np.nan)


def draw_d(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """:func:`refusal_core.analysis.effect_sizes.cohens_d` of every draw.

    Args:
        projections: ``(draw, prompt)``.
        harmful, harmless: ``(draw, prompt)`` or ``(1, prompt)`` multiplicities.

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
    return (mean_harmful - mean_harmless) / pooled


def draw_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Midranks within every draw, each prompt counted as often as it was drawn.

    Args:
        values: ``(draw, prompt)``.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw, prompt)`` ranks from 1; those of prompts that were not drawn mean nothing.
    """
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


def value_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """:func:`draw_ranks` of values that no draw changes, which are put in order once.

    Args:
        values: ``(prompt,)``.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw, prompt)`` ranks from 1; those of prompts that were not drawn mean nothing.
    """
    _, place = np.unique(values, return_inverse=True)
    sizes = tied_counts(values, counts)
    # In place: at a thousand draws these are megabytes, and it is memory that they wait for.
    ranks = np.cumsum(sizes, axis=1)
    sizes *= 0.5
    ranks -= sizes
    ranks += 0.5
    return np.take(ranks, place, axis=1)


def tied_counts(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How often each different value was drawn, in ascending order: ``(draw, value)``; arguments as above."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = counts[:, order]
    return drawn if len(starts) == len(values) else np.add.reduceat(drawn, starts, axis=1)


def draw_auroc(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """:func:`refusal_core.analysis.effect_sizes.auroc` of every draw; arguments as in :func:`draw_d`, ``(draw,)``."""
    harmful, harmless = (np.broadcast_to(counts, projections.shape) for counts in (harmful, harmless))
    area = rank_auroc(draw_ranks(projections, harmful + harmless), harmful, harmless)
    return np.where(np.isfinite(projections).all(axis=1), area, np.nan)


def rank_auroc(ranks: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """The area under the ROC curve from ranks among both labels (Mann & Whitney 1947).

    Args:
        ranks: ``(draw, prompt)``, of :func:`draw_ranks` or :func:`value_ranks`.
        harmful, harmless: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(draw,)``; NaN without a label.
    """
    n_harmful, n_harmless = harmful.sum(axis=1), harmless.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.einsum("dp,dp->d", harmful, ranks) - n_harmful * (n_harmful + 1) / 2) / (n_harmful * n_harmless)


def draw_accuracy(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Share of prompts on their label's side of 0, both labels weighing the same; arguments as in :func:`draw_d`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        right = (harmful * (projections > 0)).sum(axis=1) / harmful.sum(axis=1)
        right = right + (harmless * (projections < 0)).sum(axis=1) / harmless.sum(axis=1)
    return np.where(np.isfinite(projections).all(axis=1), right / 2, np.nan)


def draw_range_overlap(projections: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """:func:`.effect_sizes.range_overlap` of every draw; arguments as in :func:`draw_d`, ``(draw,)``."""
    total = np.zeros(len(projections))
    for counts, other in ((harmful, harmless), (harmless, harmful)):
        lowest = np.where(other > 0, projections, np.inf).min(axis=1, keepdims=True)
        highest = np.where(other > 0, projections, -np.inf).max(axis=1, keepdims=True)
        total += (counts * ((projections >= lowest) & (projections <= highest))).sum(axis=1)
    return np.where(np.isfinite(projections).all(axis=1), total, np.nan)


def draw_pair_accuracy(projections: np.ndarray, twins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of pairs whose harmful twin projects above the harmless one, ties counted half.

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


def draw_correlation(ranks: np.ndarray, other_ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson correlation of two sets of :func:`draw_ranks`, which is Spearman's of the values (Spearman 1904).

    Args:
        ranks, other_ranks, counts: ``(draw, prompt)``.

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


def draw_prompts(prompts: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each prompt counts: once each in the first row, drawn with replacement in the others (Efron 1979).

    Returns:
        ``(1 + draw, prompt)``.
    """
    return np.vstack([np.ones(prompts), rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)])


def correlation_interval(values: np.ndarray, other_ranks: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho of values that no draw changes, and its 95 % bootstrap interval.

    Args:
        values: ``(prompt,)``.
        other_ranks: ``(1 + draw, prompt)`` :func:`draw_ranks` of the other values.
        counts: of :func:`draw_prompts`.

    Returns:
        The correlation, its lower and its upper bound; NaN where either does not vary.
    """
    rho = draw_correlation(value_ranks(values, counts), other_ranks, counts)
    low, high = interval(rho[1:], rho[0], -1.0, 1.0)
    return float(rho[0]), float(low), float(high)


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Share of permutations that reach the observed number, itself counted: ``(1 + b) / (1 + m)``.

    Phipson & Smyth 2010: p-values should never be zero. A permutation without a number does not reach it.

    Args:
        observed: ``(site,)``.
        null: ``(draw, site)``.

    Returns:
        ``(site,)``; NaN where the observed number does not exist.
    """
    # A permutation that only renames the labels gives the same number but for rounding.
    reached = (null >= observed - 1e-9 * np.abs(observed)).sum(axis=0)
    return np.where(np.isfinite(observed), (1 + reached) / (1 + len(null)), np.nan)


def corrected_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """P-values corrected over sites by the maximum statistic (Westfall & Young 1993; Nichols & Holmes 2002).

    Sites are standardised by their own null before the maximum is taken, since chance reaches further at some than at
    others; the observed labelling is one of the null's draws, so the test stays exact.

    Args:
        observed: ``(site,)``.
        null: ``(draw, site)``, every draw the same permutation at all sites.

    Returns:
        ``(site,)``: the chance that any site of a model without a difference does as well as this one.
    """
    exists = np.isfinite(observed)
    corrected = np.full(len(observed), np.nan)
    if not exists.any():
        return corrected
    every = np.nan_to_num(np.vstack([observed, null])[:, exists])
    spread = every.std(axis=0)
    standard = (every - every.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    corrected[exists] = permutation_p(standard[0], np.repeat(standard[1:].max(axis=1)[:, None], exists.sum(), axis=1))
    return corrected


def onset(lower: np.ndarray, chance: float = 0.0) -> int | None:
    """The first site from which a lower confidence bound stays above chance up to the last site, or None.

    Args:
        lower: ``(site,)``; a site without a number is not above chance.
    """
    above = np.nan_to_num(lower, nan=-np.inf) > chance
    below = np.flatnonzero(~above)
    first = 0 if not len(below) else int(below[-1]) + 1
    return first if first < len(lower) else None


def onset_interval(draws: np.ndarray, point: np.ndarray, lower: np.ndarray) -> tuple[int | None, int | None]:
    """95 % bootstrap interval of :func:`onset`: each draw is given the estimate's margin and asked for its own onset.

    Args:
        draws: ``(draw, site)`` of the number, recentred or not.
        point, lower: ``(site,)`` the estimate and its lower bound.

    Returns:
        First and last site; None stands for "never".
    """
    recentred = draws + (point - np.nanmedian(np.where(np.isfinite(point), draws, 0.0), axis=0))
    bounds = recentred - (point - lower)
    firsts = [onset(row) for row in bounds]
    found = np.array([bounds.shape[1] if first is None else first for first in firsts])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return tuple(None if site == bounds.shape[1] else int(site) for site in (low, high))  # type: ignore[return-value]
