"""The questions put to one site about a direction that an estimator other than the difference of means fits.

Each function returns what its namesake in :mod:`.questions` does, from directions that are fitted anew in every fold,
draw and permutation (:mod:`refusal_core.analysis.refitting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from refusal_core.analysis.crossfit import TOO_FEW_GROUPS, Crossfit, describe_crossfit
from refusal_core.analysis.estimators import Training
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.learning import TrainingSample
from refusal_core.analysis.projections import contrast_weights
from refusal_core.analysis.refitting import Refitted, coordinates, fit_draws, fit_unit, project_left_out
from refusal_core.analysis.resampling import Draws
from refusal_core.analysis.weighted_statistics import weighted_d
from refusal_core.evidence import questions
from refusal_core.evidence.design import Contrast, Design
from refusal_core.evidence.questions import Numbers, Reasons

TOO_MANY_FITS = "it would take too many fits of this estimator"
NO_PART = "without a category, or in a fold, the estimator has nothing to fit on"


@dataclass(frozen=True, eq=False)
class Estimated:
    """The prompts of one site, in coordinates, for an estimator.

    Attributes:
        estimator: what is fitted.
        everyone: ``(any prompt, coordinate)`` float64.
        training: the fitted prompts.
        sampled: those of them that draws are taken of.
        bootstrap: the draws.
        unit: ``(coordinate,)`` the direction; NaN where there is none.
        midpoint: of the two labels' means along it.
    """

    estimator: Refitted
    everyone: np.ndarray
    training: Training
    sampled: Training
    bootstrap: Draws
    unit: np.ndarray
    midpoint: float

    @property
    def projection(self) -> np.ndarray:
        """``(prompt,)`` of the fitted prompts on the direction, in activation units."""
        return np.asarray(self.training.hidden @ self.unit)

    def of_others(self, rows: np.ndarray) -> np.ndarray:
        """Return ``(other,)`` projections of any prompts, 0 at the midpoint."""
        return np.asarray(self.everyone[rows] @ self.unit - self.midpoint)

    def draws_of_others(self, rows: np.ndarray) -> np.ndarray:
        """Return ``(draw, other)`` projections on every bootstrap draw's direction, 0 at that draw's midpoint."""
        directions, midpoints = self._redrawn
        return np.asarray(directions @ self.everyone[rows].T - midpoints[:, None])

    @property
    def redrawn_directions(self) -> np.ndarray:
        """``(draw, coordinate)`` directions of the bootstrap draws; NaN in a draw that has none."""
        return self._redrawn[0]

    @cached_property
    def held_out_draws(self) -> np.ndarray:
        """``(draw, sampled)`` cross-fitted projections of every bootstrap draw."""
        return project_left_out(self.estimator, self.sampled, self.bootstrap, retune=False)

    @cached_property
    def _redrawn(self) -> tuple[np.ndarray, np.ndarray]:
        fit = self.estimator.fit if self.estimator.tuned is None else self.estimator.tuned(self.sampled)
        return fit_draws(fit, self.sampled, self.bootstrap)


def prepare(estimator: Refitted, hidden_site: np.ndarray, design: Design) -> Estimated:
    """Fit the direction of a site.

    Args:
        estimator: what is fitted.
        hidden_site: ``(prompt, d_model)`` activations of all prompts of the run.
        design: what all sites share.
    """
    contrast = design.contrast
    everyone, _ = coordinates(hidden_site, design.fitted)
    own = everyone[design.fitted]
    centred = own - own.mean(axis=0)
    training = Training(
        own, contrast.is_harmful, contrast.groups, contrast.pairs, hidden_site.shape[1], gram=centred @ centred.T
    )
    sampled = training
    if contrast.sampled is not contrast:
        drawn = np.zeros(len(own), dtype=bool)
        drawn[contrast.sample] = True
        sampled = training.part(drawn)
    return Estimated(estimator, everyone, training, sampled, contrast.bootstrap, *fit_unit(estimator.fit, training))


def does_it_fit(estimated: Estimated, contrast: Contrast, why_none: str) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.does_it_fit`."""
    return questions.separation_of_labels(estimated.projection, contrast.is_harmful, why_none)


def sampled_d(estimated: Estimated, contrast: Contrast) -> float:
    """Return the in-sample d of the prompts that are redrawn."""
    labels = contrast.sampled.is_harmful[None, :] * 1.0
    itself = Draws(labels, 1 - labels, contrast.bootstrap.fold)
    return float(weighted_d(_in_sample(estimated, itself), labels, 1 - labels)[0])


def held_out(estimated: Estimated, contrast: Contrast, why_none: str) -> Crossfit:
    """Return how the direction does on the folds that it was not fitted with."""
    repeated = contrast.repeated
    nothing = np.full((1, len(contrast.is_harmful)), np.nan)
    if not len(repeated.fold):
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, 0, 0, TOO_FEW_GROUPS)
    used = int(repeated.fold.max()) + 1
    projections = project_left_out(estimated.estimator, estimated.training, repeated, retune=True)
    if not np.isfinite(projections).all():
        why = why_none if not np.isfinite(estimated.unit).all() else NO_PART
        return Crossfit(nothing, np.nan, np.nan, np.nan, np.nan, used, contrast.repeats, why)
    return describe_crossfit(projections, contrast.is_harmful, used)


def is_it_chance(estimated: Estimated, contrast: Contrast) -> tuple[tuple[Numbers, Reasons], np.ndarray]:
    """Return :func:`.questions.is_it_chance` with the reasons of what is missing.

    The estimator is fitted on every labelling as on the true one, what it tunes tuned anew.
    """
    shuffled, estimator = contrast.permutations, estimated.estimator
    null = weighted_d(_in_sample(estimated, shuffled), shuffled.harmful, shuffled.harmless)
    few = shuffled.first(estimator.held_out_permutations)
    held_out = weighted_d(project_left_out(estimator, estimated.sampled, few, retune=True), few.harmful, few.harmless)
    reasons: Reasons = {}
    if not estimator.held_out_permutations:
        reasons = dict.fromkeys(("chance_crossfit_low", "chance_crossfit_high"), TOO_MANY_FITS)
    return (questions.describe_chance(null, held_out), reasons), null


def does_it_hold_across_categories(estimated: Estimated, contrast: Contrast, why_none: str) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.does_it_hold_across_categories`."""
    if not len(contrast.category):
        return questions.no_categories(questions.NO_CATEGORIES)
    harmful = contrast.is_harmful[None, :].astype(np.float64)
    estimator = estimated.estimator
    itself = project_left_out(
        estimator, estimated.training, Draws(harmful, 1 - harmful, contrast.category), retune=True
    )
    bootstrap = replace(contrast.bootstrap, fold=contrast.sampled.category)
    drawn = project_left_out(estimator, estimated.sampled, bootstrap, retune=False)
    why = why_none if not np.isfinite(estimated.unit).all() else NO_PART
    return questions.category_numbers(itself, harmful, drawn, bootstrap, why)


def is_it_length(estimated: Estimated, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.is_it_length`."""
    why = questions.why_no_length(contrast) or ("" if len(contrast.bootstrap.fold) else TOO_FEW_GROUPS)
    if why:
        return questions.no_length(why)
    estimator, repeated = estimated.estimator, contrast.repeated
    itself = project_left_out(estimator, estimated.training, repeated, retune=True, covariate=contrast.n_tokens)
    drawn = project_left_out(
        estimator, estimated.sampled, contrast.bootstrap, retune=False, covariate=contrast.sampled.n_tokens
    )
    numbers, reasons = questions.length_numbers(itself, repeated.harmful, repeated.harmless, drawn, contrast.bootstrap)
    if not reasons:
        remaining, _ = fit_unit(estimator.fit, estimated.training.without(contrast.n_tokens)[0])
        numbers["length_cosine"] = float(np.clip(remaining @ estimated.unit, -1.0, 1.0))
    return numbers, reasons


def is_it_the_same_as_refusing(gram: Gram, estimated: Estimated, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.is_it_the_same_as_refusing`; the direction of what is refused is a difference of means.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        estimated: the direction that its cosine is with.
        contrast: the fitted prompts.
    """
    behaviour = questions.behaviour_direction(gram, contrast)
    if isinstance(behaviour, tuple):
        return behaviour
    weights = contrast_weights(behaviour.refused[None, :], behaviour.answered[None, :])
    point = _cosine(weights @ estimated.training.hidden, estimated.unit[None, :])
    drawn = _cosine(behaviour.redrawn(contrast) @ estimated.sampled.hidden, estimated.redrawn_directions)
    return behaviour.numbers(float(point[0]), drawn), {}


def how_many_prompts(estimated: Estimated, contrast: Contrast, samples: Sequence[TrainingSample]) -> list[Numbers]:
    """Return :func:`.questions.how_many_prompts`."""
    sampled, fit = estimated.sampled, estimated.estimator.fit
    harmful = contrast.sampled.is_harmful[None, :].astype(np.float64)
    whole = fit_unit(fit, sampled)[0]
    rows = []
    for sample in samples:
        projections = np.full(sample.fold.shape, np.nan)
        cosines = np.full(sample.weights.shape[:2], np.nan)
        for place, draw in np.ndindex(*cosines.shape):
            chosen, left_out = sample.weights[place, draw] != 0, sample.fold[draw] == place
            direction, midpoint = fit_unit(fit, sampled.part(chosen))
            projections[draw, left_out] = sampled.hidden[left_out] @ direction - midpoint
            cosines[place, draw] = direction @ whole
        rows.append(
            questions.learning_numbers(sample.size, weighted_d(projections, harmful, 1 - harmful), cosines.mean(axis=0))
        )
    return rows


def _in_sample(estimated: Estimated, draws: Draws) -> np.ndarray:
    """Return ``(draw, sampled)`` projections on the direction of every draw, 0 at that draw's midpoint."""
    directions, midpoints = fit_draws(estimated.estimator.fit, estimated.sampled, draws)
    return np.asarray(directions @ estimated.sampled.hidden.T - midpoints[:, None])


def _cosine(vectors: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` cosines of ``(draw, coordinate)`` vectors with directions of norm 1."""
    length = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: np.ndarray = np.where(length > 0, (vectors * unit).sum(axis=1) / length, np.nan)
    return cosines.clip(-1.0, 1.0)
