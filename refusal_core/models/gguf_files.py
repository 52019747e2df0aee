"""GGUF files: what their header says, and the model inside, dequantised."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.errors import ModelError
from refusal_core.models.transformers_internals import counted_gguf_tensors
from refusal_core.progress import Progress, no_progress, quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERTING = "converting (tensors)"
MAGIC = b"GGUF"
# Value types 0..12 of the GGUF specification; 8 is a string and 9 an array.
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def is_gguf(path: Path) -> bool:
    """Return whether the file begins as every GGUF file does."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> dict[str, Any]:
    """Read the scalars and strings of a GGUF file's header; arrays, such as the vocabulary, are skipped.

    Raises:
        ModelError: when the file is not GGUF or its header ends too early.
    """
    if not is_gguf(path):
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the bytes 'GGUF'.")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Header(data).read()
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"The header of {path} cannot be read ({error}): is the file complete?") from error


def load_gguf(
    path: Path, dtype: torch.dtype, progress: Progress = no_progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF file in memory: the causal language model in `dtype`, and its tokenizer.

    Takes about a minute per billion parameters, and 4 bytes of memory per parameter while it converts.

    Raises:
        ModelError: for an architecture that transformers cannot convert, and a file that lacks weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not is_gguf(path):
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the bytes 'GGUF'.")
    progress(CONVERTING, 0, 0)
    try:
        with quiet_libraries(), counted_gguf_tensors(partial(progress, CONVERTING)):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be converted by transformers: {error}") from error
    model, loading = loaded
    require_all_weights(loading, path)
    return model, tokenizer


def require_all_weights(loading: Mapping[str, Any], source: Path) -> None:
    """Raise ModelError when a file lacks weights of its model; transformers would make them up at random.

    Args:
        loading: what `from_pretrained` returns with `output_loading_info=True`.
        source: the file or folder that was loaded.
    """
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(f"{source} lacks {len(missing)} of the model's weights, the first of them {missing[0]}.")


class _Header:
    """A cursor over the metadata of a GGUF file (version 2 and later, little-endian)."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = len(MAGIC)

    def read(self) -> dict[str, Any]:
        """Read the metadata; a value that is an array is left out."""
        self._scalar("I")
        self._scalar("Q")
        header: dict[str, Any] = {}
        for _ in range(self._scalar("Q")):
            key = self._string().decode()
            value_type = self._scalar("I")
            if value_type == _ARRAY:
                self._skip_array()
            else:
                header[key] = self._value(value_type)
        return header

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.position)
        self.position += struct.calcsize(form)
        return value

    def _string(self) -> bytes:
        length = self._scalar("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise struct.error("a string ends after the file")
        return self.data[start : self.position]

    def _value(self, value_type: int) -> Any:
        return self._string().decode() if value_type == _STRING else self._scalar(_SCALAR_FORMATS[value_type])

    def _skip_array(self) -> None:
        item_type, length = self._scalar("I"), self._scalar("Q")
        if item_type == _STRING:
            for _ in range(length):
                (size,) = struct.unpack_from("<Q", self.data, self.position)
                self.position += 8 + size
        else:
            self.position += length * struct.calcsize(_SCALAR_FORMATS[item_type])
