"""Which tokens a direction would write: what the final norm and the vocabulary projection make of it, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model

from refusal_core.activations.lens import read_lens


@pytest.mark.parametrize(("architecture", "centres", "one_plus"), [("llama", 0, 0), ("gemma2", 0, 1), ("phi", 1, 0)])
@pytest.mark.parametrize("after_norm", [False, True])
def test_logits_are_those_of_the_norm_s_weight_and_the_head_relative_to_the_vocabulary(
    architecture, centres, one_plus, after_norm
):
    chat_model = tiny_model(architecture)
    generator = torch.Generator().manual_seed(0)
    for parameter in chat_model.final_norm.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if getattr(chat_model.lm_head, "bias", None) is not None:
        chat_model.lm_head.bias.copy_(5 * torch.randn(chat_model.lm_head.bias.shape, generator=generator))
    direction = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    along = direction[0].astype(np.float64)
    if not after_norm:
        along = (along - centres * along.mean()) * (one_plus + chat_model.final_norm.weight.numpy())
    logits = chat_model.lm_head.weight.numpy()[: len(chat_model.tokenizer)] @ along
    expected = (logits - logits.mean()) / logits.std(ddof=1)
    lens = read_lens(chat_model, direction, after_norm, 10)
    order = np.argsort(expected, kind="stable")
    assert lens.raised[0].tolist() == order[::-1][:10].tolist()
    assert lens.lowered[0].tolist() == order[:10].tolist()
    np.testing.assert_allclose(lens.raised_by[0], np.sort(expected)[::-1][:10], rtol=1e-3)
    np.testing.assert_allclose(lens.lowered_by[0], -np.sort(expected)[:10], rtol=1e-3)
