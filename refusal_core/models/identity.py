"""What a model is and whether it is here, found out without loading its weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from refusal_core.errors import ModelError
from refusal_core.files import sha256_of
from refusal_core.models.architectures import model_class_of, read_config, text_config
from refusal_core.models.folder_checks import read_raw_config, require_tokenizer, require_weights
from refusal_core.models.gguf_files import read_header
from refusal_core.models.hub import HubSnapshot, find_snapshot
from refusal_core.models.known import KNOWN, KnownModel, is_fetched
from refusal_core.models.transformers_internals import gguf_class_name
from refusal_core.options import LoadIn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Source = Literal["fetched", "hub", "folder", "gguf"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_IDENTIFYING_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, without its weights.

    Attributes:
        revision: the commit of a hub model; None for all others.
        sha256: of the GGUF file (fetched names and GGUF files), or over the weights, configuration and tokenizer
            files of a folder; None for a hub model.
        path: where a folder or GGUF file of the user's own is; None for fetched names and hub ids.
    """

    name: str
    source: Source
    revision: str | None
    sha256: str | None
    architecture: str
    n_layers: int
    d_model: int
    quantisation: str | None
    licence: str | None
    path: str | None = None

    @property
    def fingerprint(self) -> str:
        """The one string that tells this model from every other: its SHA-256, or its commit on the hub."""
        return self.sha256 or self.revision or ""

    def as_record(self) -> dict[str, Any]:
        """Return what a run records about its model: nothing about where it is on this machine."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def identify(name_or_path: str | Path, revision: str | None = None) -> ModelInfo:
    """Find out what a model is without loading its weights; a known name need not even be on this machine.

    A hub id is resolved to the commit that it stands for now, or, without a connection, to the one that it stood for
    when it was downloaded.

    Raises:
        ModelError: when there is no such model, or when it is of a kind that cannot be used.
    """
    source = _source_of(name_or_path)
    if revision is not None and source != "hub":
        raise ModelError(f"A revision belongs to a hub id; {name_or_path} is none. Leave the revision out.")
    if source == "fetched":
        return _known_info(KNOWN[str(name_or_path)])
    if source == "gguf":
        return _gguf_info(Path(name_or_path).expanduser())
    if source == "folder":
        return _folder_info(Path(name_or_path).expanduser())
    return _hub_info(str(name_or_path), find_snapshot(str(name_or_path), revision))


def as_opened(info: ModelInfo, load_in: LoadIn | None) -> ModelInfo:
    """Describe a model as it is once opened: its quantisation is that of its files, and what opening does to it.

    Args:
        info: as :func:`identify` returns it.
        load_in: the precision that bitsandbytes opens it in, or None for its own.

    Raises:
        ModelError: when it cannot be opened in that precision.
    """
    if load_in is None:
        return info
    if load_in not in get_args(LoadIn):
        raise ModelError(f"expected {' or '.join(get_args(LoadIn))} to load a model in, got {load_in!r:.40}")
    bits = load_in.removesuffix("bit")
    if info.source == "gguf":
        raise ModelError(f"{info.name} is a GGUF file, quantised as it is: it cannot be opened in {bits} bits.")
    if info.source in ("folder", "hub") and info.quantisation is not None:
        raise ModelError(f"{info.name} is quantised already ({info.quantisation}): it cannot be opened in {bits} bits.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{bits} bits need the package bitsandbytes: install the extra `quantised`.")
    return replace(
        info, quantisation=", then ".join([*filter(None, [info.quantisation]), f"bitsandbytes, {bits} bits"])
    )


def is_available(model: str | Path | ModelInfo, revision: str | None = None) -> bool:
    """Return whether `load_model` finds all that it needs on this machine, without a download."""
    try:
        if isinstance(model, ModelInfo):
            source, name, revision = model.source, model.path or model.name, model.revision
        else:
            source, name = _source_of(model), str(model)
        if source == "fetched":
            return is_fetched(KNOWN[name])
        if source == "hub":
            return find_snapshot(name, revision, offline=True).is_whole
        return True
    except ModelError:
        return False


def _source_of(name_or_path: str | Path) -> Source:
    if str(name_or_path) in KNOWN:
        return "fetched"
    path = Path(os.path.expanduser(name_or_path))  # unlike pathlib's, silent about a home that nobody has
    try:
        if path.is_dir():
            return "folder"
        if path.is_file():
            return "gguf"
    except (OSError, ValueError):  # a name that no file can have
        pass
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(name_or_path) and path.suffix != ".gguf":
        return "hub"
    raise ModelError(
        f"There is no model named {str(name_or_path)!r:.120}, and no such file or folder. A model is one of the "
        f"names {', '.join(KNOWN)}, a hub id such as Qwen/Qwen2.5-1.5B-Instruct, a folder with config.json "
        "and safetensors, or a GGUF file."
    )


def _known_info(known: KnownModel) -> ModelInfo:
    return ModelInfo(
        name=known.name,
        source="fetched",
        revision=None,
        sha256=known.gguf_sha256,
        architecture=known.architecture,
        n_layers=known.n_layers,
        d_model=known.d_model,
        quantisation=known.quantisation,
        licence=known.licence,
    )


def _folder_info(folder: Path) -> ModelInfo:
    require_weights(folder, read_raw_config(folder))
    config = read_config(folder)
    require_tokenizer(folder)
    names = sorted({path.name for pattern in _IDENTIFYING_FILES for path in folder.glob(pattern)})
    return _config_info(
        config,
        name=folder.resolve().name,
        source="folder",
        revision=None,
        sha256=_files_sha256([folder / name for name in names]),
        licence=_card_licence(folder / "README.md"),
        path=str(folder.resolve()),
    )


def _hub_info(repo: str, snapshot: HubSnapshot) -> ModelInfo:
    return _config_info(
        read_config(snapshot.folder),
        name=repo,
        source="hub",
        revision=snapshot.commit,
        sha256=None,
        licence=_card_licence(snapshot.folder / "README.md"),
    )


def _config_info(config: PreTrainedConfig, **known: Any) -> ModelInfo:
    model_class = model_class_of(config)
    text = text_config(config)
    return ModelInfo(
        architecture=model_class.__name__ if model_class else config.model_type,
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        quantisation=_quantisation(config),
        **known,
    )


def _quantisation(config: PreTrainedConfig) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method, bits = settings.get("quant_method"), settings.get("bits")
    if bits is None:
        bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    method = getattr(method, "value", method)
    return f"{method}, {bits} bits" if bits else str(method)


def _gguf_info(path: Path) -> ModelInfo:
    header = read_header(path)
    family = str(header.get("general.architecture"))
    try:
        n_layers, d_model = int(header[f"{family}.block_count"]), int(header[f"{family}.embedding_length"])
    except KeyError as error:
        raise ModelError(f"{path} is a GGUF file without a language model: its header has no {error}.") from error
    licence = header.get("general.license")
    return ModelInfo(
        name=path.stem,
        source="gguf",
        revision=None,
        sha256=_file_sha256(path, path.stat().st_size, path.stat().st_mtime_ns),
        architecture=gguf_class_name(family) or family,
        n_layers=n_layers,
        d_model=d_model,
        quantisation=_gguf_quantisation(header.get("general.file_type")),
        licence=str(licence) if licence else None,
        path=str(path.resolve()),
    )


def _gguf_quantisation(file_type: Any) -> str | None:
    from gguf import LlamaFileType

    with contextlib.suppress(ValueError):
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return None


def _card_licence(card: Path) -> str | None:
    """Return the licence in the front matter of a model card, if there is a card."""
    if not card.is_file():
        return None
    match = re.search(r"\A---\n(?:.*\n)*?license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"))
    return match.group(1) if match else None


def _files_sha256(paths: Sequence[Path]) -> str:
    """Return the SHA-256 over the names and SHA-256s of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {_file_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    # Size and time are part of the key so that a changed file is read again.
    return sha256_of(path)
