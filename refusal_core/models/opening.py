"""Opening a model for inference, and the parts of one that is open.

Weights are read from safetensors or GGUF only, and no code from a model repository is ever run.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import tempfile
import time
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.errors import ModelError
from refusal_core.models.architectures import (
    auto_class_of,
    find_final_norm,
    read_config,
    refuse_unsupported,
    text_config,
)
from refusal_core.models.devices import SPREAD, choose_device, choose_dtype, torch_dtype
from refusal_core.models.folder_checks import read_raw_config, require_tokenizer, require_weights
from refusal_core.models.gguf_files import load_gguf, require_all_weights
from refusal_core.models.hub import download_snapshot
from refusal_core.models.identity import ModelInfo, as_opened, identify
from refusal_core.models.known import KNOWN, is_fetched
from refusal_core.models.templates import check_template, put_reasoning_effort, put_template
from refusal_core.models.transformers_internals import is_recurrent, keep_one_scale, placed_parts
from refusal_core.options import LoadIn, ReasoningEffort
from refusal_core.progress import Progress, no_progress, quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatModel:
    """A causal language model in memory, in eval mode, with its tokenizer and what is known about both.

    Attributes:
        device: where token ids go and numbers come from; of a model that is spread, the first accelerator.
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
        from refusal_core.steering import find_decoder

        return find_decoder(self.model)

    @cached_property
    def blocks(self) -> torch.nn.ModuleList:
        """The transformer blocks, n_layers of them, in order."""
        from refusal_core.steering import find_blocks

        return find_blocks(self.decoder, self.n_layers)[1]

    @cached_property
    def final_norm(self) -> torch.nn.Module:
        """The norm that follows the last block."""
        return find_final_norm(self.decoder, self.n_layers)

    @property
    def lm_head(self) -> torch.nn.Module:
        """The projection from d_model to the vocabulary."""
        head: torch.nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def n_layers(self) -> int:
        """The number of transformer blocks."""
        return int(text_config(self.model.config).num_hidden_layers)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(text_config(self.model.config).hidden_size)

    @property
    def placement(self) -> str:
        """Where the weights are: "cpu", or, of a model that is spread, "cuda:0 (20 parts), cpu (6), disk (2)"."""
        devices = Counter(placed_parts(self.model))
        if len(devices) < 2:
            return self.device
        return ", ".join(f"{device} ({parts})" for device, parts in sorted(devices.items(), key=_accelerators_first))

    @property
    def reads_alone(self) -> bool:
        """Whether a prompt's numbers depend on those beside it: LLM.int8() looks for outliers over a whole batch."""
        settings = getattr(self.model.config, "quantization_config", None)
        return bool(getattr(settings, "load_in_8bit", False))

    @property
    def is_recurrent(self) -> bool:
        """Whether blocks hand a state on from token to token, so that a mask cannot keep prompts of a pack apart."""
        return is_recurrent(text_config(self.model.config), type(self.model))

    @property
    def weights_in_words(self) -> str:
        """What became of the weights on the way from their files into memory."""
        if getattr(self.model, "is_quantized", False):
            return f"computed with as they are: {self.info.quantisation}"
        if self.info.source == "gguf" and self.info.quantisation not in ("F32", "F16", "BF16"):
            # transformers has kernels for packed weights of a few architectures, all of which hand on a state.
            why = "" if self.is_recurrent else ": no kernel reads them packed"
            return f"{self.info.quantisation or 'GGUF'}, dequantised to {self.dtype}{why}"
        if self.info.source == "fetched":
            return f"{self.info.quantisation}, dequantised when the model was fetched, in {self.dtype}"
        return f"as they were published, in {self.dtype}"

    def cache_of(self, output: Any) -> Cache:
        """Return the keys, values and states in an output of the model, to be continued.

        Raises:
            ModelError: for an architecture that keeps its state in another form.
        """
        cache: Cache | None = getattr(output, "past_key_values", None)
        if cache is None:
            raise ModelError(
                f"{self.info.name} keeps its state in a form of its own ({self.info.architecture}): its activations "
                "can be read, its replies cannot be continued."
            )
        return cache

    def for_another_thread(self) -> ChatModel:
        """Return the same weights in modules whose hooks and positions see nothing of another thread's tokens."""
        # Not its buffers: longrope writes how positions are encoded into one of them, prompt after prompt.
        shared = {id(weights): weights for weights in self.model.parameters()}
        return replace(self, model=copy.deepcopy(self.model, shared))


def load_model(
    model: str | Path | ModelInfo,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    *,
    template: str | None = None,
    reasoning_effort: ReasoningEffort | None = None,
    load_in: LoadIn | None = None,
) -> ChatModel:
    """Open a model for inference.

    A hub model that is not in the cache is downloaded. A GGUF file is dequantised in memory at every load, which takes
    minutes; fetched names are converted once instead.

    Args:
        model: a fetched name, a hub id, a folder of safetensors or a GGUF file; or what :func:`identify` returned for
            one, which is then opened and nothing else.
        revision: branch, tag or commit of a hub id; not with a ModelInfo, which has its commit.
        device: "auto", "cpu", "cuda", "cuda:N", "mps", or "spread" for a model larger than one device: over all
            accelerators, then memory, then disk.
        dtype: "auto", "float32", "bfloat16" or "float16".
        progress: called while a model is downloaded or converted.
        template: text of a borrowed chat template, see :func:`refusal_core.models.templates.borrow_template`.
        reasoning_effort: what the chat template is to ask for, where it has such a setting; ``None`` for its own.
        load_in: ``8bit`` or ``4bit`` to open the model so with bitsandbytes: LLM.int8() (Dettmers et al. 2022) or NF4
            (Dettmers et al. 2023).

    Raises:
        ModelError: when the model is not there, is not a decoder-only language model, has no
            safetensors weights, or is no longer what was identified.
    """
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    info = model if isinstance(model, ModelInfo) else identify(model, revision)
    opened_info = as_opened(info, load_in)
    weights = _find_weights(info, progress or no_progress)
    start = time.perf_counter()
    if info.source == "gguf":
        if device == SPREAD:
            raise ModelError(
                "A GGUF file is opened on one device: use the model's safetensors to spread it, or choose a device."
            )
        opened, tokenizer = load_gguf(weights, torch_dtype(dtype), progress or no_progress)
        opened = _on_device(opened, device)
    else:
        opened, tokenizer = _load_folder(weights, device, dtype, load_in)
    _require_same(info)
    if template is not None:
        put_template(tokenizer, template)
    if reasoning_effort is not None:
        put_reasoning_effort(tokenizer, reasoning_effort)
    chat_model = wrap_model(opened, tokenizer, opened_info, dtype)
    return replace(chat_model, load_seconds=time.perf_counter() - start)


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, info: ModelInfo, dtype: str | None = None
) -> ChatModel:
    """Make a ChatModel of a transformers model that is in memory, after a check of its parts and its chat template.

    Raises:
        ModelError: for an architecture without a stack of blocks and a final norm, for a model that has other layers or
            another width than `info` says, and for a chat template that cannot be used.
    """
    refuse_unsupported(model.config, type(model), info.name)
    check_template(tokenizer, f"The chat template of {info.name}")
    keep_one_scale(model.config)
    model.eval().requires_grad_(False)
    chat_model = ChatModel(
        model=model,
        tokenizer=tokenizer,
        info=info,
        device=_input_device(model),
        dtype=dtype or str(model.dtype).removeprefix("torch."),
    )
    try:
        find_final_norm(chat_model.decoder, chat_model.n_layers)
    except ModelError as error:
        raise ModelError(f"{info.name}: {error}") from error
    if (chat_model.n_layers, chat_model.d_model) != (info.n_layers, info.d_model):
        raise ModelError(
            f"{info.name} was opened with {chat_model.n_layers} layers of width {chat_model.d_model}; it was "
            f"identified as a model with {info.n_layers} layers of width {info.d_model}."
        )
    return chat_model


def _find_weights(info: ModelInfo, progress: Progress) -> Path:
    """Return the folder or file to load from; a hub model is downloaded first.

    Raises:
        ModelError: for a known model that is not fetched, and for a hub model that is another commit than identified.
    """
    if info.path is not None:
        return Path(info.path)
    if info.source == "hub":
        folder = download_snapshot(info.name, info.revision, progress)
        if folder.name != info.revision:
            raise ModelError(f"{info.name} was identified as commit {info.revision} and downloaded as {folder.name}.")
        return folder
    known = KNOWN[info.name]
    if not is_fetched(known):
        raise ModelError(
            f"{known.name} is not on this machine: fetch it first ({known.size / 1e9:.1f} GB to download, "
            f"{known.converted_size / 1e9:.1f} GB on disk; licence: {known.licence})."
        )
    if known.gguf_sha256 != info.sha256:
        raise ModelError(f"{info.name} was identified by SHA-256 {info.sha256} and is pinned to {known.gguf_sha256}.")
    return known.folder


def _require_same(info: ModelInfo) -> None:
    """Raise ModelError when a file or folder is no longer the one that was identified."""
    if info.path is None:
        return
    opened = identify(info.path).fingerprint
    if opened != info.fingerprint:
        raise ModelError(
            f"{info.path} is not the model that was identified (SHA-256 {opened[:12]}, expected "
            f"{info.fingerprint[:12]}): it was changed meanwhile, or is another one on this machine."
        )


def _load_folder(
    folder: Path, device: str, dtype: str, load_in: LoadIn | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a folder of safetensors: the model, in eval mode or not, and its tokenizer."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    require_weights(folder, read_raw_config(folder))
    config = read_config(folder)
    require_tokenizer(folder)
    placement = _placement(device, dtype, load_in)
    # It says with every product that LLM.int8() works on float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with quiet_libraries(), contextlib.ExitStack() as undone:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if device == SPREAD:
                placement["offload_folder"] = tempfile.mkdtemp(prefix="refusal-offload-")
                undone.callback(shutil.rmtree, placement["offload_folder"], ignore_errors=True)
            model, loading = auto_class_of(config).from_pretrained(
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


def _placement(device: str, dtype: str, load_in: LoadIn | None) -> dict[str, Any]:
    """Return what `from_pretrained` is told about where the weights go, and in how many bits."""
    import transformers

    # An accelerator is filled straight from the file; quantised weights cannot be moved to one afterwards.
    placement: dict[str, Any] = {} if device == "cpu" and load_in is None else {"device_map": {"": device}}
    if device == SPREAD:
        placement = {"device_map": "auto"}
    if load_in is not None:
        placement["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=load_in == "8bit",
            load_in_4bit=load_in == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch_dtype(dtype),
        )
    return placement


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


def _accelerators_first(parts: tuple[str, int]) -> tuple[int, str]:
    device = parts[0]
    return ("cpu", "disk").index(device) + 1 if device in ("cpu", "disk") else 0, device


def _input_device(model: PreTrainedModel) -> str:
    """Return where token ids go: weights that wait in memory or on disk are computed with on the first accelerator."""
    devices = sorted(set(placed_parts(model)), key=lambda device: _accelerators_first((device, 0)))
    if len(devices) < 2 and devices != ["disk"]:
        return str(model.device)
    return "cpu" if devices[0] == "disk" else devices[0]


def _on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    import torch

    try:
        moved: PreTrainedModel = model.to(torch.device(device))  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model does not fit into the memory of {device}: choose a smaller one or another device."
        ) from error
    return moved
