"""Models of random weights, built from a configuration: what a size costs, with nothing to download."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from refusal_core.devices import choose_device, choose_dtype, torch_dtype
from refusal_core.models import ChatModel, load_model, wrap_model

RANDOM: dict[str, dict[str, Any]] = {
    # The shape of Qwen2.5-7B.
    "random-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
}
TOKENIZER = "qwen2.5-coder-0.5b-instruct"


def random_model(name: str, device: str = "auto", dtype: str = "auto", tokenizer: str = TOKENIZER) -> ChatModel:
    """A model of random weights with a real model's tokenizer and chat template, which is read from that model."""
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    lender = load_model(tokenizer, device="cpu", dtype="float32")
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**RANDOM[name]), dtype=torch_dtype(dtype))
    info = replace(
        lender.info, name=name, n_layers=model.config.num_hidden_layers, d_model=model.config.hidden_size, licence=None
    )
    return wrap_model(model, lender.tokenizer, info, dtype)
