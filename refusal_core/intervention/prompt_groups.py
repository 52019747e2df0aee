"""Prompts that are read together under conditions: which, how many conditions at a time, and what the replies show."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch

from refusal_core.activations import limits
from refusal_core.activations.engine import DoesNotFitError, cancel_if
from refusal_core.activations.packing import group_by_length, group_into_packs
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.refusal_tokens import refusal_log_odds
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.errors import ModelError
from refusal_core.intervention.conditions import PLAIN, Condition, Tried
from refusal_core.intervention.edits import PromptBatch, Reply, may_pack
from refusal_core.intervention.vectors import Vectors
from refusal_core.models.architectures import text_config

TokenSets = Sequence[list[int]]
"""Ids of tokens; each set is summed."""


class PromptGroup:
    """Prompts that are read together, or in halves where they do not fit into memory."""

    def __init__(self, reader: ResidualReader, sequences: list[list[int]], others: TokenSets = ()) -> None:
        """Choose the prompts; they are read when they are needed first.

        Args:
            reader: reads prompts with the model.
            sequences: token ids of each prompt, as :func:`group_prompts` groups them.
            others: sets of tokens whose log-odds are taken besides those of refusing.
        """
        self._reader = reader
        self._sequences = sequences
        self._others = others
        self._batch: PromptBatch | None = None
        self._halves: list[PromptGroup] = []

    def tried(self, conditions: Sequence[Condition], vectors: Vectors, tokens: str) -> list[list[Tried]]:
        """Return how the replies begin, per condition and prompt.

        Args:
            conditions: what is done to the model.
            vectors: directions that conditions name.
            tokens: see :class:`refusal_core.steering.Edit`.

        Raises:
            ModelError: for an edit under which activations overflow.
            DoesNotFitError: when one prompt alone does not fit into the device's memory.
        """
        if not self._halves:
            try:
                return self._tried_together(conditions, vectors, tokens)
            except torch.OutOfMemoryError as error:
                if len(conditions) == len(self._sequences) == 1:
                    device = self._reader.chat_model.device
                    raise DoesNotFitError(
                        f"a prompt of {len(self._sequences[0])} tokens under an edit does not fit into the memory of "
                        f"{device} beside the model; choose a smaller model or another device"
                    ) from error
            # Not while the error still holds what did not fit.
            if len(conditions) > 1:
                middle = len(conditions) // 2
                parts = [conditions[:middle], conditions[middle:]]
                return [tried for part in parts for tried in self.tried(part, vectors, tokens)]
            self._batch, middle = None, len(self._sequences) // 2
            self._halves = [
                PromptGroup(self._reader, part, self._others)
                for part in (self._sequences[:middle], self._sequences[middle:])
            ]
        first, second = (half.tried(conditions, vectors, tokens) for half in self._halves)
        return [[*before, *behind] for before, behind in zip(first, second, strict=True)]

    def _tried_together(self, conditions: Sequence[Condition], vectors: Vectors, tokens: str) -> list[list[Tried]]:
        self._batch = self._batch or PromptBatch(self._reader, self._sequences)
        edits = [None if condition.edit == PLAIN else vectors.edit(condition, tokens) for condition in conditions]
        replies = self._batch.replies(edits, [condition.openings for condition in conditions])
        divergence = _divergence(self._batch.plain_logits, replies)
        for condition, own in zip(conditions, divergence, strict=True):
            if not np.isfinite(own).all():
                dtype = self._reader.chat_model.dtype
                raise ModelError(
                    f"activations in {dtype} overflow under an edit ({condition.edit} at layers "
                    f"{', '.join(map(str, condition.layers))}); measure again in float32 or bfloat16"
                )
        token_sets = (self._reader.refusal_ids, *self._others)
        found = []
        for reply, own in zip(replies, divergence, strict=True):
            nothing: list[str | None] = [None] * len(own)
            log_odds = [refusal_log_odds(reply.logits, ids).tolist() for ids in token_sets]
            numbers = zip(zip(*log_odds, strict=True), own.tolist(), reply.openings or nothing, strict=True)
            found.append([Tried(refusal, kl, opening, tuple(others)) for (refusal, *others), kl, opening in numbers])
        return found


def try_conditions(
    reader: ResidualReader,
    sequences: list[list[int]],
    parts: Sequence[Sequence[Condition]],
    vectors: Vectors,
    tokens: str,
    others: TokenSets = (),
) -> Generator[list[list[Tried]], None, None]:
    """Yield what :meth:`PromptGroup.tried` returns for each part of some conditions, in order.

    On a CPU several parts are tried at the same time, each by cores of its own. Cores that share one product wait at
    its end for the slowest of them, which on a machine that does other work as well takes longer than the product.

    Args:
        reader: reads prompts with the model.
        sequences: token ids of each prompt, as :func:`group_prompts` groups them.
        parts: conditions to try together.
        vectors: directions that conditions name.
        tokens: see :class:`refusal_core.steering.Edit`.
        others: see :class:`PromptGroup`.
    """
    n_parallel = min(len(parts), _n_parallel(reader))
    if n_parallel < 2:
        group = PromptGroup(reader, sequences, others)
        yield from (group.tried(part, vectors, tokens) for part in parts)
        return
    cores, stopped, free = torch.get_num_threads(), threading.Event(), SimpleQueue[PromptGroup]()
    for own in [reader.for_another_thread() for _ in range(n_parallel)]:
        for block in own.chat_model.blocks:
            block.register_forward_pre_hook(partial(cancel_if, stopped))
        free.put(PromptGroup(own, sequences, others))

    def tried(part: Sequence[Condition]) -> list[list[Tried]]:
        group = free.get()
        try:
            return group.tried(part, vectors, tokens)
        finally:
            free.put(group)

    pool = ThreadPoolExecutor(n_parallel, "conditions", torch.set_num_threads, (max(1, cores // n_parallel),))
    try:
        yield from pool.map(tried, parts)
    finally:
        # Whoever stopped is not kept waiting for replies that nobody takes.
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def group_prompts(reader: ResidualReader, sequences: list[list[int]]) -> Iterator[np.ndarray]:
    """Yield rows of prompts to read together: in packs, or of one length where the model does not allow them.

    Args:
        reader: reads prompts with the model.
        sequences: token ids of each prompt.
    """
    chat_model = reader.chat_model
    kind = limits.device_type(chat_model)
    # What all blocks return in the plain pass is held.
    per_token = chat_model.n_layers * chat_model.d_model * chat_model.model.dtype.itemsize
    token_limit = max(1, min(2 * limits.BATCH_TOKENS[kind], int(limits.HELD_BYTES[kind] / per_token)))
    packed = np.array([may_pack(reader, [ids]) for ids in sequences])
    rows = np.flatnonzero(packed)
    for part in group_into_packs([sequences[row] for row in rows.tolist()], 0, token_limit, balanced=True):
        yield np.sort(rows[part])
    rows = np.flatnonzero(~packed)
    for part in group_by_length(np.array([len(sequences[row]) for row in rows.tolist()], dtype=int), 0, token_limit):
        yield rows[part]


def group_conditions(
    reader: ResidualReader, sequences: list[list[int]], conditions: Sequence[Condition]
) -> Iterator[list[Condition]]:
    """Yield conditions to try together on prompts: as many as there is memory for, those alike in cost together.

    Args:
        reader: reads prompts with the model.
        sequences: token ids of each prompt.
        conditions: what is tried.
    """
    chat_model = reader.chat_model
    per_prompt = (max(map(len, sequences)) + OPENING_TOKENS) * reader.cache_bytes_per_token
    per_prompt += text_config(chat_model.model.config).vocab_size * chat_model.model.dtype.itemsize
    n_bytes = limits.HELD_BYTES[limits.device_type(chat_model)] / _n_parallel(reader)
    size = max(1, int(n_bytes / (per_prompt * len(sequences)))) if may_pack(reader, sequences) else 1
    alike = sorted(conditions, key=lambda condition: (not condition.openings, min(condition.layers, default=-1)))
    for start in range(0, len(alike), size):
        yield alike[start : start + size]


def _n_parallel(reader: ResidualReader) -> int:
    """Return how many parts are tried at the same time; hooks of one reader on a GPU would meet."""
    return reader.n_parallel if limits.device_type(reader.chat_model) == "cpu" else 1


def _divergence(plain: torch.Tensor, replies: Sequence[Reply]) -> list[np.ndarray]:
    """Return the Kullback–Leibler divergence of each reply's first token from the plain one's, ``(prompt,)`` each.

    Args:
        plain: ``(prompt, vocabulary)`` logits without an edit.
        replies: of the same prompts.
    """
    found: list[list[torch.Tensor]] = [[] for _ in replies]
    # A prompt at a time stays in a core's cache.
    for row, logits in enumerate(plain):
        before = logits.double().log_softmax(dim=-1)
        probability = before.exp()
        for reply, own in zip(replies, found, strict=True):
            after = reply.logits[row].double().log_softmax(dim=-1)
            own.append((probability * (before - after)).sum())
    return [torch.stack(own).clamp(min=0.0).cpu().numpy() for own in found]
