"""Everything that is used of transformers without being documented, so that an upgrade breaks in one place.

Keys and values of a pass lie in a ``Cache`` with one entry per layer; what a configuration calls its positions and
windows differs between architectures.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, cast

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel


def copy_cache(cache: Cache, rows: int = 1) -> Cache:
    """Return the same keys and values, repeated for several rows; what is added to the copy is not in the original.

    Nothing is duplicated for one row.
    """
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    if rows > 1:
        copied.batch_repeat_interleave(rows)
    return copied


def crop_cache(cache: Cache, drop: int) -> Cache:
    """Return the keys and values without those of the last ``drop`` tokens; the original keeps them."""
    copied = copy_cache(cache)
    copied.crop(-drop)
    return copied


def can_crop_cache(cache: Cache, n_tokens: int) -> bool:
    """Return whether keys and values of ``n_tokens`` can be cropped; a full sliding window forgot what came before."""
    return all(
        layer.sliding_window > n_tokens
        if isinstance(layer, DynamicSlidingWindowLayer)
        else isinstance(layer, DynamicLayer)
        for layer in cache.layers
    )


def cache_nbytes(cache: Cache) -> int:
    """Return how many bytes the keys and values take."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return sum(part.nbytes for layer in layers for part in (layer.keys, layer.values) if part is not None)


def obeys_masks(model: PreTrainedModel) -> bool:
    """Return whether attention does what a mask says; attention of a model's own making may do more."""
    return bool(cast(Any, model).is_backend_compatible())


def attention_window(config: PreTrainedConfig) -> float:
    """Return the longest distance over which all layers attend; infinity without a sliding window or chunks."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window), default=math.inf)


def rope_limit(config: PreTrainedConfig) -> float:
    """Return the length from which on a text's length changes all its positions: longrope, dynamic NTK."""
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


def device_map(model: PreTrainedModel) -> set[str]:
    """Return the devices over which Accelerate has spread a model; empty for one that lies in one place."""
    return {str(device) for device in getattr(model, "hf_device_map", {}).values()}
