"""Everything that is used of transformers without being documented, so that an upgrade breaks in one place.

Keys and values of a pass lie in a ``Cache`` with one entry per layer; what a configuration calls its positions and
windows differs between architectures. transformers is imported where it is needed: a known model is identified without.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

_STATEFUL_LAYERS = {"conv", "linear_attention", "hybrid", "hybrid_sliding"}
"""What transformers calls the layers of a configuration that hand a state on from token to token."""


def keep_one_scale(config: PreTrainedConfig) -> None:
    """Read the residual stream as it was trained: RWKV halves it every few blocks, against overflow in float16."""
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0


def copy_cache(cache: Cache, rows: int = 1) -> Cache:
    """Return the same keys, values and states, repeated for several rows; the original is not continued with the copy.

    Keys and values are not duplicated for one row. A recurrent state is: it is written over when it is continued.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    attention = (DynamicLayer, DynamicSlidingWindowLayer)
    if type(cache) is DynamicCache and all(type(layer) in attention for layer in cache.layers):
        copied: Cache = copy.copy(cache)
        copied.layers = [copy.copy(layer) for layer in cache.layers]
    else:
        copied = copy.deepcopy(cache)
    if rows > 1:
        repeat_cache(copied, rows)
    return copied


def repeat_cache(cache: Cache, times: int) -> None:
    """Repeat each row of a cache in place, so that several texts continue it."""
    import torch

    for layer in cast(Any, cache.layers):
        if hasattr(layer, "recurrent_states"):  # of a layer with both, the other method forgets the state
            rows = next(len(state) for state in layer.conv_states.values() if state is not None)
            layer.reorder_cache(torch.arange(rows, device=layer.device).repeat_interleave(times))
        else:
            layer.batch_repeat_interleave(times)
    # MiniMax keeps states beside its layers, of which those with a state are empty.
    states = cast(Any, cache).__dict__.get("linear_cache", [])
    for number, state in enumerate(states):
        if isinstance(state, torch.Tensor):
            states[number] = state.repeat_interleave(times, dim=0)


def crop_cache(cache: Cache, drop: int) -> Cache:
    """Return the keys and values without those of the last ``drop`` tokens; the original keeps them."""
    copied = copy_cache(cache)
    copied.crop(-drop)
    return copied


def can_crop_cache(cache: Cache, n_tokens: int) -> bool:
    """Return whether keys and values of ``n_tokens`` can be cropped; a full sliding window forgot what came before."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(
        layer.sliding_window > n_tokens
        if isinstance(layer, DynamicSlidingWindowLayer)
        else isinstance(layer, DynamicLayer)
        for layer in cache.layers
    )


def cache_nbytes(cache: Cache) -> int:
    """Return how many bytes the keys and values take."""
    from transformers.cache_utils import DynamicLayer

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


def render_template(template: str, messages: list[dict[str, Any]]) -> str:
    """Render a chat template without a tokenizer, up to where the reply begins."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = cast(Any, render_jinja_template)(
        conversations=[messages], chat_template=template, add_generation_prompt=True, bos_token="", eos_token=""
    )
    return str(rendered[0])


def gguf_class_name(family: str) -> str | None:
    """Return the name of the transformers class for a GGUF family such as "qwen2", or None where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASS_NAMES

    return CLASS_NAMES.get(f"{family}_text") or CLASS_NAMES.get(family)


def is_recurrent(config: PreTrainedConfig, model_class: type[Any]) -> bool:
    """Return whether blocks hand a state on from token to token: recurrent, convolutional or linear-attention layers.

    Args:
        config: of the text decoder.
        model_class: of the whole model.
    """
    layers = set(getattr(config, "layer_types", None) or ())
    return bool(getattr(model_class, "_is_stateful", False)) or bool(_STATEFUL_LAYERS & layers)


def placed_parts(model: PreTrainedModel) -> list[str]:
    """Return the device of each part that Accelerate placed by itself; empty for a model that was not given to it."""
    placed = getattr(model, "hf_device_map", {}).values()
    return [f"cuda:{device}" if isinstance(device, int) else str(device) for device in placed]


@contextmanager
def counted_gguf_tensors(report: Callable[[int, int], object]) -> Iterator[None]:
    """Report each tensor of a GGUF file that transformers converts, in place of the bar it would draw on stderr.

    Args:
        report: called with how many tensors are converted, and of how many.
    """
    from transformers import modeling_gguf_pytorch_utils as conversion

    def count(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        items = list(tensors)
        for done, item in enumerate(items):
            report(done, len(items))
            yield item
        report(len(items), len(items))

    drawn = conversion.tqdm
    conversion.tqdm = count
    try:
        yield
    finally:
        conversion.tqdm = drawn
