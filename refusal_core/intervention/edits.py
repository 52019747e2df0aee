"""Replies to prompts under edits of the residual stream, many edits at a time.

Prompts lie in packs (:mod:`refusal_core.activations.packing`), the template's tokens included, since edits change those
too. Edits are rows of one batch. Blocks below the first edited layer compute what they computed without the edit, so
their outputs, keys and values are kept from one plain pass. Openings under all edits are then continued together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import Module, ModuleList
from transformers import Cache

from refusal_core.activations import limits
from refusal_core.activations.checks import UNSUPPORTED
from refusal_core.activations.continuation import continue_by_one, continue_rows, continuing, greedy_tokens, row_inputs
from refusal_core.activations.hooks import changed_head_input, narrowed_last_mlp, select_tokens
from refusal_core.activations.packing import pack_batch
from refusal_core.activations.reader import ResidualReader, pack_mask
from refusal_core.activations.transfers import to_device
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.behaviour.replies import end_tokens, reply_text
from refusal_core.models.row_cache import RowCache, growing_cache
from refusal_core.models.transformers_internals import copy_cache
from refusal_core.steering import Edit, residual_stream


@dataclass(frozen=True, eq=False)
class Reply:
    """How the replies to a batch of prompts begin.

    Attributes:
        logits: ``(prompt, vocabulary)`` at the first reply token, in the model's dtype.
        openings: the first :data:`OPENING_TOKENS` tokens of each greedy reply, as text; ``None`` where they were not
            asked for.
    """

    logits: torch.Tensor
    openings: list[str] | None


class PromptBatch:
    """Prompts read plainly once, then under any number of edits, from the first edited block up.

    Attributes:
        packed: whether the prompts lie in packs, see :func:`may_pack`. Otherwise they are of one length, and edits are
            run one after the other.
        reuses: whether what lies below an edit is taken from the plain pass. That is tried out on the batch itself; a
            model for which it does not give the same is run whole each time.
    """

    def __init__(self, reader: ResidualReader, sequences: list[list[int]]) -> None:
        """Read the prompts without an edit.

        Args:
            reader: reads prompts with the model.
            sequences: token ids of each prompt.
        """
        self._chat_model = reader.chat_model
        self._n_tokens = [len(ids) for ids in sequences]
        self.packed = may_pack(reader, sequences)
        self._options: dict[str, torch.Tensor] = {}
        self._paths = [list(range(length)) for length in self._n_tokens]
        self._pack_index = torch.arange(len(sequences))
        if self.packed:
            kind = limits.device_type(self._chat_model)
            batch = pack_batch(sequences, 1, limits.PACK_TOKENS[kind], 0, limits.PACK_MULTIPLE[kind])
            self._ids, self._last = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.token_index)
            self._paths, self._pack_index = batch.paths, torch.from_numpy(batch.pack_index)
            mask = pack_mask(torch.from_numpy(batch.ends), 0, self._chat_model.model.dtype)
            self._options = {"position_ids": torch.from_numpy(batch.positions), "attention_mask": mask}
        else:
            self._ids = torch.tensor(sequences)
            self._last = torch.arange(self._ids.numel()).view(self._ids.shape)[:, -1:]
        self._end_tokens = end_tokens(self._chat_model)
        with torch.inference_mode(), continuing(self._chat_model):
            self._plain = self._read([None], 0)
            self.reuses = self._reuse_agrees()

    def replies(self, edits: Sequence[Edit | None], openings: Sequence[bool]) -> list[Reply]:
        """Return how the replies begin under each edit.

        Args:
            edits: changes to the residual stream; ``None`` for none.
            openings: under which of them openings are generated too, which takes a pass per token.
        """
        order = [(self._n_below(edit), opens) for edit, opens in zip(edits, openings, strict=True)]
        together = max(1, limits.batch_tokens(self._chat_model) // self._ids.numel()) if self.packed else 1
        logits: dict[int, torch.Tensor] = {}
        opened: dict[tuple[int, ...], _Pass] = {}
        with torch.inference_mode():
            for (below, opens), alike in groupby(sorted(range(len(edits)), key=order.__getitem__), order.__getitem__):
                numbers, size = list(alike), together if below >= 0 else 1
                for start in range(0, len(numbers), size):
                    part = tuple(numbers[start : start + size])
                    read = self._read([edits[number] for number in part], below) if below >= 0 else self._plain
                    logits |= dict(zip(part, read.logits, strict=True))
                    if opens:
                        opened[part] = read
            passes = list(opened.values())
            groups = [passes] if self.packed and passes else [[one] for one in passes]
            texts = [own for group in groups for own in self._openings(group)]
        written = dict(zip((number for part in opened for number in part), texts, strict=True))
        return [Reply(logits[number], written.get(number)) for number in range(len(edits))]

    @property
    def plain_logits(self) -> torch.Tensor:
        """The first reply token's logits without an edit, ``(prompt, vocabulary)``."""
        return self._plain.logits[0]

    def _n_below(self, edit: Edit | None) -> int:
        """Return how many blocks compute what they computed without an edit; -1 for the plain pass itself."""
        if edit is None:
            return -1
        return min(edit.vectors) + 1 if self.reuses else 0

    def _read(self, edits: Sequence[Edit | None], below: int) -> _Pass:
        """Run the prompts under each edit; the first ``below`` blocks hand out what they returned in the plain pass."""
        chat_model, count = self._chat_model, len(edits)
        blocks, device = chat_model.blocks, chat_model.device
        inputs = {
            name: to_device(_tiled(part, count), device)
            for name, part in {"input_ids": self._ids, **self._options}.items()
        }
        first = self._ids.numel() * torch.arange(count)[:, None]
        index = to_device((first + self._last.flatten()).view(-1, 1), device)
        under = _EditedRows(edits, torch.arange(count).repeat_interleave(len(self._ids)), self._edited_tokens(edits))
        handed = _handed_out(blocks, self._plain.outputs[:below], count) if below else _kept_outputs(blocks)
        with (
            handed as outputs,
            under.applied(blocks),
            narrowed_last_mlp(chat_model, index) if self.packed else nullcontext(),
            changed_head_input(chat_model, lambda states: select_tokens(states, index)),
        ):
            result = chat_model.model(
                **inputs, past_key_values=growing_cache(None, 1) if self.packed else None, use_cache=True
            )
        cache = chat_model.cache_of(result)
        if below and not self.packed:
            cache.layers[:below] = copy_cache(self._plain.cache).layers[:below]
        return _Pass(result.logits.view(count, len(self._last), -1), cache, outputs, tuple(edits), below)

    def _edited_tokens(self, edits: Sequence[Edit | None]) -> torch.Tensor | None:
        """Return which tokens of a pass are edited, ``(row, token)``; ``None`` for all."""
        if all(edit is None or edit.tokens == "all" for edit in edits):
            return None
        last = torch.zeros(self._ids.numel(), dtype=torch.bool).index_fill_(0, self._last.flatten(), True)
        edited = [last.view(self._ids.shape) | (edit is not None and edit.tokens == "all") for edit in edits]
        return torch.cat(edited)

    def _openings(self, passes: Sequence[_Pass]) -> list[list[str]]:
        """Generate the openings of all prompts under each edit of some passes."""
        tokens = [own for read in passes for own in read.logits.max(dim=-1).indices.tolist()]
        begun = [[token] for own in tokens for token in own]
        edits = [edit if edit is not None and edit.tokens == "all" else None for read in passes for edit in read.edits]
        under = _EditedRows(edits, torch.arange(len(edits)).repeat_interleave(len(self._n_tokens)))
        with under.applied(self._chat_model.blocks):
            if self.packed:
                longest = max(self._n_tokens)
                continue_rows(
                    self._chat_model,
                    self._row_cache(passes),
                    self._n_tokens * len(edits),
                    longest,
                    begun,
                    OPENING_TOKENS,
                    self._ends,
                    under.select,
                )
            else:
                # Generating continues the keys and values in place, and those of the plain pass are needed again.
                begun = greedy_tokens(
                    self._chat_model,
                    passes[0].logits[0],
                    copy_cache(passes[0].cache),
                    self._n_tokens[0],
                    OPENING_TOKENS,
                    self._ends,
                )
        texts = [reply_text(self._chat_model, own, self._end_tokens) for own in begun]
        size = len(self._n_tokens)
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def _row_cache(self, passes: Sequence[_Pass]) -> RowCache:
        """Return the keys and values of all prompts under each edit of some passes, a row per prompt."""
        n_prompts, longest = len(self._n_tokens), max(self._n_tokens)
        index = np.zeros((n_prompts, longest), dtype=np.int64)
        for place, path in enumerate(self._paths):
            index[place, : len(path)] = path
        token_index = torch.from_numpy(index)
        cache = RowCache(n_prompts * sum(len(read.edits) for read in passes), longest, OPENING_TOKENS - 1)
        start = 0
        for read in passes:
            for number in range(len(read.edits)):
                rows, packs = slice(start, start + n_prompts), self._pack_index + number * len(self._ids)
                cache.fill(rows, self._plain.cache, self._pack_index, token_index, range(read.below))
                cache.fill(rows, read.cache, packs, token_index, range(read.below, len(read.cache.layers)))
                start += n_prompts
        return cache

    def _ends(self, tokens: list[int]) -> bool:
        return tokens[-1] in self._end_tokens

    def _reuse_agrees(self) -> bool:
        """Whether passes that hand out their lower blocks, and the token after them, are those of the plain pass.

        Tried at half of the depth, and where the last block alone computes: some models read keys and values of blocks
        further down.
        """
        following = self._plain.logits[0].argmax(dim=-1)[:, None]
        after = self._continued(following, self._plain)
        try:
            for below in (self._chat_model.n_layers // 2, self._chat_model.n_layers - 1):
                upper = self._read([None], below)
                same = torch.equal(upper.logits, self._plain.logits)
                if not same or not torch.equal(self._continued(following, upper), after):
                    return False
        except torch.OutOfMemoryError:
            raise
        except UNSUPPORTED:
            # An architecture whose keys and values are not kept block by block.
            return False
        return True

    def _continued(self, token: torch.Tensor, read: _Pass) -> torch.Tensor:
        """Return the logits after one more token behind each prompt."""
        if not self.packed:
            return continue_by_one(self._chat_model, token, copy_cache(read.cache), self._n_tokens[0])
        cache = self._row_cache([read])
        options = row_inputs(self._chat_model, torch.tensor(self._n_tokens), max(self._n_tokens))
        logits: torch.Tensor = self._chat_model.model(token, past_key_values=cache, use_cache=True, **options).logits
        return logits


def may_pack(reader: ResidualReader, sequences: Sequence[list[int]]) -> bool:
    """Return whether prompts of several lengths, and several edits of each, may be run together."""
    n_tokens = np.array([len(ids) for ids in sequences]) + OPENING_TOKENS
    return bool(reader.may_pack(n_tokens).all()) and reader.keeps_all_tokens


@dataclass(frozen=True, eq=False)
class _Pass:
    """A forward pass of all prompts under some edits.

    Attributes:
        logits: ``(edit, prompt, vocabulary)``.
        cache: keys and values; without those of the blocks that handed out, where prompts are packed.
        outputs: what the blocks returned, in their order, where all computed.
        edits: the edits; ``None`` for none.
        below: how many blocks handed out what they had returned before.
    """

    logits: torch.Tensor
    cache: Cache
    outputs: list[Any]
    edits: tuple[Edit | None, ...]
    below: int


class _EditedRows:
    """Edits of the residual stream, each of some rows of a batch."""

    def __init__(self, edits: Sequence[Edit | None], rows: torch.Tensor, tokens: torch.Tensor | None = None) -> None:
        """Prepare the vectors.

        Args:
            edits: the edits; ``None`` for none.
            rows: ``(row,)``, which of them a row is under.
            tokens: ``(row, token)`` bool, which tokens are edited; ``None`` for all.
        """
        self._rows, self._tokens = rows, tokens
        self._vectors: dict[int, dict[str, torch.Tensor]] = {}
        for number, edit in enumerate(edits):
            if edit is None:
                continue
            for layer, vector in edit.vectors.items():
                kinds = self._vectors.setdefault(layer, {})
                # Zeros for the other rows, which they leave as they are.
                kinds.setdefault(edit.kind, torch.zeros(len(edits), len(vector)))[number] = torch.from_numpy(vector)

    def select(self, rows: torch.Tensor) -> None:
        """Keep some rows."""
        self._rows = self._rows[rows]

    @contextmanager
    def applied(self, blocks: ModuleList) -> Iterator[None]:
        """Edit every forward pass inside the block of code."""
        hooks = {layer: partial(self._change, kinds) for layer, kinds in self._vectors.items()}
        handles = [blocks[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change(self, kinds: Mapping[str, torch.Tensor], module: Module, arguments: Any, output: Any) -> Any:
        states = residual_stream(output)
        changed = states.float()
        for kind, vectors in kinds.items():
            along = to_device(vectors[self._rows], states.device)
            if kind == "add":
                changed = changed + along[:, None]
            else:
                changed = torch.baddbmm(changed, changed @ along[:, :, None], along[:, None], alpha=-1)
        changed = changed.to(states.dtype)
        if self._tokens is not None:
            changed = torch.where(to_device(self._tokens, states.device)[:, :, None], changed, states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


@contextmanager
def _kept_outputs(blocks: Iterable[Module]) -> Iterator[list[Any]]:
    """Collect what blocks return."""
    outputs: list[Any] = []
    handles = [
        block.register_forward_hook(lambda module, arguments, output: outputs.append(output)) for block in blocks
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _handed_out(blocks: Iterable[Module], outputs: list[Any], count: int) -> Iterator[list[Any]]:
    """The first blocks return what is given, for so many copies of its rows; hooks on them still run."""
    last = outputs[-1]
    tiled = tuple(map(partial(_tiled, count=count), last)) if isinstance(last, tuple) else _tiled(last, count)
    handing = list(blocks)[: len(outputs)]
    own = [block.__dict__.get("forward") for block in handing]
    try:
        for block in handing:
            # What leaves the others reaches nobody.
            block.forward = lambda *arguments, **options: tiled
        yield []
    finally:
        for block, forward in zip(handing, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _tiled(part: Any, count: int) -> Any:
    """Return copies of all rows behind each other."""
    if count == 1 or not isinstance(part, torch.Tensor):
        return part
    return part.repeat(count, *[1] * (part.ndim - 1))
