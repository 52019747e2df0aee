"""Forward hooks on a chat model's blocks, final norm and vocabulary projection; each is gone when its block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.steering import residual_stream


def select_tokens(states: torch.Tensor, token_index: torch.Tensor) -> torch.Tensor:
    """Return the hidden states of some tokens, ``(prompt, token, d_model)``.

    Args:
        states: ``(row, token, d_model)`` of all tokens that are run.
        token_index: ``(prompt, token)``, which of them, in the flattened batch.
    """
    # Copied only to where a block lies elsewhere: each copy waits for what the accelerator has to do.
    return states.flatten(0, 1)[token_index.to(states.device)]


@contextmanager
def recorded_states(chat_model: ChatModel, token_index: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Record the residual stream after each block and the final norm, in site order.

    Args:
        chat_model: the model whose forward passes are recorded.
        token_index: ``(prompt, token)``, see :func:`select_tokens`.

    Yields:
        A list that fills up with float32 ``(prompt, token, d_model)``.

    Raises:
        ModelError: from the forward pass, when the model has more than one residual stream.
    """
    recorded: list[torch.Tensor] = []

    def record(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        states = residual_stream(output)
        if states.ndim != 3 or states.shape[-1] != chat_model.d_model:
            raise ModelError(
                f"{chat_model.info.name} hands {tuple(states.shape)} from a block to the next; this needs a model with "
                f"one residual stream, (prompt, token, {chat_model.d_model})"
            )
        recorded.append(select_tokens(states, token_index).float())

    handles = [module.register_forward_hook(record) for module in [*chat_model.blocks, chat_model.final_norm]]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def changed_head_input(chat_model: ChatModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change the hidden states that the vocabulary projection is given."""

    def changed(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    handle = chat_model.lm_head.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def contiguous_head(chat_model: ChatModel) -> AbstractContextManager[None]:
    """Let the vocabulary projection of one position cost no more than that.

    transformers passes it a strided slice, which torch multiplies as a batch, copying the vocabulary matrix for each
    prompt.
    """
    return changed_head_input(chat_model, torch.Tensor.contiguous)


def last_mlp(chat_model: ChatModel) -> torch.nn.Module | None:
    """Return the MLP of the last block, by the name that it has in nearly every architecture."""
    return getattr(chat_model.blocks[-1], "mlp", None)


@contextmanager
def narrowed_last_mlp(chat_model: ChatModel, token_index: torch.Tensor) -> Iterator[None]:
    """Run the last block's MLP for some tokens alone; the others, which nobody reads after it, get zeros.

    Args:
        chat_model: the model whose forward passes are narrowed.
        token_index: ``(prompt, token)``, see :func:`select_tokens`.
    """
    mlp = last_mlp(chat_model)
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def narrow(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(arguments[0].shape)
        return (select_tokens(arguments[0], token_index), *arguments[1:])

    def widen(module: torch.nn.Module, arguments: Any, output: Any) -> torch.Tensor | tuple[Any, ...]:
        selected = residual_stream(output)
        widened = selected.new_zeros(shapes.pop())
        widened.flatten(0, 1)[token_index.to(widened.device)] = selected
        return (widened, *output[1:]) if isinstance(output, tuple) else widened

    handles = [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
