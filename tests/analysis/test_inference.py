from __future__ import annotations

import numpy as np
import pytest
from planted import WIDTH, bootstrap_of, labels_and_groups, planted_run
from scipy import stats

from refusal_core.analysis.crossfit import crossfit
from refusal_core.analysis.effect_sizes import cohens_d
from refusal_core.analysis.gram import gram_matrices, gram_matrix
from refusal_core.analysis.groups import assign_folds, bootstrap_counts, permute_labels, redraw_prompts
from refusal_core.analysis.inference import (
    corrected_p,
    corrected_p_either_way,
    correlation_interval,
    detectable_from,
    detectable_interval,
    interval,
    permutation_p,
    share_interval,
    simultaneous_margin,
    smallest_significant,
)
from refusal_core.analysis.projections import contrast_weights, project_draws
from refusal_core.analysis.resampling import draw_bootstrap, draw_permutations
from refusal_core.analysis.weighted_statistics import weighted_d, weighted_ranks
from refusal_core.evidence import questions
from refusal_core.evidence.design import Contrast


def test_an_interval_has_the_draws_spread_around_the_estimate():
    # The draws' own 2.5 and 97.5 % lie at 2.5 and 97.5 around 50; the estimate is 70.
    draws = np.arange(101.0)[::-1]
    np.testing.assert_allclose(interval(draws, 70.0), [22.5, 117.5])
    np.testing.assert_allclose(interval(draws, 70.0, 30.0, 100.0), [30, 100])


def test_an_interval_exists_where_the_estimate_and_half_of_the_draws_do():
    draws = np.column_stack([np.arange(4.0)] * 4)
    draws[:2, 1], draws[:3, 2] = np.nan, np.inf
    found = interval(draws, np.array([1.5, 2.5, 1.5, np.nan]))
    np.testing.assert_allclose(found[:, :2], [[0.075, 2.025], [2.925, 2.975]])
    assert np.isnan(found[:, 2:]).all()
    assert np.isnan(interval(np.empty((0, 3)), np.ones(3))).all()
    assert interval(np.empty((0, 3)), np.ones(3)).shape == (2, 3)


def test_a_correlation_and_its_interval_are_those_of_the_drawn_prompts():
    rng = np.random.default_rng(3)
    values, others = rng.normal(size=30), rng.integers(0, 6, 30).astype(float)
    counts = np.vstack([np.ones(30), redraw_prompts(30, 50, rng)])
    found = correlation_interval(values, weighted_ranks(others, counts), counts)
    copies = [np.repeat(np.arange(30), often.astype(int)) for often in counts]
    rho = np.array([stats.spearmanr(values[rows], others[rows]).statistic for rows in copies])
    np.testing.assert_allclose(found, [rho[0], *interval(rho[1:], rho[0], -1, 1)], atol=1e-9)
    assert found[1] < found[0] < found[2]
    assert np.isnan(correlation_interval(values, weighted_ranks(np.ones(30), counts), counts)).all()


def test_a_permutation_p_value_counts_the_observed_labelling_too():
    null = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [np.nan, 8.0]])
    # Two of four reach 2; none reaches 9, which is not impossible.
    np.testing.assert_allclose(permutation_p(np.array([2.0, 9.0]), null), [3 / 5, 1 / 5])
    assert np.isnan(permutation_p(np.array([np.nan]), null[:, :1])).all()


def test_a_permutation_that_only_renames_the_labels_reaches_the_observed_number():
    null = np.array([[3.0 - 1e-10], [3.0 - 1e-7], [-3.0]])
    np.testing.assert_allclose(permutation_p(np.array([3.0]), null), [2 / 4])
    np.testing.assert_allclose(permutation_p(np.array([-3.0]), null - 6), [2 / 4])


def test_a_p_value_corrected_over_sites_is_of_the_largest_standardised_number():
    # Chance reaches ten times further at the second site, which must not hide the first.
    null = np.array([[0.0, 40.0], [1.0, 0.0], [2.0, 30.0], [3.0, 10.0]])
    observed = np.array([5.0, 20.0])
    everything = np.vstack([observed, null])
    standard = (everything - everything.mean(axis=0)) / everything.std(axis=0)
    largest = standard[1:].max(axis=1)
    by_hand = [(1 + sum(most >= value for most in largest)) / 5 for value in standard[0]]
    np.testing.assert_allclose(corrected_p(observed, null), by_hand)
    # At the first site no permutation comes near, at the second all but one do better.
    np.testing.assert_allclose(by_hand, [1 / 5, 4 / 5])
    in_other_units = corrected_p(observed * [1, 100], null * [1, 100])
    np.testing.assert_allclose(in_other_units, by_hand)


def test_sites_without_a_number_have_no_corrected_p_value_and_hide_no_other():
    null = np.array([[0.0, np.nan, 4.0], [1.0, 7.0, 4.0], [2.0, 8.0, 4.0]])
    found = corrected_p(np.array([3.0, np.nan, 4.0]), null)
    np.testing.assert_allclose(found, [1 / 4, np.nan, 1.0])
    assert np.isnan(corrected_p(np.full(3, np.nan), null)).all()


def test_a_p_value_either_way_is_twice_the_smaller_one_of_both_sides():
    null = np.array([[0.0, 40.0], [1.0, 0.0], [2.0, 30.0], [3.0, 10.0]])
    observed = np.array([5.0, 20.0])
    np.testing.assert_allclose(corrected_p_either_way(observed, null), [2 / 5, 1.0])
    np.testing.assert_allclose(corrected_p_either_way(-observed, -null), [2 / 5, 1.0])
    assert np.isnan(corrected_p_either_way(np.array([np.nan, 20.0]), null))[0]


def test_the_smallest_significant_number_is_where_the_corrected_test_begins_to_reject():
    rng = np.random.default_rng(0)
    null = rng.normal(size=(99, 3)) * [1.0, 5.0, 0.2] + [0.0, 1.0, 0.0]
    observed = np.array([0.5, 2.0, np.nan])
    needed = smallest_significant(observed, null, 0.05)
    assert np.isnan(needed[2])
    for site in range(2):
        for just, significant in ((0.999, False), (1.001, True)):
            # The observed number is one of the labellings, so what it is moves the threshold a little: iterate.
            tried = observed.copy()
            for _ in range(50):
                tried[site] = smallest_significant(tried, null, 0.05)[site] * just
            assert (corrected_p(tried, null)[site] <= 0.05) == significant
    assert np.isnan(smallest_significant(observed, null, 0.005)).all()
    assert np.isnan(smallest_significant(np.full(3, np.nan), null, 0.05)).all()


def test_of_eight_pairs_either_side_is_claimed_as_often_as_the_level_says():
    labels, groups = labels_and_groups(16)
    order = permute_labels(labels, groups, 1000, np.random.default_rng(0))
    permuted = labels[order].astype(float)
    rng = np.random.default_rng(1)
    too_high = too_low = 0
    for _ in range(600):
        values = rng.normal(size=(5, 16))
        null = np.stack([weighted_d(np.broadcast_to(row, permuted.shape), permuted, 1 - permuted) for row in values], 1)
        observed = weighted_d(values, labels[None] * 1.0, ~labels[None] * 1.0)
        significant = corrected_p_either_way(observed, null) <= 0.1
        too_high += (significant & (observed > 0)).any()
        too_low += (significant & (observed < 0)).any()
    assert 15 <= too_high <= 48
    assert 15 <= too_low <= 48


def test_margins_hold_for_all_numbers_at_once_of_few_groups_too():
    outside = dict.fromkeys((8, 32), 0)
    for n in outside:
        rng = np.random.default_rng(n)
        for _ in range(150):
            values = rng.normal(size=(n, 40))
            counts = rng.multinomial(n, np.full(n, 1 / n), size=199) / n
            mean = values.mean(axis=0)
            outside[n] += bool((np.abs(mean) > simultaneous_margin(counts @ values, mean, n)).any())
    # At the level 7.5 of 150; with the spread and the percentile of the draws alone 101 and 23.
    assert outside[8] <= 30
    assert outside[32] <= 18
    margins = simultaneous_margin(counts @ values[:, :3], mean[:3], np.array([1, 4, 32]))
    assert np.isnan(margins[0])
    assert np.isfinite(margins[1:]).all()


def test_a_number_is_detectable_from_the_first_site_from_which_the_bound_stays_above():
    assert detectable_from(np.array([1.0, -1, 0.1, 2, 3])) == 2
    assert detectable_from(np.array([0.0, 0.1, 2])) == 1
    assert detectable_from(np.array([0.1, 0.2])) == 0
    assert detectable_from(np.array([1.0, 2, 0.0])) is None
    assert detectable_from(np.array([1.0, np.nan, 2.0])) == 2
    assert detectable_from(np.array([0.5, 0.7, 0.8]), chance=0.6) == 1


def test_an_detectable_interval_gives_each_draw_the_estimates_margin():
    point, lower = np.array([0.0, 2.0, 4.0]), np.array([-1.0, 1.0, 3.0])
    # Draws that lie 0, 1.5 and 3.5 lower everywhere around their own median: first sites 1, 1 and 2 of 3.
    shift = np.array([0.0, -0.9, 0.9, -2.5, 1.5])
    draws = 10 + point + shift[:, None]
    # The margin is 1: a site counts where the recentred draw is above 1, at sites 1, 1, 1, 2 and 0.
    assert detectable_interval(draws, point, lower) == (0, 2)
    never = np.array([10.0, 10, 10, -90, 10])[:, None] + point
    assert detectable_interval(never, point, lower) == (1, None)


def test_the_planted_layer_is_the_first_detectable_one_in_95_of_100_seeds():
    n_sites, planted_at, right, covered = 8, 4, 0, 0
    labels, groups = labels_and_groups(48)
    for seed in range(100):
        strengths = [0.0] * planted_at + [2.5] * (n_sites - planted_at)
        hidden, _ = planted_run(seed, strengths, n=48, n_probes=48)
        bootstrap = bootstrap_of(labels, groups, 200, seed)
        counts = bootstrap_counts(labels, groups, 200, np.random.default_rng([seed, 1]))
        point, draws = np.empty(n_sites), np.empty((200, n_sites))
        for site in range(n_sites):
            grams = gram_matrices(hidden[:, site], np.arange(96) < 48)
            gram, cross = grams[:48, :48], grams[:48, 48:]
            probes = project_draws(gram, contrast_weights(labels[None], ~labels[None]), cross)[0]
            point[site] = cohens_d(probes[labels], probes[~labels])
            drawn = project_draws(gram, bootstrap.weights, cross)
            draws[:, site] = weighted_d(drawn, counts * labels, counts * ~labels)
        lower = interval(draws, point)[0]
        right += detectable_from(lower) == planted_at
        low, high = detectable_interval(draws, point, lower)
        covered += low is not None and low <= planted_at and (high is None or high >= planted_at)
    assert right >= 95
    assert covered >= 95


@pytest.mark.parametrize("paired", [True, False])
def test_shuffled_labels_give_intervals_that_cover_0_and_uniform_p_values(paired):
    labels, groups = labels_and_groups(40, paired)
    outside, p_values = 0, []
    fold = assign_folds(labels, groups, 10, 1, np.random.default_rng(0))
    for seed in range(200):
        rng = np.random.default_rng([seed, 7])
        # Pairs share most of what they are; strong and weak dimensions.
        pair = np.repeat(rng.normal(size=(20, WIDTH)), 2, axis=0) if paired else 0.0
        gram = gram_matrix((rng.normal(size=(40, WIDTH)) + pair) * np.linspace(0.1, 2, WIDTH))
        drawn = draw_bootstrap(labels, groups, fold, 100, rng)
        bootstrap_d = weighted_d(drawn.project_held_out(gram), drawn.harmful, drawn.harmless)
        low, high = interval(bootstrap_d, crossfit(gram, labels, groups, repeats=2).d)
        outside += not low <= 0 <= high
        permutations = draw_permutations(labels, groups, fold, 199, rng)
        none = np.empty((0, 40), dtype=int)
        contrast = Contrast(labels, groups, groups, np.ones(40), np.ones(40), none, 10, 1, 0, drawn, permutations)
        observed = questions.does_it_fit(gram, contrast)[0]["in_sample_d"]
        null = questions.is_it_chance(gram, contrast)[1]
        p_values.append(permutation_p(np.array([observed]), null[:, None])[0])
    assert outside <= 16
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_the_family_wise_error_of_corrected_p_values_is_5_percent():
    labels, groups = labels_and_groups(32, paired=False)
    fold = assign_folds(labels, groups, 4, 1, np.random.default_rng(0))
    weights = contrast_weights(labels[None], ~labels[None])
    counted = labels[None].astype(float)
    rejected = uncorrected = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 8])
        permutations = draw_permutations(labels, groups, fold, 99, rng)
        observed, null = [], []
        for site in range(10):
            # From 2 to 20 dimensions, so that chance reaches further at some sites than at others.
            gram = gram_matrix(rng.normal(size=(32, 2 + 2 * site)))
            observed.append(weighted_d(project_draws(gram, weights), counted, 1 - counted)[0])
            null.append(weighted_d(permutations.project(gram), permutations.harmful, permutations.harmless))
        observed, null = np.array(observed), np.stack(null, axis=1)
        corrected = corrected_p(observed, null)
        single = permutation_p(observed, null)
        assert (corrected >= single - 1e-12).all() or corrected.min() >= single.min()
        rejected += corrected.min() <= 0.05
        uncorrected += single.min() <= 0.05
    assert 4 <= rejected <= 27
    assert uncorrected > 80


def test_the_interval_of_a_share_is_exact():
    low, high = share_interval(np.array([0, 8, 16, np.nan]), 16)
    # R: binom.test(0, 16), (8, 16), (16, 16).
    np.testing.assert_allclose(low, [0, 0.24651, 0.79409, np.nan], atol=1e-5)
    np.testing.assert_allclose(high, [0.20591, 0.75349, 1, np.nan], atol=1e-5)
    for share in (0.05, 0.4):
        counts = np.arange(31)
        low, high = share_interval(counts, 30)
        assert stats.binom.pmf(counts[(low <= share) & (share <= high)], 30, share).sum() >= 0.95
