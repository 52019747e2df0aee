"""Beginnings of texts whose keys and values are known: what a text that begins alike need not run again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache

from refusal_core.activations.packing import common_prefix
from refusal_core.models.transformers_internals import cache_nbytes, can_crop_cache, copy_cache, crop_cache

RECENT_BYTES = 256e6
"""Most bytes of keys and values of recent texts, for a next text that begins like one of them."""


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """The beginning of a text with the keys and values of its tokens.

    Attributes:
        token_ids: from the template's first token on.
        states: ``(site, token, d_model)`` float32 of the tokens behind the template's opening.
        cache: keys and values of all tokens; a pass that continues them gets a copy.
    """

    token_ids: list[int]
    states: torch.Tensor
    cache: Cache

    @property
    def nbytes(self) -> int:
        """How many bytes hidden states, keys and values take."""
        return self.states.nbytes + cache_nbytes(self.cache)

    @property
    def can_be_cut(self) -> bool:
        """Whether tokens can be taken off the end."""
        return can_crop_cache(self.cache, len(self.token_ids))

    def cut(self, n_tokens: int) -> CachedPrefix:
        """Return the first ``n_tokens`` tokens."""
        drop = len(self.token_ids) - n_tokens
        if drop == 0:
            return self
        states = self.states[:, : self.states.shape[1] - drop]
        return CachedPrefix(self.token_ids[:n_tokens], states, crop_cache(self.cache, drop))

    def for_rows(self, n_rows: int) -> Cache:
        """Return the keys and values for each of several rows, to be continued."""
        return copy_cache(self.cache, n_rows)


class RecentTexts:
    """The texts that were read last, up to :data:`RECENT_BYTES`."""

    def __init__(self) -> None:
        """Start without any."""
        self._texts: list[CachedPrefix] = []

    @property
    def nbytes(self) -> int:
        """How many bytes all of them take."""
        return sum(text.nbytes for text in self._texts)

    def longest_prefix(self, token_ids: list[int], template: CachedPrefix) -> CachedPrefix:
        """Return the longest known beginning of a text, without its last token: its logits have to be computed.

        Args:
            token_ids: the text, which begins with the template's opening.
            template: the template's opening, known in any case.
        """
        longest, n_shared = template, len(template.token_ids)
        for text in self._texts:
            n_alike = min(len(common_prefix(text.token_ids, token_ids)), len(token_ids) - 1)
            if n_alike > n_shared:
                longest, n_shared = text, n_alike
        return longest.cut(n_shared)

    def add(self, text: CachedPrefix) -> None:
        """Store a text in place of those that were read longest ago; one that cannot be cut is not stored."""
        if not text.can_be_cut:
            return
        self._texts.insert(0, text)
        while self.nbytes > RECENT_BYTES:
            self._texts.pop()

    def clear(self) -> None:
        """Forget all texts."""
        self._texts.clear()
