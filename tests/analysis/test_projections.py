from __future__ import annotations

import numpy as np
from planted import labels_and_groups

from refusal_core.analysis import projections
from refusal_core.analysis.gram import InnerProducts, gram_matrices, gram_matrix
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.projections import (
    contrast_weights,
    crossfit_draws,
    crossfit_refitted,
    fold_weights,
    project_draws,
    remove_covariate,
)
from refusal_core.analysis.resampling import Draws


def test_projections_are_those_on_the_difference_of_means_relative_to_the_midpoint():
    rng = np.random.default_rng(1)
    labels, _ = labels_and_groups(40)
    hidden = rng.normal(size=(60, 30)) * np.linspace(0.2, 3, 30) + 40
    grams = gram_matrices(hidden, np.arange(60) < 40)
    gram, cross = grams[:40, :40], grams[:40, 40:]
    weights = contrast_weights(labels[None], ~labels[None])
    harmful, harmless = hidden[:40][labels].mean(axis=0), hidden[:40][~labels].mean(axis=0)
    unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
    direct = hidden @ unit - (harmful + harmless) @ unit / 2
    np.testing.assert_allclose(project_draws(gram, weights)[0], direct[:40], atol=1e-9)
    np.testing.assert_allclose(project_draws(gram, weights, cross)[0], direct[40:], atol=1e-9)


def test_a_covariate_is_regressed_out_within_the_training_folds():
    rng = np.random.default_rng(1)
    labels, _ = labels_and_groups(40)
    hidden = rng.normal(size=(40, 30)) * np.linspace(0.2, 3, 30) + 40
    gram = gram_matrix(hidden)
    length = rng.normal(size=40) + labels
    fold = assign_folds(labels, np.arange(40), 4, 1, rng)
    once = Draws(labels[None] * 1.0, ~labels[None] * 1.0, fold)
    found = once.project_held_out_without(gram, length)[0]
    for k in range(4):
        training = fold[0] != k
        design = np.column_stack([np.ones(40), length])
        slopes = np.linalg.lstsq(design[training], hidden[training], rcond=None)[0]
        residual = hidden - design @ slopes
        means = residual[training & labels].mean(axis=0), residual[training & ~labels].mean(axis=0)
        along = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
        np.testing.assert_allclose(found[~training], (residual @ along - sum(means) @ along / 2)[~training], atol=1e-9)


def test_a_covariate_that_does_not_vary_removes_nothing():
    labels, _ = labels_and_groups(12)
    weights = contrast_weights(labels[None], ~labels[None])
    remaining, slope = remove_covariate(weights, np.ones((1, 12)), np.full(12, 3.0))
    np.testing.assert_array_equal(remaining, weights)
    assert not slope.any()


def test_a_slope_is_the_one_that_numpy_fits_to_the_counted_prompts():
    rng = np.random.default_rng(2)
    labels, _ = labels_and_groups(12)
    hidden, covariate = rng.normal(size=(12, 3)), rng.normal(size=12)
    counts = rng.integers(0, 3, (1, 12)).astype(float)
    _, slope = remove_covariate(contrast_weights(labels[None], ~labels[None]), counts, covariate)
    copies = np.repeat(np.arange(12), counts[0].astype(int))
    np.testing.assert_allclose(slope[0] @ hidden, np.polyfit(covariate[copies], hidden[copies], 1)[0])


def test_weights_are_shares_of_each_label():
    weights = contrast_weights(np.array([[2.0, 1, 0, 1]]), np.array([[0.0, 0, 3, 1]]))
    np.testing.assert_allclose(weights, [[0.5, 0.25, -0.75, 0.0]])
    assert np.isnan(contrast_weights(np.zeros((1, 2)), np.ones((1, 2)))).all()


def test_fold_weights_leave_out_one_fold_after_the_other():
    harmful, harmless = np.array([[1.0, 1, 0, 0]]), np.array([[0.0, 0, 1, 1]])
    weights = fold_weights(harmful, harmless, np.array([[0, 1, 0, 1]]))
    np.testing.assert_array_equal(weights, [[[0, 1, 0, -1]], [[1, 0, -1, 0]]])


def test_means_that_coincide_have_no_projections():
    labels, _ = labels_and_groups(8)
    hidden = np.repeat(np.random.default_rng(0).normal(size=(4, 5)), 2, axis=0)
    assert np.isnan(project_draws(gram_matrix(hidden), contrast_weights(labels[None], ~labels[None]))).all()


def test_folds_projected_together_or_one_by_one_give_the_same(monkeypatch):
    rng = np.random.default_rng(5)
    labels, groups = labels_and_groups(30)
    fold = assign_folds(labels, groups, 5, 3, rng)
    many = np.broadcast_to(labels, fold.shape).astype(float)
    gram = gram_matrix(rng.normal(size=(30, 6)))
    together = crossfit_draws(gram, fold_weights(many, 1 - many, fold), fold)
    monkeypatch.setattr(projections, "_MOST_TOGETHER", 200)
    np.testing.assert_allclose(crossfit_draws(gram, fold_weights(many, 1 - many, fold), fold), together, atol=1e-12)


def test_draws_that_share_folds_are_refitted_as_any_others():
    rng = np.random.default_rng(6)
    labels, _ = labels_and_groups(30)
    hidden = rng.normal(size=(30, 6)) + 3
    fold = rng.permutation(np.arange(30) % 4)
    counts = rng.integers(0, 3, (7, 30)).astype(float)
    # A draw whose harmful prompts are all in one fold has no direction for it.
    counts[0, labels & (fold != 2)] = 0
    harmful, harmless = counts * labels, counts * ~labels
    expected = crossfit_draws(gram_matrix(hidden), fold_weights(harmful, harmless, fold[None]), fold[None])
    everything = np.arange(30)
    for gram in (gram_matrix(hidden), InnerProducts(hidden, hidden.mean(axis=0), everything, everything)):
        found = crossfit_refitted(gram, harmful, harmless, fold)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert np.isnan(expected[0, fold == 2]).all()
    assert np.isfinite(expected[1:]).all()


def test_a_covariate_that_is_constant_in_the_training_folds_changes_nothing():
    rng = np.random.default_rng(7)
    labels, _ = labels_and_groups(12)
    gram, fold = gram_matrix(rng.normal(size=(12, 5))), np.arange(12) // 2 % 3
    covariate = np.where(fold == 0, rng.normal(size=12), 0.1)
    once = labels[None] * 1.0, ~labels[None] * 1.0
    plain, without = crossfit_refitted(gram, *once, fold), crossfit_refitted(gram, *once, fold, covariate)
    np.testing.assert_allclose(without[0, fold == 0], plain[0, fold == 0], atol=1e-12)
    assert np.abs(without - plain)[0, fold != 0].max() > 1e-3
