"""Opening models, tiny random ones in folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny_gguf

from refusal_core.errors import ModelError
from refusal_core.models.identity import identify, is_available
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import render


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def logits(chat_model: ChatModel, text: str = "How do I pick a lock?") -> torch.Tensor:
    with torch.no_grad():
        return chat_model.model(torch.tensor([render(chat_model, text)])).logits


def test_known_name_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(ModelError) as caught:
        load_model("qwen2.5-coder-0.5b-instruct")
    for part in (
        "qwen2.5-coder-0.5b-instruct is not on this machine: fetch it first",
        "0.5 GB",
        "1.3 GB",
        "Apache-2.0",
    ):
        assert part in str(caught.value)


def test_folder_opens_as_the_model_that_was_saved(saved: tuple[Path, ChatModel]) -> None:
    folder, original = saved
    opened = load_model(str(folder), device="cpu", dtype="float32")
    assert torch.equal(logits(opened), logits(original))
    assert opened.info == identify(folder)
    assert (opened.info.name, opened.info.source) == ("my-model", "folder")
    assert (opened.info.architecture, opened.info.n_layers, opened.info.d_model) == (
        "Qwen2ForCausalLM",
        4,
        32,
    )
    assert (opened.device, opened.dtype, opened.model.dtype) == ("cpu", "float32", torch.float32)
    assert opened.load_seconds > 0
    assert not opened.model.training
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())
    assert opened.model.config._attn_implementation == "sdpa"
    assert is_available(folder)


def test_dtype_is_the_one_asked_for(saved: tuple[Path, ChatModel]) -> None:
    opened = load_model(saved[0], device="cpu", dtype="bfloat16")
    assert (opened.dtype, opened.model.dtype) == ("bfloat16", torch.bfloat16)


def test_opening_prints_nothing(saved: tuple[Path, ChatModel], capfd: pytest.CaptureFixture[str]) -> None:
    edit_weights(saved[0], lambda weights: weights.update(superfluous=torch.ones(1)))
    capfd.readouterr()
    load_model(saved[0], device="cpu", dtype="float32")
    assert capfd.readouterr() == ("", "")


def test_pickled_weights_are_not_opened(saved: tuple[Path, ChatModel]) -> None:
    (saved[0] / "model.safetensors").rename(saved[0] / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        load_model(saved[0])


def test_pickled_weights_beside_a_stray_safetensors_file_are_not_opened(saved: tuple[Path, ChatModel]) -> None:
    folder, chat_model = saved
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    torch.save(chat_model.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be opened"):
        load_model(folder, device="cpu", dtype="float32")


def test_missing_weights_are_not_made_up(saved: tuple[Path, ChatModel]) -> None:
    edit_weights(saved[0], lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 .* model\.layers\.2\.mlp\.up_proj"):
        load_model(saved[0], device="cpu", dtype="float32")


def test_torn_weights_are_reported(saved: tuple[Path, ChatModel]) -> None:
    weights = saved[0] / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 4, 1000, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors is cut off.*download it again"):
            load_model(saved[0], device="cpu", dtype="float32")


def test_a_model_that_was_identified_is_opened_and_nothing_else(saved: tuple[Path, ChatModel]) -> None:
    folder, original = saved
    info = identify(folder)
    opened = load_model(info, device="cpu", dtype="float32")
    assert opened.info == info
    assert torch.equal(logits(opened), logits(original))
    edit_weights(folder, lambda weights: weights["model.norm.weight"].add_(1))
    with pytest.raises(ModelError, match=r"not the model that was identified \(SHA-256 \w{12}, expected \w{12}\)"):
        load_model(info, device="cpu", dtype="float32")
    assert load_model(folder, device="cpu", dtype="float32").info.fingerprint != info.fingerprint


def test_a_gguf_file_that_was_changed_after_it_was_identified_is_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    info = identify(tmp_path / "tiny.gguf")
    write_tiny_gguf(tmp_path / "tiny.gguf", packed=True)
    with pytest.raises(ModelError, match="not the model that was identified"):
        load_model(info, device="cpu", dtype="float32")


def test_a_known_name_that_is_pinned_to_another_file_by_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(identify("gemma-3-270m"), sha256="0" * 64)
    monkeypatch.setattr("refusal_core.models.opening.is_fetched", lambda known: True)
    with pytest.raises(ModelError, match=r"identified by SHA-256 000.* pinned to a5fd3b62"):
        load_model(info)


def test_a_model_with_other_layers_than_it_was_identified_with_is_refused(saved: tuple[Path, ChatModel]) -> None:
    info = identify(saved[0])
    for other in (replace(info, n_layers=5), replace(info, d_model=64)):
        with pytest.raises(ModelError, match=r"opened with 4 layers of width 32; it was identified as"):
            load_model(other, device="cpu", dtype="float32")
