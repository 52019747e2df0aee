"""How many tokens are run together on a device, and how many batches at the same time."""

from __future__ import annotations

import torch

from refusal_core.models.opening import ChatModel
from refusal_core.models.transformers_internals import placed_parts

BATCH_TOKENS = {"cpu": 512, "mps": 2048, "cuda": 8192}
"""Most new tokens in a batch: what a device needs to be busy, and has memory for."""
PACK_TOKENS = {"cpu": 512, "mps": 1024, "cuda": 1024}
"""Most new tokens in a pack: the cost of attention grows with their square."""
PACK_MULTIPLE = {"cpu": 1, "mps": 1, "cuda": 8}
"""What a pack's length is rounded up to: CUDA's attention copies a mask whose rows are no multiple of 8 per block."""
HELD_BYTES = {"cpu": 256e6, "mps": 1e9, "cuda": 8e9}
"""Most bytes of keys and values of prompts that are continued together."""
WIDE = 1792
"""From this d_model on a batch has proportionally fewer tokens, so that what a block makes of them fits in memory."""
MAX_PARALLEL = 4
"""Most batches that are read at the same time: their activations are in memory together."""


def device_type(chat_model: ChatModel) -> str:
    """Return the type of a model's device: ``cpu``, ``cuda`` or ``mps``."""
    return torch.device(chat_model.device).type


def usual_batch_tokens(chat_model: ChatModel) -> int:
    """Return the most new tokens in a batch, by the device and the model's width alone."""
    return BATCH_TOKENS[device_type(chat_model)] * WIDE // max(WIDE, chat_model.d_model)


def batch_tokens(chat_model: ChatModel) -> int:
    """Return the most new tokens in a batch while there is memory."""
    if chat_model.reads_alone:
        return 1
    # Weights that wait elsewhere are moved for every pass, so fewer passes are better.
    waiting = {"cpu", "disk"} - {device_type(chat_model)}
    return usual_batch_tokens(chat_model) * (2 if waiting.intersection(placed_parts(chat_model.model)) else 1)


def n_parallel(chat_model: ChatModel) -> int:
    """Return how many batches are best read at the same time.

    On a CPU, cores wait for each other at the end of every product; a GPU waits for its next batch.
    """
    if placed_parts(chat_model.model):
        return 1
    if device_type(chat_model) == "cuda":
        return 2
    if device_type(chat_model) != "cpu" or getattr(chat_model.model, "is_quantized", False):
        return 1  # quantised layers keep copies of their weights beside them
    cores = torch.get_num_threads()
    # As few cores as possible are left over when each batch has as many as the next.
    return max(range(1, MAX_PARALLEL + 1), key=lambda batches: (cores // batches * batches, batches))
