"""Which tokens a direction would write: through the final norm's weight and the vocabulary projection (logit lens)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from refusal_core.models.opening import ChatModel

_AT_ONCE = 32
"""Directions whose logits are held at the same time."""


@dataclass(frozen=True, eq=False)
class Lens:
    """The tokens that directions raise and lower most.

    Attributes:
        raised, lowered: ``(direction, rank)`` token ids, the farthest first.
        raised_by, lowered_by: ``(direction, rank)`` their logits, in standard deviations over the vocabulary from its
            mean; of ``lowered`` below it, so that they are positive too.
    """

    raised: np.ndarray
    raised_by: np.ndarray
    lowered: np.ndarray
    lowered_by: np.ndarray


def read_lens(chat_model: ChatModel, directions: np.ndarray, after_norm: bool, n_tokens: int) -> Lens:
    """Return the tokens that the residual stream would raise and lower most if it were moved along directions.

    The final norm is applied by what is linear in it: its weight, and that it takes off the mean where it does
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). A direction has no length of its own, and what is the
    same for all tokens changes no probability: logits are relative to the vocabulary's mean and spread.

    Args:
        chat_model: the model.
        directions: ``(direction, d_model)``.
        after_norm: whether they were read after the final norm.
        n_tokens: how many at either end.
    """
    # The head may have rows that no token has.
    vocabulary = len(chat_model.tokenizer)
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        for start in range(0, len(directions), _AT_ONCE):
            along = torch.tensor(directions[start : start + _AT_ONCE], device=chat_model.device)
            # As long as what the norm usually meets, in which its epsilon is nothing.
            along = (along * along.shape[1] ** 0.5).to(chat_model.model.dtype)
            if not after_norm:
                # What a norm adds is the same for both signs.
                along = (chat_model.final_norm(along) - chat_model.final_norm(-along)) / 2
            logits = chat_model.lm_head(along)[:, :vocabulary].float()
            bias = getattr(chat_model.lm_head, "bias", None)
            if bias is not None:
                logits = logits - bias[:vocabulary].float().to(logits.device)
            logits = (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)
            n_known = min(n_tokens, logits.shape[1])
            raised, lowered = logits.topk(n_known), (-logits).topk(n_known)
            parts.append(tuple(part.cpu() for part in (*raised, *lowered)))
    raised_by, raised_ids, lowered_by, lowered_ids = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return Lens(raised_ids, raised_by, lowered_ids, lowered_by)
