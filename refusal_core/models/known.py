"""The models that are known by name: where they come from, what they are, and where they are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

RECORD = "refusal.json"


@dataclass(frozen=True)
class Wheel:
    """One data-only wheel on the package index that carries a part of a GGUF file.

    Attributes:
        size: in bytes.
    """

    name: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name of the wheel's file."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class KnownModel:
    """A model with everything about it pinned, so that a name means the same bytes everywhere.

    Attributes:
        hub_repo: None, like `hub_file`, where no repository is known to hold the same file.
        size: bytes of the GGUF file.
        converted_size: bytes of the folder that is made from it.
    """

    name: str
    hub_repo: str | None
    hub_file: str | None
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    size: int
    converted_size: int
    licence: str
    architecture: str
    quantisation: str
    n_layers: int
    d_model: int
    has_chat_template: bool

    @property
    def folder(self) -> Path:
        """Where the converted model is kept once it has been fetched."""
        return models_folder() / self.name


def models_folder() -> Path:
    """Return the folder of fetched models: $REFUSAL_MODELS, or ~/.cache/refusal_core/models."""
    chosen = os.environ.get("REFUSAL_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "refusal_core" / "models"


def is_fetched(known: KnownModel) -> bool:
    """Return whether the model's folder is complete: the pinned model, every file in its recorded size."""
    try:
        record = json.loads((known.folder / RECORD).read_text(encoding="utf-8"))
        return record["gguf_sha256"] == known.gguf_sha256 and all(
            (known.folder / name).stat().st_size == entry["size"] for name, entry in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _read_wheels() -> dict[str, tuple[Wheel, ...]]:
    text = files("refusal_core.models").joinpath("wheels.json").read_text(encoding="utf-8")
    return {name: tuple(Wheel(**wheel) for wheel in wheels) for name, wheels in json.loads(text).items()}


def _known_models() -> Mapping[str, KnownModel]:
    wheels = _read_wheels()
    models = (
        KnownModel(
            name="qwen2.5-coder-0.5b-instruct",
            hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            hub_file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            wheels=wheels["qwen2.5-coder-0.5b-instruct"],
            gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size=491_400_064,
            converted_size=1_271_803_000,
            licence="Apache-2.0",
            architecture="Qwen2ForCausalLM",
            quantisation="Q4_K_M",
            n_layers=24,
            d_model=896,
            has_chat_template=True,
        ),
        KnownModel(
            name="qwen2.5-coder-1.5b-instruct",
            hub_repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            hub_file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            wheels=wheels["qwen2.5-coder-1.5b-instruct"],
            gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=1_117_320_768,
            converted_size=3_565_650_000,
            licence="Apache-2.0",
            architecture="Qwen2ForCausalLM",
            quantisation="Q4_K_M",
            n_layers=28,
            d_model=1536,
            has_chat_template=True,
        ),
        KnownModel(
            name="smollm2-135m-instruct",
            hub_repo=None,
            hub_file=None,
            wheels=wheels["smollm2-135m-instruct"],
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            converted_size=272_590_000,
            licence="Apache-2.0",
            architecture="LlamaForCausalLM",
            quantisation="Q4_1",
            n_layers=30,
            d_model=576,
            has_chat_template=True,
        ),
        KnownModel(
            name="gemma-3-270m",
            hub_repo=None,
            hub_file=None,
            wheels=wheels["gemma-3-270m"],
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            converted_size=569_600_000,
            licence="Gemma terms of use",
            architecture="Gemma3ForCausalLM",
            quantisation="Q4_K_M",
            n_layers=18,
            d_model=640,
            has_chat_template=False,
        ),
    )
    return MappingProxyType({model.name: model for model in models})


KNOWN: Mapping[str, KnownModel] = _known_models()
