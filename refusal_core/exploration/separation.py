"""How far apart the two labels of some prompts lie along the direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.groups import bootstrap_counts
from refusal_core.analysis.inference import auroc_interval, interval
from refusal_core.analysis.weighted_statistics import weighted_d

Estimate = tuple[float, float, float]
"""A number with the lower and the upper end of its 95 % interval."""

FEWEST_FOR_INTERVAL = 8
"""Prompts of a label, pairs as one, from which on its numbers have intervals: of fewer they would be far too narrow."""

_DRAWS, _MOST_NUMBERS, _LEAST_DRAWS = 400, 2_000_000, 100


@dataclass(frozen=True)
class Separation:
    """What a direction says of some prompts, with intervals; NaN where a label has too few of them.

    Attributes:
        counts: prompts of a label.
        few: whether a label that has prompts has fewer than :data:`FEWEST_FOR_INTERVAL`.
        crossfitted: whether every prompt is projected on a direction that was fitted without it.
        d: Cohen's d between the two labels.
        auroc: the chance that a harmful prompt projects above a harmless one.
        means: mean projection by label, in activation units.
    """

    counts: dict[str, int]
    few: bool
    crossfitted: bool
    d: Estimate
    auroc: Estimate
    means: dict[str, Estimate]


def separation(prompts: pd.DataFrame, seed: int = 0) -> Separation:
    """Return how far apart harmful and harmless prompts lie at a site, the direction as it is.

    Prompts of the contrast set are taken by their cross-fitted projection where all prompts are of it; else all by the
    projection on the run's direction, which is not refitted. Intervals are bootstrap intervals of prompts, in which
    matched pairs stay together; that of the AUROC is :func:`.auroc_interval`, of pairs where there are pairs.

    Args:
        prompts: of :func:`.outliers.prompts_at`; grey ones are left out.
        seed: of the draws.
    """
    labelled = prompts[prompts["label"].isin(("harmful", "harmless"))]
    crossfitted = bool(labelled["fitted"].all()) and not labelled.empty
    values = labelled["projection_crossfit" if crossfitted else "projection"].to_numpy(np.float64)
    shown = labelled["projection"].to_numpy(np.float64)
    harmful = labelled["label"].eq("harmful").to_numpy()
    counts = {"harmful": int(harmful.sum()), "harmless": int((~harmful).sum())}
    rows = {"harmful": harmful, "harmless": ~harmful}
    if not len(labelled):
        nothing = (float("nan"),) * 3
        return Separation(counts, False, False, nothing, nothing, dict.fromkeys(rows, nothing))
    # A prompt without a twin is a group of its own; the pair's id may be another set's, too.
    pairs = labelled["source"].str.cat(labelled["pair_id"].astype("string"), sep="\n")
    groups = pairs.fillna(labelled["prompt_id"]).to_numpy(str)
    draws = int(np.clip(_MOST_NUMBERS // len(labelled), _LEAST_DRAWS, _DRAWS))
    drawn = bootstrap_counts(harmful, groups, draws, np.random.default_rng(seed))
    of_label = {label: drawn * rows[label] for label in rows}
    units = {label: len(np.unique(groups[of])) for label, of in rows.items()}
    least = min(units.values())
    enough = least >= FEWEST_FOR_INTERVAL
    d = cohens_d(values[harmful], values[~harmful]) if min(counts.values()) > 1 else float("nan")
    area = auroc(values[harmful], values[~harmful]) if least else float("nan")
    ends = auroc_interval(area, units["harmful"], units["harmless"]) if enough else (float("nan"),) * 2
    d_drawn = weighted_d(np.broadcast_to(values, drawn.shape), of_label["harmful"], of_label["harmless"])
    means = {}
    for label, count in units.items():
        mean = float(shown[rows[label]].mean()) if count else float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            means[label] = _estimate(mean, of_label[label] @ shown / of_label[label].sum(axis=1), count)
    few = any(0 < count < FEWEST_FOR_INTERVAL for count in units.values())
    return Separation(counts, few, crossfitted, _estimate(d, d_drawn, least), (area, *ends), means)


def _estimate(point: float, draws: np.ndarray, count: int) -> Estimate:
    """Return a number with its interval; of too few prompts it has none."""
    if count < FEWEST_FOR_INTERVAL or not np.isfinite(point):
        return point, float("nan"), float("nan")
    lower, upper = interval(draws, point)
    return point, float(lower), float(upper)
