"""From draws to intervals, p-values and first sites."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

from refusal_core.analysis.weighted_statistics import weighted_correlation, weighted_ranks

LEVEL = 0.95
"""Coverage of every interval."""

NORMAL = float(norm.ppf((1 + LEVEL) / 2))
"""How many standard errors such an interval reaches to either side."""


def interval(draws: np.ndarray, point: float | np.ndarray, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Return the 95 % bootstrap percentile interval, recentred on the estimate and clipped to what is possible.

    A direction refitted on a bootstrap draw has seen only 63 % of the prompts and does worse than the one it stands
    for; the spread of the draws is right, their centre is not (Jiang, Varma & Simon 2008, on exactly this bias when
    cross-validation is bootstrapped).

    Args:
        draws: ``(draw, …)`` of the number.
        point: ``(…)`` the estimate.
        low: the least that the number can be.
        high: the most that the number can be.

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


def simultaneous_margin(draws: np.ndarray, point: np.ndarray, n_groups: int | np.ndarray) -> np.ndarray:
    """Return ``(number,)`` how far from the estimates all numbers lie at once in 95 % of bootstrap draws.

    The margin is the 95th percentile of the largest standardised deviation (the maximum statistic), times each number's
    spread, so that a number may be picked out by its size. That spread is itself of few groups: it is too small by
    ``n / (n - 1)``, squared, and varies, so that the percentile is that of Student's t with the same tail.

    Args:
        draws: ``(draw, number)``; draws that lack a number are left out.
        point: ``(number,)`` the estimates.
        n_groups: of how many prompts, or pairs, of the rarer label the numbers are, or ``(number,)`` each; of one alone
            the margin is NaN.
    """
    redrawn = draws[np.isfinite(draws).all(axis=1)]
    if not len(redrawn):
        return np.full(len(point), np.nan)
    spread = redrawn.std(axis=0)
    varies = spread > np.finfo(float).eps * np.abs(point).max(initial=0.0)
    farthest = (np.abs(redrawn - point)[:, varies] / spread[varies]).max(axis=1, initial=0.0)
    n = np.asarray(n_groups, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        reach = t.isf(norm.sf(np.quantile(farthest, LEVEL)), n - 1) * np.sqrt(n / (n - 1))
    margin: np.ndarray = reach * spread
    return margin


def prediction_reach(spread: Any, count: Any, level: float = LEVEL) -> Any:
    """Return how far from the mean of some normal numbers one more of them lies with a probability of ``level``.

    The prediction interval ``m ± t s √(1 + 1/n)`` (Hahn & Meeker 1991, section 4.7).

    Args:
        spread: standard deviation of the numbers, ``ddof=1``.
        count: how many they are.
        level: of the interval, two-sided.
    """
    return t.ppf((1 + level) / 2, np.maximum(count - 1, 1)) * spread * np.sqrt(1 + 1 / count)


def correlation_interval(values: np.ndarray, other_ranks: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Return Spearman's rho of values that no draw changes, and its 95 % bootstrap interval.

    Args:
        values: ``(prompt,)``.
        other_ranks: ``(1 + draw, prompt)`` :func:`.weighted_ranks` of the other values.
        counts: ``(1 + draw, prompt)`` multiplicities, every prompt once in the first row.

    Returns:
        The correlation, its lower and its upper bound; NaN where either does not vary.
    """
    rho = weighted_correlation(weighted_ranks(values, counts), other_ranks, counts)
    low, high = interval(rho[1:], rho[0], -1.0, 1.0)
    return float(rho[0]), float(low), float(high)


def share_interval(count: np.ndarray, n: int) -> np.ndarray:
    """Return the exact 95 % interval of shares (Clopper & Pearson 1934): 0 of 16 is 0 to 0.21, not 0 to 0.

    Args:
        count: ``(…)`` how many of ``n`` there were; NaN where it is not known.
        n: of how many.

    Returns:
        ``(2, …)`` lower and upper bound.
    """
    tail = (1 - LEVEL) / 2
    low = np.where(count > 0, beta.ppf(tail, np.maximum(count, 1), n - count + 1), 0.0)
    high = np.where(count < n, beta.ppf(1 - tail, count + 1, np.maximum(n - count, 1)), 1.0)
    return np.where(np.isfinite(count), np.stack([low, high]), np.nan)


def auroc_interval(area: float, n_harmful: int, n_harmless: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC (Newcombe 2006, Statistics in Medicine 25:559, method 5).

    Its ends are the areas from which the observed one is as far as chance reaches, by Hanley & McNeil's variance of the
    end itself with ``(m + n) / 2 − 1`` in place of either count less 1. So an area of 1 has an interval, too, which a
    bootstrap, all of whose draws are separated as well, does not give.

    Args:
        area: that was observed.
        n_harmful: prompts of the label, or pairs.
        n_harmless: the same of the other.
    """
    more = (n_harmful + n_harmless) / 2 - 1

    def beyond(end: float, observed: float) -> float:
        variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end))) / (n_harmful * n_harmless)
        return float((observed - end) ** 2 - NORMAL**2 * variance)

    def lower(observed: float) -> float:
        # At 1 the variance is 0, which is a root of its own.
        return float(brentq(beyond, 0.0, min(observed, 1 - 1e-12), args=(observed,))) if observed > 0 else 0.0

    return lower(area), 1 - lower(1 - area)


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the share of permutations that reach the observed number, itself counted: ``(1 + b) / (1 + m)``.

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
    """Return p-values corrected over sites by the maximum statistic (Westfall & Young 1993; Nichols & Holmes 2002).

    Sites are standardised by their own null before the maximum is taken, since chance reaches further at some than at
    others; the observed labelling is one of the null's draws, so the test stays exact.

    Args:
        observed: ``(site,)``.
        null: ``(draw, site)``, every draw the same permutation at all sites.

    Returns:
        ``(site,)`` the chance that any site of a model without a difference does as well as this one.
    """
    exists = np.isfinite(observed)
    corrected = np.full(len(observed), np.nan)
    if not exists.any():
        return corrected
    moments = _null_moments(observed[exists], null[:, exists])
    largest = _standardised(null[:, exists], *moments).max(axis=1)
    corrected[exists] = permutation_p(
        _standardised(observed[exists], *moments), np.repeat(largest[:, None], exists.sum(), axis=1)
    )
    return corrected


def corrected_p_either_way(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return :func:`corrected_p` for a number that may be too high or too low: twice the smaller of the two, at most 1.

    Args:
        observed: ``(site,)``.
        null: ``(draw, site)``.
    """
    either: np.ndarray = 2 * np.minimum(corrected_p(observed, null), corrected_p(-observed, -null))
    return either.clip(max=1.0)


def smallest_significant(observed: np.ndarray, null: np.ndarray, level: float) -> np.ndarray:
    """Return what a number has to exceed at each site for :func:`corrected_p` to be at most ``level``.

    Args:
        observed: ``(site,)``.
        null: ``(draw, site)``.
        level: of significance, one-sided.

    Returns:
        ``(site,)``; NaN where the observed number does not exist, or with too few permutations for that level.
    """
    exists = np.isfinite(observed)
    threshold = np.full(len(observed), np.nan)
    allowed = int(np.floor(level * (1 + len(null)) + 1e-9)) - 1
    if not exists.any() or allowed < 0:
        return threshold
    mean, spread = _null_moments(observed[exists], null[:, exists])
    largest = np.sort(_standardised(null[:, exists], mean, spread).max(axis=1))
    threshold[exists] = mean + spread * largest[-1 - allowed]
    return threshold


def _null_moments(observed: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(site,)`` mean and spread of all labellings, the observed one included."""
    labellings = np.nan_to_num(np.vstack([observed, null]))
    spread = labellings.std(axis=0)
    return labellings.mean(axis=0), np.where(spread > 0, spread, 1.0)


def _standardised(numbers: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    standard: np.ndarray = (np.nan_to_num(numbers) - mean) / spread
    return standard


def detectable_from(lower: np.ndarray, chance: float = 0.0) -> int | None:
    """Return the first site from which a lower confidence bound stays above chance up to the last site, or None.

    Args:
        lower: ``(site,)``; a site without a number is not above chance.
        chance: what the number is without an effect.
    """
    above = np.nan_to_num(lower, nan=-np.inf) > chance
    below = np.flatnonzero(~above)
    first = 0 if not len(below) else int(below[-1]) + 1
    return first if first < len(lower) else None


def detectable_interval(draws: np.ndarray, point: np.ndarray, lower: np.ndarray) -> tuple[int | None, int | None]:
    """Return the 95 % bootstrap interval of :func:`detectable_from`.

    Each draw is given the estimate's margin and asked for its own first site.

    Args:
        draws: ``(draw, site)`` of the number, recentred or not.
        point: ``(site,)`` the estimate.
        lower: ``(site,)`` its lower bound.

    Returns:
        First and last site; None stands for "never".
    """
    recentred = draws + (point - np.nanmedian(np.where(np.isfinite(point), draws, 0.0), axis=0))
    bounds = recentred - (point - lower)
    n_sites = bounds.shape[1]
    firsts = [n_sites if first is None else first for first in map(detectable_from, bounds)]
    low, high = np.quantile(firsts, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return None if low == n_sites else int(low), None if high == n_sites else int(high)
