"""How many directions categories need, and which share one: planted, they are found; not planted, none is."""

from __future__ import annotations

import numpy as np
import pytest

from refusal_core.analysis import subspace
from refusal_core.analysis.gram import gram_matrix
from refusal_core.analysis.groups import assign_folds

N_CATEGORIES, PAIRS, WIDTH, DRAWS = 6, 20, 32, 199
N = 2 * PAIRS * N_CATEGORIES
CATEGORY = np.repeat(np.arange(N_CATEGORIES), 2 * PAIRS)
LABELS = np.arange(N) % 2 == 0
GROUPS = np.arange(N) // 2


def loadings(rank: int) -> np.ndarray:
    """``(category, direction)``: one direction for all, and others of which each is that of some categories alone."""
    matrix = np.zeros((N_CATEGORIES, rank))
    for direction in range(rank):
        matrix[:, direction] = 1.0 if direction == 0 else np.arange(N_CATEGORIES) % rank == direction
    return matrix


def planted(rank: int, seed: int, strength: float = 9.0) -> np.ndarray:
    """``(prompt, d_model)``: pairs that share a topic, harm along the directions of their category."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(N, WIDTH)) + np.repeat(rng.normal(size=(N // 2, WIDTH)), 2, axis=0) + 5
    hidden += rng.normal(size=(N_CATEGORIES, WIDTH))[CATEGORY]
    hidden[:, :rank] += strength * loadings(rank)[CATEGORY] * LABELS[:, None]
    return hidden.astype(np.float32)


def drawn(seed: int = 0, paired: bool = True) -> subspace.CategoryDraws:
    groups = GROUPS if paired else np.arange(N)
    fold = assign_folds(LABELS, groups, 10, 1, np.random.default_rng(seed))[0]
    names = tuple("abcdef")
    return subspace.draw_categories(names, CATEGORY, LABELS, groups, groups, fold, DRAWS, seed)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_as_many_directions_are_found_as_were_planted(rank, paired):
    left = [subspace.left_over(gram_matrix(planted(rank, seed)), drawn(seed, paired)) for seed in range(4)]
    assert np.median([subspace.rank_of(of_seed.p) for of_seed in left]) == rank


def test_nothing_is_found_where_nothing_is_more_often_than_by_chance():
    p = [subspace.left_over(gram_matrix(planted(0, seed)), drawn(seed)).p[0] for seed in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    assert 0.3 < np.mean(p) < 0.7


def test_what_is_left_after_the_planted_directions_is_no_more_than_chance():
    p = [subspace.left_over(gram_matrix(planted(2, seed)), drawn(seed)).p[2] for seed in range(20)]
    assert np.mean(np.array(p) <= 0.05) <= 0.2


def test_one_direction_leaves_little_once_it_is_projected_out():
    left = subspace.left_over(gram_matrix(planted(1, 0)), drawn())
    assert left.auroc[0] > 0.95
    assert left.auroc[1] < 0.6
    assert left.chance[0][1] < left.auroc[1] < left.chance[1][1]


def test_categories_with_one_direction_are_not_told_apart_and_those_with_two_are():
    of_one = subspace.likeness(gram_matrix(planted(1, 3)), drawn())
    assert (subspace.holm(np.array([pair.p_one for pair in of_one.values()])) > 0.05).all()
    hidden = planted(0, 3)
    # The first three along one direction, the others along another.
    hidden[np.arange(N), CATEGORY // 3] += 6 * LABELS
    of_two = subspace.likeness(gram_matrix(hidden), drawn())
    corrected = dict(zip(of_two, subspace.holm(np.array([pair.p_one for pair in of_two.values()])), strict=True))
    apart = {pair for pair, p in corrected.items() if p <= 0.05}
    assert apart == {(first, other) for first, other in of_two if first // 3 != other // 3}
    for pair, alike in of_two.items():
        assert alike.low <= alike.cosine <= alike.high
        assert (alike.cosine < alike.one_low) == (pair in apart)
        assert (alike.high < 0.7) == (pair in apart)


def test_the_cosine_is_that_of_the_two_differences_of_means():
    hidden = planted(2, 5)
    alike = subspace.likeness(gram_matrix(hidden), drawn())[1, 4]
    first, other = (
        hidden[(place == CATEGORY) & LABELS].astype(float).mean(0) - hidden[(place == CATEGORY) & ~LABELS].mean(0)
        for place in (1, 4)
    )
    assert alike.cosine == pytest.approx(first @ other / np.linalg.norm(first) / np.linalg.norm(other), abs=1e-5)


def test_constant_activations_have_no_direction_and_no_cosine():
    gram = gram_matrix(np.ones((N, WIDTH), np.float32))
    assert subspace.rank_of(subspace.left_over(gram, drawn()).p) == 0
    assert all(
        np.isnan([pair.cosine, pair.p_one, pair.one_low]).all() for pair in subspace.likeness(gram, drawn()).values()
    )


def test_exchanged_categories_keep_their_pairs_and_their_size():
    exchanged = drawn().exchanged[0, 1]
    assert (exchanged.sum(axis=1) == 2 * PAIRS).all()
    assert (exchanged[:, ::2] == exchanged[:, 1::2]).all()
    assert len(np.unique(exchanged, axis=0)) > DRAWS


def test_holm_corrects_the_smallest_most_and_keeps_the_order():
    assert subspace.holm(np.array([0.01, 0.5, np.nan, 0.02])) == pytest.approx([0.03, 0.5, np.nan, 0.04], nan_ok=True)
    assert subspace.holm(np.array([0.4, 0.4])) == pytest.approx([0.8, 0.8])
