"""Bootstrap draws and label permutations of a contrast set, on each of which the direction is fitted anew.

One set of draws serves every site, so that maxima over sites and first sites come from the same resampled prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refusal_core.analysis.gram import Gram
from refusal_core.analysis.groups import bootstrap_counts, permute_labels
from refusal_core.analysis.projections import (
    contrast_weights,
    crossfit_draws,
    crossfit_refitted,
    fold_weights,
    project_draws,
)


@dataclass(frozen=True, eq=False)
class Draws:
    """Resampled or relabelled versions of one contrast set.

    Attributes:
        harmful: ``(draw, prompt)`` float64, how often each prompt counts as a harmful one.
        harmless: ``(draw, prompt)`` float64, how often each prompt counts as a harmless one.
        fold: ``(draw, prompt)`` or ``(1, prompt)``; without rows when there are too few prompts for folds. Copies of a
            prompt share its fold, so none is in training and test at once.
    """

    harmful: np.ndarray
    harmless: np.ndarray
    fold: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """``(draw, prompt)`` how often each prompt counts at all."""
        counts: np.ndarray = self.harmful + self.harmless
        return counts

    @cached_property
    def weights(self) -> np.ndarray:
        """``(draw, prompt)`` weights of the direction fitted on all of a draw."""
        return contrast_weights(self.harmful, self.harmless)

    @property
    def fold_weights(self) -> np.ndarray:
        """``(fold, draw, prompt)`` of the directions fitted without each fold; large, so made when it is used."""
        return fold_weights(self.harmful, self.harmless, self.fold)

    def first(self, count: int) -> Draws:
        """Return the first draws, so many at most."""
        fold = self.fold if len(self.fold) <= 1 else self.fold[:count]
        return Draws(self.harmful[:count], self.harmless[:count], fold)

    def project(self, gram: Gram) -> np.ndarray:
        """``(draw, prompt)`` in-sample projections."""
        return project_draws(gram, self.weights)

    def project_held_out(self, gram: Gram) -> np.ndarray:
        """``(draw, prompt)`` cross-fitted projections; NaN where there are no folds."""
        if not len(self.fold):
            return np.full(self.harmful.shape, np.nan)
        if len(self.fold) == 1:
            return crossfit_refitted(gram, self.harmful, self.harmless, self.fold[0])
        return crossfit_draws(gram, self.fold_weights, self.fold)

    def project_held_out_without(self, gram: Gram, covariate: np.ndarray) -> np.ndarray:
        """``(draw, prompt)`` cross-fitted projections, the ``(prompt,)`` covariate regressed out; needs folds."""
        together = [slice(None)] if len(self.fold) == 1 else [slice(row, row + 1) for row in range(len(self.fold))]
        return np.concatenate(
            [
                crossfit_refitted(gram, self.harmful[rows], self.harmless[rows], self.fold[rows][0], covariate)
                for rows in together
            ]
        )


def draw_bootstrap(
    is_harmful: np.ndarray, groups: np.ndarray, fold: np.ndarray, draws: int, rng: np.random.Generator
) -> Draws:
    """Redraw a contrast set with replacement; all of the cross-fitting is repeated per draw (Fu, Carroll & Wang 2005).

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is drawn as one.
        fold: ``(1, prompt)`` folds of the prompts, the same in every draw; or without rows.
        draws: how many.
        rng: draws the groups.
    """
    counts = bootstrap_counts(is_harmful, groups, draws, rng)
    return Draws(counts * is_harmful, counts * ~is_harmful, fold)


def draw_permutations(
    is_harmful: np.ndarray,
    groups: np.ndarray,
    fold: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    twins: np.ndarray | None = None,
) -> Draws:
    """Relabel a contrast set by :func:`.permute_labels`; the folds move with the labels, so they stay stratified.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` the quartet, the matched pair, or the prompt by itself.
        fold: ``(1, prompt)`` folds of the prompts; or without rows.
        draws: how many.
        rng: permutes the labels.
        twins: ``(pair, 2)`` as for :func:`.permute_labels`.
    """
    order = permute_labels(is_harmful, groups, draws, rng, twins)
    permuted = is_harmful[order].astype(np.float64)
    moved = fold[0][order] if len(fold) else fold
    # Labels that are exchanged within pairs leave the folds where they are.
    return Draws(permuted, 1 - permuted, fold if (moved == fold).all() else moved)
