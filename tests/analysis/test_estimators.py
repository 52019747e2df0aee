"""Estimators of the direction: each finds its own optimum, none sees what it is tested on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from refusal_core.analysis import estimators
from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.estimators import ESTIMATORS, MEAN_DIFFERENCE, Training
from refusal_core.analysis.groups import assign_folds

N, WIDTH = 240, 20
LABELS, GROUPS = np.arange(N) % 2 == 0, np.arange(N) // 2
FOLD = assign_folds(LABELS, GROUPS, 10, 1, np.random.default_rng(0))[0]
WHITENED, LOGISTIC, COMPONENT, ORTHOGONAL = [name for name in ESTIMATORS if name != MEAN_DIFFERENCE]


def noise(seed: int, spread: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, WIDTH)) * spread + 3


def harmful(hidden: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return hidden + LABELS[:, None] * shift


def compared(hidden: np.ndarray, others: np.ndarray | None = None) -> dict[str, estimators.Estimated]:
    return estimators.compare_estimators(
        hidden, hidden[:0] if others is None else others, LABELS, GROUPS, GROUPS, FOLD, seed=0
    )


def areas(hidden: np.ndarray) -> dict[str, float]:
    return {name: auroc(each.held_out[LABELS], each.held_out[~LABELS]) for name, each in compared(hidden).items()}


ANISOTROPIC = np.where(np.arange(WIDTH) == 0, 12.0, 1.0)
SHIFT = np.where(np.arange(WIDTH) < 2, 1.5, 0.0)


def test_whitening_beats_the_mean_difference_where_noise_has_a_direction():
    found = areas(harmful(noise(0, ANISOTROPIC), SHIFT))
    assert found[WHITENED] > found[MEAN_DIFFERENCE] + 0.1
    assert found[LOGISTIC] > found[MEAN_DIFFERENCE] + 0.1


@pytest.mark.slow
def test_whitening_changes_little_where_noise_has_none():
    hidden = harmful(noise(1, np.ones(WIDTH)), SHIFT)
    found, whitened = areas(hidden), compared(hidden)[WHITENED]
    assert abs(found[WHITENED] - found[MEAN_DIFFERENCE]) < 0.02
    assert whitened.cosine > 0.97


@pytest.mark.slow
def test_without_harm_no_estimator_separates_held_out_prompts():
    found = [areas(noise(seed, ANISOTROPIC)) for seed in range(5)]
    for name in ESTIMATORS:
        assert abs(np.mean([area[name] for area in found]) - 0.5) < 0.06, name


def test_a_clear_direction_is_found_alike_on_both_halves():
    for name, each in compared(harmful(noise(2, np.ones(WIDTH)), 4 * SHIFT)).items():
        assert each.stability > 0.9, name
        assert each.cosine > 0.9, name


def test_pairs_differ_most_along_a_component_that_differs_between_pairs():
    rng, shift = np.random.default_rng(3), np.eye(WIDTH)[:2]
    strength = np.repeat(rng.normal(3, 6, N // 2), 2)[:, None]
    hidden = noise(3, np.ones(WIDTH)) + LABELS[:, None] * (strength * shift[0] + 3 * shift[1])
    training = Training(hidden, LABELS, GROUPS, GROUPS, WIDTH)
    component = estimators.pair_component(training)
    assert abs(component[0]) > 0.95
    assert component @ estimators.mean_difference(training) > 0


def test_without_pairs_there_is_no_component_of_their_differences():
    alone = np.arange(N)
    fold = assign_folds(LABELS, alone, 10, 1, np.random.default_rng(0))[0]
    hidden = noise(0, np.ones(WIDTH))
    found = estimators.compare_estimators(hidden, hidden, LABELS, alone, alone, fold, seed=0)
    assert found.keys() == ESTIMATORS.keys() - {COMPONENT}


def test_what_is_orthogonal_to_the_harmless_mean_is():
    training = Training(harmful(noise(4, np.ones(WIDTH)), SHIFT), LABELS, GROUPS, GROUPS, WIDTH)
    assert estimators.orthogonal_difference(training) @ training.means[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_the_prompts_own_span_changes_nothing():
    hidden = harmful(noise(5, ANISOTROPIC), SHIFT)
    # The same prompts in a space of more dimensions than there are prompts: turned, and with nothing in the others.
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(N + 60, WIDTH)))[0]
    wide, narrow = compared(hidden @ turn.T, hidden[:7] @ turn.T), compared(hidden, hidden[:7])
    # The shrinkage of the whitened one is of all dimensions, as it is meant to be.
    for name in (MEAN_DIFFERENCE, COMPONENT, ORTHOGONAL):
        assert np.allclose(wide[name].held_out, narrow[name].held_out)
        assert np.allclose(wide[name].transferred, narrow[name].transferred)
    # Its solver stops within its tolerance.
    assert np.corrcoef(wide[LOGISTIC].held_out, narrow[LOGISTIC].held_out)[0, 1] > 0.98


@pytest.mark.parametrize("width", [10, 300])
def test_the_shrinkage_is_scikit_learn_s(width):
    hidden = np.random.default_rng(0).normal(size=(N, width)) * np.linspace(0.1, 3, width)
    hidden -= hidden.mean(axis=0)
    basis = np.linalg.qr(hidden.T)[0] if width > N else np.eye(width)
    coordinates = hidden @ basis
    covariance = coordinates.T @ coordinates / N
    fourth = np.square(np.square(coordinates).sum(axis=1)).sum()
    shrinkage = estimators._ledoit_wolf(fourth, np.trace(covariance), np.square(covariance).sum(), N, width)
    assert shrinkage == pytest.approx(ledoit_wolf_shrinkage(hidden, assume_centered=True))


def test_the_penalty_is_chosen_without_the_prompts_that_are_tested(monkeypatch):
    seen: list[int] = []
    fit = estimators.ESTIMATORS[LOGISTIC]

    def watched(training: Training) -> np.ndarray:
        seen.append(len(training.hidden))
        assert not {*training.groups} & {*GROUPS[len(seen) - 1 == FOLD]} or len(seen) > 10
        return fit(training)

    monkeypatch.setitem(estimators.ESTIMATORS, LOGISTIC, watched)
    compared(noise(0, np.ones(WIDTH)))
    assert seen[:10] == [int((place != FOLD).sum()) for place in range(10)]


def test_constant_activations_have_no_direction():
    assert compared(np.ones((N, WIDTH))) == {}
