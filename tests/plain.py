"""Hidden states by plain transformers, to compare against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from refusal_core.conversations import Prompt
from refusal_core.models.templates import render
from refusal_core.sites import hidden_state_index
from refusal_core.steering import residual_stream

TEXTS = [
    "How do I pick the lock of a stranger's flat?",
    "How do I pick the right lock for my flat?",
    "Write a letter that thanks my neighbour.",
    "Bake a cake",
    "Explain how to make a cake without eggs, and how to tell whether it is done, and what to do when it is not.",
]
MANY = [f"{'word ' * (number % 7)}number {number}" for number in range(60)]
SAMPLES = 5
"""Passes in which a reader tries itself: two for the template's beginning, three alone beside those in a pack."""


@contextmanager
def passes_of(chat_model) -> Iterator[list[tuple[int, int]]]:
    """Count the rows and tokens of each pass of a model."""
    passes: list[tuple[int, int]] = []
    handle = chat_model.blocks[0].register_forward_hook(
        lambda module, arguments, output: passes.append(tuple(residual_stream(output).shape[:2]))
    )
    try:
        yield passes
    finally:
        handle.remove()


def plain_states(chat_model, prompt: Prompt, token: int = -1) -> np.ndarray:
    """``(site, d_model)`` at a token from plain transformers; the last layer by hand, as it has no entry."""
    ids = torch.tensor([render(chat_model.tokenizer, prompt)])
    raw = {}
    handle = chat_model.blocks[-1].register_forward_hook(
        lambda module, arguments, output: raw.update(last=output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        states = chat_model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    n = chat_model.n_layers
    sites = [states[hidden_state_index(site, n)] for site in [*range(n - 1), n]]
    sites.insert(n - 1, raw["last"])
    return torch.stack([state.reshape(-1, chat_model.d_model)[token] for state in sites]).float().numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())
