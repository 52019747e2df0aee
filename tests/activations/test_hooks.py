"""Hooks record and narrow what they are asked to, where it lies, and are gone afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from plain import TEXTS
from tiny import tiny_model

from refusal_core.activations import limits
from refusal_core.activations.extraction import extract
from refusal_core.activations.hooks import select_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import ModelError


@pytest.mark.parametrize("last", [1, 3])
def test_the_last_mlp_is_run_only_where_prompts_are_read(last):
    chat_model = tiny_model("llama")
    reader = ResidualReader(chat_model, packs=True)
    sequences = [reader.encode(text) for text in TEXTS]
    run = []
    for block in chat_model.blocks[-2:]:
        block.mlp.gate_proj.register_forward_hook(
            lambda module, arguments, output: run.append(output.shape[:-1].numel())
        )
    reader.read_end(sequences, last)
    before_last, at_last = run
    assert at_last == last * len(TEXTS) < before_last


def test_where_prompts_end_is_known_on_the_device_of_the_states(monkeypatch):
    chat_model = tiny_model("llama", template=None)
    reader = ResidualReader(chat_model, packs=True)
    sequences = [reader.encode(text) for text in TEXTS]
    monkeypatch.setitem(limits.PACK_TOKENS, "meta", 512)
    monkeypatch.setitem(limits.PACK_MULTIPLE, "meta", 1)
    reader.chat_model = dataclasses.replace(chat_model, device="meta")
    chat_model.model.to("meta")
    devices = []

    def watched(states, token_index):
        devices.append(token_index.device.type)
        return select_tokens(states, token_index)

    for module in ("hooks", "reader"):
        monkeypatch.setattr(f"refusal_core.activations.{module}.select_tokens", watched)
    # There is nothing to be fetched from this device.
    monkeypatch.setattr("refusal_core.activations.reader.to_host", lambda *found: lambda: [np.ones(1)] * len(found))
    reader.read_end(sequences, 3)
    assert len(devices) > chat_model.n_layers
    assert set(devices) == {"meta"}


def test_a_model_with_several_residual_streams_is_refused():
    four = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300}
    with pytest.raises(ModelError, match=r"tiny-gemma3n hands \(4, 1, \d+, 32\).* one residual stream"):
        extract(tiny_model("gemma3n", **four), TEXTS)


def test_hooks_are_gone_afterwards():
    chat_model = tiny_model("llama")
    extract(chat_model, TEXTS)
    modules = [*chat_model.blocks, chat_model.final_norm, chat_model.lm_head]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
