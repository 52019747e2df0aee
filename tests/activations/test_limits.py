"""How much is read together, by the device, its cores and the width of the model."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from refusal_core.activations import limits
from refusal_core.activations.reader import ResidualReader


def test_wide_models_get_fewer_tokens(monkeypatch):
    reader = ResidualReader(tiny_model("qwen2"), packs=True)
    usual = reader.batch_tokens
    monkeypatch.setattr(limits, "WIDE", reader.chat_model.d_model // 4)
    assert reader.batch_tokens == usual // 4
    monkeypatch.setattr(limits, "WIDE", reader.chat_model.d_model)
    assert reader.batch_tokens == usual


@pytest.mark.parametrize(
    ("cores", "batches_at_once"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 3), (7, 1), (10, 2), (16, 4)]
)
def test_no_core_is_left_out(cores, batches_at_once, monkeypatch):
    reader = ResidualReader(tiny_model("qwen2"), packs=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert reader.n_parallel == batches_at_once
