"""An ablated direction is gone from the residual stream, an added one is in it, and afterwards all is as before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_model

from refusal_core.analysis.directions import Direction
from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.steering import Edit, edited, residual_stream


def direction_of(chat_model: ChatModel, site: int = 1, magnitude: float = 2.0) -> Direction:
    vector = np.random.default_rng(0).normal(size=chat_model.d_model)
    return Direction((vector / np.linalg.norm(vector)).astype(np.float32), magnitude, site, chat_model.n_layers)


def block_outputs(chat_model: ChatModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """``(layer)`` hidden states ``(prompt, token, d_model)`` after each block, edits included."""
    outputs: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, arguments, output: outputs.append(residual_stream(output).clone()))
        for block in chat_model.blocks
    ]
    try:
        with torch.inference_mode():
            chat_model.model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


IDS = torch.tensor([[3, 9, 4, 11, 7]])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_ablated_projects_to_nothing_after_every_block(architecture):
    chat_model = tiny_model(architecture)
    direction = direction_of(chat_model)
    plain = block_outputs(chat_model, IDS)
    assert max(np.abs(direction.project(states.float().numpy())).max() for states in plain) > 1e-3
    with direction.ablate(chat_model.model):
        under = block_outputs(chat_model, IDS)
    for states in under:
        assert np.abs(direction.project(states.float().numpy())).max() < 1e-5 * states.float().norm(dim=-1).max()
    for before, after in zip(plain, block_outputs(chat_model, IDS), strict=True):
        assert torch.equal(before, after)


def test_what_is_added_moves_the_projection_by_alpha_times_the_magnitude_at_its_own_layer():
    chat_model = tiny_model("qwen2")
    direction = direction_of(chat_model, site=1, magnitude=2.0)
    plain = block_outputs(chat_model, IDS)
    with direction.add(chat_model, alpha=1.5):
        under = block_outputs(chat_model, IDS)
    assert torch.equal(plain[0], under[0])
    moved = direction.project(under[1].numpy()) - direction.project(plain[1].numpy())
    np.testing.assert_allclose(moved, 3.0, rtol=1e-4)


def test_the_last_token_alone_can_be_edited():
    chat_model = tiny_model("qwen2")
    direction = direction_of(chat_model)
    plain = block_outputs(chat_model, IDS)[1]
    with direction.ablate(chat_model, layers=[1], tokens="last"):
        under = block_outputs(chat_model, IDS)[1]
    assert torch.equal(plain[:, :-1], under[:, :-1])
    assert abs(direction.project(under[0, -1].numpy())) < 1e-5


def test_generation_runs_under_an_edit_and_weights_are_never_touched():
    chat_model = tiny_model("llama")
    weights = copy.deepcopy(chat_model.model.state_dict())
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = chat_model.model.generate(IDS, **options)
    with direction_of(chat_model, magnitude=500.0).add(chat_model.model):
        steered = chat_model.model.generate(IDS, **options)
    assert not torch.equal(plain, steered)
    assert torch.equal(plain, chat_model.model.generate(IDS, **options))
    assert all(torch.equal(weights[name], value) for name, value in chat_model.model.state_dict().items())


def test_hooks_are_gone_after_an_error():
    chat_model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="inside"), direction_of(chat_model).ablate(chat_model.model):
        raise RuntimeError("inside")
    assert not any(block._forward_hooks for block in chat_model.blocks)


def test_what_does_not_fit_is_refused():
    chat_model = tiny_model("llama")
    with pytest.raises(ModelError, match="no list of 7 blocks"), Direction(np.zeros(4), 1.0, 2, 7).ablate(chat_model):
        pass
    with pytest.raises(ValueError, match="final norm"), direction_of(chat_model, chat_model.n_layers).add(chat_model):
        pass
    with (
        pytest.raises(ValueError, match="width"),
        Direction(np.eye(5)[0], 1.0, 0, chat_model.n_layers).ablate(chat_model),
    ):
        block_outputs(chat_model, IDS)
    with pytest.raises(ValueError, match="layers 0 to"), direction_of(chat_model).ablate(chat_model, layers=[99]):
        pass
    with pytest.raises(ValueError, match="expected one of"):
        Edit("rotate", {0: np.zeros(4)})
    with pytest.raises(ValueError, match="at least one layer"), edited(chat_model.blocks, Edit("ablate", {})):
        pass
    with pytest.raises(ValueError, match="expected one of"):
        Edit("add", {0: np.zeros(4)}, tokens="first")
