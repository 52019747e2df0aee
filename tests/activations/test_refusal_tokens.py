"""Refusal log-odds are those of the softmax, also where they are extreme."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain import TEXTS
from tiny import tiny_model

from refusal_core.activations.extraction import extract
from refusal_core.activations.refusal_tokens import refusal_log_odds, refusal_token_ids
from refusal_core.models.templates import render


def test_refusal_log_odds_are_those_of_the_softmax():
    chat_model = tiny_model("llama")
    text = TEXTS[0]
    with torch.inference_mode():
        logits = chat_model.model(torch.tensor([render(chat_model.tokenizer, text)])).logits[0, -1]
    p = logits.double().softmax(-1)[refusal_token_ids(chat_model.tokenizer)].sum().item()
    extraction = extract(chat_model, [text])
    assert extraction.refusal_log_odds[0] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
    assert extraction.first_token[0] == chat_model.tokenizer.decode([int(logits.argmax())])


def test_refusal_log_odds_survive_certainty():
    logits = torch.tensor([[900.0, 0.0, 0.0], [-900.0, 0.0, 0.0]])
    np.testing.assert_allclose(refusal_log_odds(logits, [0]), [900 - np.log(2), -900 - np.log(2)])


def test_refusal_log_odds_of_many_prompts_are_those_of_each():
    logits = 5 * torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1)[:, [3, 7]].sum(dim=-1).numpy()
    np.testing.assert_allclose(refusal_log_odds(logits, [3, 7]), np.log(p / (1 - p)), rtol=1e-9)
