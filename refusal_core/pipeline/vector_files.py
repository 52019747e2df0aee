"""Vectors that other programs made: their files, and how they count layers.

A vector's number becomes one of our sites (:mod:`refusal_core.sites`) by the name of its numbering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from refusal_core.errors import RefusalError, first_line
from refusal_core.files import sha256_of
from refusal_core.sites import site_from_hidden_state

BLOCKS, BLOCK_INPUTS, HIDDEN_STATES, SITES = "blocks", "block-inputs", "hidden-states", "sites"
NUMBERINGS = {
    BLOCKS: "output of each block, from 0",
    BLOCK_INPUTS: "input of each block, from 0: the first is the embeddings",
    HIDDEN_STATES: "Hugging Face's hidden_states: the first is the embeddings, the last the final norm",
}
"""How other programs count layers."""
ENDINGS = (".safetensors", ".npy", ".gguf")
"""Of files that hold vectors; what is in one is told by its first bytes."""
LARGEST_FILE = 1 << 30
"""Bytes. Vectors of the largest models take a few megabytes."""

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"}
# A hyphen behind a word is none: layer-12.
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+")
_DESCRIBED, _OWN_TENSOR, _RUN_TENSOR = "refusal_direction", "direction", "unit_direction"


@dataclass(frozen=True, eq=False)
class ImportedVectors:
    """Vectors of one file, by our sites.

    Attributes:
        unit: site → ``(d_model,)`` float32 of norm 1.
        numbering: how the file counts layers: a key of :data:`NUMBERINGS`, or ``sites`` for a file of this program.
        sha256: of the file.
    """

    unit: Mapping[int, np.ndarray]
    numbering: str
    sha256: str


@dataclass(frozen=True, eq=False)
class _Stack:
    """What a file holds: vectors by number; ``None`` stands for the number of a vector that has none.

    Attributes:
        vectors: by number.
        numbering: where the file says how it counts layers.
        complete: whether the numbers are places in an array, of which there has to be one for every layer.
        n_layers: of the model that they are of, where the file says it.
    """

    vectors: Mapping[int | None, np.ndarray]
    numbering: str | None = None
    complete: bool = False
    n_layers: int | None = None


def read_vectors(
    path: str | Path, numbering: str | None, layer: int | None, n_layers: int, d_model: int
) -> ImportedVectors:
    """Read the vectors of a safetensors, npy or GGUF file. Nothing in it is executed; pickles are refused.

    Args:
        path: the file.
        numbering: how it counts layers, a key of :data:`NUMBERINGS`; not needed where the file says so.
        layer: for a file of one vector: the number of its layer.
        n_layers: transformer blocks of the model.
        d_model: its width.

    Raises:
        RefusalError: for a file that holds no vectors of such a model, or does not say which layers they are of.
    """
    path = Path(path)
    if numbering is not None and numbering not in NUMBERINGS:
        raise RefusalError(f"expected a numbering of layers, one of {', '.join(NUMBERINGS)}, got {numbering!r}")
    stack = _read(path)
    if stack.numbering == SITES and (numbering is not None or layer is not None):
        raise RefusalError(f"{path.name} was saved by this program and says its layers itself: leave them out")
    chosen = numbering or stack.numbering
    if chosen is None:
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in NUMBERINGS.items())
        raise RefusalError(f"{path.name} does not say how it counts layers: choose a numbering ({meanings})")
    vectors = _numbered(path, stack, chosen, layer, n_layers)
    if stack.n_layers not in (None, n_layers):
        raise RefusalError(
            f"{path.name} was saved from a model of {stack.n_layers} layers, and this one has {n_layers}: expected a "
            "direction of the same model"
        )
    unit: dict[int, np.ndarray] = {}
    for number, vector in vectors.items():
        if vector.shape != (d_model,):
            raise RefusalError(
                f"{path.name} has vectors of width {len(vector)}, and the model is {d_model} wide: expected vectors "
                "that were made with this model"
            )
        site, norm = _site(path, number, chosen, n_layers), float(np.linalg.norm(vector))
        if not np.isfinite(norm):
            raise RefusalError(f"{path.name}: the vector of layer {number} is not finite: make the file again")
        if site is None or norm == 0:
            continue
        if site in unit:
            raise RefusalError(f"{path.name} has two vectors for layer {number}; expected one per layer")
        unit[site] = (vector / norm).astype(np.float32)
    if not unit:
        raise RefusalError(f"{path.name} has no vector of a layer: all are zero, or of the embeddings")
    return ImportedVectors(unit, chosen, sha256_of(path))


def count_vectors(path: str) -> int:
    """Return how many vectors a file holds, having read all of it.

    Raises:
        RefusalError: for a file that holds none.
    """
    return len(_read(Path(path)).vectors)


def _read(path: Path) -> _Stack:
    """Return what a file holds, by its first bytes."""
    if path.exists() and not path.is_file():
        raise RefusalError(f"{path} is a folder or a device: expected a file of vectors")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise RefusalError(f"{path} cannot be read ({error.strerror}): expected a file of vectors") from error
    if path.suffix.lower() in _PICKLES or start[:1] == b"\x80":
        raise RefusalError(
            f"{path.name} is a pickle, which runs what a stranger wrote as soon as it is opened, so it is not read. "
            "Where you trust it, save its tensor as safetensors once: torch.load(path, weights_only=True), then "
            "safetensors.torch.save_file({'direction': tensor}, new_path), and import that file"
        )
    if size > LARGEST_FILE:
        raise RefusalError(f"{path.name} has {size / 1e9:.1f} GB: expected vectors, which take megabytes, not a model")
    try:
        if start[:6] == b"\x93NUMPY":
            return _read_npy(path)
        if start[:4] == b"GGUF":
            return _read_gguf(path)
        return _read_safetensors(path)
    except RefusalError:
        raise
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RefusalError(
            f"{path.name} cannot be read ({first_line(error)}): expected vectors as safetensors, npy or a GGUF "
            "control vector"
        ) from error


def _read_npy(path: Path) -> _Stack:
    # Mapped, which never unpickles, and a header cannot claim more than the file has.
    return _stacked(path, np.lib.format.open_memmap(path, mode="r"))


def _read_safetensors(path: Path) -> _Stack:
    try:
        with safe_open(path, framework="numpy") as file:
            described = (file.metadata() or {}).get(_DESCRIBED)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except TypeError:  # NumPy has no bfloat16
        from safetensors.torch import load_file

        described = None
        tensors = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    if described is not None:
        vector, where = _floats(path, tensors[_OWN_TENSOR]), json.loads(described)
        if vector.ndim != 1:
            raise RefusalError(f"{path.name} holds a direction of shape {vector.shape}: expected one vector (width,)")
        return _Stack({int(where["site"]): vector}, SITES, n_layers=int(where["n_layers"]))
    if _RUN_TENSOR in tensors and tensors[_RUN_TENSOR].ndim == 2:
        return _Stack(dict(enumerate(_floats(path, tensors[_RUN_TENSOR]))), SITES, complete=True)
    if len(tensors) == 1:
        (name,) = tensors
        if tensors[name].ndim != 1 or not _NUMBER.search(name):
            return _stacked(path, tensors[name])
    return _Stack(_by_name(path, tensors))


def _read_gguf(path: Path) -> _Stack:
    # Imported here: it parses nothing else of ours.
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    field = reader.fields.get("general.architecture")
    kind = None if field is None else str(field.contents())
    if kind != "controlvector":
        raise RefusalError(f"{path.name} is a GGUF file of {kind or 'no'} weights: expected a control vector")
    tensors = {
        tensor.name: tensor.data if tensor.data.dtype.kind == "f" else dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    # llama.cpp and repeng: `direction.N` is added to what block N returns.
    return _Stack(_by_name(path, tensors), BLOCKS)


def _stacked(path: Path, array: np.ndarray) -> _Stack:
    array = _floats(path, array)
    if array.ndim == 1 or (array.ndim == 2 and len(array) == 1):
        return _Stack({None: array.reshape(-1)})
    if array.ndim != 2:
        raise RefusalError(
            f"{path.name} holds an array of shape {array.shape}: expected one vector (width,) or a vector per layer "
            "(layers, width); save the one that is meant"
        )
    return _Stack(dict(enumerate(array)), complete=True)


def _by_name(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[int | None, np.ndarray]:
    """Return vectors by the last number in their tensors' names: ``direction.12``, ``layers.12``, ``-3``."""
    vectors: dict[int | None, np.ndarray] = {}
    for name, tensor in tensors.items():
        numbers = _NUMBER.findall(name)
        flat = _floats(path, tensor)
        flat = flat.reshape(-1) if flat.ndim == 2 and len(flat) == 1 else flat
        if not numbers or flat.ndim != 1:
            raise RefusalError(
                f"{path.name} has a tensor {name!r:.60} of shape {tensor.shape}: expected vectors whose names end in "
                "their layer, such as direction.12, or a single tensor (layers, width)"
            )
        if int(numbers[-1]) in vectors:
            raise RefusalError(f"{path.name} has two vectors for layer {numbers[-1]}; expected one per layer")
        vectors[int(numbers[-1])] = flat
    return vectors


def _floats(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise RefusalError(f"{path.name} holds {array.dtype} values: expected floating-point numbers")
    return np.asarray(array, dtype=np.float64)


def _numbered(path: Path, stack: _Stack, numbering: str, layer: int | None, n_layers: int) -> Mapping[int, np.ndarray]:
    """Return a file's vectors by number, held to the numbering where they are places in an array."""
    vectors = stack.vectors
    if None in vectors:
        if layer is None:
            raise RefusalError(f"{path.name} holds one vector and no layer: name the layer that it is of")
        return {layer: vectors[None]}
    if layer is not None:
        raise RefusalError(f"{path.name} holds {len(vectors)} vectors with layers of their own: leave the layer out")
    expected = n_layers + (numbering in (HIDDEN_STATES, SITES))
    if stack.complete and len(vectors) != expected:
        fitting = [name for name in NUMBERINGS if n_layers + (name == HIDDEN_STATES) == len(vectors)]
        cure = f"that number fits {' or '.join(fitting)}" if fitting else "it was made with another model"
        raise RefusalError(
            f"{path.name} holds {len(vectors)} vectors: a model of {n_layers} layers has {expected} {numbering}; {cure}"
        )
    return {number: vector for number, vector in vectors.items() if number is not None}


def _site(path: Path, number: int, numbering: str, n_layers: int) -> int | None:
    """Return the site of a number; None for the embeddings. Negative numbers count from the end."""
    count = n_layers + (numbering in (HIDDEN_STATES, SITES))
    place = number + count if number < 0 else number
    if not 0 <= place < count:
        raise RefusalError(
            f"{path.name} has a vector for layer {number}: a model of {n_layers} layers has {numbering} 0 to "
            f"{count - 1}; it was made with another model, or counts layers in another way"
        )
    if numbering in (BLOCKS, SITES):
        return place
    if place == 0:
        return None
    return place - 1 if numbering == BLOCK_INPUTS else site_from_hidden_state(place, n_layers)
