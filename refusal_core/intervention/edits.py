"""Replies to prompts under edits of the residual stream.

Blocks below the first edited layer compute what they computed without the edit, so their outputs are kept from one
plain pass and handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from refusal_core.activations.checks import UNSUPPORTED
from refusal_core.activations.hooks import contiguous_head
from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour.replies import greedy_openings
from refusal_core.models.transformers_internals import copy_cache
from refusal_core.steering import Edit, edited


@dataclass(frozen=True, eq=False)
class Reply:
    """How the replies to a batch of prompts begin.

    Attributes:
        logits: ``(prompt, vocabulary)`` float32 at the first reply token.
        openings: see :func:`refusal_core.behaviour.replies.greedy_openings`; ``None`` where they were not asked for.
    """

    logits: torch.Tensor
    openings: list[str] | None


class PromptBatch:
    """Prompts of one length: read plainly once, then under any number of edits, from the first edited block up.

    Attributes:
        plain: how the replies begin without an edit.
        reuses: whether what lies below an edit is taken from the plain pass. That is tried out on the batch itself; a
            model for which it does not give the same logits is run whole each time.
    """

    def __init__(self, reader: ResidualReader, sequences: list[list[int]], openings: bool = True) -> None:
        self._chat_model = reader.chat_model
        shared = reader.shared_prefix(sequences)
        prefix = shared.token_ids if shared is not None else []
        device = self._chat_model.device
        self._prefix_ids = torch.tensor([prefix], device=device) if prefix else None
        self._ids = torch.tensor([ids[len(prefix) :] for ids in sequences], device=device)
        with torch.inference_mode():
            self._plain_prefix = None if self._prefix_ids is None else self._pass(self._prefix_ids, None)
            self._plain = self._pass(self._ids, self._expanded(self._plain_prefix))
            self.plain = self._reply(self._plain, openings)
            self.reuses = self._reuse_agrees()

    def reply(self, edit: Edit, openings: bool = True) -> Reply:
        """How the replies begin under an edit.

        Args:
            edit: the change to the residual stream.
            openings: whether to generate them too, which takes as many passes as they have tokens.
        """
        below = min(edit.vectors) + 1 if self.reuses else 0
        with torch.inference_mode():
            with edited(self._chat_model.blocks, edit):
                prefix = self._plain_prefix
                if self._prefix_ids is not None and edit.tokens == "all":
                    prefix = self._pass(self._prefix_ids, None, self._plain_prefix, below)
                read = self._pass(self._ids, self._expanded(prefix), self._plain, below)
                if edit.tokens == "all":
                    return self._reply(read, openings)
            return self._reply(read, openings)

    def _reply(self, read: _Pass, openings: bool) -> Reply:
        # Generating continues the keys and values in place, and those of the plain pass are needed again.
        written = greedy_openings(self._chat_model, read.logits, copy_cache(read.cache)) if openings else None
        return Reply(read.logits, written)

    def _pass(self, ids: torch.Tensor, before: Cache | None, plain: _Pass | None = None, below: int = 0) -> _Pass:
        """One forward pass; the first ``below`` blocks hand out what they returned in the plain pass."""
        blocks = list(self._chat_model.blocks)
        kept = _kept_outputs(blocks) if plain is None else _handed_out(blocks[:below], plain.outputs)
        with kept as outputs, contiguous_head(self._chat_model):
            result = self._chat_model.model(ids, past_key_values=before, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        if plain is not None:
            cache.layers[:below] = copy_cache(plain.cache).layers[:below]
        return _Pass(result.logits[:, -1].float(), cache, outputs)

    def _expanded(self, prefix: _Pass | None) -> Cache | None:
        if prefix is None:
            return None
        return copy_cache(prefix.cache, len(self._ids))

    def _reuse_agrees(self) -> bool:
        """Whether passes that hand out their lower blocks, and the token after them, are those of the plain pass.

        Tried at half of the depth, and where the last block alone computes: some models read keys and values of blocks
        further down.
        """
        following = self._plain.logits.argmax(dim=-1)[:, None]
        after = self._continued(following, self._plain)
        try:
            for below in (self._chat_model.n_layers // 2, self._chat_model.n_layers - 1):
                upper = self._pass(self._ids, self._expanded(self._plain_prefix), self._plain, below)
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
        cache = copy_cache(read.cache)
        logits: torch.Tensor = self._chat_model.model(token, past_key_values=cache, use_cache=True).logits
        return logits


@dataclass(frozen=True, eq=False)
class _Pass:
    """A forward pass; ``outputs`` has what the blocks returned, in their order."""

    logits: torch.Tensor
    cache: Cache
    outputs: list[Any]


@contextmanager
def _kept_outputs(blocks: Sequence[torch.nn.Module]) -> Iterator[list[Any]]:
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
def _handed_out(blocks: Sequence[torch.nn.Module], outputs: list[Any]) -> Iterator[list[Any]]:
    """The first blocks return what is given instead of computing; hooks on them still run."""
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, output in zip(blocks, outputs, strict=False):
            block.forward = lambda *arguments, _output=output, **options: _output
        yield outputs
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward
