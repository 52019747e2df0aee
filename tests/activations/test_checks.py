"""What is not finite is reported: by layer, by the prompt it comes from, and with what to do."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from plain import TEXTS, relative_error
from tiny import tiny_model

from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import ModelError


def reported(chat_model, dtype: str = "float32") -> str:
    """What extraction says of a model that does not give finite numbers."""
    chat_model = dataclasses.replace(chat_model, dtype=dtype)
    with pytest.raises(ModelError) as caught:
        extract(chat_model, TEXTS)
    with pytest.raises(ModelError, match=re.escape(str(caught.value).partition(", first for")[0])):
        ResidualReader(chat_model).read_tokens(TEXTS[0])
    return str(caught.value)


def test_float16_that_overflows_is_reported_by_layer_and_prompt():
    chat_model = tiny_model("llama")
    with torch.no_grad():
        chat_model.blocks[1].mlp.down_proj.weight[0].fill_(6e4)
        chat_model.blocks[1].mlp.up_proj.weight.fill_(1.0)
    chat_model.model.half()
    said = reported(chat_model, "float16")
    # Each of them overflows, and which batch is read first depends on the cores.
    assert re.search(r"float16 gives infinite activations at layer 1 of 4, first for prompt \d \(['\"]\w", said)
    assert "run again in float32" in said


def test_numbers_that_are_none_are_told_from_overflow():
    chat_model = tiny_model("llama")
    with torch.no_grad():
        chat_model.blocks[2].mlp.down_proj.weight[3, 3] = float("nan")
    said = reported(chat_model)
    assert re.search(
        r"float32 gives activations that are not numbers \(NaN\) at layer 2 of 4, first for prompt \d ", said
    )
    assert "weights are damaged" in said
    assert "run again in float32" in reported(chat_model, "bfloat16")


def test_what_is_not_finite_is_blamed_on_the_prompt_it_comes_from():
    chat_model = tiny_model("llama", tie_word_embeddings=False)
    reader = ResidualReader(chat_model)
    (culprit,) = chat_model.tokenizer.encode("#")
    texts = ["Bake a cake", "Write # here"]
    sequences = [reader.encode(text) for text in texts]
    alone = reader.read_end(sequences[:1], 3)
    with torch.no_grad():
        chat_model.model.get_input_embeddings().weight[culprit] = float("nan")
    assert [rows.tolist() for rows in reader.batches(sequences, reader.batch_tokens)] == [[0, 1]]
    with pytest.raises(ModelError, match=r"\(NaN\) at layer 0 of 4, first for prompt 2 \('Write #"):
        extract(chat_model, texts)
    found = reader.read_last(sequences)
    assert relative_error(found.states[0], alone[0, :, -1]) < 1e-5
    assert np.isfinite(found.refusal_log_odds[0])
    assert not np.isfinite(found.states[1]).any()
    assert relative_error(reader.read_end(sequences, 3)[0], alone[0]) < 1e-5


def test_logits_that_are_not_finite_are_reported():
    chat_model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        chat_model.lm_head.weight[7, 7] = float("nan")
    assert "logits that are not finite at the vocabulary projection" in reported(chat_model)
