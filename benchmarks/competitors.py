"""Other ways to read prompts at their last token, each as its documentation shows; all give the same numbers.

A way takes templated prompts as token ids and returns ``(prompt, layer, d_model)`` float32: what leaves each block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch

from refusal_core.models.opening import ChatModel
from refusal_core.steering import residual_stream

BATCH = 16

Way = Callable[[list[list[int]]], np.ndarray]


def notebook(chat_model: ChatModel) -> Way:
    """The published notebook's: one prompt at a time, the whole model again for each layer."""

    def read(sequences: list[list[int]]) -> np.ndarray:
        found = []
        for ids in sequences:
            given = torch.tensor([ids], device=chat_model.device)
            for block in chat_model.blocks:
                kept: list[torch.Tensor] = []
                handle = block.register_forward_hook(
                    lambda module, arguments, output, kept=kept: kept.append(residual_stream(output)[:, -1])
                )
                with torch.no_grad():
                    chat_model.model(given, output_hidden_states=True)
                handle.remove()
                found.append(kept[0][0].float().cpu().numpy())
        return np.stack(found).reshape(len(sequences), chat_model.n_layers, -1)

    return read


def transformers(chat_model: ChatModel) -> Way:
    """Plain transformers: padded batches, ``output_hidden_states=True``. The last layer comes from a hook."""

    def read(sequences: list[list[int]]) -> np.ndarray:
        last: list[torch.Tensor] = []
        handle = chat_model.blocks[-1].register_forward_hook(
            lambda module, arguments, output: last.append(residual_stream(output))
        )
        found = []
        for ids, mask in _padded(chat_model, sequences):
            with torch.no_grad():
                states = chat_model.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            found.append(_at_ends([*states[1:-1], last.pop()], mask))
        handle.remove()
        return np.concatenate(found)

    return read


def transformer_lens(chat_model: ChatModel) -> Way:
    """TransformerLens: ``run_with_cache`` of the residual stream after each block, in batches.

    Raises:
        ImportError: where it is not installed.
    """
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        chat_model.info.name,
        hf_model=_own_modules(chat_model),
        tokenizer=chat_model.tokenizer,
        dtype=chat_model.model.dtype,
    )
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(chat_model.n_layers)]
    wanted = [*names, *(f"blocks.{layer}.hook_out" for layer in range(chat_model.n_layers))]

    def read(sequences: list[list[int]]) -> np.ndarray:
        found = []
        for ids, mask in _padded(chat_model, sequences):
            with torch.no_grad():
                _, cache = bridge.run_with_cache(ids, attention_mask=mask, names_filter=wanted)
            found.append(_at_ends([cache[name] for name in names], mask))
        return np.concatenate(found)

    return read


def nnsight(chat_model: ChatModel) -> Way:
    """nnsight: a trace a batch, in which each block's output is saved.

    Raises:
        ImportError: where it is not installed.
    """
    from nnsight import NNsight, save

    traced = NNsight(_own_modules(chat_model))

    def read(sequences: list[list[int]]) -> np.ndarray:
        found = []
        for ids, mask in _padded(chat_model, sequences):
            with torch.no_grad(), traced.trace(input_ids=ids, attention_mask=mask):
                outputs = save([block.output for block in traced.model.layers])
            found.append(_at_ends([residual_stream(output) for output in outputs], mask))
        return np.concatenate(found)

    return read


def _padded(chat_model: ChatModel, sequences: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token ids and masks, padded on the right, in the order of the prompts."""
    for start in range(0, len(sequences), BATCH):
        given = sequences[start : start + BATCH]
        longest = max(map(len, given))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in given], device=chat_model.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in given], device=chat_model.device)
        yield ids, mask


def _at_ends(states: list[torch.Tensor], mask: torch.Tensor) -> np.ndarray:
    ends = mask.sum(dim=1) - 1
    rows = torch.arange(len(ends), device=ends.device)
    return torch.stack([state[rows, ends].float() for state in states], dim=1).cpu().numpy()


def _own_modules(chat_model: ChatModel) -> torch.nn.Module:
    """The model with modules of its own, which a library may change, and the same weights."""
    shared = [*chat_model.model.parameters(), *chat_model.model.buffers()]
    return copy.deepcopy(chat_model.model, {id(tensor): tensor for tensor in shared})
