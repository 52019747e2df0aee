"""The residual stream of a chat model: one forward pass per batch of prompts, recorded at every site.

The chat template puts the same tokens before every prompt: they are run once and their keys and values reused. Prompts
are read in packs (:mod:`.packing`); a mask lets each token attend to its own prompt alone. Forward hooks
(:mod:`.hooks`) record each prompt's last hidden states after each block; the last block's MLP and the vocabulary
projection run on these alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import Cache

from refusal_core.activations import limits
from refusal_core.activations.checks import UNSUPPORTED, agrees, check_finite
from refusal_core.activations.hooks import (
    changed_head_input,
    contiguous_head,
    narrowed_last_mlp,
    recorded_states,
    select_tokens,
)
from refusal_core.activations.packing import (
    TokenIds,
    balanced_token_limit,
    common_prefix,
    group_by_length,
    group_into_packs,
    pack_batch,
)
from refusal_core.activations.prefix import CachedPrefix, RecentTexts
from refusal_core.activations.refusal_tokens import refusal_log_odds, refusal_token_ids
from refusal_core.activations.transfers import to_device, to_host
from refusal_core.conversations import Prompt, text_of
from refusal_core.errors import ModelError
from refusal_core.models.architectures import text_config
from refusal_core.models.opening import ChatModel
from refusal_core.models.row_cache import keeps_tokens
from refusal_core.models.templates import check_thinking, render
from refusal_core.models.transformers_internals import attention_window, cache_nbytes, obeys_masks, rope_limit

NO_SHARED_BEGINNING = "none: the template puts no tokens before every prompt"
NOT_REPRODUCED = "none: for this model, reused keys and values did not give what a plain forward pass gives"
PACKED = "prompts of several lengths, in packs"
READ_ALONE = "none: LLM.int8() lets a prompt's numbers depend on those beside it"
HANDS_ON_STATE = "none: the model hands a state on from token to token"
OWN_ATTENTION = "none: the model's attention is of its own making"
NOT_PACKED = "none: for this model, a pack did not give what its prompts give alone"

_SAMPLES = ("What is a good name for a cat?", "Zebras yawn", "What is a zebra?")


@dataclass(frozen=True, eq=False)
class PromptStates:
    """Prompts at the last token of each, where directions are read.

    Attributes:
        states: ``(prompt, site, d_model)`` float32; ``(prompt, site, token, d_model)`` where several tokens are read.
        first_token: the likeliest first token of each reply, as text.
        refusal_log_odds: ``(prompt,)`` float64, see :func:`.refusal_tokens.refusal_log_odds`.
    """

    states: np.ndarray
    first_token: list[str]
    refusal_log_odds: np.ndarray


@dataclass(frozen=True, eq=False)
class TokenStates:
    """One prompt at every token of it.

    Attributes:
        states: ``(token, site, d_model)`` float32 at the prompt's own tokens; the template's are left out.
        at_position: ``(site, d_model)`` float32 at the read position.
        tokens: the prompt's own tokens, as text.
        first_token: the likeliest first token of the reply.
        refusal_log_odds: see :func:`.refusal_tokens.refusal_log_odds`.
    """

    states: np.ndarray
    at_position: np.ndarray
    tokens: list[str]
    first_token: str
    refusal_log_odds: float


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What the model is called with.

    Attributes:
        token_ids: ``(row, token)``, a prompt or a pack of them per row.
        options: the model's keywords.
        token_index: ``(prompt, token)``, the tokens whose states are recorded, in the flattened batch.
        packed: whether a row holds several prompts.
    """

    token_ids: torch.Tensor
    options: dict[str, Any]
    token_index: torch.Tensor
    packed: bool


class ResidualReader:
    """Reads one chat model's residual stream under one system prompt, thinking on, off, or as the template has it.

    Holds the keys and values of the template's opening, which every prompt shares. Samples are read as plainly as can
    be, with the keys and values, and, before the first pack, in one; a model for which these disagree is read without,
    and ``prefix_note`` and ``pack_note`` say so.
    """

    def __init__(
        self,
        chat_model: ChatModel,
        system_prompt: str | None = None,
        thinking: bool | None = None,
        day: str | None = None,
        packs: bool | None = None,
    ) -> None:
        """Find what the template puts around every prompt, and whether it can be run once for all.

        Args:
            chat_model: the model to read.
            system_prompt: see :func:`refusal_core.models.templates.render`.
            thinking: see :func:`refusal_core.models.templates.render`.
            day: see :func:`refusal_core.models.templates.render`.
            packs: whether prompts may be read in packs, where that is known; ``None`` to try it.
        """
        check_thinking(chat_model.tokenizer, thinking)
        self.chat_model = chat_model
        self.system_prompt = system_prompt
        self.thinking = thinking
        self.day = day
        self.refusal_ids = refusal_token_ids(chat_model.tokenizer)
        samples = [self.encode(text) for text in _SAMPLES[:2]]
        self._template_start = common_prefix(*samples)
        self._template_end = common_prefix(*(sample[::-1] for sample in samples))[::-1]
        config = text_config(chat_model.model.config)
        self._rope_limit, self._attention_window = rope_limit(config), attention_window(config)
        self._recent = RecentTexts()
        self._packs = packs
        # What is asked of a GPU is done later; while one batch is computed, the next is launched.
        self._launching: AbstractContextManager[Any] = (
            Lock() if limits.device_type(chat_model) == "cuda" else nullcontext()
        )
        self._prefix: CachedPrefix | None = None
        self._no_prefix_note = NO_SHARED_BEGINNING
        if chat_model.is_recurrent:
            self._no_prefix_note = HANDS_ON_STATE
        elif len(self._template_start) >= 2:
            self._share_prefix(samples[0])

    @property
    def sites(self) -> np.ndarray:
        """Which of the states that are recorded are those of each site, the last of them the last."""
        return np.arange(self.chat_model.n_layers + 1)

    @property
    def prefix_tokens(self) -> int:
        """How many template tokens are run once for all prompts; 0 when every prompt is run whole."""
        return len(self._prefix.token_ids) if self._prefix is not None else 0

    @property
    def prefix_note(self) -> str:
        """How many template tokens are run once for all prompts, or why none are, in words."""
        return f"{self.prefix_tokens} tokens, run once for all prompts" if self.prefix_tokens else self._no_prefix_note

    @property
    def packs(self) -> bool:
        """Whether prompts of several lengths may be read together; tried when it is first asked for."""
        if self._packs is None:
            # Attention of a model's own making may do more than the mask says, and a sample need not show it.
            may_pack = self._own_pack_note is None
            self._packs = may_pack and self._reproduces_in_packs(limits.usual_batch_tokens(self.chat_model))
        return self._packs

    @property
    def pack_note(self) -> str:
        """Whether prompts are read in packs, or why not, in words."""
        if self.packs:
            return PACKED
        return self._own_pack_note or NOT_PACKED

    @property
    def _own_pack_note(self) -> str | None:
        """Why the model cannot be read in packs, whatever a sample shows; None where a sample has to show it."""
        if self.chat_model.reads_alone:
            return READ_ALONE
        if self.chat_model.is_recurrent:
            return HANDS_ON_STATE
        return None if obeys_masks(self.chat_model.model) else OWN_ATTENTION

    @property
    def keeps_all_tokens(self) -> bool:
        """Whether the model's passes leave nothing behind but each token's keys and values."""
        return self._prefix is None or keeps_tokens(self._prefix.cache)

    @property
    def cache_bytes_per_token(self) -> float:
        """How many bytes the keys and values of a token take, or at most take where none are known."""
        if self._prefix is not None:
            return cache_nbytes(self._prefix.cache) / len(self._prefix.token_ids)
        return 2.0 * self.chat_model.n_layers * self.chat_model.d_model * self.chat_model.model.dtype.itemsize

    @property
    def template_end(self) -> int:
        """How many tokens the template puts after every prompt; the last of them is where directions are read."""
        return len(self._template_end)

    @property
    def closing_texts(self) -> list[str]:
        """The tokens that the template puts after every prompt, as text."""
        return [self._decoded(token_id) for token_id in self._template_end]

    def n_closing(self, ids: list[int]) -> int:
        """Return how many tokens after a prompt's own are the template's alone.

        They are counted from the end, so that nothing in a prompt can be taken for them. There are fewer of them than
        :attr:`template_end` where the tokenizer merges the prompt's end with the template.
        """
        return len(common_prefix(ids[::-1], self._template_end[::-1]))

    def place_of(self, position: int, ids: list[int]) -> int:
        """Return where a read position is in a prompt, both counted from the end: the prompt's own last token may move.

        Args:
            position: -1 is the template's last token, ``-1 - template_end`` the prompt's own last.
            ids: of the prompt with its template.

        Raises:
            ModelError: when the template has fewer closing tokens.
        """
        first = -1 - self.template_end
        if not first <= position <= -1:
            raise ModelError(f"expected a read position from {first} to -1, got {position}: the template has no other")
        return -1 - self.n_closing(ids) if position == first else position

    @property
    def batch_tokens(self) -> int:
        """Most new tokens that are run together while there is memory."""
        return limits.batch_tokens(self.chat_model)

    @property
    def n_parallel(self) -> int:
        """How many batches are best read at the same time."""
        return limits.n_parallel(self.chat_model)

    def for_another_thread(self) -> ResidualReader:
        """Return a reader like this one, over the same weights, keys and values."""
        if limits.device_type(self.chat_model) == "cuda":
            return self  # batches are launched one at a time
        other = copy.copy(self)
        other.chat_model, other._recent = self.chat_model.for_another_thread(), RecentTexts()
        return other

    def encode(self, prompt: Prompt, with_prefix: bool = False) -> list[int]:
        """Return the token ids of the templated prompt, generation prompt included; see :func:`.templates.render`.

        Args:
            prompt: a text or a conversation.
            with_prefix: with what a conversation makes the reply begin with, which is where the reply is measured;
                directions are read before it, where the user's last turn ends.
        """
        return render(self.chat_model.tokenizer, prompt, self.system_prompt, self.thinking, self.day, with_prefix)

    def balanced_token_limit(self, sequences: Sequence[TokenIds]) -> int:
        """Return the token limit that gives all parallel batches of these prompts equal work."""
        # A GPU computes one batch at a time, however many are on their way.
        n_parallel = 1 if limits.device_type(self.chat_model) == "cuda" else self.n_parallel
        return balanced_token_limit(sequences, self.prefix_tokens, self.batch_tokens, n_parallel)

    def batches(self, sequences: Sequence[TokenIds], token_limit: int) -> Iterator[np.ndarray]:
        """Yield rows of prompts to read together, at most ``token_limit`` new tokens, or one prompt that is longer."""
        n_tokens = np.array([len(ids) for ids in sequences])
        may_pack, whole = self.may_pack(n_tokens), n_tokens >= self._rope_limit
        packed = np.flatnonzero(may_pack)
        for rows in group_into_packs([sequences[row] for row in packed.tolist()], self.prefix_tokens, token_limit):
            yield packed[rows]
        for chosen, n_before in ((~may_pack & ~whole, self.prefix_tokens), (whole, 0)):
            alike = np.flatnonzero(chosen)
            for rows in group_by_length(n_tokens[alike], n_before, token_limit):
                yield alike[rows]

    def shared_prefix(self, sequences: Sequence[list[int]]) -> CachedPrefix | None:
        """Return the template's opening where all these prompts begin with it and may be continued from it."""
        if self._prefix is None:
            return None
        start = self._prefix.token_ids
        shared = all(len(start) < len(ids) < self._rope_limit and ids[: len(start)] == start for ids in sequences)
        return self._prefix if shared else None

    def may_pack(self, n_tokens: np.ndarray) -> np.ndarray:
        """Return which prompts may be packed, by their lengths: a given mask is not cut to a sliding window.

        Args:
            n_tokens: ``(prompt,)`` tokens of each prompt, with what is to follow it.
        """
        return (n_tokens <= self._attention_window) & (n_tokens < self._rope_limit) & self.packs

    def read_last(self, sequences: list[list[int]], last: int = 1) -> PromptStates:
        """Read prompts of one batch of :meth:`batches`, or of one length, at their last token, or at several."""
        states, log_odds, first = self._read(sequences, last)
        states = states[:, :, 0] if last == 1 else states
        return PromptStates(states, [self._decoded(token_id) for token_id in first.tolist()], log_odds)

    def read_end(self, sequences: list[list[int]], last: int) -> np.ndarray:
        """Read prompts at their last few tokens: ``(prompt, site, token, d_model)`` float32."""
        return self._read(sequences, last)[0]

    def open_reply(self, sequences: list[list[int]]) -> tuple[torch.Tensor, Cache]:
        """Run prompts of one length up to where their replies begin.

        Returns:
            The first reply token's logits ``(prompt, vocabulary)`` float32, and the prompts' keys and values.
        """
        inputs = self._rows(sequences, self.shared_prefix(sequences), last=1)
        options = inputs.options | {"use_cache": True}
        with torch.inference_mode(), contiguous_head(self.chat_model):
            output = self.chat_model.model(inputs.token_ids, logits_to_keep=1, **options)
        return output.logits[:, -1].float(), self.chat_model.cache_of(output)

    def read_tokens(self, prompt: Prompt, position: int = -1) -> TokenStates:
        """Read one prompt at each of its tokens, up to where the user's last turn ends, and at a read position.

        Only the tokens from the first on that differs from a text read shortly before are run. In dtypes coarser than
        float32 the numbers would then depend on what was read before, so the whole prompt is run.
        """
        ids = self.encode(prompt)
        prefix = self.shared_prefix([ids])
        if prefix is not None:
            prefix = self._recent.longest_prefix(ids, prefix)
        inputs = self._rows([ids], prefix, last=len(ids))
        new, logits = self._forward(inputs)
        states = new[0] if prefix is None else torch.cat([prefix.states.to(new.device), new[0]], dim=1)
        array = states.transpose(0, 1).cpu().numpy()
        log_odds = refusal_log_odds(logits, self.refusal_ids).cpu().numpy()
        check_finite(array[-1:], log_odds, [("the prompt", text_of(prompt))], self.chat_model)
        if prefix is not None and self.chat_model.dtype == "float32":
            self._recent.add(CachedPrefix(ids, states, inputs.options["past_key_values"]))
        n_left_out = len(ids) - len(array)
        start = max(len(common_prefix(ids, self._template_start)), n_left_out)
        end = len(ids) - self.n_closing(ids)
        return TokenStates(
            states=array[start - n_left_out : end - n_left_out],
            at_position=array[self.place_of(position, ids)],
            tokens=[self._decoded(token_id) for token_id in ids[start:end]],
            first_token=self._decoded(int(logits.argmax())),
            refusal_log_odds=float(log_odds[0]),
        )

    def forget_recent(self) -> None:
        """Forget the texts that :meth:`read_tokens` has read."""
        self._recent.clear()

    def _decoded(self, token_id: int) -> str:
        return str(self.chat_model.tokenizer.decode([token_id]))

    def _share_prefix(self, sample: list[int]) -> None:
        """Run the template's opening, and keep it if a sample read with it agrees with the plain pass."""
        plain = self.read_last([sample])
        nothing = torch.empty(plain.states.shape[1], 0, self.chat_model.d_model)
        ids = torch.tensor([self._template_start], device=self.chat_model.device)
        with torch.inference_mode():
            cache = self.chat_model.model(ids, use_cache=True, logits_to_keep=1).past_key_values
        self._prefix = CachedPrefix(self._template_start, nothing, cache)
        if not agrees(self.read_last([sample]).states, plain.states, self.chat_model.dtype):
            self._prefix, self._no_prefix_note = None, NOT_REPRODUCED

    def _reproduces_in_packs(self, pack_tokens: int) -> bool:
        """Return whether the last prompts of a long pack give what they give alone; a short one need not tell."""
        sample: list[list[int]] = []
        n_new = 0
        for number in range(pack_tokens + 2):  # enough, if each has a token of its own
            ids = self.encode(f"{number} {_SAMPLES[number % len(_SAMPLES)]}")
            n_new += len(ids) - self.prefix_tokens
            if len(sample) > 1 and n_new > pack_tokens:
                break
            sample.append(ids)
        sample.sort()  # as they are packed
        try:
            packed = self._forward(self._packed(sample, last=1))[0][-3:, :, 0].cpu().numpy()
        except torch.OutOfMemoryError:
            if len(sample) == 2:
                raise
            return self._reproduces_in_packs(pack_tokens // 2)
        except UNSUPPORTED:  # what a model makes of such a mask is its own affair
            return False
        alone = np.concatenate([self.read_last([ids]).states for ids in sample[-3:]])
        return agrees(packed, alone, self.chat_model.dtype)

    def _read(self, sequences: list[list[int]], last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read prompts, in packs where they may be packed.

        Returns:
            Hidden states ``(prompt, site, token, d_model)`` float32, refusal log-odds ``(prompt,)`` float64, and token
            ids ``(prompt,)`` of the likeliest first reply tokens.
        """
        packed = len(sequences) > 1 and bool(self.may_pack(np.array([len(ids) for ids in sequences])).all())
        with self._launching:
            wait = self._forward_async(sequences, last, packed)
        states, log_odds, first, finite = wait()
        if packed and not finite:
            # A mask is added: keys and values that are not finite reach every prompt of the pack.
            alone = [self._read([ids], states.shape[2]) for ids in sequences]
            states, log_odds, first = (np.concatenate(parts) for parts in zip(*alone, strict=True))
        return states, log_odds, first

    def _forward_async(self, sequences: list[list[int]], last: int, packed: bool) -> Callable[[], list[np.ndarray]]:
        """Launch what :meth:`_read` returns, and whether the states are finite; the function returned waits for it."""
        inputs = self._packed(sequences, last) if packed else self._rows(sequences, self.shared_prefix(sequences), last)
        states, logits = self._forward(inputs)
        log_odds = refusal_log_odds(logits, self.refusal_ids)
        return to_host(states, log_odds, logits.argmax(dim=-1), states.isfinite().all())

    def _forward(self, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model; the keys and values in the inputs are continued.

        Returns:
            Hidden states ``(prompt, site, token, d_model)`` and the last token's logits ``(prompt, vocabulary)``,
            float32.
        """
        index = inputs.token_index
        with (
            torch.inference_mode(),
            self._recorded(index, inputs.packed) as recorded,
            changed_head_input(self.chat_model, lambda states: select_tokens(states, index[:, -1:])),
        ):
            logits = self.chat_model.model(inputs.token_ids, **inputs.options).logits[:, -1].float()
        return torch.stack([states.to(logits.device) for states in recorded], dim=1), logits

    @contextmanager
    def _recorded(self, token_index: torch.Tensor, packed: bool) -> Iterator[list[torch.Tensor]]:
        """Record the residual stream at every site; of packs the last MLP is run for the recorded tokens alone."""
        narrowed = narrowed_last_mlp(self.chat_model, token_index) if packed else nullcontext()
        with narrowed, recorded_states(self.chat_model, token_index) as recorded:
            yield recorded

    def _rows(self, sequences: Sequence[list[int]], prefix: CachedPrefix | None, last: int) -> _Inputs:
        """Return the inputs for prompts of one length, a row per prompt, behind a prefix that they share."""
        n_before = len(prefix.token_ids) if prefix is not None else 0
        cache = prefix.for_rows(len(sequences)) if prefix is not None else None
        ids = to_device(torch.tensor([ids[n_before:] for ids in sequences]), self.chat_model.device)
        if len(sequences[0]) >= self._rope_limit:
            # Dynamic NTK keeps to the longest text it was given until it is given a short one.
            with torch.inference_mode():
                self.chat_model.model(ids[:1, :1], use_cache=False)
        index = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, -last:]
        return _Inputs(ids, {"past_key_values": cache, "use_cache": cache is not None}, index, packed=False)

    def _packed(self, sequences: Sequence[list[int]], last: int) -> _Inputs:
        """Return the inputs for packs of prompts, a row per pack."""
        prefix, kind, device = (
            self.shared_prefix(sequences),
            limits.device_type(self.chat_model),
            self.chat_model.device,
        )
        n_before = len(prefix.token_ids) if prefix is not None else 0
        own = [ids[n_before:] for ids in sequences]
        batch = pack_batch(own, last, limits.PACK_TOKENS[kind], n_before, limits.PACK_MULTIPLE[kind])
        cache = prefix.for_rows(len(batch.token_ids)) if prefix is not None else None
        ids, positions, ends, index = (
            to_device(torch.from_numpy(part), device)
            for part in (batch.token_ids, batch.positions, batch.ends, batch.token_index)
        )
        options = {
            "past_key_values": cache,
            "use_cache": cache is not None,
            "position_ids": positions,
            "attention_mask": pack_mask(ends, n_before, self.chat_model.model.dtype),
        }
        return _Inputs(ids, options, index, packed=True)


def pack_mask(ends: torch.Tensor, n_before: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention scores so that tokens attend to the prefix and to their own prompts alone.

    Args:
        ends: ``(pack, token)``, see :class:`.packing.Pack`.
        n_before: how many tokens lie before the packs, seen by all.
        dtype: what the model computes in.

    Returns:
        ``(pack, 1, token, n_before + token)``.
    """
    index = torch.arange(ends.shape[1], device=ends.device)
    seen = (index <= index[:, None]) & (index[:, None] < ends[:, None, :])
    mask = torch.zeros(*ends.shape, n_before + ends.shape[1], dtype=dtype, device=ends.device)
    mask[:, :, n_before:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]
