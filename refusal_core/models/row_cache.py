"""Keys and values of prompts of several lengths, a row per prompt, after they were run in packs.

Kept apart from :mod:`.transformers_internals`, whose rule it follows, since it needs transformers when it is imported.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def keeps_tokens(cache: Cache) -> bool:
    """Return whether all layers keep the keys and values of each token, and nothing more."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def growing_cache(cache: Cache | None, rows: int) -> Cache:
    """Return a cache for several rows that begin with the same keys and values, and forget none of them.

    Args:
        cache: what they begin with, see :func:`keeps_tokens`; ``None`` for nothing.
        rows: how many.
    """
    grown = DynamicCache()
    for number, layer in enumerate(cache.layers if cache is not None else []):
        keys, values = (part.expand(rows, -1, -1, -1) for part in _parts(layer))
        grown.update(keys, values, number)
    return grown


class RowCache(Cache):
    """Keys and values of prompts of several lengths, in memory that is taken once.

    A row begins with the keys and values of its prompt and ends with those that passes append; what lies between, where
    a longer prompt goes on, is for a mask to hide.
    """

    def __init__(self, n_rows: int, n_begun: int, n_appended: int) -> None:
        """Say how much is kept.

        Args:
            n_rows: number of prompts.
            n_begun: tokens of the longest prompt.
            n_appended: most tokens that passes append.
        """
        super().__init__(layers=[])
        self._shape = n_rows, n_begun, n_begun + n_appended

    def fill(
        self,
        rows: slice,
        cache: Cache,
        pack_index: torch.Tensor,
        token_index: torch.Tensor,
        layers: range | None = None,
    ) -> None:
        """Copy the keys and values of prompts out of packs.

        Args:
            rows: the prompts' rows.
            cache: keys and values of the packs.
            pack_index: ``(prompt,)``, the pack of each prompt.
            token_index: ``(prompt, token)``, its tokens in the pack, from the first on.
            layers: which layers, from the first one that has not been filled at all; ``None`` for all.
        """
        for number in range(len(cache.layers)) if layers is None else layers:
            parts = _parts(cache.layers[number])
            if number == len(self.layers):
                self.layers.append(_RowLayer(parts, *self._shape))
            cast(_RowLayer, self.layers[number]).fill(rows, parts, pack_index, token_index)

    def select(self, rows: torch.Tensor) -> None:
        """Keep some rows."""
        for layer in self.layers:
            cast(_RowLayer, layer).select(rows)


class _RowLayer(DynamicLayer):
    """One layer of a :class:`RowCache`."""

    def __init__(self, like: tuple[torch.Tensor, torch.Tensor], n_rows: int, n_begun: int, length: int) -> None:
        cast(Any, super()).__init__()
        cast(Any, self).lazy_initialization(*like)
        self._all = [part.new_zeros(n_rows, part.shape[1], length, part.shape[3]) for part in like]
        self._n_tokens = n_begun
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (part[:, :, : self._n_tokens] for part in self._all)

    def fill(
        self,
        rows: slice,
        parts: tuple[torch.Tensor, torch.Tensor],
        pack_index: torch.Tensor,
        token_index: torch.Tensor,
    ) -> None:
        for into, part in zip(self._all, parts, strict=True):
            index = token_index.to(part.device)
            into[rows, :, : index.shape[1]] = part[pack_index.to(part.device)[:, None], :, index].transpose(1, 2)

    def select(self, rows: torch.Tensor) -> None:
        self._all = [part[rows.to(part.device)] for part in self._all]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self._n_tokens
        self._n_tokens += key_states.shape[2]
        for into, part in zip(self._all, (key_states, value_states), strict=True):
            into[:, :, start : self._n_tokens] = part
        self._show()
        return _parts(self)


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of a layer, ``(row, head, token, width)`` each."""
    return layer.keys, layer.values
