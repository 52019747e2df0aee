"""Edits of the residual stream of any transformers model: a direction is projected out, or a vector is added.

Forward hooks live in a context manager and are gone afterwards; weights are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import Module, ModuleList

from refusal_core.errors import ModelError

KINDS = ("ablate", "add")
TOKENS = ("all", "last")


@dataclass(frozen=True, eq=False)
class Edit:
    """A change to the residual stream after some blocks.

    Attributes:
        kind: ``ablate`` takes ``(x · v) v`` off every hidden state ``x`` (Arditi et al. 2024, section 2.4); ``add``
            puts ``v`` on it.
        vectors: layer → ``(d_model,)`` float32: for ``ablate`` a unit vector, or zeros where no direction exists and
            nothing is done; for ``add`` in activation units.
        tokens: ``all`` edits every token of a forward pass; ``last`` only its last one, for prompts that are not padded
            on the right.
    """

    kind: str
    vectors: Mapping[int, np.ndarray]
    tokens: str = "all"

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.tokens not in TOKENS:
            raise ValueError(f"expected one of {KINDS} and of {TOKENS}, got {self.kind!r} and {self.tokens!r}")
        if not self.vectors:
            raise ValueError("expected at least one layer to edit, got none")


def find_decoder(model: Any) -> Module:
    """Return the part of a causal language model that ends in the final norm, also inside a multimodal model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    part = decoder if decoder is not None and decoder is not model else model.base_model
    if not isinstance(part, Module):
        raise ModelError(f"expected a transformers model, got {type(model).__name__}")
    return part


def find_blocks(decoder: Module, n_layers: int) -> tuple[Module, ModuleList]:
    """Return the list of a decoder's ``n_layers`` transformer blocks, after the module that owns it.

    Raises:
        ModelError: when there is no such list.
    """
    for owner in decoder.modules():
        for child in owner.children():
            if isinstance(child, ModuleList) and len(child) == n_layers:
                return owner, child
    raise ModelError(f"no list of {n_layers} blocks was found in {type(decoder).__name__}")


def residual_stream(output: torch.Tensor | tuple[Any, ...]) -> torch.Tensor:
    """Return the hidden states ``(prompt, token, d_model)`` in what a block or MLP returns, perhaps among others."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def edited(blocks: ModuleList, edit: Edit) -> Iterator[None]:
    """Put every forward pass inside the block of code under an edit; afterwards the model is what it was.

    Args:
        blocks: the model's transformer blocks, in order.
        edit: the change, layer by layer.

    Raises:
        ValueError: for a layer that the model does not have.
    """
    for layer in edit.vectors:
        if not 0 <= layer < len(blocks):
            raise ValueError(f"expected layers 0 to {len(blocks) - 1}, got layer {layer}")
    handles = []
    try:
        for layer, vector in edit.vectors.items():
            handles.append(blocks[layer].register_forward_hook(_hook(edit, vector)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edit: Edit, vector: np.ndarray) -> Callable[[Module, Any, Any], Any]:
    direction = torch.tensor(vector, dtype=torch.float32)

    def change(module: Module, arguments: Any, output: Any) -> Any:
        states = residual_stream(output)
        if states.shape[-1] != len(direction):
            raise ValueError(f"expected vectors of the model's width {states.shape[-1]}, got {len(direction)}")
        along = direction.to(states.device)
        chosen = (states if edit.tokens == "all" else states[:, -1:]).float()
        changed = chosen + along if edit.kind == "add" else chosen - (chosen @ along)[..., None] * along
        changed = changed.to(states.dtype)
        if edit.tokens == "last":
            changed = torch.cat([states[:, :-1], changed], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return change
