"""Packs: every prompt once, what begins alike once, and nothing seen that is not a prompt's own."""

from __future__ import annotations

import numpy as np
import pytest

from refusal_core.activations.packing import (
    balanced_token_limit,
    distinct_tokens,
    group_by_length,
    group_into_packs,
    lay_out,
    pack_batch,
)


def test_every_prompt_is_in_one_batch_of_its_length():
    n_tokens = np.random.default_rng(0).integers(30, 90, 500)
    found = list(group_by_length(n_tokens, 20, 512))
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    for rows in found:
        assert len(set(n_tokens[rows].tolist())) == 1
        assert (n_tokens[rows] - 20).sum() <= 512
    assert len(list(group_by_length(n_tokens, 20, 10))) == 500


def test_every_prompt_is_in_one_pack_beside_those_that_begin_alike():
    generator = np.random.default_rng(0)
    template = [7] * 20
    prompts = [[*template, *generator.integers(0, 3, generator.integers(5, 70)).tolist()] for _ in range(500)]
    found = list(group_into_packs(prompts, 20, 512))
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    for rows in found:
        beginnings = {tuple(prompts[row][:length]) for row in rows for length in range(21, len(prompts[row]) + 1)}
        assert len(beginnings) <= 512
    needed = len({tuple(ids[:length]) for ids in prompts for length in range(21, len(ids) + 1)})
    assert len(found) <= needed / 512 * 1.1 + 1
    assert len(list(group_into_packs(prompts, 20, 1))) == 500


def test_in_a_pack_a_token_may_attend_to_what_comes_before_it_in_its_own_prompts():
    prompts = [[5, 6, 7], [5, 6, 8, 9], [5, 6], [4, 6]]
    pack = lay_out(prompts)
    assert (pack.tokens, pack.depths) == ([5, 6, 7, 8, 9, 4, 6], [0, 1, 2, 2, 3, 0, 1])
    assert [[pack.tokens[index] for index in path] for path in pack.paths] == prompts
    seen = [[index for index in range(place + 1) if place < pack.ends[index]] for place in range(7)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5], [5, 6]]


def own_tokens(count: int) -> list[list[int]]:
    """Prompts of several lengths, some of which begin alike."""
    generator = np.random.default_rng(0)
    beginnings = [generator.integers(1, 9, 4).tolist() for _ in range(5)]
    return [
        [*beginnings[number % 5], *generator.integers(10, 99, generator.integers(3, 40)).tolist()]
        for number in range(count)
    ]


def test_a_batch_says_what_each_token_is_and_where_prompts_end():
    prompts = own_tokens(60)
    batch = pack_batch(prompts, 3, 300, n_before=7)
    assert len(batch.token_ids) > 2
    tokens, positions, ends = (part.ravel() for part in (batch.token_ids, batch.positions, batch.ends))
    length = batch.token_ids.shape[1]
    for row, ids in enumerate(prompts):
        assert tokens[batch.token_index[row]].tolist() == ids[-3:]
        assert positions[batch.token_index[row]].tolist() == [7 + len(ids) - 3, 7 + len(ids) - 2, 7 + len(ids) - 1]
        last = batch.token_index[row, -1]
        pack, place = last // length, last % length
        seen = [index for index in range(place + 1) if place < batch.ends[pack, index]]
        assert batch.token_ids[pack, seen].tolist() == ids
    # Padding attends to itself alone: a row of which nothing is seen would be no number.
    padding = tokens == 0
    assert padding.any()
    assert (ends[padding] == np.tile(np.arange(1, length + 1), len(batch.token_ids))[padding]).all()


def test_of_short_prompts_fewer_last_tokens_are_indexed():
    assert pack_batch([[1, 2], [1, 3, 4]], 5, 100).token_index.shape == (2, 2)


def test_packs_side_by_side_are_about_equally_long():
    prompts = own_tokens(60)
    batch = pack_batch(prompts, 1, 300)
    used = (batch.token_ids > 0).sum(axis=1)
    assert len(used) > 2
    assert batch.token_ids.shape[1] <= 300
    assert used.min() > 0.75 * used.max()
    assert len(set(batch.token_index.ravel().tolist())) == len(prompts)


def test_packs_are_as_long_as_is_asked_for():
    for n_before in range(9):
        lengths = {
            multiple: pack_batch(own_tokens(9), 1, 300, n_before, multiple).token_ids.shape[1] for multiple in (1, 8)
        }
        assert (n_before + lengths[8]) % 8 == 0
        assert 0 <= lengths[8] - lengths[1] < 8


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_batch_of_whole_packs_is_hardly_padded(count):
    prompts = own_tokens(200)
    tokens = distinct_tokens(prompts)
    # What packs begin with is run in each of them, so one pack more than this is needed.
    ids = pack_batch(prompts, 1, tokens // count).token_ids
    assert len(ids) == count + 1
    assert ids.size < 1.15 * tokens


def test_one_long_prompt_does_not_make_a_batch_mostly_padding():
    prompts = [*own_tokens(60), list(range(100, 400))]
    ids = pack_batch(prompts, 1, 60).token_ids
    assert len(ids) > 1
    assert ids.shape[1] == 300
    assert ids.size < distinct_tokens(prompts) + 300


def test_the_balanced_limit_needs_as_many_batches_as_are_read_in_parallel():
    prompts = own_tokens(200)
    for n_parallel in (1, 2, 3, 4):
        limit = balanced_token_limit(prompts, 0, 600, n_parallel)
        groups = list(group_into_packs(prompts, 0, limit))
        sizes = [distinct_tokens([prompts[row] for row in rows]) for rows in groups]
        assert len(groups) % n_parallel == 0
        assert limit <= 600
        assert max(sizes) < 1.2 * min(sizes)


def test_branches_stand_behind_every_prompt_and_see_it():
    prompts, branches = own_tokens(30), [[200, 201], [200, 202, 203], [204]]
    batch = pack_batch(prompts, 1, 150, n_before=5, branches=branches)
    length = batch.token_ids.shape[1]
    assert len(batch.token_ids) > 2
    for row, ids in enumerate(prompts):
        pack = batch.pack_index[row]
        assert batch.token_ids[pack, batch.paths[row]].tolist() == ids
        seen = []
        for index in batch.branch_index[row].tolist():
            assert index // length == pack
            place = index % length
            before = [other for other in range(place + 1) if place < batch.ends[pack, other]]
            seen.append(batch.token_ids[pack, before].tolist())
            assert batch.positions[pack, place] == 5 + len(seen[-1]) - 1
        beginnings = [[200], [200, 201], [200, 202], [200, 202, 203], [204]]
        assert seen == [[*ids, *branch] for branch in beginnings]
