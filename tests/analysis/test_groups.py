from __future__ import annotations

import numpy as np
import pytest

from refusal_core.analysis.groups import (
    ALL_PROMPTS,
    assign_folds,
    bootstrap_counts,
    find_twins,
    permute_labels,
    redraw_prompts,
    sample_groups,
)


def in_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(2 * n) % 2 == 0, np.repeat(np.arange(n).astype(str), 2)


def mixed(pairs: int, harmful: int, harmless: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, and prompts of either label that are in none."""
    labels = np.array([True, False] * pairs + [True] * harmful + [False] * harmless)
    return labels, np.r_[np.repeat(np.arange(pairs), 2), 100 + np.arange(harmful + harmless)]


def test_folds_keep_pairs_together_and_labels_even():
    labels, groups = in_pairs(25)
    for folds in assign_folds(labels, groups, folds=10, repeats=3, rng=np.random.default_rng(0)):
        assert (folds[0::2] == folds[1::2]).all()
        sizes = np.bincount(folds[labels])
        assert sizes.max() - sizes.min() <= 1
    a, b = (assign_folds(labels, groups, 10, 2, np.random.default_rng(seed)) for seed in (0, 1))
    assert (a != b).any()


def test_folds_are_fewer_when_groups_are():
    labels, groups = in_pairs(4)
    assert assign_folds(labels, groups, 10, 1, np.random.default_rng(0)).max() == 3


@pytest.mark.parametrize(("pairs", "harmful", "harmless"), [(7, 6, 5), (5, 3, 4), (1, 9, 6), (3, 5, 5)])
def test_folds_of_pairs_and_single_prompts_together_hold_each_label_evenly(pairs, harmful, harmless):
    labels, groups = mixed(pairs, harmful, harmless)
    for fold in assign_folds(labels, groups, folds=4, repeats=3, rng=np.random.default_rng(0)):
        assert (fold[0 : 2 * pairs : 2] == fold[1 : 2 * pairs : 2]).all()
        for label in (labels, ~labels):
            sizes = np.bincount(fold[label], minlength=4)
            assert sizes.max() - sizes.min() <= 1


def test_folds_are_dealt_anew_in_every_repeat_and_the_same_for_the_same_seed():
    labels, groups = mixed(6, 8, 8)
    dealt = assign_folds(labels, groups, 5, 3, np.random.default_rng(4))
    assert dealt.shape == (3, 28)
    assert (dealt[0] != dealt[1]).any()
    np.testing.assert_array_equal(dealt, assign_folds(labels, groups, 5, 3, np.random.default_rng(4)))


def test_there_are_no_folds_of_one_group():
    for labels, groups in (mixed(1, 0, 0), mixed(0, 1, 5), mixed(0, 5, 1)):
        assert assign_folds(labels, groups, 10, 2, np.random.default_rng(0)).shape == (0, len(labels))
    assert assign_folds(*mixed(0, 2, 5), 10, 2, np.random.default_rng(0)).max() == 1
    assert assign_folds(*mixed(0, 5, 2), 10, 2, np.random.default_rng(0)).max() == 1


def test_twins_are_groups_of_one_harmful_and_one_harmless_prompt():
    labels = np.array([False, True, True, False, True, True, False, False, True])
    groups = np.array(["b", "a", "c", "a", "b", "d", "e", "e", "f"])
    # c, d and f are single prompts, e holds one label twice.
    np.testing.assert_array_equal(find_twins(labels, groups), [[1, 3], [4, 0]])
    three = np.array(["a", "a", "a"])
    assert find_twins(np.array([True, False, False]), three).shape == (0, 2)


def test_a_sample_takes_each_kind_of_group_in_its_share():
    labels, groups = mixed(50, 60, 40)
    chosen = sample_groups(labels, groups, 50, np.random.default_rng(0))
    assert (np.diff(chosen) > 0).all()
    in_pair = chosen < 100
    assert (np.bincount(groups[chosen][in_pair]) != 1).all()
    # A quarter of each kind: 12 of 50 pairs, 15 of 60 harmful and 10 of 40 harmless prompts.
    assert in_pair.sum() == 24
    assert labels[chosen][~in_pair].sum() == 15
    assert (~labels[chosen][~in_pair]).sum() == 10
    other = sample_groups(labels, groups, 50, np.random.default_rng(1))
    assert (other.shape != chosen.shape) or (other != chosen).any()


def test_a_set_that_is_not_too_large_is_no_sample():
    labels, groups = mixed(5, 3, 2)
    assert sample_groups(labels, groups, 15, np.random.default_rng(0)) == ALL_PROMPTS
    assert len(sample_groups(labels, groups, 14, np.random.default_rng(0))) < 15
    # Of a rare kind two are taken, or all there are.
    labels, groups = mixed(0, 1, 99)
    assert labels[sample_groups(labels, groups, 10, np.random.default_rng(0))].sum() == 1
    labels, groups = mixed(0, 5, 95)
    assert labels[sample_groups(labels, groups, 10, np.random.default_rng(0))].sum() == 2


def test_a_bootstrap_draw_has_as_many_pairs_and_prompts_of_each_label_as_there_are():
    labels, groups = mixed(6, 5, 4)
    counts = bootstrap_counts(labels, groups, 400, np.random.default_rng(0))
    assert counts.shape == (400, 21)
    assert (counts[:, 0:12:2] == counts[:, 1:12:2]).all()
    for rows, size in ((slice(0, 12, 2), 6), (slice(12, 17), 5), (slice(17, 21), 4)):
        assert (counts[:, rows].sum(axis=1) == size).all()
        np.testing.assert_allclose(counts[:, rows].mean(axis=0), 1, atol=0.2)
        assert counts[:, rows].max() > 2


def test_single_prompts_are_redrawn_whatever_their_label():
    counts = redraw_prompts(7, 500, np.random.default_rng(0))
    assert counts.shape == (500, 7)
    assert counts.dtype == np.float64
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.2)


def test_of_few_pairs_every_flip_is_returned_once():
    labels, groups = in_pairs(3)
    order = permute_labels(labels, groups, 7, np.random.default_rng(0))
    assert order.shape == (7, 6)
    permuted = labels[order]
    assert len(np.unique(permuted, axis=0)) == 7
    assert (permuted != labels).any(axis=1).all()
    assert (permuted[:, 0::2] != permuted[:, 1::2]).all()
    # Of more than are wanted some are drawn, as of prompts that are not all in pairs.
    assert permute_labels(labels, groups, 6, np.random.default_rng(0)).shape == (6, 6)
    assert permute_labels(*mixed(3, 1, 1), 20, np.random.default_rng(0)).shape == (20, 8)


def test_groups_of_one_label_are_exchanged_with_others_of_their_size():
    # Two twins of one label each side, which may only change places with one another.
    labels = np.array([True, True, False, False, True, False, False])
    groups = np.array([0, 0, 1, 1, 2, 3, 4])
    order = permute_labels(labels, groups, 200, np.random.default_rng(0))
    assert (np.sort(order, axis=1) == np.arange(7)).all()
    permuted = labels[order]
    assert (permuted[:, 0] == permuted[:, 1]).all()
    assert (permuted[:, 0] != permuted[:, 2]).all()
    np.testing.assert_allclose(permuted.mean(axis=0), [0.5] * 4 + [1 / 3] * 3, atol=0.12)
