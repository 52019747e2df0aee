"""An estimator of the direction fitted anew: without each fold, on redrawn prompts, on permuted labels.

What :mod:`.projections` has closed formulas for where the direction is a difference of means is refitted here, one fit
per direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.estimators import (
    FEWEST_PAIRS,
    Training,
    logistic_regression,
    mean_difference,
    orthogonal_difference,
    pair_component,
    tuned_logistic_regression,
    whitened_difference,
)
from refusal_core.analysis.gram import SPREAD_TOLERANCE
from refusal_core.analysis.groups import find_twins
from refusal_core.analysis.resampling import Draws
from refusal_core.options import ESTIMATORS

Fit = Callable[[Training], np.ndarray]

_TOLERANCE = 1e-7
"""Distance of two means, relative to the largest distance from the mean, that rounding alone could have left."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """An estimator other than the difference of means, and how often it is fitted anew.

    A fit takes milliseconds where a difference of means takes microseconds, so there are fewer draws.

    Attributes:
        fit: from training prompts to their direction; what is tuned is tuned on these alone.
        tuned: from training prompts to a fit in which all that is tuned is tuned on them; None where nothing is tuned.
        repeats: how often the folds are dealt anew.
        draws: of the bootstrap, at most.
        permutations: of the labels, at most.
        held_out_permutations: those on which the direction is cross-fitted too; 0 where that takes too long.
        learning_draws: training samples of every size, at most; 0 where they take too long.
    """

    fit: Fit
    tuned: Callable[[Training], Fit] | None = None
    repeats: int = 5
    draws: int = 100
    permutations: int = 199
    held_out_permutations: int = 60
    learning_draws: int = 4


REFITTED: dict[str, Refitted] = {
    "whitened": Refitted(whitened_difference),
    "logistic": Refitted(
        logistic_regression,
        tuned_logistic_regression,
        repeats=1,
        draws=50,
        permutations=39,
        held_out_permutations=0,
        learning_draws=0,
    ),
    "pair-component": Refitted(pair_component),
    "orthogonal": Refitted(orthogonal_difference),
}
"""The estimators by the name that they are chosen by, without the difference of means."""

MOST_FITTED = 2048
"""Prompts that they are fitted on at most: what a fit takes grows with the cube of their number."""


def coordinates(hidden_site: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return all prompts in coordinates of the fitted ones' span, which changes none of these prompts' inner products.

    Args:
        hidden_site: ``(prompt, d_model)`` activations.
        fitted: ``(prompt,)`` bool.

    Returns:
        ``(prompt, coordinate)`` float64, and their ``(d_model, coordinate)`` basis; None where these are the
        activations.
    """
    hidden = hidden_site.astype(np.float64)
    own = hidden[fitted]
    if not np.linalg.norm(own - own.mean(axis=0), axis=1).max() > SPREAD_TOLERANCE * np.linalg.norm(own, axis=1).max():
        # The same up to rounding, as in a Gram matrix.
        hidden[:] = 0.0
    if int(fitted.sum()) >= hidden.shape[1]:
        return hidden, None
    basis = np.linalg.qr(own.T)[0]
    return hidden @ basis, basis


def fit_unit(fit: Fit, training: Training) -> tuple[np.ndarray, float]:
    """Return the direction of training prompts, and the midpoint of their two means along it.

    Args:
        fit: the estimator.
        training: the prompts.

    Returns:
        ``(coordinate,)`` of norm 1; NaN, and a midpoint that is NaN, where there is no direction.
    """
    nothing = np.full(training.hidden.shape[1], np.nan), np.nan
    if training.is_harmful.all() or not training.is_harmful.any():
        return nothing
    centred = training.hidden - training.hidden[0]
    widest = np.sqrt(np.einsum("pc,pc->p", centred, centred).max())
    if not np.linalg.norm(mean_difference(training)) > _TOLERANCE * widest:
        return nothing
    direction = fit(training)
    length = np.linalg.norm(direction)
    if not (np.isfinite(length) and length > 0):
        return nothing
    unit = direction / length
    return unit, float(np.add(*training.means) @ unit / 2)


def fit_draws(fit: Fit, training: Training, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Return the direction of every draw, and the midpoint of that draw's two means along it.

    Args:
        fit: the estimator.
        training: the prompts that are redrawn.
        draws: of them.

    Returns:
        ``(draw, coordinate)`` and ``(draw,)``; NaN in a draw that has none.
    """
    fits = [fit_unit(fit, training.redrawn(*rows)) for rows in zip(draws.harmful, draws.harmless, strict=True)]
    return np.stack([direction for direction, _ in fits]), np.array([midpoint for _, midpoint in fits])


def project_left_out(
    estimator: Refitted, training: Training, draws: Draws, *, retune: bool, covariate: np.ndarray | None = None
) -> np.ndarray:
    """Project every prompt on the direction of the fold that left it out, in every draw.

    Args:
        estimator: fitted on the training part of every fold.
        training: the prompts that are redrawn.
        draws: with their folds.
        retune: whether what is tuned is tuned anew in every draw; else once a fold, on the fold's training part of the
            prompts as they are, which takes draws whose folds are the same.
        covariate: ``(prompt,)``, which is regressed out of every training part's activations, whatever the label.

    Returns:
        ``(draw, prompt)`` in activation units, 0 at the training midpoint; NaN in a draw that has no direction, or
        where there are no folds.
    """
    projections = np.full(draws.harmful.shape, np.nan)
    if not len(draws.fold):
        return projections
    folds = np.broadcast_to(draws.fold, projections.shape)
    for place in range(int(draws.fold.max()) + 1):
        fit = estimator.fit
        if not retune and estimator.tuned is not None:
            fit = estimator.tuned(training.part(draws.fold[0] != place))
        for row, (harmful, harmless, fold) in enumerate(zip(draws.harmful, draws.harmless, folds, strict=True)):
            kept = fold != place
            if kept.all():
                continue
            part, left_out = training.redrawn(harmful * kept, harmless * kept), training.hidden[~kept]
            if covariate is not None:
                part, mean, slope = part.without(covariate[np.flatnonzero((harmful + harmless) * kept)])
                left_out = left_out - np.outer(covariate[~kept] - mean, slope)
            direction, midpoint = fit_unit(fit, part)
            projections[row, ~kept] = left_out @ direction - midpoint
    projections[~np.isfinite(projections).all(axis=1)] = np.nan
    return projections


def why_not(name: str, is_harmful: np.ndarray, pairs: np.ndarray) -> str | None:
    """Return why an estimator has nothing to fit on these prompts, or None.

    Args:
        name: of the estimator, a key of :data:`REFITTED`.
        is_harmful: ``(prompt,)`` bool.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
    """
    n_prompts = len(is_harmful)
    if n_prompts > MOST_FITTED:
        return (
            f"expected at most {MOST_FITTED} prompts to fit on for the {ESTIMATORS[name]}, got {n_prompts}: "
            "choose fewer per label, or the mean difference"
        )
    if REFITTED[name].fit is not pair_component:
        return None
    twins = len(find_twins(is_harmful, pairs))
    if twins >= FEWEST_PAIRS:
        return None
    return (
        f"expected at least {FEWEST_PAIRS} matched pairs for the {ESTIMATORS[name]}, got {twins}: choose another "
        "estimator, or a contrast set of pairs"
    )


def held_out_unit_directions(name: str, training: Training, fold: np.ndarray) -> np.ndarray:
    """Return the direction of each fold's training part, ``(fold, coordinate)`` of norm 1; zeros where there is none.

    Args:
        name: of the estimator, a key of :data:`REFITTED`.
        training: the prompts.
        fold: ``(prompt,)``.
    """
    parts = [training.part(fold != place) for place in range(int(fold.max()) + 1)]
    directions: np.ndarray = np.nan_to_num(np.stack([fit_unit(REFITTED[name].fit, part)[0] for part in parts]))
    return directions


def estimate_unit_directions(
    name: str, hidden: np.ndarray, is_harmful: np.ndarray, groups: np.ndarray, pairs: np.ndarray, fitted: np.ndarray
) -> np.ndarray:
    """Return the direction of every site, ``(site, d_model)`` float64 of norm 1; zeros where there is none.

    Args:
        name: of the estimator, a key of :data:`REFITTED`.
        hidden: ``(prompt, site, d_model)`` activations.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        fitted: ``(prompt,)`` bool, the prompts to fit on.
    """
    rows = np.flatnonzero(fitted)
    unit = np.zeros(hidden.shape[1:])
    for site in range(len(unit)):
        own, basis = coordinates(hidden[rows, site], np.ones(len(rows), dtype=bool))
        training = Training(own, is_harmful[rows], groups[rows], pairs[rows], hidden.shape[2])
        direction = fit_unit(REFITTED[name].fit, training)[0]
        if np.isfinite(direction).all():
            unit[site] = direction if basis is None else basis @ direction
    return unit
