"""How a direction does on prompts that it was not fitted with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.effect_sizes import auroc, cohens_d, range_overlap
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.projections import crossfit_draws, fold_weights

NO_SPREAD = "the projections do not vary within the labels, so d has no denominator"
TOO_FEW_GROUPS = "cross-fitting needs at least two prompts (or pairs) of either label"


@dataclass(frozen=True, eq=False)
class Crossfit:
    """How a direction does on prompts that it was not fitted with, at one site.

    Attributes:
        projections: ``(repeat, prompt)`` cross-fitted projections in activation units, relative to the training folds'
            midpoint; positive means the harmful side.
        d: Cohen's d of the cross-fitted projections, mean over the repeats.
        auroc: chance that a harmful prompt projects above a harmless one, mean over the repeats.
        accuracy: share of prompts on their label's side of the training midpoint, both labels weighing the same, mean
            over the repeats.
        range_overlap: prompts of either label inside the other label's range, mean over the repeats.
        folds: how many folds were used.
        repeats: how often the folds were drawn anew.
        reason: why the numbers are NaN, or None.
    """

    projections: np.ndarray
    d: float
    auroc: float
    accuracy: float
    range_overlap: float
    folds: int
    repeats: int
    reason: str | None = None

    @property
    def projection(self) -> np.ndarray:
        """``(prompt,)`` mean over the repeats."""
        mean: np.ndarray = self.projections.mean(axis=0)
        return mean


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
    nothing = np.full((1, len(is_harmful)), np.nan)
    if not len(fold):
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, 0, 0, TOO_FEW_GROUPS)
    used = int(fold.max()) + 1
    labels = np.broadcast_to(is_harmful, fold.shape)
    projections = crossfit_draws(gram, fold_weights(labels, ~labels, fold), fold)
    if not np.isfinite(projections).all():
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, used, repeats, no_direction(gram))
    return describe_crossfit(projections, is_harmful, used)


def describe_crossfit(projections: np.ndarray, is_harmful: np.ndarray, folds: int) -> Crossfit:
    """Return the numbers of cross-fitted projections.

    Args:
        projections: ``(repeat, prompt)``, finite.
        is_harmful: ``(prompt,)`` bool.
        folds: how many folds were used.
    """
    numbers = [
        (cohens_d(a, b), auroc(a, b), ((a > 0).mean() + (b < 0).mean()) / 2, range_overlap(a, b))
        for a, b in zip(projections[:, is_harmful], projections[:, ~is_harmful], strict=True)
    ]
    d, area, accuracy, overlap = (float(value) for value in np.mean(numbers, axis=0))
    reason = None if np.isfinite(d) else NO_SPREAD
    return Crossfit(projections, d, area, accuracy, overlap, folds, len(projections), reason)


def no_direction(gram: Gram) -> str:
    """Return why there is no direction, in a sentence.

    Args:
        gram: ``(prompt, prompt)`` of the fitted prompts, whose direction has no length.
    """
    if not gram.any():
        return "the activations are the same for every prompt"
    return "the two labels' mean activations coincide, so there is no direction to project on"
