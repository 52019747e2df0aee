"""What transformers makes of a model's configuration, and where the parts of its text decoder are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.errors import ModelError
from refusal_core.models.folder_checks import read_raw_config
from refusal_core.progress import quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration in a model folder. No code in the folder is run.

    Raises:
        ModelError: when there is none, when it cannot be read, or when its model is of a kind that cannot be used.
    """
    from transformers import AutoConfig

    read_raw_config(folder)
    try:
        with quiet_libraries():
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each of hundreds of configurations fails in its own way
        raise ModelError(
            f"The configuration in {folder} cannot be used (code in a model folder is never run): "
            f"{' '.join(str(error).split())}"
        ) from error
    refuse_unsupported(config, model_class_of(config), str(folder))
    return config


def model_class_of(config: PreTrainedConfig) -> type[Any] | None:
    """Return the transformers class that holds a configuration's weights, or None when it is no language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            classes: Any = mapping[type(config)]
            model_class: type[Any] = classes[0] if isinstance(classes, tuple) else classes
            return model_class
    return None


def auto_class_of(config: PreTrainedConfig) -> Any:
    """Return the transformers Auto class that opens a configuration's model."""
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def refuse_unsupported(config: PreTrainedConfig, model_class: type[Any] | None, name: str) -> None:
    """Raise ModelError for an encoder-decoder, and for what is no language model."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type}); this needs a decoder-only model.")
    if model_class is None:
        raise ModelError(f"{name} is no causal language model that transformers knows ({config.model_type}).")


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the text decoder, which a multimodal model keeps inside its own."""
    return config.get_text_config(decoder=True)


def find_final_norm(decoder: torch.nn.Module, n_layers: int) -> torch.nn.Module:
    """Return the norm that follows the last block of a decoder.

    Raises:
        ModelError: when it has no list of `n_layers` blocks, or no norm after them.
    """
    from refusal_core.steering import find_blocks

    owner, blocks = find_blocks(decoder, n_layers)
    children = dict(owner.named_children())
    names = list(children)
    after_blocks = names[names.index(next(name for name in names if children[name] is blocks)) + 1 :]
    # OPT registers its final norm before its blocks, but calls it so.
    for name in [*after_blocks, *(name for name in names if "final" in name)]:
        if "norm" in type(children[name]).__name__.lower():
            return children[name]
    raise ModelError(f"no final norm follows the blocks of {type(decoder).__name__}.")
