"""The questions put to one site about a direction that was imported.

No draw changes it, so each function works on the prompts' projections. There is nothing to hold out: what
:mod:`.questions` returns as cross-fitted is here the direction's number on all prompts of the contrast set.
"""

from __future__ import annotations

import numpy as np

from refusal_core.analysis.crossfit import NO_SPREAD, Crossfit
from refusal_core.analysis.effect_sizes import auroc, cohens_d, range_overlap
from refusal_core.analysis.geometry import Components, effective_dimension
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.projections import contrast_weights, remove_covariate
from refusal_core.analysis.resampling import Draws
from refusal_core.analysis.weighted_statistics import weighted_d
from refusal_core.evidence import questions
from refusal_core.evidence.design import Contrast
from refusal_core.evidence.questions import Numbers, Reasons

NO_VECTOR = "the imported file has no vector for this site"
NOT_FITTED = "the direction was imported, not fitted here"


def held_out(projection: np.ndarray, is_harmful: np.ndarray) -> Crossfit:
    """Return how the direction does on the contrast set, as one repeat without folds.

    Args:
        projection: ``(prompt,)`` of the contrast set; NaN without a direction.
        is_harmful: ``(prompt,)`` bool.
    """
    if not np.isfinite(projection).all():
        return Crossfit(projection[None, :], np.nan, np.nan, np.nan, np.nan, 0, 1, NO_VECTOR)
    centred = projection - midpoints(projection, is_harmful[None, :] * 1.0, ~is_harmful[None, :] * 1.0)[0]
    harmful, harmless = centred[is_harmful], centred[~is_harmful]
    d = cohens_d(harmful, harmless)
    accuracy = float(((harmful > 0).mean() + (harmless < 0).mean()) / 2)
    return Crossfit(
        centred[None, :],
        d,
        auroc(harmful, harmless),
        accuracy,
        range_overlap(harmful, harmless),
        0,
        1,
        None if np.isfinite(d) else NO_SPREAD,
    )


def midpoints(projection: np.ndarray, harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """Return the midpoint of the two labels' mean projections in each draw.

    Args:
        projection: ``(prompt,)``.
        harmful: ``(draw, prompt)`` how often each prompt counts as a harmful one.
        harmless: the same for harmless.

    Returns:
        ``(draw,)``; NaN in a draw that lacks a label.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (counts @ projection / counts.sum(axis=1) for counts in (harmful, harmless))
    middle: np.ndarray = (first + second) / 2
    return middle


def project_in_draws(projection: np.ndarray, of: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the projections of some prompts relative to the midpoint of each draw's contrast prompts.

    Args:
        projection: ``(sampled,)`` of the contrast prompts that are redrawn.
        of: ``(other,)`` of the prompts that are meant.
        draws: of the contrast prompts.

    Returns:
        ``(draw, other)``.
    """
    relative: np.ndarray = of[None, :] - midpoints(projection, draws.harmful, draws.harmless)[:, None]
    return relative


def does_it_fit(projection: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.does_it_fit` of the direction on the contrast set."""
    return questions.separation_of_labels(projection, contrast.is_harmful, NO_VECTOR)


def does_it_hold_across_categories() -> tuple[Numbers, Reasons]:
    """Return that no category can be left out."""
    return questions.no_categories(NOT_FITTED)


def is_it_chance(projection: np.ndarray, contrast: Contrast) -> tuple[Numbers, np.ndarray]:
    """Return :func:`.questions.is_it_chance`: labels are shuffled, the direction stays what it is.

    Args:
        projection: ``(prompt,)`` of the contrast set.
        contrast: its prompts, all of them redrawn.
    """
    shuffled = contrast.permutations
    null = weighted_d(np.broadcast_to(projection, shuffled.harmful.shape), shuffled.harmful, shuffled.harmless)
    # The direction has no folds: held out or not, its d is one number.
    return questions.describe_chance(null, null), null


def is_it_length(projection: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return ``length_d, length_auroc``: prompt length is regressed out of the projections, whatever the label.

    Args:
        projection: ``(prompt,)`` of the contrast set.
        contrast: its prompts.
    """
    if why := questions.why_no_length(contrast):
        return questions.no_length(why)
    if not np.isfinite(projection).all():
        return questions.no_length(NO_VECTOR)
    sampled, draws = contrast.sampled, contrast.bootstrap
    itself = _without(projection, np.ones((1, len(projection))), contrast.n_tokens)
    drawn = _without(projection[contrast.sample], draws.counts, sampled.n_tokens)
    harmful = contrast.is_harmful[None, :] * 1.0
    numbers, reasons = questions.length_numbers(itself, harmful, 1 - harmful, drawn, draws)
    return numbers | {"length_cosine": np.nan}, reasons | {"length_cosine": NOT_FITTED}


def is_it_the_same_as_refusing(
    gram: Gram, sampled_gram: np.ndarray, projection: np.ndarray, contrast: Contrast
) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.is_it_the_same_as_refusing`, whose cosine is with the imported direction.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
        projection: ``(prompt,)`` of the contrast set.
        contrast: its prompts.
    """
    behaviour = questions.behaviour_direction(gram, contrast)
    if isinstance(behaviour, tuple):
        return behaviour
    if not np.isfinite(projection).all():
        return questions.no_behaviour(NO_VECTOR)
    point = _cosine(gram, projection, contrast_weights(behaviour.refused[None, :], behaviour.answered[None, :]))[0]
    drawn = _cosine(sampled_gram, projection[contrast.sample], behaviour.redrawn(contrast))
    return behaviour.numbers(float(point), drawn), {}


def what_does_the_space_look_like(
    gram: Gram, projection: np.ndarray, components: Components, why_none: str = NO_VECTOR
) -> tuple[Numbers, Reasons]:
    """Return :func:`.questions.what_does_the_space_look_like` with the variance along a direction as it is.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        projection: ``(prompt,)`` of the contrast set.
        components: of the contrast set.
        why_none: why there is no direction, where there is none.
    """
    centred = projection - projection.mean()
    total = float(gram.diagonal().sum())
    share = float(centred @ centred / total) if total > 0 else float("nan")
    return questions.space_numbers(effective_dimension(gram), min(share, 1.0), components, why_none)


def _without(projection: np.ndarray, counts: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Return ``(draw, prompt)`` projections from which a regression on length was taken off in each draw."""
    length = n_tokens - n_tokens.mean()
    _, slope = remove_covariate(np.zeros((1, len(length))), counts, length)
    return np.asarray(projection[None, :] - (slope @ projection)[:, None] * length)


def _cosine(gram: Gram, projection: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` cosines of the direction with weighted sums of activations whose weights sum to 0."""
    square = ((weights @ gram) * weights).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: np.ndarray = np.where(square > 0, weights @ projection / np.sqrt(square), np.nan)
    return cosines.clip(-1.0, 1.0)
