"""Checks of what was read: finite numbers, and fast ways of reading that give what a plain forward pass gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.sites import site_label

UNSUPPORTED = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an architecture raises that does not take what others take; out of memory is a RuntimeError too, and is none."""
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}


def agrees(states: np.ndarray, plain: np.ndarray, dtype: str) -> bool:
    """Return whether hidden states are those of a plain pass, up to the rounding of the model's dtype.

    Args:
        states: ``(prompt, site, d_model)``.
        plain: the same prompts, run as plainly as can be.
        dtype: what the model computes in.
    """
    # What is not finite does not agree, and is reported where prompts are read.
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(states - plain, axis=-1) / np.linalg.norm(plain, axis=-1)
    return bool((error < _TOLERANCE[dtype]).all())


def check_finite(
    states: np.ndarray, log_odds: np.ndarray, prompts: Sequence[tuple[str, str]], chat_model: ChatModel
) -> None:
    """Refuse activations or refusal log-odds that are infinite or not numbers.

    Args:
        states: ``(prompt, site, d_model)``, or with more axes behind the sites.
        log_odds: ``(prompt,)``.
        prompts: where each prompt comes from, and its text, for the message.
        chat_model: the model that read them.

    Raises:
        ModelError: naming the first site, the first prompt there, and what to do.
    """
    finite = np.column_stack([np.isfinite(states).all(axis=tuple(range(2, states.ndim))), np.isfinite(log_odds)])
    if finite.all():
        return
    site = int((~finite).any(axis=0).argmax())
    row = int((~finite[:, site]).argmax())
    origin, text = prompts[row]
    if site > chat_model.n_layers:
        what, where = "logits that are not finite", "the vocabulary projection"
    else:
        what = "infinite activations" if np.isinf(states[row, site]).any() else "activations that are not numbers (NaN)"
        where = site_label(site, chat_model.n_layers)
    mend = {
        "float16": "float16 holds nothing beyond 65,504; run again in float32, or in bfloat16 where it is fast",
        "bfloat16": "run again in float32, and if that gives the same, its weights are damaged: get it anew",
    }.get(chat_model.dtype, "its weights are damaged or not meant for this architecture: get it anew")
    name = f"{chat_model.info.name} in {chat_model.dtype}"
    raise ModelError(f"{name} gives {what} at {where}, first for {origin} ({text!r:.60}): {mend}")
