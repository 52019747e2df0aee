"""Chat models: found by name, hub id, folder or GGUF file, identified without loading, and opened.

Weights are read from safetensors or GGUF only, and no code from a model repository is ever run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from refusal_core.errors import ModelError
from refusal_core.models.devices import SPREAD, choose_device, choose_dtype, torch_dtype
from refusal_core.models.fetching import fetch
from refusal_core.models.gguf_files import load_gguf, read_header, require_all_weights
from refusal_core.models.hub import HubSnapshot, find_snapshot
from refusal_core.models.known import KNOWN, KnownModel, Wheel, is_fetched, models_folder
from refusal_core.models.templates import (
    default_system_prompt,
    has_chat_template,
    put_template,
    render,
    template_sha256,
)
from refusal_core.progress import Progress, no_progress, quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "KNOWN",
    "ChatModel",
    "KnownModel",
    "ModelInfo",
    "Wheel",
    "default_system_prompt",
    "fetch",
    "has_chat_template",
    "identify",
    "is_available",
    "load_model",
    "models_folder",
    "render",
    "template_sha256",
    "wrap_model",
]

Source = Literal["fetched", "hub", "folder", "gguf"]
QUANTISED = (8, 4)
"""The numbers of bits in which bitsandbytes holds a weight."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
_STATEFUL_LAYERS = {"conv", "linear_attention", "hybrid", "hybrid_sliding"}
"""What transformers calls the layers of a configuration that hand a state on from token to token."""
_IDENTIFYING_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", *_TOKENIZER_FILES)


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, without its weights.

    `revision` is the commit of a hub model and None otherwise. `sha256` is that of the GGUF file (fetched
    names and GGUF files), or over the weights, configuration and tokenizer files of a folder; None for a hub
    model.
    `path` says where a folder or GGUF file of the user's own was found; None for names and hub ids.
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


@dataclass(frozen=True)
class ChatModel:
    """A causal language model in memory, in eval mode, with its tokenizer and what is known about both.

    `device` is where token ids go and numbers come from; of a model that is spread, the first accelerator.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    device: str
    dtype: str
    load_seconds: float = 0.0

    @cached_property
    def decoder(self) -> torch.nn.Module:
        """The text decoder: embeddings, blocks and final norm, without the vocabulary projection."""
        return find_decoder(self.model)

    @cached_property
    def blocks(self) -> torch.nn.ModuleList:
        """The transformer blocks, n_layers of them, in order."""
        return _find_blocks(self.decoder, self.n_layers)[1]

    @cached_property
    def final_norm(self) -> torch.nn.Module:
        """The norm that follows the last block."""
        return _find_final_norm(self.decoder, self.n_layers)

    @property
    def lm_head(self) -> torch.nn.Module:
        """The projection from d_model to the vocabulary."""
        return self.model.get_output_embeddings()

    @property
    def placement(self) -> str:
        """Where the weights are: "cpu", or, of a model that is spread, "cuda:0 (20 parts), cpu (6), disk (2)"."""
        places = Counter(_places(self.model))
        if len(places) < 2:
            return self.device
        return ", ".join(f"{place} ({parts})" for place, parts in sorted(places.items(), key=_accelerators_first))

    @property
    def reads_alone(self) -> bool:
        """Whether a prompt's numbers depend on those beside it: LLM.int8() looks for outliers over a whole batch."""
        settings = getattr(self.model.config, "quantization_config", None)
        return bool(getattr(settings, "load_in_8bit", False))

    @property
    def weights_in_words(self) -> str:
        """What became of the weights on the way from their files into memory."""
        if getattr(self.model, "is_quantized", False):
            return f"computed with as they are: {self.info.quantisation}"
        if self.info.source == "gguf" and self.info.quantisation not in ("F32", "F16", "BF16"):
            # The architectures that transformers keeps packed hand on a state, and those are refused.
            return f"{self.info.quantisation or 'GGUF'}, dequantised to {self.dtype}: no kernel reads them packed"
        if self.info.source == "fetched":
            return f"{self.info.quantisation}, dequantised when the model was fetched, in {self.dtype}"
        return f"as they were published, in {self.dtype}"

    def for_another_thread(self) -> ChatModel:
        """The same weights in modules of its own, whose hooks and positions see nothing of another thread's tokens."""
        # Not its buffers: longrope writes how positions are encoded into one of them, prompt after prompt.
        shared = {id(weights): weights for weights in self.model.parameters()}
        return replace(self, model=copy.deepcopy(self.model, shared))

    @property
    def n_layers(self) -> int:
        return int(text_config(self.model.config).num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(text_config(self.model.config).hidden_size)


def load_model(
    name_or_path: str | Path,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    *,
    template: str | None = None,
    quantise: int | None = None,
) -> ChatModel:
    """Open a model for inference: a fetched name, a hub id, a folder of safetensors, or a GGUF file.

    A hub model that is not in the cache is downloaded. A GGUF file is dequantised in memory at every load,
    which takes minutes; fetched names are converted once instead. `device` is "auto", "cpu", "cuda", "cuda:N",
    "mps", or "spread" for a model larger than one device: over all accelerators, then memory, then disk.
    `dtype` is "auto", "float32", "bfloat16" or "float16".

    `template` is the text of a borrowed chat template, see `templates.borrow_template`. `quantise` 8 or 4 opens the
    model in so many bits with bitsandbytes, LLM.int8() (Dettmers et al. 2022) or NF4 (Dettmers et al. 2023).

    Raises ModelError when the model is not there, is not a decoder-only language model, keeps a recurrent
    state, or has no safetensors weights.
    """
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    info = as_opened(identify(name_or_path, revision), quantise)
    weights = _find_weights(info, progress)
    start = time.perf_counter()
    if info.source == "gguf":
        if device == SPREAD:
            raise ModelError(
                "A GGUF file is opened on one device: use the model's safetensors to spread it, or choose a device."
            )
        model, tokenizer = load_gguf(weights, torch_dtype(dtype), progress or no_progress)
        model = _on_device(model, device)
    else:
        model, tokenizer = _load_folder(weights, device, dtype, quantise)
    if template is not None:
        put_template(tokenizer, template)
    chat_model = wrap_model(model, tokenizer, info, dtype)
    return replace(chat_model, load_seconds=time.perf_counter() - start)


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, info: ModelInfo, dtype: str | None = None
) -> ChatModel:
    """Make a ChatModel of a transformers model that is in memory, after a check that its parts can be found.

    Raises ModelError for an architecture without a stack of blocks and a final norm.
    """
    _refuse_unsupported(model.config, type(model), info.name)
    model.eval().requires_grad_(False)
    chat_model = ChatModel(
        model=model,
        tokenizer=tokenizer,
        info=info,
        device=_input_device(model),
        dtype=dtype or str(model.dtype).removeprefix("torch."),
    )
    try:
        _find_final_norm(chat_model.decoder, chat_model.n_layers)
    except ModelError as error:
        raise ModelError(f"{info.name}: {error}") from error
    return chat_model


def identify(name_or_path: str | Path, revision: str | None = None) -> ModelInfo:
    """Say what a model is without loading its weights; a known name need not even be on this machine.

    A hub id is resolved to the commit it stands for now, or, without a connection, to the one in the cache.
    Raises ModelError when there is no such model, or when it is of a kind that cannot be used.
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


def as_opened(info: ModelInfo, quantise: int | None) -> ModelInfo:
    """What a model is once it is opened so; its quantisation is that of its files and what is done to it on opening.

    Raises ModelError where it cannot be opened so, before any weights are read.
    """
    if quantise is None:
        return info
    if quantise not in QUANTISED:
        raise ModelError(f"A model is quantised to {' or '.join(map(str, QUANTISED))} bits, not {quantise}.")
    if info.source == "gguf":
        raise ModelError(f"{info.name} is a GGUF file, which is quantised as it is: leave --quantise out.")
    if info.source in ("folder", "hub") and info.quantisation is not None:
        raise ModelError(f"{info.name} is quantised already ({info.quantisation}): leave --quantise out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{quantise} bits need the package bitsandbytes: install the extra `quantised`.")
    return replace(
        info, quantisation=", then ".join([*filter(None, [info.quantisation]), f"bitsandbytes, {quantise} bits"])
    )


def is_available(name_or_path: str | Path, revision: str | None = None) -> bool:
    """Whether `load_model` would find all it needs on this machine, without a download."""
    try:
        source = _source_of(name_or_path)
        if source == "fetched":
            return is_fetched(KNOWN[str(name_or_path)])
        if source == "hub":
            return find_snapshot(str(name_or_path), revision, offline=True).has_weights
        return True
    except ModelError:
        return False


def find_decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a causal language model that ends in the final norm, also inside a multimodal model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return decoder if decoder is not None and decoder is not model else model.base_model


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text decoder, which a multimodal model keeps inside its own."""
    return config.get_text_config(decoder=True)


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


def _find_weights(info: ModelInfo, progress: Progress | None) -> Path:
    """The folder or file to load from; downloads a hub model, and says how to fetch a known one."""
    if info.path is not None:
        return Path(info.path)
    if info.source == "hub":
        return fetch(info.name, progress, revision=info.revision)
    known = KNOWN[info.name]
    if not is_fetched(known):
        raise ModelError(
            f"{known.name} is not on this machine: run `{known.fetch_command}` "
            f"({known.size / 1e9:.1f} GB to download, {known.converted_size / 1e9:.1f} GB on disk; "
            f"licence: {known.licence})."
        )
    return known.folder


def _load_folder(
    folder: Path, device: str, dtype: str, quantise: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers
    from safetensors import SafetensorError

    config = _read_config(folder)
    auto_class: Any = transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        auto_class = transformers.AutoModelForImageTextToText
    # An accelerator is filled straight from the file; quantised weights cannot be moved to one afterwards.
    placement: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    if device == SPREAD:
        placement = {"device_map": "auto"}
    if quantise is not None:
        placement = {"device_map": {"": device}} | placement
        placement["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=quantise == 8,
            load_in_4bit=quantise == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch_dtype(dtype),
        )
    # It says with every product that LLM.int8() works on float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with quiet_libraries(), contextlib.ExitStack() as undone:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if device == SPREAD:
                placement["offload_folder"] = tempfile.mkdtemp(prefix="refusal-offload-")
                undone.callback(shutil.rmtree, placement["offload_folder"], ignore_errors=True)
            model, loading = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=torch_dtype(dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **placement,
            )
            weakref.finalize(model, undone.pop_all().close)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model in {folder} cannot be opened: {error}") from error
    require_all_weights(loading, folder)
    if getattr(model, "is_loaded_in_4bit", False):
        _four_bits_as_asked(model, dtype, folder)
    return model, tokenizer


def _four_bits_as_asked(model: PreTrainedModel, dtype: str, folder: Path) -> None:
    """Keep bitsandbytes from what its 4 bits would do on some CPUs: round to bfloat16, or read weights wrongly."""
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if not isinstance(module, Linear4bit) or weight.device.type != "cpu":
            continue
        module.support_avx512bf16_for_cpu &= dtype == "bfloat16"
        block = weight.quant_state.blocksize
        if module.in_features % block:
            raise ModelError(
                f"The model in {folder} cannot be read in 4 bits on a CPU: {name} has {module.in_features} inputs, and "
                f"with AVX-512 bitsandbytes gives right weights for multiples of {block} alone; choose 8 bits or a GPU."
            )


def _places(model: PreTrainedModel) -> list[str]:
    """The device of each part that Accelerate placed by itself; empty for a model that was not given to it."""
    given = getattr(model, "hf_device_map", {}).values()
    return [f"cuda:{place}" if isinstance(place, int) else str(place) for place in given]


def _accelerators_first(place: tuple[str, int]) -> tuple[int, str]:
    return ("cpu", "disk").index(place[0]) + 1 if place[0] in ("cpu", "disk") else 0, place[0]


def _input_device(model: PreTrainedModel) -> str:
    """Where token ids go: weights that wait in memory or on disk are computed with on the first accelerator."""
    places = sorted(dict.fromkeys(_places(model)), key=lambda place: _accelerators_first((place, 0)))
    if len(places) < 2 and places != ["disk"]:
        return str(model.device)
    return "cpu" if places[0] == "disk" else places[0]


def _on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    import torch

    try:
        moved: Any = model.to(torch.device(device))  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model does not fit into the memory of {device}: choose a smaller one or another device."
        ) from error
    return moved


def _read_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder, after a look that its model can be used at all."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder{_hint_for(folder)}.")
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(
            f"The configuration in {folder} cannot be used (code beside a model is never run): {error}"
        ) from error
    _refuse_unsupported(config, _model_class(config), str(folder))
    return config


def _hint_for(folder: Path) -> str:
    gguf_files = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf_files:
        return f"; to open {gguf_files[0]}, give the path of the file itself"
    if (folder / "adapter_config.json").is_file():
        return "; it holds an adapter, which has to be merged into its base model first"
    return ""


def _model_class(config: PreTrainedConfig) -> type[Any] | None:
    """The transformers class that would hold this configuration's weights, or None for no language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    return None


def _refuse_unsupported(config: PreTrainedConfig, model_class: type[Any] | None, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type}); this needs a decoder-only model.")
    if model_class is None:
        raise ModelError(f"{name} is no causal language model that transformers knows ({config.model_type}).")
    if getattr(model_class, "_is_stateful", False) or _STATEFUL_LAYERS & set(
        getattr(text_config(config), "layer_types", None) or ()
    ):
        raise ModelError(
            f"{name} keeps a recurrent state ({config.model_type}); "
            "this needs a transformer, in which every block attends to all tokens before it."
        )


def _find_blocks(decoder: torch.nn.Module, n_layers: int) -> tuple[torch.nn.Module, torch.nn.ModuleList]:
    """The list of n_layers blocks and the module that owns it."""
    from torch.nn import ModuleList

    for owner in decoder.modules():
        for child in owner.children():
            if isinstance(child, ModuleList) and len(child) == n_layers:
                return owner, child
    raise ModelError(f"no list of {n_layers} blocks was found in {type(decoder).__name__}.")


def _find_final_norm(decoder: torch.nn.Module, n_layers: int) -> torch.nn.Module:
    owner, blocks = _find_blocks(decoder, n_layers)
    children = dict(owner.named_children())
    names = list(children)
    after_blocks = names[names.index(next(name for name in names if children[name] is blocks)) + 1 :]
    # OPT registers its final norm before its blocks, but calls it so.
    for name in [*after_blocks, *(name for name in names if "final" in name)]:
        if "norm" in type(children[name]).__name__.lower():
            return children[name]
    raise ModelError(f"no final norm follows the blocks of {type(decoder).__name__}.")


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
    config = _read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no safetensors weights; pickled ones (.bin, .pt) are never opened.")
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
        _read_config(snapshot.folder),
        name=repo,
        source="hub",
        revision=snapshot.commit,
        sha256=None,
        licence=_card_licence(snapshot.folder / "README.md"),
    )


def _config_info(config: PreTrainedConfig, **known: Any) -> ModelInfo:
    model_class = _model_class(config)
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
        architecture=_gguf_architecture(family),
        n_layers=n_layers,
        d_model=d_model,
        quantisation=_gguf_quantisation(header.get("general.file_type")),
        licence=str(licence) if licence else None,
        path=str(path.resolve()),
    )


def _gguf_architecture(family: str) -> str:
    """The transformers class for a GGUF family name such as "qwen2", or that name where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASS_NAMES

    return CLASS_NAMES.get(f"{family}_text") or CLASS_NAMES.get(family) or family


def _gguf_quantisation(file_type: Any) -> str | None:
    from gguf import LlamaFileType

    with contextlib.suppress(ValueError):
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return None


def _card_licence(card: Path) -> str | None:
    """The licence in the front matter of a model card, if there is a card."""
    if not card.is_file():
        return None
    found = re.search(r"\A---\n(?:.*\n)*?license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"))
    return found.group(1) if found else None


def _files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the names and SHA-256s of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {_file_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    # Size and time are part of the key so that a changed file is read again.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
