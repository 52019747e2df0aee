"""What can be wrong with a model's folder, found out before transformers sees it.

A download that broke off, a clone without its large files or a configuration of another model otherwise ends in an
error of a library, or never: transformers builds as many layers as it is told to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refusal_core.errors import ModelError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.tiktoken", "spiece.model", "sentencepiece*.model")
_LONGEST_CONFIG = 1 << 24
_LONGEST_HEADER = 100_000_000  # safetensors itself reads no longer one
_INDEX = "model.safetensors.index.json"

_MOST = 10_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_COUNTED = {
    *_LAYERS,
    *("num_experts", "num_local_experts", "n_routed_experts", "num_attention_heads", "num_key_value_heads"),
    *("depth", "encoder_layers"),
}
"""Numbers of which there are as many modules, so that a wrong one is never done being built."""
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_FLOATS = ("F32", "F16", "BF16", "F64")
_STACK = re.compile(r"([^0-9]+)\.(\d+)\.")


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a tokenizer, and not its settings alone."""
    return any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern))


def require_tokenizer(folder: Path) -> None:
    """Raise ModelError for a folder without a tokenizer."""
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json): copy it from where the model "
            "came from."
        )
    for pattern in _TOKENIZERS:
        for path in folder.glob(pattern):
            _require_content(path)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Read config.json as it is written.

    Raises:
        ModelError: when it is missing, is no JSON object, or says there are more layers than any model has.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder{_hint_for(folder)}.")
    _require_content(path)
    config = _read_json(path)
    for name, value in _numbers(config):
        if name in _COUNTED and not 0 <= value <= _MOST:
            raise ModelError(f"{path} is damaged: {name} is {value}, expected at most {_MOST:,}.")
    return config


def require_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that a folder's safetensors are complete and of the size that its configuration says.

    Args:
        folder: of the model.
        config: as :func:`read_raw_config` returns it.

    Raises:
        ModelError: saying which file is wrong, and the cure.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{folder} has no safetensors weights; pickled ones (.bin, .pt) are never opened.")
    if (folder / _INDEX).is_file():
        shards = _read_json(folder / _INDEX).get("weight_map")
        for name in sorted(set(shards.values())) if isinstance(shards, dict) else ():
            if not (folder / str(name)).is_file():
                raise ModelError(f"{folder} lacks {name!r:.80}, which its index names: download it again.")
    shapes: dict[str, tuple[str, list[int]]] = {}
    for path in paths:
        shapes |= _read_header(path)
    _compare(folder, config, shapes)


def _compare(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raise ModelError where the configuration has other numbers of layers, columns or tokens than the weights."""
    text = next((config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict)), config)
    stacks: dict[str, int] = {}
    for name in shapes:
        if match := _STACK.match(name):
            stacks[match[1]] = max(stacks.get(match[1], 0), int(match[2]) + 1)
    # Layers that predict further tokens stand behind the others.
    extra = sum(value for name, value in _numbers(text) if "nextn" in name or "mtp" in name)
    layers = next((text[name] for name in _LAYERS if isinstance(text.get(name), int)), None)
    if layers is not None and stacks and not any(layers <= count <= layers + extra for count in stacks.values()):
        _refuse(folder, f"{layers} layers", f"{max(stacks.values())}")
    tables = [
        shape
        for name, (dtype, shape) in shapes.items()
        if name.endswith(_EMBEDDINGS) and dtype in _FLOATS and len(shape) == 2
    ]
    for names, column, what in ((_WIDTHS, 1, "columns"), (("vocab_size",), 0, "tokens")):
        expected = [text[name] for name in names if isinstance(text.get(name), int)]
        sizes = {shape[column] for shape in tables}
        if expected and sizes and not sizes & set(expected):
            _refuse(folder, f"{expected[0]} {what} of the embeddings", f"{max(sizes)}")


def _refuse(folder: Path, said: str, found: str) -> None:
    raise ModelError(
        f"{folder / 'config.json'} does not belong to the weights beside it: it says {said}, and they have {found}. "
        "Get both from one place again."
    )


def _read_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Read the dtype and shape of each tensor in a safetensors file, after a check that all of its bytes are there."""
    _require_content(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size or length > _LONGEST_HEADER:
            raise ModelError(f"{path} is cut off or no safetensors file: download it again.")
        content = file.read(length)
    try:
        header = json.loads(content)
        tensors = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        shapes = {name: (str(entry["dtype"]), [int(n) for n in entry["shape"]]) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged, its header cannot be read: download it again.") from error
    if 8 + length + end > size:
        raise ModelError(f"{path} is cut off, {size:,} bytes of {8 + length + end:,} are there: download it again.")
    return shapes


def _require_content(path: Path) -> None:
    """Raise ModelError for a file that stands for another one in a clone without its large files."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        beginning = file.read(len(_LFS_POINTER))
    if beginning == _LFS_POINTER:
        raise ModelError(
            f"{path} is a Git LFS pointer, the file itself was not downloaded: run `git lfs pull` in its folder."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise ModelError(f"{path} is longer than any configuration ({_LONGEST_CONFIG >> 20} MiB).")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({str(error) or type(error).__name__:.120}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object but a {type(content).__name__}.")
    return content


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a configuration, with their names."""
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, int) and not isinstance(value, bool):
                yield str(name), value


def _hint_for(folder: Path) -> str:
    gguf_files = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf_files:
        return f"; to open {gguf_files[0]}, give the path of the file itself"
    if (folder / "adapter_config.json").is_file():
        return "; it holds an adapter, which has to be merged into its base model first"
    return ""
