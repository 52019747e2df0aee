from __future__ import annotations

import numpy as np
import pytest
import torch
from plain import TEXTS
from tiny import tiny_model

from refusal_core.activations.embeddings import mean_input_embeddings


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_embeddings_are_the_mean_of_the_rows_of_a_prompts_own_tokens(family):
    chat_model = tiny_model(family)
    found = mean_input_embeddings(chat_model, TEXTS)
    rows = chat_model.model.get_input_embeddings().weight.detach().float()
    for text, mean in zip(TEXTS, found, strict=True):
        ids = chat_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = torch.stack([rows[token] for token in ids]).mean(dim=0).numpy()
        scale = np.linalg.norm(mean) / np.linalg.norm(expected)
        # Some families scale all of them alike.
        np.testing.assert_allclose(mean, expected * scale, rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32


def test_a_text_without_tokens_is_zeros():
    found = mean_input_embeddings(tiny_model("qwen2"), ["", "cake"])
    assert not found[0].any()
    assert found[1].any()
