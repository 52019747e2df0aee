"""What follows prompts: probabilities of given phrases, and the likeliest tokens, of prompts of several lengths.

Prompts are read in packs, with the phrases as branches of a tree behind each of them. Then a pass per token continues
all prompts that go on, a row per prompt (:class:`~refusal_core.models.row_cache.RowCache`); what the tree has run
already is not run again. Prompts that may not be packed are read with others of their length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Cache

from refusal_core.activations import limits
from refusal_core.activations.checks import UNSUPPORTED
from refusal_core.activations.engine import DoesNotFitError
from refusal_core.activations.hooks import changed_head_input, narrowed_last_mlp, select_tokens
from refusal_core.activations.packing import PackedBatch, group_by_length, group_into_packs, pack_batch
from refusal_core.activations.prefix import CachedPrefix
from refusal_core.activations.reader import ResidualReader, pack_mask
from refusal_core.activations.token_tree import TokenTree
from refusal_core.activations.transfers import to_device
from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.models.row_cache import RowCache, growing_cache
from refusal_core.models.transformers_internals import repeat_cache

_SELECT_BELOW = 7 / 8
"""The share of rows that go on below which the others are taken out of the batch, which copies those that go on."""
_PLAIN_BATCHES = 4
"""How many times the tokens of a batch are read together without packs: a token more costs all weights to be read."""

Ends = Callable[[list[int]], bool]
"""Says whether a continuation is complete with its last token."""


@dataclass(frozen=True, eq=False)
class Continuations:
    """What follows some prompts.

    Attributes:
        rows: ``(prompt,)``, which prompts.
        log_odds: ``(prompt,)`` float64, see :meth:`.TokenTree.log_odds`.
        tokens: per prompt, the likeliest tokens, the one that ends it included.
    """

    rows: np.ndarray
    log_odds: np.ndarray
    tokens: list[list[int]]


def continue_prompts(
    reader: ResidualReader,
    sequences: Sequence[list[int]],
    tree: TokenTree,
    n_tokens: int,
    ends: Ends,
    known: Callable[[np.ndarray], Continuations | None] = lambda rows: None,
) -> Iterator[Continuations]:
    """Continue prompts, a batch after the other; a device that runs out of memory gets smaller batches.

    Args:
        reader: reads the prompts.
        sequences: token ids of each prompt.
        tree: phrases whose probability is wanted.
        n_tokens: most tokens of each continuation.
        ends: whether a continuation is complete.
        known: returns what is known already of a batch, by its rows, or ``None``. The batches of a request are always
            the same, unless the device runs out of memory.

    Raises:
        DoesNotFitError: when one prompt alone does not fit into the device's memory.
    """
    may_pack = reader.may_pack(np.array([len(ids) for ids in sequences]) + n_tokens) & reader.keeps_all_tokens
    waiting = [(rows, bool(may_pack[rows[0]])) for rows in _batches(reader, sequences, may_pack, n_tokens)]
    while waiting:
        rows, packed = waiting.pop(0)
        part = [sequences[row] for row in rows.tolist()]
        before = known(rows)
        if before is not None:
            yield before
            continue
        try:
            with torch.inference_mode(), continuing(reader.chat_model):
                log_odds, tokens = (_in_packs if packed else _in_rows)(reader, part, tree, n_tokens, ends)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise DoesNotFitError(
                    f"a prompt of {len(part[0])} tokens and its reply do not fit into the memory of "
                    f"{reader.chat_model.device} beside the model; choose a smaller model or another device"
                ) from error
            waiting[:0] = [(half, packed) for half in np.array_split(rows, 2)]
            continue
        yield Continuations(rows, log_odds, tokens)


def greedy_tokens(
    chat_model: ChatModel, logits: torch.Tensor, cache: Cache, n_before: int, n_tokens: int, ends: Ends
) -> list[list[int]]:
    """Return the likeliest tokens after prompts of one length, until they are complete.

    Args:
        chat_model: the model that has read the prompts.
        logits: ``(prompt, vocabulary)`` at the first token.
        cache: keys and values of the prompts; continued in place.
        n_before: tokens of each prompt.
        n_tokens: most tokens of each continuation.
        ends: whether a continuation is complete.
    """
    tokens: list[list[int]] = [[] for _ in range(len(logits))]
    n_read = n_before
    going = set(range(len(tokens)))
    while True:
        likeliest = logits.argmax(dim=-1)
        for row, token in enumerate(likeliest.tolist()):
            if row in going:
                tokens[row].append(token)
        going = {row for row in going if len(tokens[row]) < n_tokens and not ends(tokens[row])}
        if not going:
            return tokens
        logits = continue_by_one(chat_model, likeliest[:, None], cache, n_read)[:, -1]
        n_read += 1


def continue_by_one(chat_model: ChatModel, token_ids: torch.Tensor, cache: Cache, n_before: int) -> torch.Tensor:
    """Return the logits ``(row, 1, vocabulary)`` after one more token per row; the cache is continued in place.

    Args:
        chat_model: the model.
        token_ids: ``(row, 1)``.
        cache: keys and values of the tokens before.
        n_before: how many tokens each row has before.
    """
    options = {}
    if chat_model.is_recurrent:
        # Bamba and MiniMax count positions from 0 again where they are not told.
        options["position_ids"] = torch.full_like(token_ids, n_before)
    logits: torch.Tensor = chat_model.model(token_ids, past_key_values=cache, use_cache=True, **options).logits
    return logits


def _batches(
    reader: ResidualReader, sequences: Sequence[list[int]], may_pack: np.ndarray, n_tokens: int
) -> Iterator[np.ndarray]:
    """Yield rows of prompts to continue together: as many as there is memory for their keys and values."""
    chat_model = reader.chat_model
    packed, apart = np.flatnonzero(may_pack), np.flatnonzero(~may_pack)
    own = [sequences[row] for row in packed.tolist()]
    prefix = reader.shared_prefix(own) if own else None
    n_before = len(prefix.token_ids) if prefix is not None else 0
    limit = max(1, int(limits.HELD_BYTES[limits.device_type(chat_model)] / reader.cache_bytes_per_token))
    # Each row holds the template's opening and room for what is to follow.
    for rows in group_into_packs(own, n_before, limit, balanced=True, n_behind=n_before + n_tokens):
        yield packed[rows]
    n_apart = np.array([len(sequences[row]) for row in apart.tolist()], dtype=int)
    size = _PLAIN_BATCHES * limits.BATCH_TOKENS[limits.device_type(chat_model)]
    for rows in group_by_length(n_apart, 0, size):
        yield apart[rows]


@contextmanager
def continuing(chat_model: ChatModel) -> Iterator[None]:
    """Say of a model that hands a state on where transformers does not continue it.

    Raises:
        ModelError: in place of what transformers raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNSUPPORTED as error:
        if not chat_model.is_recurrent:
            raise
        raise ModelError(
            f"{chat_model.info.name} hands a state on from token to token, which transformers does not continue "
            f"({type(error).__name__}): its activations can be read, its replies cannot be continued."
        ) from error


def _in_rows(
    reader: ResidualReader, sequences: list[list[int]], tree: TokenTree, n_tokens: int, ends: Ends
) -> tuple[np.ndarray, list[list[int]]]:
    """Continue prompts of one length; the branches of the tree are run one length after the other."""
    logits, cache = reader.open_reply(sequences)
    after: dict[tuple[int, ...], torch.Tensor] = {(): logits}
    for length in sorted({len(branch) for branch in tree.branches}):
        alike = [branch for branch in tree.branches if len(branch) == length]
        continued = copy.deepcopy(cache)
        repeat_cache(continued, len(alike))
        given = torch.tensor(alike, device=logits.device).repeat(len(logits), 1)
        later = _continue(reader.chat_model, given, continued, len(sequences[0]))
        later = later.view(len(logits), len(alike), length, -1)
        for which, branch in enumerate(alike):
            after |= {tuple(branch[: end + 1]): later[:, which, end] for end in range(length)}
    log_odds = tree.log_odds(torch.stack([after[node] for node in tree.nodes], dim=1)).cpu().numpy()
    return log_odds, greedy_tokens(reader.chat_model, logits, cache, len(sequences[0]), n_tokens, ends)


def _continue(chat_model: ChatModel, token_ids: torch.Tensor, cache: Cache, n_before: int) -> torch.Tensor:
    """Return the logits after each of some tokens ``(row, token, vocabulary)``, float32; the cache is continued."""
    if not chat_model.is_recurrent:
        logits: torch.Tensor = chat_model.model(token_ids, past_key_values=cache, use_cache=True).logits
        return logits.float()
    # Some recurrent layers take a state into account only when they are given one token.
    steps = enumerate(token_ids.split(1, dim=1), n_before)
    return torch.cat([continue_by_one(chat_model, step, cache, n_read).float() for n_read, step in steps], dim=1)


def _in_packs(
    reader: ResidualReader, sequences: list[list[int]], tree: TokenTree, n_tokens: int, ends: Ends
) -> tuple[np.ndarray, list[list[int]]]:
    """Continue prompts of several lengths."""
    prefix = reader.shared_prefix(sequences)
    n_before = len(prefix.token_ids) if prefix is not None else 0
    own = [ids[n_before:] for ids in sequences]
    depth = max(map(len, tree.branches), default=0)
    longest = max(map(len, sequences)) + min(depth, n_tokens - 1)
    cache = RowCache(len(own), longest, n_tokens - 1)
    order: list[int] = []
    log_odds = np.empty(len(own))
    lengths: list[int] = []
    tokens: list[list[int]] = []
    for group in group_into_packs(own, 0, reader.batch_tokens, n_behind=len(tree.nodes) - 1):
        rows = group.tolist()
        batch, logits, keys_and_values = _read_tree(reader.chat_model, [own[row] for row in rows], tree, prefix)
        # One prompt after the other: many logits in float32 would be more than a gigabyte.
        log_odds[group] = torch.cat([tree.log_odds(one) for one in torch.split(logits, 1)]).cpu().numpy()
        paths = []
        # torch takes five times as long for argmax of bfloat16.
        for place, likeliest in enumerate(logits.max(dim=-1).indices.tolist()):
            path_tokens, nodes = tree.greedy(likeliest)
            end = next((end for end in range(1, len(path_tokens)) if ends(path_tokens[:end])), len(path_tokens))
            tokens.append(path_tokens[: min(end, n_tokens)])
            branch = batch.branch_index[place, [node - 1 for node in nodes[: len(tokens[-1]) - 1]]]
            path = [*batch.paths[place], *(branch % batch.token_ids.shape[1]).tolist()]
            paths.append([*range(n_before), *(n_before + index for index in path)])
        index = np.zeros((len(rows), max(map(len, paths))), dtype=np.int64)
        for place, path in enumerate(paths):
            index[place, : len(path)] = path
        filled = slice(len(order), len(order) + len(rows))
        cache.fill(filled, keys_and_values, torch.from_numpy(batch.pack_index), torch.from_numpy(index))
        order += rows
        lengths += map(len, paths)
    continue_rows(reader.chat_model, cache, lengths, longest, tokens, n_tokens, ends)
    return log_odds, [tokens[place] for place in np.argsort(order).tolist()]


def _read_tree(
    chat_model: ChatModel, own: list[list[int]], tree: TokenTree, prefix: CachedPrefix | None
) -> tuple[PackedBatch, torch.Tensor, Cache]:
    """Run prompts in packs, each with the tree behind it.

    Returns:
        How they were laid out, the logits ``(prompt, node, vocabulary)`` after each node, and keys and values.
    """
    kind, device = limits.device_type(chat_model), chat_model.device
    n_before = len(prefix.token_ids) if prefix is not None else 0
    batch = pack_batch(own, 1, limits.PACK_TOKENS[kind], n_before, limits.PACK_MULTIPLE[kind], tree.branches)
    cache = growing_cache(prefix.cache if prefix is not None else None, len(batch.token_ids))
    wanted = np.concatenate([batch.token_index, batch.branch_index], axis=1)
    ids, positions, ends, index = (
        to_device(torch.from_numpy(part), device)
        for part in (batch.token_ids, batch.positions, batch.ends, wanted.reshape(-1, 1))
    )
    with (
        narrowed_last_mlp(chat_model, index),
        changed_head_input(chat_model, lambda states: select_tokens(states, index)),
    ):
        logits = chat_model.model(
            ids,
            past_key_values=cache,
            use_cache=True,
            position_ids=positions,
            attention_mask=pack_mask(ends, n_before, chat_model.model.dtype),
        ).logits
    return batch, logits.view(len(own), len(tree.nodes), -1), cache


def continue_rows(
    chat_model: ChatModel,
    cache: RowCache,
    lengths: Sequence[int],
    longest: int,
    tokens: list[list[int]],
    n_tokens: int,
    ends: Ends,
    selected: Callable[[torch.Tensor], None] = lambda rows: None,
) -> None:
    """Add the likeliest tokens to continuations that have begun, until all are complete.

    Args:
        chat_model: the model that has read the prompts.
        cache: keys and values of each prompt and of all but the last token of its continuation.
        lengths: per prompt, how many tokens that is.
        longest: how many tokens the cache begins with.
        tokens: the continuations.
        n_tokens: most tokens of each continuation.
        ends: whether a continuation is complete.
        selected: called with the rows that are left of those before, when complete ones are taken out.
    """
    rows, n_appended = list(range(len(tokens))), 0
    going = {row for row in rows if len(tokens[row]) < n_tokens and not ends(tokens[row])}
    while going:
        if len(going) < _SELECT_BELOW * len(rows):
            kept = torch.tensor([place for place, row in enumerate(rows) if row in going])
            rows = [rows[place] for place in kept.tolist()]
            cache.select(kept)
            selected(kept)
        before = torch.tensor([lengths[row] for row in rows])
        logits = chat_model.model(
            to_device(torch.tensor([[tokens[row][-1]] for row in rows]), chat_model.device),
            past_key_values=cache,
            use_cache=True,
            **row_inputs(chat_model, before, longest, n_appended),
        ).logits[:, -1]
        n_appended += 1
        for row, token in zip(rows, logits.max(dim=-1).indices.tolist(), strict=True):
            if row in going:
                tokens[row].append(token)
                if len(tokens[row]) == n_tokens or ends(tokens[row]):
                    going.remove(row)


def row_inputs(
    chat_model: ChatModel, lengths: torch.Tensor, longest: int, n_appended: int = 0
) -> dict[str, torch.Tensor]:
    """Return the mask and the positions with which a model continues a :class:`RowCache` by one token per row.

    Args:
        chat_model: the model.
        lengths: ``(row,)`` tokens that each row begins with.
        longest: how many tokens the cache begins with.
        n_appended: how many passes have appended.
    """
    dtype = chat_model.model.dtype
    seen = torch.arange(longest + n_appended + 1)
    hidden = (seen < longest) & (seen >= lengths[:, None])
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
    return {
        "attention_mask": to_device(mask, chat_model.device),
        "position_ids": to_device((lengths + n_appended)[:, None], chat_model.device),
    }
