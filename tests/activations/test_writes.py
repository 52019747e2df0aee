"""What each attention and each MLP adds to the residual stream: it sums to what a plain pass reads."""

from __future__ import annotations

import numpy as np
import pytest
from plain import TEXTS
from tiny import tiny_model

from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.writes import NotAddedError, WritesReader

SUMMING = (
    *("llama", "qwen2", "gemma2", "gemma3", "granite", "olmo2", "glm4", "deepseek_v3", "qwen3_moe"),
    *("phi", "cohere", "gpt_neox", "falcon_grouped", "gpt2", "opt"),
)
"""One after the other or in parallel, with norms before, behind or both, with constants and experts."""


def end_states(reader: ResidualReader) -> np.ndarray:
    """``(prompt, place, d_model)`` of prompts that are read one at a time."""
    return np.concatenate([reader.read_last([reader.encode(text)]).states for text in TEXTS[:3]])


@pytest.mark.parametrize("architecture", SUMMING)
def test_parts_sum_to_the_projection_at_every_layer(architecture):
    chat_model = tiny_model(architecture)
    reader = WritesReader(chat_model)
    assert reader.parts == [("attention", "mlp")] * 4
    stream, plain = end_states(reader), end_states(ResidualReader(chat_model))
    added = np.diff(stream[:, : reader.sites[-1]].astype(np.float64), axis=1, prepend=0.0)
    direction = np.random.default_rng(0).normal(size=32)
    direction /= np.linalg.norm(direction)
    for layer, place in enumerate(reader.sites[:-1]):
        summed = (added[:, : place + 1] @ direction).sum(axis=1)
        np.testing.assert_allclose(summed, plain[:, layer] @ direction, atol=1e-4 * np.abs(plain[:, layer]).max())
    np.testing.assert_allclose(stream[:, -1], plain[:, -1], atol=1e-5)
    # None of them adds nothing.
    assert (np.abs(added[:, 1:]).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize(
    ("architecture", "attention", "mlp", "times"),
    [
        ("llama", "self_attn", "mlp", 1.0),
        ("gemma2", "post_attention_layernorm", "post_feedforward_layernorm", 1.0),
        ("granite", "self_attn", "mlp", 0.5),
        ("phi", "self_attn", "mlp", 1.0),
        ("qwen3_moe", "self_attn", "mlp", 1.0),
    ],
)
def test_a_part_is_what_its_module_returns_after_its_norm_and_times_its_constant(architecture, attention, mlp, times):
    chat_model = tiny_model(architecture)
    reader, returned = WritesReader(chat_model), []
    for name in (attention, mlp):
        chat_model.blocks[2].get_submodule(name).register_forward_hook(
            lambda module, given, output: returned.append(output[0] if isinstance(output, tuple) else output)
        )
    stream = reader.read_last([reader.encode(TEXTS[0])]).states[0]
    # After its input and two parts of each of two blocks.
    for place, output in zip((5, 6), returned, strict=True):
        expected = times * output.reshape(-1, 32)[-1].numpy()
        np.testing.assert_allclose(stream[place] - stream[place - 1], expected, atol=2e-5)


def test_packs_and_prompts_alone_give_the_same():
    chat_model = tiny_model("qwen2")
    reader = WritesReader(chat_model)
    assert reader.packs
    together = extract(chat_model, TEXTS[:3], kind=WritesReader).hidden
    np.testing.assert_allclose(together, end_states(reader), atol=1e-4)


@pytest.mark.parametrize(("architecture", "parts"), [("mamba", [("block",)] * 4), ("lfm2", [("attention", "mlp")] * 4)])
def test_a_block_of_one_part_is_one(architecture, parts):
    assert WritesReader(tiny_model(architecture)).parts == parts


@pytest.mark.parametrize("architecture", ["bloom", "minimax"])
def test_a_stream_that_is_no_sum_of_its_parts_is_refused_in_one_sentence(architecture):
    chat_model = tiny_model(architecture)
    with pytest.raises(NotAddedError, match=rf"block 0 of tiny-{architecture} does not add what its attention"):
        WritesReader(chat_model)
    hooks = [len(module._forward_hooks) for module in chat_model.model.modules()]
    assert not any(hooks)
