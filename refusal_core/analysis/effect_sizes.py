"""Projections to the table of layers.

Two groups of columns. The *published* ones repeat Experiment 0 under its own names, in-sample and with ``ddof=0``; the
others say what the published ones leave out. Everything is float64.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special, stats


def cohens_d(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Return the mean difference over ``sqrt((s1² + s2²) / 2)`` with ``ddof=0``, as published; NaN without spread.

    Cohen (1988), section 2.2; the equal-weight pooling is Experiment 0's.
    """
    pooled = np.sqrt((np.var(harmful) + np.var(harmless)) / 2)
    difference = np.mean(harmful) - np.mean(harmless)
    # A spread of the size of the rounding errors is no spread.
    if not pooled > 1e-9 * max(np.abs(harmful).max(), np.abs(harmless).max(), np.finfo(float).tiny):
        return float("nan")
    return float(difference / pooled)


def hedges_g(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Return Cohen's d with ``ddof=1`` pooling, times ``1 - 3 / (4 df - 1)`` for small samples (Hedges 1981)."""
    n1, n2 = len(harmful), len(harmless)
    df = n1 + n2 - 2
    if df < 1:
        return float("nan")
    pooled = np.sqrt((n1 * np.var(harmful) + n2 * np.var(harmless)) / df)
    if not pooled > 1e-9 * max(np.abs(harmful).max(), np.abs(harmless).max(), np.finfo(float).tiny):
        return float("nan")
    return float((np.mean(harmful) - np.mean(harmless)) / pooled * (1 - 3 / (4 * df - 1)))


def auroc(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Return the chance that a harmful prompt projects above a harmless one, ties as halves (Hanley & McNeil 1982)."""
    if len(harmful) == 0 or len(harmless) == 0:
        return float("nan")
    ranks = stats.rankdata(np.concatenate([harmful, harmless]))
    n1, n2 = len(harmful), len(harmless)
    return float((ranks[:n1].sum() - n1 * (n1 + 1) / 2) / (n1 * n2))


def mean_crossings(harmful: np.ndarray, harmless: np.ndarray) -> int:
    """Return the report's "overlap count": harmful below the harmless mean plus harmless above the harmful mean."""
    return int((harmful < harmless.mean()).sum() + (harmless > harmful.mean()).sum())


def range_overlap(harmful: np.ndarray, harmless: np.ndarray) -> int:
    """Count the prompts of either label inside the other label's range: what "overlap" means to most readers."""
    inside = (harmful >= harmless.min()) & (harmful <= harmless.max())
    inside_other = (harmless >= harmful.min()) & (harmless <= harmful.max())
    return int(inside.sum() + inside_other.sum())


def log10_p(t: float, df: float) -> float:
    """Return the base-10 logarithm of the two-sided p-value of Student's t, exact where p itself underflows.

    ``p = I_x(df/2, 1/2)`` with ``x = df / (df + t²)``, and (DLMF 8.17.8)
    ``I_x(a, b) = x^a (1-x)^b / (a B(a, b)) · 2F1(a+b, 1; a+1; x)``, whose logarithm does not underflow.
    """
    if np.isnan(t):
        return float("nan")
    p = 2 * stats.t.sf(abs(t), df)
    if p > 1e-280:
        return float(np.log10(p))
    a, b = df / 2, 0.5
    x = df / (df + t * t)
    log_p = (
        a * np.log(x)
        + b * np.log1p(-x)
        - np.log(a)
        - special.betaln(a, b)
        + np.log(special.hyp2f1(a + b, 1.0, a + 1.0, x))
    )
    return float(log_p / np.log(10))


def layer_statistics(projections: np.ndarray, is_harmful: np.ndarray, magnitude: np.ndarray) -> pd.DataFrame:
    """Return the in-sample statistics of every site.

    Args:
        projections: ``(prompt, site)`` in-sample projections of the contrast set.
        is_harmful: ``(prompt,)`` bool.
        magnitude: ``(site,)`` norm of the direction before it was normalised.

    Returns:
        One row per site with ``site``, ``layer`` (missing at the final norm), ``magnitude``,
        ``t_statistic``, ``in_sample_d``, ``valid``, of each label ``harmful_projection_mean``, ``_std``, ``_min``,
        ``_max`` and ``_range``, then ``mean_crossings``, ``log10_p``, ``hedges_g``, ``in_sample_auroc`` and
        ``range_overlap``. Numbers that do not exist (no spread at a site) are NaN.
    """
    n_sites = projections.shape[1]
    rows = []
    for site in range(n_sites):
        harmful = projections[is_harmful, site].astype(np.float64)
        harmless = projections[~is_harmful, site].astype(np.float64)
        d = cohens_d(harmful, harmless)
        if np.isnan(d):
            t, p = float("nan"), float("nan")
        else:
            test = stats.ttest_ind(harmful, harmless)
            t, p = float(test.statistic), float(test.pvalue)
        rows.append(
            {
                "site": site,
                "layer": site if site < n_sites - 1 else None,
                "magnitude": float(magnitude[site]),
                "t_statistic": t,
                "in_sample_d": d,
                "valid": bool(p < 0.01 and abs(d) > 0.5),
                "harmful_projection_mean": harmful.mean(),
                "harmful_projection_std": harmful.std(),
                "harmful_projection_min": harmful.min(),
                "harmful_projection_max": harmful.max(),
                "harmful_projection_range": np.ptp(harmful),
                "harmless_projection_mean": harmless.mean(),
                "harmless_projection_std": harmless.std(),
                "harmless_projection_min": harmless.min(),
                "harmless_projection_max": harmless.max(),
                "harmless_projection_range": np.ptp(harmless),
                "mean_crossings": mean_crossings(harmful, harmless),
                "log10_p": log10_p(t, len(harmful) + len(harmless) - 2),
                "hedges_g": hedges_g(harmful, harmless),
                "in_sample_auroc": auroc(harmful, harmless),
                "range_overlap": range_overlap(harmful, harmless),
            }
        )
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    return table


def percentile(value: np.ndarray | float, reference: np.ndarray) -> np.ndarray:
    """Return the percent of the reference values below ``value``, ties counted half.

    Args:
        value: one, or ``(…)`` of them.
        reference: ``(prompt,)``.

    Returns:
        ``(…)``, 0 to 100.
    """
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, value, side="left")
    up_to = np.searchsorted(ordered, value, side="right")
    return 100 * (below + up_to) / (2 * len(ordered))


def plausible_band(harmful: np.ndarray, harmless: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of projections in which both labels are plausible, lower end first.

    Between the 5th percentile of the harmful and the 95th of the harmless projections: where the labels overlap a
    prompt in it is unusual for neither, where they are disjoint it is about the gap between them.

    Args:
        harmful: ``(prompt, …)`` projections.
        harmless: ``(prompt, …)`` projections.

    Returns:
        Two of ``(…)``.
    """
    ends = np.percentile(harmful, 5, axis=0), np.percentile(harmless, 95, axis=0)
    return np.minimum(*ends), np.maximum(*ends)
