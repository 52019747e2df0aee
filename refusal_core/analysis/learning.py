"""Training samples of growing size, to see how many prompts a direction needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.projections import contrast_weights


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
    """Draw training samples of 8, 16, 32 … prompts up to all that a fold leaves, whole pairs and labels in proportion.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what stays together.
        draws: samples of every size.
        folds: of the cross-fitting.
        rng: deals the folds and chooses the prompts.

    Returns:
        One :class:`TrainingSample` per size; none when a label has fewer than two groups.
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
