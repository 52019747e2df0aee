from __future__ import annotations

import numpy as np
import pytest
from planted import labels_and_groups

from refusal_core.analysis.crossfit import crossfit
from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.gram import gram_matrix
from refusal_core.analysis.groups import assign_folds


def test_held_out_projections_are_those_of_refitting_by_hand():
    rng = np.random.default_rng(3)
    labels, groups = labels_and_groups(30)
    hidden = rng.normal(size=(30, 12)) + labels[:, None] * 0.8 + 50.0
    assignments = assign_folds(labels, groups, folds=5, repeats=2, rng=np.random.default_rng(0))
    found = crossfit(gram_matrix(hidden), labels, groups, folds=5, repeats=2, seed=0)
    repeats = []
    for folds in assignments:
        by_hand = np.empty(30)
        for fold in range(5):
            train = folds != fold
            harmful, harmless = hidden[train & labels].mean(0), hidden[train & ~labels].mean(0)
            unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
            by_hand[~train] = hidden[~train] @ unit - (harmful + harmless) @ unit / 2
        repeats.append(by_hand)
    np.testing.assert_allclose(found.projection, np.mean(repeats, axis=0), atol=1e-9)
    assert found.d == pytest.approx(np.mean([cohens_d(r[labels], r[~labels]) for r in repeats]), abs=1e-9)
    assert found.auroc == pytest.approx(np.mean([auroc(r[labels], r[~labels]) for r in repeats]))
    assert found.accuracy == pytest.approx(np.mean([((r > 0) == labels).mean() for r in repeats]))


def test_shuffled_labels_hold_nothing_although_they_fit():
    rng = np.random.default_rng(0)
    held_out, in_sample = [], []
    for seed in range(30):
        hidden = rng.normal(size=(80, 200))
        labels = rng.permutation(np.arange(80) < 40)
        groups = np.arange(80).astype(str)
        held_out.append(crossfit(gram_matrix(hidden), labels, groups, repeats=1, seed=seed).d)
        direction = hidden[labels].mean(0) - hidden[~labels].mean(0)
        in_sample.append(cohens_d(hidden[labels] @ direction, hidden[~labels] @ direction))
    assert np.mean(in_sample) > 2
    assert abs(np.mean(held_out)) < 3 * np.std(held_out) / np.sqrt(30) + 0.1


def test_a_common_offset_changes_nothing():
    rng = np.random.default_rng(1)
    labels, groups = labels_and_groups(40)
    hidden = rng.normal(size=(40, 30)) + labels[:, None]
    near, far = (crossfit(gram_matrix(hidden + shift), labels, groups) for shift in (0.0, 1000.0))
    assert near.d == pytest.approx(far.d, abs=1e-6)


def test_constant_activations_give_no_number():
    labels, groups = labels_and_groups(20)
    found = crossfit(gram_matrix(np.full((20, 8), 0.3)), labels, groups)
    assert np.isnan(found.d)
    assert np.isnan(found.projection).all()
    assert found.reason


def test_a_planted_direction_is_recovered_within_its_error():
    rng = np.random.default_rng(6)
    labels, groups = labels_and_groups(200)
    strength, width = 2.0, 50
    cosines, held_out = [], []
    for _ in range(30):
        hidden = rng.normal(size=(200, width))
        hidden[:, 0] += strength * labels
        unit = fit_directions(hidden[:, None], labels).unit_direction[0]
        cosines.append(unit[0])
        held_out.append(crossfit(gram_matrix(hidden), labels, groups, repeats=1).d)
    # Each mean of 100 prompts carries noise of variance 1/100 in every dimension: cos² = s² / (s² + width · 2/100).
    expected = strength / np.sqrt(strength**2 + width * 2 / 100)
    assert np.mean(cosines) == pytest.approx(expected, abs=0.01)
    # A unit vector at that cosine sees the strength times it; the folds' directions come from 90 prompts a label.
    fold_cosine = strength / np.sqrt(strength**2 + width * 2 / 90)
    assert np.mean(held_out) == pytest.approx(strength * fold_cosine, abs=3 * np.std(held_out) / np.sqrt(30) + 0.02)
