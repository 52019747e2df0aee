"""Other estimators of the direction than the difference of means, each held to the same evidence.

All of them turn with the activations, so that they are fitted in coordinates of the prompts' own span, which has no
more dimensions than there are prompts; that changes no inner product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from refusal_core.analysis.groups import assign_folds, find_twins
from refusal_core.options import DEFAULT_ESTIMATOR
from refusal_core.options import ESTIMATORS as TITLES

MEAN_DIFFERENCE = TITLES[DEFAULT_ESTIMATOR]
FEWEST_PAIRS = 8
"""Matched pairs that a principal component of their differences is taken of."""

_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties that the logistic regression chooses from, for prompts at a mean squared distance of 1."""
_INNER_FOLDS = 4
_HALVINGS = 5
_LEAST_RIDGE = 1e-10


@dataclass(frozen=True, eq=False)
class Training:
    """Prompts that a direction is fitted on.

    Attributes:
        hidden: ``(prompt, coordinate)`` float64, not centred.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split: the quartet, the matched pair, or the prompt by itself.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        d_model: dimensions of the activations, which the coordinates may be fewer than.
        counts: ``(prompt,)`` float64, how often each prompt counts, as if it were there as often; 1 by default.
        gram: ``(prompt, prompt)`` inner products after one vector was taken off all prompts, where they are known.
    """

    hidden: np.ndarray
    is_harmful: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    d_model: int
    counts: np.ndarray = field(default_factory=lambda: np.ones(0))
    gram: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.counts):
            object.__setattr__(self, "counts", np.ones(len(self.hidden)))

    def part(self, chosen: np.ndarray) -> Training:
        """Return the prompts of a ``(prompt,)`` mask."""
        return self.redrawn(self.counts * (self.is_harmful & chosen), self.counts * (~self.is_harmful & chosen))

    def redrawn(self, harmful: np.ndarray, harmless: np.ndarray) -> Training:
        """Return the prompts as often as they count, which may be under other labels.

        Args:
            harmful: ``(prompt,)`` how often each prompt counts as a harmful one.
            harmless: the same for harmless; a prompt counts as one of the two at most.
        """
        counts = harmful + harmless
        chosen = np.flatnonzero(counts)
        return Training(
            self.hidden[chosen],
            harmful[chosen] > 0,
            self.groups[chosen],
            self.pairs[chosen],
            self.d_model,
            counts[chosen].astype(np.float64),
            None if self.gram is None else self.gram[np.ix_(chosen, chosen)],
        )

    def without(self, covariate: np.ndarray) -> tuple[Training, float, np.ndarray]:
        """Regress one covariate out of the activations, whatever the label.

        Args:
            covariate: ``(prompt,)``.

        Returns:
            What is left of the prompts, the covariate's mean, and ``(coordinate,)`` the slope; what is left of another
            prompt is its activation less the slope times its covariate's distance from that mean.
        """
        mean = float(self.counts @ covariate / self.counts.sum())
        distance = covariate - mean
        square = float(self.counts @ distance**2)
        weights = self.counts * distance / (square if square > 0 else np.inf)
        slope = weights @ self.hidden
        gram = self.gram
        if gram is not None:
            along = gram @ weights
            gram = gram - np.outer(distance, along) - np.outer(along, distance)
            gram += (weights @ along) * np.outer(distance, distance)
        return replace(self, hidden=self.hidden - np.outer(distance, slope), gram=gram), mean, slope

    @property
    def twins(self) -> np.ndarray:
        """``(pair, 2)`` positions of harmful and harmless twins."""
        return find_twins(self.is_harmful, self.pairs)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The harmful and the harmless mean, ``(coordinate,)``."""
        harmful, harmless = (shares @ self.hidden for shares in self.shares)
        return harmful, harmless

    @property
    def shares(self) -> np.ndarray:
        """``(2, prompt)`` what every prompt is of the harmful mean and of the harmless one."""
        counted = np.stack([self.counts * self.is_harmful, self.counts * ~self.is_harmful])
        shares: np.ndarray = counted / counted.sum(axis=1, keepdims=True)
        return shares


def mean_difference(training: Training) -> np.ndarray:
    """Return the harmful mean less the harmless one, ``(coordinate,)``."""
    harmful, harmless = training.means
    difference: np.ndarray = harmful - harmless
    return difference


def whitened_difference(training: Training) -> np.ndarray:
    """Return the difference of means times the inverse of the covariance within labels, ``(coordinate,)``.

    Linear discriminant analysis (Fisher 1936), the covariance shrunk by as much as Ledoit & Wolf (2004) find best.
    """
    n_prompts, n_coordinates = training.hidden.shape
    return (_whitened_by_products if n_prompts <= n_coordinates else _whitened_by_covariance)(training)


def _whitened_by_covariance(training: Training) -> np.ndarray:
    harmful, harmless = training.means
    within = training.hidden - np.where(training.is_harmful[:, None], harmful, harmless)
    size = training.counts.sum()
    covariance = (within * training.counts[:, None]).T @ within / size
    average = np.trace(covariance) / training.d_model
    fourth = training.counts @ np.square(np.square(within).sum(axis=1))
    shrinkage = _ledoit_wolf(fourth, float(np.trace(covariance)), np.square(covariance).sum(), size, training.d_model)
    shrunk = (1 - shrinkage) * covariance
    shrunk[np.diag_indices_from(shrunk)] += max(shrinkage * average, _LEAST_RIDGE * average)
    whitened: np.ndarray = cho_solve(cho_factor(shrunk), harmful - harmless)
    return whitened


def _whitened_by_products(training: Training) -> np.ndarray:
    """Return the same from inner products of prompts, of which there are fewer than coordinates (Woodbury 1950)."""
    gram = training.gram
    if gram is None:
        centred = training.hidden - training.hidden.mean(axis=0)
        gram = centred @ centred.T
    shares, size = training.shares, training.counts.sum()
    labels = np.stack([training.is_harmful, ~training.is_harmful]).astype(np.float64)
    with_means = shares @ gram
    along = with_means.T @ labels
    root = np.sqrt(training.counts)
    # Of what is within labels: a row per prompt, its distance from its label's mean as often as it counts.
    within = (gram - along - along.T + labels.T @ (with_means @ shares.T) @ labels) * np.outer(root, root)
    squares = within.diagonal()
    average = squares.sum() / size / training.d_model
    fourth = float((np.square(squares) / training.counts).sum())
    square = np.square(within).sum() / size**2
    shrinkage = _ledoit_wolf(fourth, squares.sum() / size, square, size, training.d_model)
    ridge = max(shrinkage * average, _LEAST_RIDGE * average)
    to_difference = with_means[0] - with_means[1]
    to_difference = root * (to_difference - labels.T @ (shares @ to_difference))
    scale = (1 - shrinkage) / size
    within *= scale
    within[np.diag_indices_from(within)] += ridge
    # NumPy's lets other threads go on meanwhile.
    lower = np.linalg.cholesky(within)
    half = solve_triangular(lower, scale * to_difference, lower=True, check_finite=False)
    solved = root * solve_triangular(lower, half, lower=True, trans=1, check_finite=False)
    weights = shares[0] - shares[1] - solved + shares.T @ (labels @ solved)
    whitened: np.ndarray = weights @ training.hidden
    return whitened


def logistic_regression(training: Training) -> np.ndarray:
    """Return the weights of a logistic regression, ``(coordinate,)``; its penalty chosen in folds of the training."""
    return _logistic_weights(training, _choose_penalty(training))


def tuned_logistic_regression(training: Training) -> Callable[[Training], np.ndarray]:
    """Return the logistic regression with the penalty that is chosen in folds of these prompts."""
    penalty = _choose_penalty(training)
    return lambda other: _logistic_weights(other, penalty)


def _choose_penalty(training: Training) -> float:
    centred = _centred_and_scaled(training)
    fold = assign_folds(training.is_harmful, training.groups, _INNER_FOLDS, 1, np.random.default_rng(0))
    if not len(fold):
        return _PENALTIES[0]
    losses = [_held_out_loss(training, centred, fold[0], inverse) for inverse in _PENALTIES]
    return _PENALTIES[int(np.argmin(losses))]


def _logistic_weights(training: Training, penalty: float) -> np.ndarray:
    weights: np.ndarray = _fit_logistic(
        _centred_and_scaled(training), training.is_harmful, training.counts, penalty
    ).coef_[0]
    return weights


def _centred_and_scaled(training: Training) -> np.ndarray:
    """Return activations about their mean, at a mean squared distance of 1."""
    shares = training.counts / training.counts.sum()
    centred = training.hidden - shares @ training.hidden
    square = float(shares @ np.square(centred).sum(axis=1))
    scaled: np.ndarray = centred / np.sqrt(square if square > 0 else 1.0)
    return scaled


def pair_component(training: Training) -> np.ndarray:
    """Return the first principal component of the pairs' differences, ``(coordinate,)``, harmful side up.

    As in Zou et al. 2023, who turn differences round at random: their mean is not taken off. Zeros without a pair.
    """
    twins = training.twins
    if not len(twins):
        return np.zeros(training.hidden.shape[1])
    counts = np.sqrt(training.counts[twins[:, 0]])[:, None]
    differences = counts * (training.hidden[twins[:, 0]] - training.hidden[twins[:, 1]])
    products = differences @ differences.T
    # Of the first component alone, which takes a fraction of what all of them take.
    first = eigh(products, subset_by_index=[len(twins) - 1, len(twins) - 1])[1][:, 0]
    component: np.ndarray = first @ differences
    return component * (1.0 if component @ (counts[:, 0] @ differences) >= 0 else -1.0)


def orthogonal_difference(training: Training) -> np.ndarray:
    """Return the difference of means without what of it lies along the harmless mean, ``(coordinate,)``."""
    harmful, harmless = training.means
    difference = harmful - harmless
    along: np.ndarray = difference - difference @ harmless / max(harmless @ harmless, np.finfo(float).tiny) * harmless
    return along


ESTIMATORS: dict[str, Callable[[Training], np.ndarray]] = {
    MEAN_DIFFERENCE: mean_difference,
    TITLES["whitened"]: whitened_difference,
    TITLES["logistic"]: logistic_regression,
    TITLES["pair-component"]: pair_component,
    TITLES["orthogonal"]: orthogonal_difference,
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


def _ledoit_wolf(fourth: float, trace: float, square: float, size: float, d_model: int) -> float:
    """Return the shrinkage of scikit-learn's ``ledoit_wolf_shrinkage``, whatever coordinates a covariance is in.

    Args:
        fourth: sum over prompts of the fourth power of their distance from the mean.
        trace: of the covariance.
        square: sum of its squares.
        size: number of prompts.
        d_model: dimensions that the identity has which it is shrunk to.
    """
    noise = (fourth / size - square) / (d_model * size)
    spread = (square - trace**2 / d_model) / d_model
    return float(np.clip(noise / spread, 0.0, 1.0)) if spread > 0 else 1.0


def _fit_logistic(
    centred: np.ndarray, is_harmful: np.ndarray, counts: np.ndarray, inverse: float
) -> LogisticRegression:
    model = LogisticRegression(C=inverse, class_weight="balanced", max_iter=2000, tol=1e-3)
    return model.fit(centred, is_harmful, counts)


def _held_out_loss(training: Training, centred: np.ndarray, fold: np.ndarray, inverse: float) -> float:
    probability = np.empty(len(centred))
    for place in np.unique(fold):
        chosen = fold != place
        fitted = _fit_logistic(centred[chosen], training.is_harmful[chosen], training.counts[chosen], inverse)
        probability[fold == place] = fitted.predict_proba(centred[fold == place])[:, 1]
    return float(log_loss(training.is_harmful, probability, sample_weight=training.counts))
