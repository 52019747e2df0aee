"""Other estimators of the direction than the difference of means, each held to the same evidence.

All of them turn with the activations, so that they are fitted in coordinates of the prompts' own span, which has no
more dimensions than there are prompts; that changes no inner product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from refusal_core.analysis.groups import assign_folds, find_twins

MEAN_DIFFERENCE = "mean difference"
FEWEST_PAIRS = 8
"""Matched pairs that a principal component of their differences is taken of."""

_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties that the logistic regression chooses from, for prompts at a mean squared distance of 1."""
_INNER_FOLDS = 4
_HALVINGS = 5


@dataclass(frozen=True, eq=False)
class Training:
    """Prompts that a direction is fitted on.

    Attributes:
        hidden: ``(prompt, coordinate)`` float64, not centred.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split: the quartet, the matched pair, or the prompt by itself.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        d_model: dimensions of the activations, which the coordinates may be fewer than.
    """

    hidden: np.ndarray
    is_harmful: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    d_model: int

    def part(self, chosen: np.ndarray) -> Training:
        """Return the prompts of a ``(prompt,)`` mask."""
        return Training(
            self.hidden[chosen], self.is_harmful[chosen], self.groups[chosen], self.pairs[chosen], self.d_model
        )

    @property
    def twins(self) -> np.ndarray:
        """``(pair, 2)`` positions of harmful and harmless twins."""
        return find_twins(self.is_harmful, self.pairs)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The harmful and the harmless mean, ``(coordinate,)``."""
        return self.hidden[self.is_harmful].mean(axis=0), self.hidden[~self.is_harmful].mean(axis=0)


def mean_difference(training: Training) -> np.ndarray:
    """Return the harmful mean less the harmless one, ``(coordinate,)``."""
    harmful, harmless = training.means
    difference: np.ndarray = harmful - harmless
    return difference


def whitened_difference(training: Training) -> np.ndarray:
    """Return the difference of means times the inverse of the covariance within labels, ``(coordinate,)``.

    Linear discriminant analysis (Fisher 1936), the covariance shrunk by as much as Ledoit & Wolf (2004) find best.
    """
    harmful, harmless = training.means
    within = training.hidden - np.where(training.is_harmful[:, None], harmful, harmless)
    covariance = within.T @ within / len(within)
    average = np.trace(covariance) / training.d_model
    shrinkage = _ledoit_wolf(within, covariance, training.d_model)
    shrunk = (1 - shrinkage) * covariance
    shrunk[np.diag_indices_from(shrunk)] += max(shrinkage * average, 1e-10 * average)
    whitened: np.ndarray = cho_solve(cho_factor(shrunk), harmful - harmless)
    return whitened


def logistic_regression(training: Training) -> np.ndarray:
    """Return the weights of a logistic regression, ``(coordinate,)``; its penalty chosen in folds of the training."""
    centred = training.hidden - training.hidden.mean(axis=0)
    centred /= np.sqrt(np.square(centred).sum(axis=1).mean())
    fold = assign_folds(training.is_harmful, training.groups, _INNER_FOLDS, 1, np.random.default_rng(0))
    penalty = _PENALTIES[0]
    if len(fold):
        losses = [_held_out_loss(centred, training.is_harmful, fold[0], inverse) for inverse in _PENALTIES]
        penalty = _PENALTIES[int(np.argmin(losses))]
    weights: np.ndarray = _fit_logistic(centred, training.is_harmful, penalty).coef_[0]
    return weights


def pair_component(training: Training) -> np.ndarray:
    """Return the first principal component of the pairs' differences, ``(coordinate,)``, harmful side up.

    As in Zou et al. 2023, who turn differences round at random: their mean is not taken off.
    """
    twins = training.twins
    differences = training.hidden[twins[:, 0]] - training.hidden[twins[:, 1]]
    component: np.ndarray = np.linalg.svd(differences, full_matrices=False)[2][0]
    return component * (1.0 if component @ differences.mean(axis=0) >= 0 else -1.0)


def orthogonal_difference(training: Training) -> np.ndarray:
    """Return the difference of means without what of it lies along the harmless mean, ``(coordinate,)``."""
    harmful, harmless = training.means
    difference = harmful - harmless
    along: np.ndarray = difference - difference @ harmless / max(harmless @ harmless, np.finfo(float).tiny) * harmless
    return along


ESTIMATORS: dict[str, Callable[[Training], np.ndarray]] = {
    MEAN_DIFFERENCE: mean_difference,
    "whitened difference": whitened_difference,
    "logistic regression": logistic_regression,
    "component of pair differences": pair_component,
    "orthogonal to the harmless mean": orthogonal_difference,
}
"""The estimators by name."""


@dataclass(frozen=True, eq=False)
class Estimated:
    """An estimator's directions at one site.

    Attributes:
        held_out: ``(prompt,)`` on the direction fitted without the prompt's fold, 0 at the training midpoint.
        transferred: ``(other prompt,)`` on the direction fitted on all prompts.
        stability: cosine of the directions fitted on two halves of the prompts, mean over halvings.
        cosine: of the direction with the difference of means.
    """

    held_out: np.ndarray
    transferred: np.ndarray
    stability: float
    cosine: float


def compare_estimators(
    hidden: np.ndarray,
    others: np.ndarray,
    is_harmful: np.ndarray,
    groups: np.ndarray,
    pairs: np.ndarray,
    fold: np.ndarray,
    seed: int,
) -> dict[str, Estimated]:
    """Fit every estimator of which there is something to fit; all that is tuned is tuned inside the training folds.

    Args:
        hidden: ``(prompt, d_model)`` activations of the prompts that are fitted on.
        others: ``(other prompt, d_model)`` activations of others.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        fold: ``(prompt,)`` int, whole groups in one.
        seed: of the halvings.

    Returns:
        The estimators by name, without those that need more matched pairs; none where activations are constant.
    """
    hidden, others = hidden.astype(np.float64), others.astype(np.float64)
    if np.ptp(hidden, axis=0).max() <= 1e-6 * np.abs(hidden).max():
        return {}
    d_model = hidden.shape[1]
    if len(hidden) < d_model:
        basis = np.linalg.qr(hidden.T)[0]
        hidden, others = hidden @ basis, others @ basis
    training = Training(hidden, is_harmful, groups, pairs, d_model)
    halves = assign_folds(is_harmful, groups, 2, _HALVINGS, np.random.default_rng(seed)) == 0
    enough_pairs = len(training.twins) >= FEWEST_PAIRS
    compared: dict[str, Estimated] = {}
    reference = _unit(mean_difference(training))
    for name, fit in ESTIMATORS.items():
        if fit is pair_component and not enough_pairs:
            continue
        held_out = np.empty(len(hidden))
        for place in np.unique(fold):
            part = training.part(fold != place)
            direction = _unit(fit(part))
            midpoint = (np.add(*part.means) / 2) @ direction
            held_out[fold == place] = hidden[fold == place] @ direction - midpoint
        direction = _unit(fit(training))
        cosines = [_unit(fit(training.part(half))) @ _unit(fit(training.part(~half))) for half in halves]
        compared[name] = Estimated(held_out, others @ direction, float(np.mean(cosines)), float(direction @ reference))
    return compared


def _unit(direction: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(direction)
    unit: np.ndarray = direction / (length if length > 0 else 1.0)
    return unit


def _ledoit_wolf(within: np.ndarray, covariance: np.ndarray, d_model: int) -> float:
    """Return the shrinkage of scikit-learn's ``ledoit_wolf_shrinkage``, of activations of which coordinates are given.

    Args:
        within: ``(prompt, coordinate)``, centred.
        covariance: ``(coordinate, coordinate)``.
        d_model: dimensions that the identity has which it is shrunk to.
    """
    n, trace, square = len(within), np.trace(covariance), float(np.square(covariance).sum())
    noise = (np.square(np.square(within).sum(axis=1)).sum() / n - square) / (d_model * n)
    spread = (square - trace**2 / d_model) / d_model
    return float(np.clip(noise / spread, 0.0, 1.0)) if spread > 0 else 1.0


def _fit_logistic(centred: np.ndarray, is_harmful: np.ndarray, inverse: float) -> LogisticRegression:
    return LogisticRegression(C=inverse, class_weight="balanced", max_iter=2000, tol=1e-3).fit(centred, is_harmful)


def _held_out_loss(centred: np.ndarray, is_harmful: np.ndarray, fold: np.ndarray, inverse: float) -> float:
    probability = np.empty(len(centred))
    for place in np.unique(fold):
        fitted = _fit_logistic(centred[fold != place], is_harmful[fold != place], inverse)
        probability[fold == place] = fitted.predict_proba(centred[fold == place])[:, 1]
    return float(log_loss(is_harmful, probability))
