from __future__ import annotations

import numpy as np
from planted import bootstrap_of, labels_and_groups

from refusal_core.analysis.gram import gram_matrix
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.resampling import Draws, draw_permutations


def test_a_bootstrap_draw_is_the_crossfit_of_the_drawn_prompts_with_copies_in_one_fold():
    rng = np.random.default_rng(4)
    labels, groups = labels_and_groups(24)
    hidden = rng.normal(size=(24, 8)) + labels[:, None]
    drawn = bootstrap_of(labels, groups, 3, 0)
    held_out = drawn.project_held_out(gram_matrix(hidden))
    for draw in range(3):
        copies = np.repeat(np.arange(24), drawn.counts[draw].astype(int))
        for fold in range(drawn.fold.max() + 1):
            training = copies[drawn.fold[0][copies] != fold]
            harmful, harmless = hidden[training[labels[training]]].mean(0), hidden[training[~labels[training]]].mean(0)
            unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
            rows = drawn.fold[0] == fold
            expected = hidden[rows] @ unit - (harmful + harmless) @ unit / 2
            np.testing.assert_allclose(held_out[draw, rows], expected, atol=1e-9)


def test_permutations_flip_pairs_and_shuffle_the_rest_with_their_folds():
    labels = np.array([True, False] * 10 + [True] * 5 + [False] * 7)
    groups = np.array([k // 2 for k in range(20)] + list(range(100, 112)))
    fold = assign_folds(labels, groups, 4, 1, np.random.default_rng(0))
    drawn = draw_permutations(labels, groups, fold, 300, np.random.default_rng(1))
    assert (drawn.harmful.sum(axis=1) == 15).all()
    assert (drawn.harmful[:, 0:20:2] + drawn.harmful[:, 1:20:2] == 1).all()
    assert (drawn.fold[:, :20] == fold[0, :20]).all()
    np.testing.assert_allclose(drawn.harmful[:, :20].mean(axis=0), 0.5, atol=0.12)
    np.testing.assert_allclose(drawn.harmful[:, 20:].mean(axis=0), 5 / 12, atol=0.12)
    for k in range(4):
        by_label = (drawn.harmful * (drawn.fold == k)).sum(axis=1)
        assert (by_label == (labels & (fold[0] == k)).sum()).all()


def test_labels_that_are_exchanged_within_pairs_leave_the_folds_where_they_are():
    labels, groups = np.array([True, False] * 12), np.arange(24) // 2
    fold = assign_folds(labels, groups, 4, 1, np.random.default_rng(0))
    drawn = draw_permutations(labels, groups, fold, 50, np.random.default_rng(1))
    np.testing.assert_array_equal(drawn.fold, fold)
    gram = gram_matrix(np.random.default_rng(2).normal(size=(24, 9)))
    by_draw = Draws(drawn.harmful, drawn.harmless, np.broadcast_to(fold, drawn.harmful.shape))
    np.testing.assert_allclose(drawn.project_held_out(gram), by_draw.project_held_out(gram), atol=1e-10)


def test_without_folds_nothing_is_held_out():
    labels, groups = np.array([True, False, False]), np.arange(3)
    drawn = bootstrap_of(labels, groups, 4, 0)
    assert not len(drawn.fold)
    gram = gram_matrix(np.random.default_rng(0).normal(size=(3, 2)))
    assert np.isnan(drawn.project_held_out(gram)).all()
    assert drawn.project_held_out(gram).shape == (4, 3)
    permuted = draw_permutations(labels, groups, drawn.fold, 5, np.random.default_rng(0))
    assert not len(permuted.fold)
    assert (permuted.harmless == 1 - permuted.harmful).all()


def test_counts_of_either_label_add_up():
    draws = Draws(np.array([[2.0, 0, 0]]), np.array([[0.0, 1, 3]]), np.zeros((1, 3), int))
    np.testing.assert_array_equal(draws.counts, [[2, 1, 3]])
    np.testing.assert_allclose(draws.weights, [[1, -0.25, -0.75]])
