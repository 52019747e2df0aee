"""Reading the residual stream: one forward pass a prompt, every site.

The chat template puts the same tokens before every prompt: they are run once and their keys and values reused. Prompts
are read in packs, one behind the other without padding, and what several of a pack begin with is run once; a mask lets
each token attend to its own prompt alone, as in tree attention (Miao et al. 2024, SpecInfer). Packs of about one length
are the rows of a batch. Forward hooks keep each prompt's last hidden states of each block; the last block's MLP and the
vocabulary projection run on these alone.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, pairwise
from threading import Lock

import numpy as np
import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel, render, text_config
from refusal_core.models.templates import check_thinking
from refusal_core.sites import site_label

REFUSAL_OPENINGS = ("I", "As")
"""How refusals open ("I cannot …", "As an AI …"): the set of Arditi et al. 2024, appendix B, for Qwen."""

BATCH_TOKENS = {"cpu": 512, "mps": 2048, "cuda": 8192}
"""Most new tokens that are run together: what a device needs to be busy, and has memory for; of wide models fewer."""
_WIDE = 1792
"""From which d_model on a batch has fewer tokens, in proportion: what a block makes of them fills the same memory."""
PACK_TOKENS = {"cpu": 512, "mps": 1024, "cuda": 1024}
"""Most new tokens in a pack: what attention costs grows with their square."""
MOST_AT_ONCE = 4
"""Most batches that are read at the same time, each on its own cores: their activations are in memory together."""
NO_SHARED_BEGINNING = "none: the template puts no tokens before every prompt"
NOT_REPRODUCED = "none: for this model, reused keys and values did not give what a plain forward pass gives"
PACKED = "prompts of several lengths, in packs"
READ_ALONE = "none: LLM.int8() lets a prompt's numbers depend on those beside it"
OWN_ATTENTION = "none: the model's attention is of its own making"
NOT_PACKED = "none: for this model, a pack did not give what its prompts give alone"
UNSUPPORTED = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an architecture raises that does not take what others take; out of memory is a RuntimeError too, and is none."""
_SAMPLES = ("What is a good name for a cat?", "Zebras yawn", "What is a zebra?")
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}
_ALIGNED = 8
"""CUDA's attention copies a mask for every block unless its rows are a multiple of this long."""
_VOCABULARIES = 16
"""Prompts whose logits are in float64 at a time."""
_RECENT_BYTES = 256e6
"""What is kept of texts read token by token, for the next text that begins as one of them does."""


@dataclass(frozen=True, eq=False)
class LastReading:
    """Prompts at the last token of each, where directions are read.

    Attributes:
        states: ``(prompt, site, d_model)`` float32.
        first_token: the likeliest first token of each reply, as text.
        refusal_log_odds: ``(prompt,)`` float64, see :func:`refusal_log_odds`.
    """

    states: np.ndarray
    first_token: list[str]
    refusal_log_odds: np.ndarray


@dataclass(frozen=True, eq=False)
class TokenReading:
    """One prompt, every token of it.

    Attributes:
        hidden: ``(token, site, d_model)`` float32 for the prompt's own tokens; the template's are left out.
        last: ``(site, d_model)`` float32 at the last token of the templated prompt, where directions are read.
        tokens: the prompt's own tokens, as text.
        first_token: the likeliest first token of the reply.
        refusal_log_odds: see :func:`refusal_log_odds`.
    """

    hidden: np.ndarray
    last: np.ndarray
    tokens: list[str]
    first_token: str
    refusal_log_odds: float


@dataclass(frozen=True, eq=False)
class _Begun:
    """The beginning of a text, as it was read: what a text that begins alike need not run again.

    Attributes:
        ids: its tokens, from the template's first on.
        kept: ``(site, token, d_model)`` float32 of those after the template's opening.
        cache: keys and values of all of them.
    """

    ids: list[int]
    kept: torch.Tensor
    cache: Cache

    @property
    def nbytes(self) -> int:
        layers = [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]
        parts = [self.kept, *(part for layer in layers for part in (layer.keys, layer.values) if part is not None)]
        return sum(part.nbytes for part in parts)

    @property
    def can_be_cut(self) -> bool:
        """Whether keys and values can be taken off its end; a full sliding window has forgotten what came before."""
        return all(
            layer.sliding_window > len(self.ids)
            if isinstance(layer, DynamicSlidingWindowLayer)
            else isinstance(layer, DynamicLayer)
            for layer in self.cache.layers
        )

    def cut(self, count: int) -> _Begun:
        """Its first ``count`` tokens."""
        if count == len(self.ids):
            return self
        cache = layerwise_copy(self.cache)
        cache.crop(count - len(self.ids))
        return _Begun(self.ids[:count], self.kept[:, : self.kept.shape[1] + count - len(self.ids)], cache)


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
        """Args are those of ``templates.render``; ``packs`` is tried unless it is known already."""
        check_thinking(chat_model.tokenizer, thinking)
        self.chat_model = chat_model
        self.system_prompt = system_prompt
        self.thinking = thinking
        self.day = day
        self.refusal_ids = refusal_token_ids(chat_model.tokenizer)
        samples = [self.encode(text) for text in _SAMPLES[:2]]
        self._template_ids = common_prefix(*samples)
        self._template_end = common_prefix(*(sample[::-1] for sample in samples))[::-1]
        self._rope_limit = _rope_limit(text_config(chat_model.model.config))
        self._prefix_cache: Cache | None = None
        self._recent: list[_Begun] = []
        # What is asked of a GPU is done later; while one batch is computed, the next is asked for.
        self._asking: AbstractContextManager = Lock() if self._device_type == "cuda" else nullcontext()
        self._prefix_note = NO_SHARED_BEGINNING
        self._packs = packs
        if len(self._template_ids) >= 2:
            plain = self.read_last(samples[:1])
            self._prefix_cache = self._run_prefix()
            if not self._agrees(self.read_last(samples[:1]).states, plain.states):
                self._prefix_cache, self._prefix_note = None, NOT_REPRODUCED

    @property
    def prefix_tokens(self) -> int:
        """Template tokens whose keys and values are reused; 0 when every prompt is run whole."""
        return len(self._template_ids) if self._prefix_cache is not None else 0

    @property
    def prefix_note(self) -> str:
        """How many template tokens are run once for all prompts, or why none are, in words."""
        return f"{self.prefix_tokens} tokens, run once for all prompts" if self.prefix_tokens else self._prefix_note

    @property
    def packs(self) -> bool:
        """Whether prompts of several lengths may be read together; tried when it is first asked for."""
        if self._packs is None:
            # Attention of a model's own making may do more than the mask says, and a sample need not show it.
            may = self.chat_model.model.is_backend_compatible() and not self.chat_model.reads_alone
            self._packs = may and self._reads_packs(self._usual_tokens)
        return self._packs

    @property
    def pack_note(self) -> str:
        """Whether prompts are read in packs, or why not, in words."""
        if self.packs:
            return PACKED
        if self.chat_model.reads_alone:
            return READ_ALONE
        return NOT_PACKED if self.chat_model.model.is_backend_compatible() else OWN_ATTENTION

    @property
    def template_end(self) -> int:
        """How many tokens the template puts after every prompt; the last of them is where directions are read."""
        return len(self._template_end)

    @property
    def batch_tokens(self) -> int:
        """Most new tokens that are run together while there is memory."""
        if self.chat_model.reads_alone:
            return 1
        # Of a model that is spread, what waits elsewhere is moved for every pass.
        waiting = {"cpu", "disk"} - {self._device_type}
        places = {str(place) for place in getattr(self.chat_model.model, "hf_device_map", {}).values()}
        return self._usual_tokens * (2 if waiting & places else 1)

    @property
    def _usual_tokens(self) -> int:
        return BATCH_TOKENS[self._device_type] * _WIDE // max(_WIDE, self.chat_model.d_model)

    @property
    def _device_type(self) -> str:
        return torch.device(self.chat_model.device).type

    @property
    def at_once(self) -> int:
        """How many batches are best read at the same time.

        On a CPU, cores wait for each other within one product; a GPU waits for what it is asked next.
        """
        model = self.chat_model.model
        if hasattr(model, "hf_device_map"):
            return 1
        if self._device_type == "cuda":
            return 2
        if self._device_type != "cpu" or getattr(model, "is_quantized", False):
            return 1  # quantised layers keep copies of their weights beside them
        cores = torch.get_num_threads()
        # Each gets as many cores; as few as can be are left over.
        return max(range(1, MOST_AT_ONCE + 1), key=lambda batches: (cores // batches * batches, batches))

    def for_another_thread(self) -> ResidualReader:
        """A reader like this one, over the same weights, keys and values."""
        if self._device_type == "cuda":
            return self  # one pass is asked for at a time
        other = copy.copy(self)
        other.chat_model, other._recent = self.chat_model.for_another_thread(), []
        return other

    def even_tokens(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> int:
        """Most new tokens in a batch of these prompts: as few as keep all that are read at once equally long at it."""
        # A GPU has one batch at a time, however many are on their way.
        at_once = 1 if self._device_type == "cuda" else self.at_once
        _, alone, behind = _side_by_side(sequences, self.prefix_tokens)
        return _evenly(alone, behind, self.batch_tokens, at_once)

    def batches(self, sequences: Sequence[Sequence[int] | np.ndarray], batch_tokens: int) -> Iterator[np.ndarray]:
        """Rows of prompts to read together, at most ``batch_tokens`` new tokens, or one prompt that is longer."""
        n_tokens = np.array([len(ids) for ids in sequences])
        may_pack, whole = self._may_pack(n_tokens), n_tokens >= self._rope_limit
        together = np.flatnonzero(may_pack)
        for rows in packs([sequences[row] for row in together.tolist()], self.prefix_tokens, batch_tokens):
            yield together[rows]
        for chosen, prefix in ((~may_pack & ~whole, self.prefix_tokens), (whole, 0)):
            apart = np.flatnonzero(chosen)
            for rows in batches(n_tokens[apart], prefix, batch_tokens):
                yield apart[rows]

    def shared_prefix(self, sequences: list[list[int]]) -> list[int]:
        """The template tokens that these prompts begin with and that need to be run only once; empty for none."""
        prefix = self._template_ids[: self.prefix_tokens]
        shared = all(len(prefix) < len(ids) < self._rope_limit and ids[: len(prefix)] == prefix for ids in sequences)
        return prefix if shared else []

    def encode(self, text: str) -> list[int]:
        """Token ids of the templated prompt, generation prompt included."""
        return render(self.chat_model.tokenizer, text, self.system_prompt, self.thinking, self.day)

    def read_last(self, sequences: list[list[int]]) -> LastReading:
        """Read prompts that :meth:`batches` puts together, or of one length, at their last token."""
        states, log_odds, first = self._read(sequences, last=1)
        return LastReading(states[:, :, 0], [self._decoded(token_id) for token_id in first.tolist()], log_odds)

    def read_end(self, sequences: list[list[int]], last: int) -> np.ndarray:
        """Read prompts at their last few tokens: ``(prompt, site, token, d_model)`` float32."""
        return self._read(sequences, last)[0]

    def open_reply(self, sequences: list[list[int]]) -> tuple[torch.Tensor, Cache]:
        """Run prompts of one length up to where their replies begin.

        Returns:
            The first reply token's logits ``(prompt, vocabulary)`` float32, and the prompts' keys and values.
        """
        ids, options = self._rows(sequences)
        with torch.inference_mode(), contiguous_head(self.chat_model):
            output = self.chat_model.model(ids, logits_to_keep=1, **(options | {"use_cache": True}))
        return output.logits[:, -1].float(), output.past_key_values

    def read_tokens(self, text: str) -> TokenReading:
        """Read one prompt at each of its tokens.

        Only the tokens from the first on that differs from a text read shortly before are run. Numbers coarser than
        float32's would then depend on what was read before, so there the whole prompt is.
        """
        ids = self.encode(text)
        begun = self._begun_like(ids)
        kept, logits, cache = self._forward([ids], len(ids), begun)
        states = kept[0] if begun is None else torch.cat([begun.kept.to(kept.device), kept[0]], dim=1)
        hidden = states.transpose(0, 1).cpu().numpy()
        log_odds = refusal_log_odds(logits, self.refusal_ids).cpu().numpy()
        check_finite(hidden[-1:], log_odds, [("the prompt", text)], self.chat_model)
        if cache is not None:
            self._keep(_Begun(ids, states, cache))
        offset = len(ids) - hidden.shape[0]
        start = max(len(common_prefix(ids, self._template_ids)), offset)
        end = len(ids) - len(common_prefix(ids[::-1], self._template_end[::-1]))
        tokens = [self._decoded(i) for i in ids[start:end]]
        return TokenReading(
            hidden=hidden[start - offset : end - offset],
            last=hidden[-1],
            tokens=tokens,
            first_token=self._decoded(int(logits.argmax())),
            refusal_log_odds=float(log_odds[0]),
        )

    def _decoded(self, token_id: int) -> str:
        return str(self.chat_model.tokenizer.decode([token_id]))

    def _run_prefix(self) -> Cache:
        ids = torch.tensor([self._template_ids], device=self.chat_model.device)
        with torch.inference_mode():
            return self.chat_model.model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def _reads_packs(self, pack_tokens: int) -> bool:
        """Whether a pack gives what its last prompts give alone; what depends on places in it shows in a long one."""
        sample: list[list[int]] = []
        new = 0
        for number in count():
            ids = self.encode(f"{number} {_SAMPLES[number % len(_SAMPLES)]}")
            new += len(ids) - self.prefix_tokens
            if len(sample) > 1 and new > pack_tokens:
                break
            sample.append(ids)
        sample.sort()  # as they are packed
        try:
            packed = self._forward(sample, 1, packed=True)[0][-3:, :, 0].cpu().numpy()
        except torch.OutOfMemoryError:
            if len(sample) == 2:
                raise
            return self._reads_packs(pack_tokens // 2)
        except UNSUPPORTED:  # what a model makes of such a mask is its own affair
            return False
        return self._agrees(packed, np.concatenate([self.read_last([ids]).states for ids in sample[-3:]]))

    def _may_pack(self, n_tokens: np.ndarray) -> np.ndarray:
        """Which prompts may be packed, by their lengths: a mask that is given is not cut to a sliding window."""
        config = text_config(self.chat_model.model.config)
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        longest = min((window for window in windows if window), default=math.inf)
        return (n_tokens <= longest) & (n_tokens < self._rope_limit) & self.packs

    def _agrees(self, found: np.ndarray, plain: np.ndarray) -> bool:
        # What is not finite does not agree, and is reported where prompts are read.
        with np.errstate(invalid="ignore"):
            error = np.linalg.norm(found - plain, axis=-1) / np.linalg.norm(plain, axis=-1)
        return bool((error < _TOLERANCE[self.chat_model.dtype]).all())

    def _begun_like(self, ids: list[int]) -> _Begun | None:
        """The longest beginning of a prompt whose keys and values are at hand; None where the prompt is run whole."""
        prefix = self.shared_prefix([ids])
        if not prefix or self._prefix_cache is None:
            return None
        nothing = torch.empty(self.chat_model.n_layers + 1, 0, self.chat_model.d_model)
        found, shared = _Begun(prefix, nothing, self._prefix_cache), len(prefix)
        for begun in self._recent:
            # The last token is always run: its logits are wanted.
            alike = min(len(common_prefix(begun.ids, ids)), len(ids) - 1)
            if alike > shared:
                found, shared = begun, alike
        return found.cut(shared)

    def _keep(self, read: _Begun) -> None:
        """Hold what was read for the next text that begins as it does; of many texts, those read last."""
        if self.chat_model.dtype != "float32" or not read.can_be_cut:
            return
        self._recent.insert(0, read)
        while sum(each.nbytes for each in self._recent) > _RECENT_BYTES:
            self._recent.pop()

    def _read(self, sequences: list[list[int]], last: int) -> tuple[np.ndarray, ...]:
        """Hidden states, refusal log-odds and the likeliest first tokens, in a pack where that may be.

        Returns:
            ``(prompt, site, token, d_model)`` float32, ``(prompt,)`` float64 and ``(prompt,)`` token ids.
        """
        packed = len(sequences) > 1 and bool(self._may_pack(np.array([len(ids) for ids in sequences])).all())
        with self._asking:
            fetched = self._asked(sequences, last, packed)
        *found, finite = fetched()
        if packed and not finite:
            # A mask is added: keys and values that are not finite reach every prompt of the pack.
            alone = [self._read([ids], found[0].shape[2]) for ids in sequences]
            return tuple(np.concatenate(parts) for parts in zip(*alone, strict=True))
        return tuple(found)

    def _asked(self, sequences: list[list[int]], last: int, packed: bool) -> Callable[[], list[np.ndarray]]:
        """Ask for what :meth:`_read` gives, and whether the states are finite; what is returned waits for it."""
        kept, logits, _ = self._forward(sequences, last, packed=packed)
        log_odds = refusal_log_odds(logits, self.refusal_ids)
        return _fetched(kept, log_odds, logits.argmax(dim=-1), kept.isfinite().all())

    def _forward(
        self, sequences: list[list[int]], last: int, begun: _Begun | None = None, packed: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, Cache | None]:
        """Run prompts; hidden states ``(prompt, site, token, d_model)`` and last logits, float32, and keys and values.

        The hidden states are those of each prompt's ``last`` tokens, or of all that were run where these are fewer.
        """
        narrowed: AbstractContextManager[None] = nullcontext()
        if packed:
            ids, options, places = self._pack(sequences, last)
            narrowed = _last_mlp_at(self.chat_model, places)
        else:
            ids, options = self._rows(sequences, begun)
            places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, -last:]
        with (
            torch.inference_mode(),
            narrowed,
            _kept_states(self.chat_model, places) as kept,
            _head_input(self.chat_model, lambda states: _taken(states, places[:, -1:])),
        ):
            logits = self.chat_model.model(ids, **options).logits[:, -1].float()
        return torch.stack([states.to(logits.device) for states in kept], dim=1), logits, options["past_key_values"]

    def _rows(self, sequences: list[list[int]], begun: _Begun | None = None) -> tuple[torch.Tensor, dict]:
        """What the model is called with for prompts of one length: new tokens, a row a prompt, and what lies before.

        That is ``begun``, or the template's opening where the prompts share it.
        """
        before = begun.cache if begun is not None else self._prefix_cache
        prefix = len(begun.ids if begun is not None else self.shared_prefix(sequences))
        cache = _for_rows(before, len(sequences)) if prefix else None
        ids = _sent(torch.tensor([ids[prefix:] for ids in sequences]), self.chat_model.device)
        if len(sequences[0]) >= self._rope_limit:
            # Dynamic NTK keeps to the longest text it was given until it is given a short one.
            with torch.inference_mode():
                self.chat_model.model(ids[:1, :1], use_cache=False)
        return ids, {"past_key_values": cache, "use_cache": cache is not None}

    def _pack(self, sequences: list[list[int]], last: int) -> tuple[torch.Tensor, dict, torch.Tensor]:
        """What the model is called with for packs: new tokens, a row a pack, and what each may attend to.

        Returns:
            Token ids ``(pack, token)``, the model's options, and where each prompt's ``last`` tokens stand, ``(prompt,
            token)``, row after row; fewer where a prompt has fewer.
        """
        prefix, device = len(self.shared_prefix(sequences)), self.chat_model.device
        own = [ids[prefix:] for ids in sequences]
        last = min(last, *map(len, own))
        # The longest makes all packs as long as it is, so beside it the others are in long packs too.
        most = max(PACK_TOKENS[self._device_type], *map(len, own))
        rows = list(packs(own, 0, most, evenly=True))
        laid = [laid_out([own[row] for row in each]) for each in rows]
        length = max(len(pack.tokens) for pack in laid)
        if self._device_type == "cuda":
            length += -(prefix + length) % _ALIGNED
        ids, positions = torch.zeros(2, len(rows), length, dtype=torch.long)
        ends = torch.arange(1, length + 1).repeat(len(rows), 1)  # behind a pack each sees itself
        places: list[list[int]] = [[]] * len(own)
        for number, (each, pack) in enumerate(zip(rows, laid, strict=True)):
            tokens = len(pack.tokens)
            ids[number, :tokens] = torch.tensor(pack.tokens)
            positions[number, :tokens] = torch.tensor(pack.depths) + prefix
            ends[number, :tokens] = torch.tensor(pack.ends)
            for row, path in zip(each.tolist(), pack.paths, strict=True):
                places[row] = [number * length + place for place in path[-last:]]
        cache = _for_rows(self._prefix_cache, len(rows)) if prefix else None
        options = {
            "past_key_values": cache,
            "use_cache": cache is not None,
            "position_ids": _sent(positions, device),
            "attention_mask": _pack_mask(_sent(ends, device), prefix, self.chat_model.model.dtype),
        }
        return _sent(ids, device), options, _sent(torch.tensor(places), device)


@dataclass(frozen=True)
class Pack:
    """Sequences one behind the other; what several begin with stands there once.

    Attributes:
        tokens: their token ids.
        depths: each token's place in its sequences.
        ends: the place behind the last token that comes after it in a sequence: those up to there may attend to it.
        paths: of each sequence the places of its tokens.
    """

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    paths: list[list[int]]


def laid_out(sequences: Sequence[list[int]]) -> Pack:
    """Put sequences into a pack, those that begin alike beside each other, as :func:`packs` gives them."""
    pack = Pack([], [], [], [])
    before: list[int] = []
    path: list[int] = []
    for ids in sequences:
        shared = len(common_prefix(before, ids))
        for place in path[shared:]:
            pack.ends[place] = len(pack.tokens)
        path = path[:shared]
        for token in ids[shared:]:
            pack.depths.append(len(path))
            path.append(len(pack.tokens))
            pack.tokens.append(token)
            pack.ends.append(0)
        pack.paths.append(path)
        before = ids
    for place in path:
        pack.ends[place] = len(pack.tokens)
    return pack


def _pack_mask(ends: torch.Tensor, prefix: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores so that tokens see the prefix, and of a pack those before in their sequences.

    Args:
        ends: ``(pack, token)``, see :class:`Pack`.

    Returns:
        ``(pack, 1, token, prefix + token)``.
    """
    place = torch.arange(ends.shape[1], device=ends.device)
    seen = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])
    mask = torch.zeros(*ends.shape, prefix + ends.shape[1], dtype=dtype, device=ends.device)
    mask[:, :, prefix:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def _for_rows(cache: Cache | None, rows: int) -> Cache | None:
    """The same keys and values for each of several rows; what is added is not added to the original."""
    if cache is None:
        return None
    cache = layerwise_copy(cache)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    return cache


def _rope_limit(config: PreTrainedConfig) -> float:
    """From how many tokens on the length of a text changes how all its positions are encoded: longrope, dynamic NTK."""
    rope = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of them.
    settings = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    return min(
        (
            part.get("original_max_position_embeddings") or config.max_position_embeddings
            for part in settings
            if part.get("rope_type") in ("longrope", "dynamic")
        ),
        default=math.inf,
    )


def refusal_token_ids(tokenizer) -> list[int]:
    """First tokens of the openings of refusals, as this tokenizer writes them at the start of a text."""
    return sorted({tokenizer.encode(opening, add_special_tokens=False)[0] for opening in REFUSAL_OPENINGS})


def refusal_log_odds(logits: torch.Tensor, refusal_ids: list[int]) -> torch.Tensor:
    """Log-odds that the reply's first token is one that refusals open with (Arditi et al. 2024, section 2.5).

    ``log p - log(1 - p)`` with ``p`` the summed probability of the refusal tokens.

    Args:
        logits: ``(prompt, vocabulary)`` at the first reply token.

    Returns:
        ``(prompt,)`` float64 on the device of the logits, natural logarithm.
    """
    refusals = _sent(torch.tensor(refusal_ids), logits.device)
    found = []
    # A vocabulary in float64 is a megabyte a prompt, and more than one copy of it is needed.
    for part in logits.split(_VOCABULARIES):
        part = part.to(torch.float64, copy=True)
        refused = part.index_select(1, refusals).logsumexp(dim=-1)
        part.index_fill_(1, refusals, -math.inf)
        found.append(refused - part.logsumexp(dim=-1))
    return torch.cat(found)


def check_finite(
    states: np.ndarray, log_odds: np.ndarray, prompts: Sequence[tuple[str, str]], chat_model: ChatModel
) -> None:
    """Refuse activations or refusal log-odds that are infinite or not numbers.

    Args:
        states: ``(prompt, site, d_model)``.
        log_odds: ``(prompt,)``.
        prompts: each prompt's place and text, for the message.

    Raises:
        ModelError: naming the first site, the first prompt there, and what to do.
    """
    finite = np.column_stack([np.isfinite(states).all(axis=-1), np.isfinite(log_odds)])
    if finite.all():
        return
    site = int((~finite).any(axis=0).argmax())
    row = int((~finite[:, site]).argmax())
    place, text = prompts[row]
    if site > chat_model.n_layers:
        what, where = "logits that are not finite", "the vocabulary projection"
    else:
        what = "infinite activations" if np.isinf(states[row, site]).any() else "activations that are not numbers (NaN)"
        where = site_label(site, chat_model.n_layers)
    mend = {
        "float16": "float16 holds nothing beyond 65,504; run again with --dtype float32, or bfloat16 where it is fast",
        "bfloat16": "run again with --dtype float32, and if that gives the same, its weights are damaged: get it anew",
    }.get(chat_model.dtype, "its weights are damaged or not meant for this architecture: get it anew")
    name = f"{chat_model.info.name} in {chat_model.dtype}"
    raise ModelError(f"{name} gives {what} at {where}, first for {place} ({text!r:.60}): {mend}")


@contextmanager
def _head_input(chat_model: ChatModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change the hidden states that the vocabulary projection is given."""

    def changed(module, arguments) -> tuple:
        return (change(arguments[0]), *arguments[1:])

    handle = chat_model.lm_head.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def contiguous_head(chat_model: ChatModel) -> AbstractContextManager[None]:
    """Let the vocabulary projection of one position cost no more than that."""
    # transformers passes a strided slice, which torch multiplies as a batch, copying the whole vocabulary matrix.
    return _head_input(chat_model, torch.Tensor.contiguous)


@contextmanager
def _kept_states(chat_model: ChatModel, places: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Collect what leaves each block and the final norm, in site order, as float32 ``(prompt, token, d_model)``.

    Args:
        places: ``(prompt, token)``, which of the tokens that are run.
    """
    kept: list[torch.Tensor] = []

    def keep(module, arguments, output) -> None:
        states = residual_stream(output)
        if states.ndim != 3 or states.shape[-1] != chat_model.d_model:
            raise ModelError(
                f"{chat_model.info.name} hands {tuple(states.shape)} from a block to the next; this needs a model with "
                f"one residual stream, (prompt, token, {chat_model.d_model})"
            )
        kept.append(_taken(states, places).float())

    handles = [module.register_forward_hook(keep) for module in [*chat_model.blocks, chat_model.final_norm]]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def last_mlp(chat_model: ChatModel) -> torch.nn.Module | None:
    """The MLP of the last block, by the name that it has in nearly every architecture."""
    return getattr(chat_model.blocks[-1], "mlp", None)


@contextmanager
def _last_mlp_at(chat_model: ChatModel, places: torch.Tensor) -> Iterator[None]:
    """Run the last block's MLP for some tokens alone, and leave zeros for the others, which nobody reads after it.

    Args:
        places: ``(prompt, token)``, which of the tokens that are run.
    """
    mlp = last_mlp(chat_model)
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def narrow(module, arguments) -> tuple:
        shapes.append(arguments[0].shape)
        return (_taken(arguments[0], places), *arguments[1:])

    def widen(module, arguments, output) -> torch.Tensor | tuple:
        found = residual_stream(output)
        whole = found.new_zeros(shapes.pop())
        whole.flatten(0, 1)[places.to(whole.device)] = found
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    handles = [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _taken(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Some tokens' hidden states ``(prompt, token, d_model)``, by their places among all, row after row."""
    # Copied only to where a block lies elsewhere: each copy waits for what the accelerator has to do.
    return states.flatten(0, 1)[places.to(states.device)]


def _sent(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Values on a device; a GPU, which has more to do, is not waited for."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _fetched(*found: torch.Tensor) -> Callable[[], list[np.ndarray]]:
    """Ask for values on the CPU; what is returned waits for them.

    From a GPU they come through memory that is pinned and used again, which is many times faster.
    """
    arriving = [values.to("cpu", non_blocking=values.is_cuda) for values in found]
    arrived = [torch.cuda.current_stream(values.device).record_event() for values in found if values.is_cuda]

    def wait() -> list[np.ndarray]:
        for event in arrived:
            event.synchronize()
        return [values.numpy() for values in arriving]

    return wait


def layerwise_copy(cache: Cache) -> Cache:
    """The same keys and values; what is added to the copy is not added to the original, and nothing is duplicated."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def residual_stream(output: torch.Tensor | tuple) -> torch.Tensor:
    """The hidden states ``(prompt, token, d_model)`` in what a block or MLP returns, perhaps among others."""
    return output[0] if isinstance(output, tuple) else output


def batches(n_tokens: np.ndarray, prefix: int, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows of prompts of one length, at most ``batch_tokens`` new tokens together, longest first.

    Args:
        n_tokens: ``(prompt,)`` tokens of each prompt.
        prefix: how many of them need not be run.
    """
    waiting = np.argsort(-n_tokens, kind="stable")
    while len(waiting):
        length = n_tokens[waiting[0]]
        rows = waiting[: max(1, batch_tokens // max(1, length - prefix))]
        rows = rows[n_tokens[rows] == length]
        yield rows
        waiting = waiting[len(rows) :]


def packs(
    sequences: Sequence[Sequence[int] | np.ndarray], prefix: int, pack_tokens: int, evenly: bool = False
) -> Iterator[np.ndarray]:
    """Rows of prompts to read in one pack, at most ``pack_tokens`` new tokens, beside each other what begins alike.

    Args:
        sequences: token ids of each prompt.
        prefix: how many of each prompt's tokens need not be run.
        evenly: make them about equally long, and no more of them.
    """
    rows, alone, behind = _side_by_side(sequences, prefix)
    if evenly:
        pack_tokens = _evenly(alone, behind, pack_tokens)
    for start, end in _cut(alone, behind, pack_tokens):
        yield np.array(rows[start:end])


def _side_by_side(
    sequences: Sequence[Sequence[int] | np.ndarray], prefix: int
) -> tuple[list[int], list[int], list[int]]:
    """Rows of prompts, what begins alike beside each other, and new tokens of each: first in a pack, and behind one."""
    found = [np.asarray(ids, dtype=np.int32) for ids in sequences]
    # As bytes the ids are not in the order of numbers, but those that begin alike are together.
    rows = sorted(range(len(found)), key=lambda row: found[row].tobytes())
    alone, behind, before = [], [], list[int]()
    for row in rows:
        ids = found[row].tolist()
        alone.append(len(ids) - prefix)
        behind.append(len(ids) - max(prefix, len(common_prefix(before, ids))))
        before = ids
    return rows, alone, behind


def _evenly(alone: list[int], behind: list[int], most: int, times: int = 1) -> int:
    """Most new tokens in a pack so that all are about equally long, and no more than packs of ``most`` would be.

    Args:
        alone, behind: as for :func:`_cut`.
        times: of what number the packs are to be a multiple.
    """

    def packs_of(tokens: int) -> int:
        return sum(1 for _ in _cut(alone, behind, tokens))

    wanted = math.ceil(packs_of(most) / times) * times
    return bisect_left(range(1, most), True, key=lambda tokens: packs_of(tokens) <= wanted) + 1


def _cut(alone: list[int], behind: list[int], pack_tokens: int) -> Iterator[tuple[int, int]]:
    """From where to where packs go, by the new tokens of each prompt when it is first in one, and behind another."""
    start, tokens = 0, 0
    for place, (first, new) in enumerate(zip(alone, behind, strict=True)):
        if place > start and tokens + new > pack_tokens:
            yield start, place
            start, tokens = place, first
        else:
            tokens += new if place > start else first
    if alone:
        yield start, len(alone)


def distinct_tokens(sequences: list[list[int]]) -> int:
    """How many tokens are not the same, after the same, as in another sequence."""
    alike = sum(len(common_prefix(*pair)) for pair in pairwise(sorted(sequences)))
    return sum(map(len, sequences)) - alike


def common_prefix(first: list[int], second: list[int]) -> list[int]:
    """What two sequences of token ids both begin with."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return first[:length]
