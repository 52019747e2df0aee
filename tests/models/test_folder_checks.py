"""Folders that are broken, each of which ends in one sentence with the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny import ARCHITECTURES, tiny_config, tiny_model, tiny_tokenizer

from refusal_core.errors import ModelError
from refusal_core.models.folder_checks import read_raw_config, require_weights
from refusal_core.models.identity import identify
from refusal_core.models.opening import ChatModel, load_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5368709120\n"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("model.safetensors", POINTER), r"model\.safetensors is a Git LFS pointer.*`git lfs pull`"),
        (write("config.json", POINTER), r"config\.json is a Git LFS pointer"),
        (write("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
        (write("model.safetensors", b"x" * 5000), r"cut off or no safetensors file: download it again"),
        (write("model.safetensors", header(b"[" * 3000)), r"is damaged, its header cannot be read: download it again"),
        (write("model.safetensors", header(b"[" * 500_000)), r"is damaged, its header cannot be read"),
        (write("model.safetensors", header(b'{"a": 7}')), r"is damaged, its header cannot be read"),
        (remove("tokenizer.json"), r"has no tokenizer .*copy it from where the model came from"),
        (write("config.json", b"[" * 500_000), r"config\.json cannot be read as JSON"),
        (write("config.json", b"\xff\xfe"), r"config\.json cannot be read as JSON"),
        (write("config.json", b"[1, 2]"), r"holds no JSON object but a list"),
        (write("config.json", b"{"), r"config\.json cannot be read as JSON"),
        (write("config.json", b" " * (1 << 25)), r"longer than any configuration"),
        (
            write("model.safetensors.index.json", b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
            r"lacks 'model-00002-of-00002\.safetensors', which its index names: download it again",
        ),
        (write("model.safetensors.index.json", b"[" * 500_000), r"index\.json cannot be read as JSON"),
    ],
)
def test_a_broken_folder_is_one_sentence(damage: Callable[[Path], object], message: str, saved) -> None:
    folder = saved[0]
    damage(folder)
    for call in (identify, load_model):
        with pytest.raises(ModelError, match=message) as caught:
            call(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000, expected at most 10,000"),
        ({"num_hidden_layers": 9000}, r"says 9000 layers, and they have 4"),
        ({"num_hidden_layers": 3}, r"says 3 layers, and they have 4"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers is -1"),
        ({"num_attention_heads": 10**12}, r"num_attention_heads is 1000000000000"),
        ({"hidden_size": 64}, r"says 64 columns of the embeddings, and they have 32"),
        ({"vocab_size": 10**9}, r"says 1000000000 tokens of the embeddings, and they have \d+"),
        ({"num_hidden_layers": "four"}, "cannot be used"),
        ({"text_config": 7, "layer_types": 7}, "cannot be used"),
        ({"rope_parameters": [[]]}, "cannot be used"),
    ],
)
def test_a_configuration_of_another_model_is_one_sentence(changes: dict[str, Any], message: str, saved) -> None:
    edit_config(saved[0], **changes)
    with pytest.raises(ModelError, match=message):
        load_model(saved[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folders_as_they_are_saved_are_in_order(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).model.save_pretrained(tmp_path, max_shard_size="40KB")
    require_weights(tmp_path, read_raw_config(tmp_path))


def test_a_multimodal_folder_is_in_order(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=tiny_config("gemma3").to_dict(), vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    require_weights(tmp_path, read_raw_config(tmp_path))
    assert identify(tmp_path).n_layers == 4


def test_layers_that_predict_further_tokens_stand_behind_the_others(saved: tuple[Path, ChatModel]) -> None:
    edit_config(saved[0], num_hidden_layers=3, num_nextn_predict_layers=1)
    require_weights(saved[0], read_raw_config(saved[0]))
