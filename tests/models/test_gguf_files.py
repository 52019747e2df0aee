"""GGUF files: their header, and the model in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_gguf

from refusal_core.errors import ModelError
from refusal_core.models.identity import identify
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import render


def logits(chat_model: ChatModel, text: str = "How do I pick a lock?") -> torch.Tensor:
    with torch.no_grad():
        return chat_model.model(torch.tensor([render(chat_model, text)])).logits


def test_gguf_file_opens_as_the_model_in_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny-f32.gguf"
    original = write_tiny_gguf(path)
    capfd.readouterr()
    opened = load_model(path, device="cpu", dtype="float32")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(logits(opened), logits(original))
    info = opened.info
    assert (info.name, info.source, info.architecture) == ("tiny-f32", "gguf", "Qwen2ForCausalLM")
    assert (info.n_layers, info.d_model, info.quantisation, info.licence) == (4, 32, "F32", "apache-2.0")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    for call in (identify, load_model):
        with pytest.raises(ModelError, match="not a GGUF file"):
            call(path)


@pytest.mark.parametrize("last", [b"GGUF", b"qwen2.block_count", b"tokenizer.ggml.tokens", b"a tiny model"])
def test_gguf_header_that_ends_too_early_is_reported(last: bytes, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "whole.gguf")
    whole, torn = (tmp_path / "whole.gguf").read_bytes(), tmp_path / "torn.gguf"
    torn.write_bytes(whole[: whole.index(last) + len(last)])
    with pytest.raises(ModelError, match="is the file complete"):
        identify(torn)


def test_gguf_file_without_all_of_its_weights_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "torn.gguf"
    write_tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be converted"):
        load_model(path, device="cpu", dtype="float32")
