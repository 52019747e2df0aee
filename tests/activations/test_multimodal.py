"""Multimodal chat models, opened from a folder, are read in their text decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain import TEXTS, plain_states, relative_error
from tiny import tiny_config, tiny_tokenizer

from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.models.identity import identify
from refusal_core.models.opening import load_model

_SEES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_PIXELS = _SEES | {"image_size": 28, "patch_size": 14}
_QWEN_SEES = {"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 64}


def _turning(architecture: str) -> dict[str, Any]:
    """A text decoder whose positions have three parts: time, height and width."""
    turns = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    return tiny_config(architecture).to_dict() | {"rope_parameters": turns}


def multimodal_config(name: str) -> transformers.PreTrainedConfig:
    if name == "gemma3":
        return transformers.Gemma3Config(text_config=tiny_config("gemma3").to_dict(), vision_config=_PIXELS)
    if name == "llava":
        sees = transformers.CLIPVisionConfig(**_PIXELS)
        return transformers.LlavaConfig(text_config=tiny_config("llama"), vision_config=sees)
    if name == "mistral3":
        sees = transformers.PixtralVisionConfig(**_PIXELS)
        return transformers.Mistral3Config(text_config=tiny_config("mistral"), vision_config=sees)
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(text_config=_turning("qwen2"), vision_config=_QWEN_SEES)
    sees = _QWEN_SEES | {"deepstack_visual_indexes": [1]}
    return transformers.Qwen3VLConfig(text_config=_turning("qwen3"), vision_config=sees)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("llava", "LlavaForConditionalGeneration"),
        ("mistral3", "Mistral3ForConditionalGeneration"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    ],
)
def test_the_text_decoder_of_a_multimodal_model_is_read(name: str, architecture: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(multimodal_config(name), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    info = identify(tmp_path)
    assert (info.architecture, info.n_layers, info.d_model) == (architecture, 4, 32)
    opened = load_model(tmp_path, device="cpu", dtype="float32")
    extraction = extract(opened, TEXTS)
    assert extraction.prefix_tokens > 8
    plain = load_model(tmp_path, device="cpu", dtype="float32")
    for row, text in enumerate(TEXTS):
        assert relative_error(extraction.hidden[row], plain_states(plain, text)) < 1e-4
    reading = ResidualReader(opened).read_tokens(TEXTS[0])
    assert relative_error(reading.at_position, plain_states(plain, TEXTS[0])) < 1e-4
