"""Models of random weights, built from a configuration: what a size costs, with nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from refusal_core.models.devices import choose_device, choose_dtype, torch_dtype
from refusal_core.models.fetching import fetch
from refusal_core.models.identity import ModelInfo
from refusal_core.models.known import KNOWN
from refusal_core.models.opening import ChatModel, wrap_model

RANDOM: dict[str, dict[str, Any]] = {
    # The shapes of Qwen2.5-0.5B, -1.5B (that of Experiment 0) and -7B.
    "random-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "random-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "random-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
TOKENIZER = "qwen2.5-coder-0.5b-instruct"


def random_model(name: str, device: str = "auto", dtype: str = "auto", tokenizer: str = TOKENIZER) -> ChatModel:
    """A model of random weights with the tokenizer and chat template of a real one: a known name, or a folder."""
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    lender = fetch(tokenizer) if tokenizer in KNOWN else tokenizer
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**RANDOM[name]), dtype=torch_dtype(dtype))
    info = ModelInfo(
        name=name,
        source="folder",
        revision=None,
        sha256=None,
        architecture=type(model).__name__,
        n_layers=model.config.num_hidden_layers,
        d_model=model.config.hidden_size,
        quantisation=None,
        licence=None,
    )
    return wrap_model(model, AutoTokenizer.from_pretrained(lender), info, dtype)
