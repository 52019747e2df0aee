"""What each attention and each MLP adds to the residual stream at the token where directions are read.

A block reads the stream, and adds to it what its attention returns and what its MLP returns, each perhaps after a norm
or times a constant (Elhage et al. 2021, "A mathematical framework for transformer circuits"). The stream is recorded
before the first block and after everything that is added; the difference of two neighbours is what was added. That it
is what a part returned, times a constant, is checked in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from refusal_core.activations.checks import agrees
from refusal_core.activations.hooks import select_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.runs.manifest import Parts
from refusal_core.steering import residual_stream

ATTENTION_AND_MLP: Parts = ("attention", "mlp")
ONE: Parts = ("block",)


class NotAddedError(ModelError):
    """A model whose residual stream is not the sum of what its attentions and MLPs return."""


class WritesReader(ResidualReader):
    """Reads the residual stream before the first block, after all that is added to it, and after the final norm."""

    def __init__(self, chat_model: ChatModel, *given: Any, **options: Any) -> None:
        """Find what adds to the stream, with a sample.

        Args:
            chat_model: the model to read.
            given: see :class:`ResidualReader`.
            options: likewise.

        Raises:
            NotAddedError: when the stream is not the sum of what is added to it.
        """
        self.parts: list[Parts] = []
        super().__init__(chat_model, *given, **options)
        self.read_last([self.encode("What is a good name for a cat?")])

    @property
    def sites(self) -> np.ndarray:
        """Which of the states are those of each site: after a block's last part, and after the final norm."""
        ends = np.cumsum([len(parts) for parts in self.parts])
        return np.append(ends, ends[-1] + 1)

    @contextmanager
    def _recorded(self, token_index: torch.Tensor, packed: bool) -> Iterator[list[torch.Tensor]]:
        with recorded_writes(self.chat_model, token_index) as (recorded, parts):
            yield recorded
        self.parts = parts


@dataclass
class _Call:
    """What one part of a block was given and returned, of hidden states; tensors stay alive while the block is run.

    Attributes:
        given, returned: all of them; a part may be given or return other tensors.
        selected_input, selected_output: of the first of either, ``(prompt, token, d_model)`` float32.
    """

    given: list[torch.Tensor]
    returned: list[torch.Tensor]
    selected_input: torch.Tensor | None
    selected_output: torch.Tensor | None


@dataclass
class _Block:
    """A block in the middle of a pass."""

    stream: torch.Tensor
    selected: torch.Tensor
    calls: list[_Call] = field(default_factory=list)


@contextmanager
def recorded_writes(
    chat_model: ChatModel, token_index: torch.Tensor
) -> Iterator[tuple[list[torch.Tensor], list[Parts]]]:
    """Record the residual stream before the first block, after each of its parts has added to it, after the final norm.

    Args:
        chat_model: the model whose forward passes are recorded.
        token_index: ``(prompt, token)``, see :func:`.hooks.select_tokens`.

    Yields:
        A list that fills up with float32 ``(prompt, token, d_model)``, and one of each block's parts.

    Raises:
        NotAddedError: after the forward pass, naming the first block that does not add what its parts return.
    """
    recorded: list[torch.Tensor] = []
    parts: list[Parts] = []
    under_way: list[_Block] = []
    # Compared after the pass: an accelerator would wait at each comparison.
    rebuilt: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    blocks: list[int] = []

    def chosen(states: torch.Tensor) -> torch.Tensor:
        # Some blocks flatten prompts and tokens into one axis.
        return select_tokens(states.reshape(-1, 1, chat_model.d_model), token_index).float()

    def compare(one: torch.Tensor, other: torch.Tensor, block: int) -> None:
        rebuilt.append(one.cpu())
        read.append(other.cpu())
        blocks.append(block)

    def begin(number: int, module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        stream = next(iter(_wide((*arguments, *options.values()), chat_model.d_model)), None)
        if stream is None:
            raise NotAddedError(_not_added(chat_model, number))
        under_way.append(_Block(stream, chosen(stream)))
        if number:
            compare(recorded[-1], under_way[-1].selected, number)
        else:
            recorded.append(under_way[-1].selected)

    def called(module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        block = under_way[-1]
        given = _wide((*arguments, *options.values()), chat_model.d_model, block.stream.numel())
        returned = _wide((residual_stream(output),), chat_model.d_model, block.stream.numel())
        # What returns what it was given, as a dropout does, is no part.
        if not (given and returned and returned[0] is given[0]):
            ends = (chosen(states[0]) if states else None for states in (given, returned))
            block.calls.append(_Call(given, returned, *ends))

    def end(number: int, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        block = under_way.pop()
        after = chosen(residual_stream(output))
        middle = _middle(block)
        ends = [after] if middle is None else [block.calls[middle].selected_input, after]
        groups = [block.calls] if middle is None else [block.calls[:middle], block.calls[middle:]]
        before, n_parts = block.selected, 0
        for calls, then in zip(groups, ends, strict=True):
            outputs = _unread(calls)
            if not outputs or then is None:
                raise NotAddedError(_not_added(chat_model, number))
            added = _scaled(outputs, then - before)
            compare(before + torch.stack(added).sum(dim=0), then, number)
            # In parallel, each part by what it returned; else by what the stream has more.
            if middle is None and len(added) == len(ATTENTION_AND_MLP):
                recorded.append(before + added[0])
                n_parts += 1
            recorded.append(then)
            before, n_parts = then, n_parts + 1
        parts.append(ONE if n_parts == 1 else ATTENTION_AND_MLP)

    def record(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        recorded.append(chosen(residual_stream(output)))

    handles = [chat_model.final_norm.register_forward_hook(record)]
    for number, block in enumerate(chat_model.blocks):
        handles.append(block.register_forward_pre_hook(partial(begin, number), with_kwargs=True))
        handles.append(block.register_forward_hook(partial(end, number)))
        handles += [part.register_forward_hook(called, with_kwargs=True) for part in block.children()]
    try:
        yield recorded, parts
    finally:
        for handle in handles:
            handle.remove()
    for one, other, number in zip(rebuilt, read, blocks, strict=True):
        if not agrees(one.flatten(0, 1)[:, None].numpy(), other.flatten(0, 1)[:, None].numpy(), chat_model.dtype):
            raise NotAddedError(_not_added(chat_model, number))


def _wide(values: tuple[Any, ...], d_model: int, n_elements: int | None = None) -> list[torch.Tensor]:
    """Return those of some values that are hidden states."""
    return [
        value
        for value in values
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim > 1
        and value.shape[-1] == d_model
        and value.numel() == (n_elements or value.numel())
    ]


def _middle(block: _Block) -> int | None:
    """Return the first part that reads the stream after something was added to it; None where all read it before.

    It is given hidden states that neither came into the block nor were returned by a part.
    """
    known = [block.stream]
    for place, call in enumerate(block.calls):
        if call.given and not any(call.given[0] is states for states in known) and _unread(block.calls[:place]):
            return place
        known += [*call.given, *call.returned]
    return None


def _unread(calls: list[_Call]) -> list[torch.Tensor]:
    """Return the outputs ``(prompt, token, d_model)`` that none of the calls was given: what may have been added."""
    given = list(chain.from_iterable(call.given for call in calls))
    return [
        call.selected_output
        for call in calls
        if call.selected_output is not None and not any(call.returned[0] is states for states in given)
    ]


def _scaled(outputs: list[torch.Tensor], added: torch.Tensor) -> list[torch.Tensor]:
    """Return outputs times the constants that bring their sum closest to what was added."""
    flat = torch.stack([output.flatten() for output in outputs]).double().cpu()
    products = flat @ flat.T
    constants = torch.linalg.pinv(products, hermitian=True) @ (flat @ added.flatten().double().cpu())
    return [constant.item() * output for constant, output in zip(constants, outputs, strict=True)]


def _not_added(chat_model: ChatModel, number: int) -> str:
    return (
        f"block {number} of {chat_model.info.name} does not add what its attention and its MLP return to the residual "
        "stream as it is, so that what is there is not their sum"
    )
