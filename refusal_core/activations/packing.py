"""Which prompts are run together, and how a pack of them is laid out: pure functions of token ids, without torch.

A pack holds prompts one behind the other, without padding. What several of them begin with stands there once, as in
tree attention (Miao et al. 2024, SpecInfer): a token attends only to what comes before it in its own prompts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

TokenIds = Sequence[int] | np.ndarray
"""Token ids of one prompt; an array takes a fraction of the memory of a list."""


@dataclass(frozen=True)
class Pack:
    """Prompts one behind the other.

    Attributes:
        tokens: token ids.
        depths: per token, how many tokens come before it in its prompts.
        ends: per token, the end (exclusive) of the range of tokens that may attend to it.
        paths: per prompt, the indices of its tokens in the pack.
    """

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    paths: list[list[int]]


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Packs of about one length as the rows of a batch.

    Attributes:
        token_ids: ``(pack, token)`` int64, 0 behind the end of a pack.
        positions: ``(pack, token)`` int64, each token's position in its prompts, tokens before the pack included.
        ends: ``(pack, token)`` int64, see :class:`Pack`; padding attends only to itself.
        token_index: ``(prompt, token)`` int64, where the last tokens of each prompt lie in the flattened batch.
        branch_index: ``(prompt, token)`` int64, where the tokens of the branches behind each prompt lie in it.
        pack_index: ``(prompt,)`` int64, the pack of each prompt.
        paths: per prompt, the indices of its tokens in its pack.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    token_index: np.ndarray
    branch_index: np.ndarray
    pack_index: np.ndarray
    paths: list[list[int]]


def lay_out(sequences: Sequence[list[int]]) -> Pack:
    """Return the pack of prompts that are sorted by how they begin, as :func:`group_into_packs` gives them."""
    pack = Pack([], [], [], [])
    previous: list[int] = []
    path: list[int] = []
    for ids in sequences:
        n_shared = len(common_prefix(previous, ids))
        for index in path[n_shared:]:
            pack.ends[index] = len(pack.tokens)
        path = path[:n_shared]
        for token in ids[n_shared:]:
            pack.depths.append(len(path))
            path.append(len(pack.tokens))
            pack.tokens.append(token)
            pack.ends.append(0)
        pack.paths.append(path)
        previous = ids
    for index in path:
        pack.ends[index] = len(pack.tokens)
    return pack


def pack_batch(
    sequences: Sequence[list[int]],
    last: int,
    pack_tokens: int,
    n_before: int = 0,
    multiple_of: int = 1,
    branches: Sequence[list[int]] = (),
) -> PackedBatch:
    """Lay prompts out in packs of about one length, as few as their token limit allows.

    Args:
        sequences: token ids of each prompt, without those whose keys and values are known.
        last: how many tokens at the end of each prompt are indexed; fewer where a prompt has fewer.
        pack_tokens: most tokens in a pack, unless one prompt is longer.
        n_before: tokens before each prompt whose keys and values are known.
        multiple_of: what ``n_before`` and the length of the packs add up to a multiple of.
        branches: sorted continuations, each behind every prompt.
    """
    n_branch = distinct_tokens(branches)
    last = min(last, *map(len, sequences))
    # The longest prompt makes all packs as long as it is, so the others may fill theirs too.
    limit = max(pack_tokens, *(len(ids) + n_branch for ids in sequences))
    groups = list(group_into_packs(sequences, 0, limit, balanced=True, n_behind=n_branch))
    ways = branches or [[]]
    packs = [lay_out([[*sequences[row], *way] for row in group for way in ways]) for group in groups]
    length = max(len(pack.tokens) for pack in packs)
    length += -(n_before + length) % multiple_of
    token_ids, positions = np.zeros((2, len(packs), length), dtype=np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(packs), 1))
    token_index = np.empty((len(sequences), last), dtype=np.int64)
    branch_index = np.empty((len(sequences), n_branch), dtype=np.int64)
    pack_index = np.empty(len(sequences), dtype=np.int64)
    paths: list[list[int]] = [[]] * len(sequences)
    for number, (group, pack) in enumerate(zip(groups, packs, strict=True)):
        n_tokens = len(pack.tokens)
        token_ids[number, :n_tokens] = pack.tokens
        positions[number, :n_tokens] = np.array(pack.depths) + n_before
        ends[number, :n_tokens] = pack.ends
        for place, row in enumerate(group.tolist()):
            own = pack.paths[place * len(ways) : (place + 1) * len(ways)]
            n_own = len(sequences[row])
            pack_index[row], paths[row] = number, own[0][:n_own]
            token_index[row] = number * length + np.array(paths[row][-last:])
            branch_index[row] = number * length + np.unique([index for path in own for index in path[n_own:]])
    return PackedBatch(token_ids, positions, ends, token_index, branch_index, pack_index, paths)


def group_by_length(n_tokens: np.ndarray, n_before: int, token_limit: int) -> Iterator[np.ndarray]:
    """Yield rows of prompts of one length, the longest first, each group at most ``token_limit`` new tokens.

    Args:
        n_tokens: ``(prompt,)`` number of tokens of each prompt.
        n_before: how many of them need not be run.
        token_limit: most new tokens in a group, unless one prompt is longer.
    """
    waiting = np.argsort(-n_tokens, kind="stable")
    while len(waiting):
        length = n_tokens[waiting[0]]
        rows = waiting[: max(1, token_limit // max(1, length - n_before))]
        rows = rows[n_tokens[rows] == length]
        yield rows
        waiting = waiting[len(rows) :]


def group_into_packs(
    sequences: Sequence[TokenIds], n_before: int, token_limit: int, balanced: bool = False, n_behind: int = 0
) -> Iterator[np.ndarray]:
    """Yield rows of prompts for one pack each, with prompts that begin alike next to each other.

    Args:
        sequences: token ids of each prompt.
        n_before: how many of each prompt's tokens need not be run.
        token_limit: most new tokens in a pack, unless one prompt is longer.
        balanced: give the packs about equal lengths, without making more of them.
        n_behind: tokens that are run behind each prompt.
    """
    rows, alone, behind = _sort_by_beginning(sequences, n_before, n_behind)
    if balanced:
        token_limit = _balanced_limit(alone, behind, token_limit)
    for start, end in _pack_bounds(alone, behind, token_limit):
        yield np.array(rows[start:end])


def balanced_token_limit(sequences: Sequence[TokenIds], n_before: int, token_limit: int, n_parallel: int) -> int:
    """Return the token limit that gives all parallel batches equal work, at most ``token_limit``.

    Args:
        sequences: token ids of each prompt.
        n_before: how many of each prompt's tokens need not be run.
        token_limit: most new tokens in a batch.
        n_parallel: how many batches are read at the same time.
    """
    _, alone, behind = _sort_by_beginning(sequences, n_before)
    return _balanced_limit(alone, behind, token_limit, n_parallel)


def distinct_tokens(sequences: Sequence[list[int]]) -> int:
    """Count the tokens that have to be run: those that no other sequence has after the same beginning."""
    n_shared = sum(len(common_prefix(*pair)) for pair in pairwise(sorted(sequences)))
    return sum(map(len, sequences)) - n_shared


def common_prefix(first: list[int], second: list[int]) -> list[int]:
    """Return the longest beginning that two sequences of token ids share."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return first[:length]


def _sort_by_beginning(
    sequences: Sequence[TokenIds], n_before: int, n_behind: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """Return rows with prompts that begin alike next to each other, and the new tokens of each in a pack.

    Returns:
        The rows; new tokens of each as the first prompt of a pack; new tokens of each behind the prompt before it.
    """
    arrays = [np.asarray(ids, dtype=np.int32) for ids in sequences]
    # As bytes the ids are not in the order of numbers, but those that begin alike are together.
    rows = sorted(range(len(arrays)), key=lambda row: arrays[row].tobytes())
    alone, behind, previous = [], [], list[int]()
    for row in rows:
        ids = arrays[row].tolist()
        alone.append(len(ids) - n_before + n_behind)
        behind.append(len(ids) - max(n_before, len(common_prefix(previous, ids))) + n_behind)
        previous = ids
    return rows, alone, behind


def _balanced_limit(alone: list[int], behind: list[int], token_limit: int, multiple_of: int = 1) -> int:
    """Return the smallest token limit that needs no more packs than ``token_limit`` does.

    Args:
        alone: see :func:`_pack_bounds`.
        behind: see :func:`_pack_bounds`.
        token_limit: most new tokens in a pack.
        multiple_of: what the number of packs is rounded up to a multiple of.
    """

    def n_packs(limit: int) -> int:
        return sum(1 for _ in _pack_bounds(alone, behind, limit))

    wanted = math.ceil(n_packs(token_limit) / multiple_of) * multiple_of
    return bisect_left(range(1, token_limit), True, key=lambda limit: n_packs(limit) <= wanted) + 1


def _pack_bounds(alone: list[int], behind: list[int], token_limit: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each pack in the sorted prompts.

    Args:
        alone: new tokens of each prompt as the first of a pack.
        behind: new tokens of each prompt behind the one before it.
        token_limit: most new tokens in a pack.
    """
    start, n_tokens = 0, 0
    for index, (first, new) in enumerate(zip(alone, behind, strict=True)):
        if index > start and n_tokens + new > token_limit:
            yield start, index
            start, n_tokens = index, first
        else:
            n_tokens += new if index > start else first
    if alone:
        yield start, len(alone)
