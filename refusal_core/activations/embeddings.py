"""What a prompt's words are to the model before its first block: the mean of their input embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from refusal_core.models.opening import ChatModel


def mean_input_embeddings(chat_model: ChatModel, texts: Sequence[str]) -> np.ndarray:
    """Return the mean input embedding of each text's own tokens, without the chat template.

    Args:
        chat_model: whose embeddings they are.
        texts: as a person would type them.

    Returns:
        ``(text, width)`` float32; zeros for a text without tokens.
    """
    embed = chat_model.model.get_input_embeddings()
    means = []
    with torch.inference_mode():
        for text in texts:
            ids = chat_model.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = torch.tensor([ids or [0]], device=chat_model.device)
            mean = embed(tokens)[0].float().mean(dim=0)
            means.append(mean.cpu().numpy() if ids else np.zeros(len(mean), dtype=np.float32))
    return np.stack(means)
