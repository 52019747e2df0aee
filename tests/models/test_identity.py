"""Finding and identifying models without their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny import LLAMA_LIKE, tiny_tokenizer

from refusal_core.errors import ModelError
from refusal_core.models.identity import identify, is_available
from refusal_core.models.opening import ChatModel, load_model


def save(chat_model: ChatModel, folder: Path) -> None:
    chat_model.model.save_pretrained(folder)
    chat_model.tokenizer.save_pretrained(folder)


def save_config(config: transformers.PreTrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return folder


def test_known_name_is_identified_without_being_there() -> None:
    info = identify("qwen2.5-coder-1.5b-instruct")
    assert (info.source, info.n_layers, info.d_model, info.quantisation) == ("fetched", 28, 1536, "Q4_K_M")
    assert info.sha256 == "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
    assert info.fingerprint == info.sha256
    assert not is_available("qwen2.5-coder-1.5b-instruct")


@pytest.mark.parametrize(
    "name", ["nope", "./nope", "nope.gguf", "a/nope.gguf", "/nope/nope", "~nobody-of-that-name/nope"]
)
def test_unknown_name_lists_what_would_do(name: str) -> None:
    with pytest.raises(ModelError, match=r"gemma-3-270m.*hub id.*GGUF file"):
        identify(name)
    assert not is_available(name)


@pytest.mark.parametrize("name", ["gemma-3-270m", "folder"])
def test_revision_is_for_hub_ids_only(name: str, saved: tuple[Path, ChatModel]) -> None:
    with pytest.raises(ModelError, match="revision"):
        identify(saved[0] if name == "folder" else name, revision="main")


def test_identity_is_of_the_content(saved: tuple[Path, ChatModel], tmp_path: Path) -> None:
    folder, chat_model = saved
    sha256 = identify(folder).sha256
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("---\nlicense: mit\n---\nA card.")
    assert identify(copy).sha256 == sha256
    assert identify(copy).licence == "mit"

    (copy / "chat_template.jinja").write_text(LLAMA_LIKE)
    assert identify(copy).sha256 != sha256
    with torch.no_grad():
        chat_model.lm_head.weight[0, 0] += 1
    save(chat_model, folder)
    assert identify(folder).sha256 != sha256


def test_quantisation_of_a_folder_is_named(saved: tuple[Path, ChatModel]) -> None:
    config = json.loads((saved[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (saved[0] / "config.json").write_text(json.dumps(config))
    assert identify(saved[0]).quantisation == "bitsandbytes, 4 bits"


@pytest.mark.parametrize(
    ("file", "hint"),
    [("weights.gguf", "weights.gguf"), ("adapter_config.json", "merged"), (None, "no config.json")],
)
def test_folder_without_config(tmp_path: Path, file: str | None, hint: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if file:
        (folder / file).touch()
    with pytest.raises(ModelError, match=r"no config\.json") as caught:
        load_model(folder)
    assert hint in str(caught.value)


def test_code_beside_a_model_is_not_run(saved: tuple[Path, ChatModel], tmp_path: Path) -> None:
    folder, ran = saved[0], tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedConfig\n"
        "class MyConfig(PreTrainedConfig):\n    model_type = 'mine'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "modeling_mine.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="never run"):
        load_model(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(d_model=32, num_layers=2), "encoder-decoder"),
        (transformers.ViTConfig(hidden_size=32, num_hidden_layers=2), "no causal language model"),
    ],
)
def test_unsupported_kinds_are_refused(config: transformers.PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    folder = save_config(config, tmp_path / "folder")
    for call in (identify, load_model):
        with pytest.raises(ModelError, match=reason):
            call(folder)


def test_a_run_records_nothing_about_where_its_model_is(saved: tuple[Path, ChatModel]) -> None:
    record = identify(saved[0]).as_record()
    assert set(record) == {
        *("name", "source", "revision", "sha256", "architecture", "n_layers", "d_model", "quantisation", "licence")
    }
    assert str(saved[0].parent) not in str(record)
