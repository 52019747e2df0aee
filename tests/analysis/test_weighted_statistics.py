from __future__ import annotations

import numpy as np
import pytest
from planted import labels_and_groups
from scipy import stats

from refusal_core.analysis.effect_sizes import auroc, cohens_d, range_overlap
from refusal_core.analysis.groups import bootstrap_counts, find_twins
from refusal_core.analysis.weighted_statistics import (
    auroc_of_ranks,
    tied_counts,
    weighted_accuracy,
    weighted_auroc,
    weighted_correlation,
    weighted_d,
    weighted_pair_accuracy,
    weighted_range_overlap,
    weighted_ranks,
)


@pytest.mark.parametrize("paired", [True, False])
def test_a_draw_counts_prompts_as_often_as_they_were_drawn(paired):
    rng = np.random.default_rng(3)
    labels, groups = labels_and_groups(30, paired)
    counts = bootstrap_counts(labels, groups, 20, rng)
    projections = rng.normal(size=(20, 30)).round(1)
    log_odds = rng.normal(size=30).round(1)
    harmful, harmless = counts * labels, counts * ~labels

    def accuracy(ours: np.ndarray, theirs: np.ndarray) -> float:
        return ((ours > 0).mean() + (theirs < 0).mean()) / 2

    measured = {
        accuracy: weighted_accuracy(projections, harmful, harmless),
        cohens_d: weighted_d(projections, harmful, harmless),
        auroc: weighted_auroc(projections, harmful, harmless),
        range_overlap: weighted_range_overlap(projections, harmful, harmless),
    }
    ranks = weighted_ranks(projections, counts)
    other_ranks = weighted_ranks(log_odds, counts)
    rho = weighted_correlation(ranks, other_ranks, counts)
    for draw in range(20):
        copies = np.repeat(np.arange(30), counts[draw].astype(int))
        values, of_label = projections[draw][copies], labels[copies]
        for statistic, found in measured.items():
            assert found[draw] == pytest.approx(statistic(values[of_label], values[~of_label]), abs=1e-9)
        assert rho[draw] == pytest.approx(stats.spearmanr(values, log_odds[copies]).statistic, abs=1e-9)
    if paired:
        assert (counts[:, 0::2] == counts[:, 1::2]).all()
        twins = find_twins(labels, groups)
        share = weighted_pair_accuracy(projections, twins, counts)
        copies = np.repeat(np.arange(15), counts[0, 0::2].astype(int))
        above = projections[0, 0::2][copies] - projections[0, 1::2][copies]
        assert share[0] == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
    assert (counts[:, labels].sum(axis=1) == 15).all()


def test_what_does_not_vary_or_lacks_a_label_has_no_number():
    harmful, harmless, nobody = np.array([[2.0, 1, 0, 0]]), np.array([[0.0, 0, 1, 2]]), np.zeros((1, 4))
    flat, spread = np.full((1, 4), 0.7), np.array([[1.0, 2, 3, 4]])
    assert np.isnan(weighted_d(flat, harmful, harmless)).all()
    assert weighted_auroc(flat, harmful, harmless) == 0.5
    with np.errstate(invalid="ignore"):
        for statistic in (weighted_d, weighted_auroc, weighted_accuracy):
            assert np.isnan(statistic(spread, harmful, nobody)).all(), statistic
    assert np.isnan(weighted_correlation(flat, spread, harmful + harmless)).all()
    assert np.isnan(weighted_correlation(spread, flat, harmful + harmless)).all()


def test_a_draw_without_projections_has_no_number():
    harmful, harmless = np.array([[1.0, 1, 0, 0]]), np.array([[0.0, 0, 1, 1]])
    projections = np.array([[1.0, 2.0, 3.0, 4.0], [np.nan, np.nan, np.nan, np.nan]])
    statistics = (weighted_d, weighted_auroc, weighted_accuracy, weighted_range_overlap)
    with np.errstate(invalid="ignore"):
        for statistic in statistics:
            np.testing.assert_array_equal(np.isnan(statistic(projections, harmful, harmless)), [False, True])
        pairs = weighted_pair_accuracy(projections, np.array([[0, 2], [1, 3]]), np.ones((2, 4)))
    np.testing.assert_array_equal(pairs, [0.0, np.nan])


def test_there_is_no_pair_accuracy_without_pairs():
    none = weighted_pair_accuracy(np.ones((3, 4)), np.empty((0, 2), dtype=int), np.ones((3, 4)))
    np.testing.assert_array_equal(none, [np.nan] * 3)


def test_pairs_count_as_often_as_they_are_drawn_and_ties_half():
    projections = np.array([[2.0, 1.0, 5.0, 5.0, 0.0, 3.0]])
    twins = np.array([[0, 1], [2, 3], [4, 5]])
    # Right 3 times, tied once, wrong twice.
    assert weighted_pair_accuracy(projections, twins, np.array([[3.0, 3, 1, 1, 2, 2]])) == pytest.approx(3.5 / 6)


def test_the_sides_of_0_weigh_the_same_for_both_labels():
    projections = np.array([[1.0, -1.0, 0.0, -2.0, -3.0, 4.0]])
    harmful, harmless = np.array([[2.0, 1, 1, 0, 0, 0]]), np.array([[0.0, 0, 0, 1, 3, 1]])
    # Two of four harmful ones above 0 (one lies on it), four of five harmless ones below.
    assert weighted_accuracy(projections, harmful, harmless) == pytest.approx((2 / 4 + 4 / 5) / 2)


def test_midranks_of_values_that_no_draw_changes_are_those_of_every_draw():
    rng = np.random.default_rng(8)
    values, counts = rng.integers(0, 5, 20).astype(float), rng.integers(0, 4, (6, 20)).astype(float)
    shared = weighted_ranks(values, counts)
    drawn = weighted_ranks(np.broadcast_to(values, counts.shape), counts)
    np.testing.assert_allclose(shared[counts > 0], drawn[counts > 0])
    for draw, often in enumerate(counts.astype(int)):
        copies = np.repeat(np.arange(20), often)
        np.testing.assert_allclose(shared[draw][copies], stats.rankdata(values[copies]))


def test_values_are_counted_in_ascending_order():
    counts = np.array([[1.0, 2, 0, 4], [0.0, 1, 1, 1]])
    np.testing.assert_array_equal(tied_counts(np.array([3.0, 1, 3, 2]), counts), [[2, 4, 1], [1, 1, 1]])
    distinct = tied_counts(np.array([3.0, 1, 4, 2]), counts)
    np.testing.assert_array_equal(distinct, [[2, 4, 1, 0], [1, 1, 0, 1]])
    distinct *= 0
    assert counts.any()


def test_the_area_is_the_share_of_right_comparisons():
    ranks = np.array([[1.0, 2.5, 2.5, 4.0]])
    harmful, harmless = np.array([[0.0, 1, 0, 1]]), np.array([[1.0, 0, 1, 0]])
    # Of four comparisons three are right and one is tied.
    assert auroc_of_ranks(ranks, harmful, harmless) == pytest.approx(3.5 / 4)
