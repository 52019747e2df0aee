"""Arrays in the forms that users have them: numpy's, tensors of any dtype on any device, and lists of either."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from refusal_core.errors import ArrayError

_WORDS = {"harmful": True, "harmless": False}


def as_array(values: Any) -> np.ndarray:
    """Return values as an array of numpy's, in memory: an array stays what it is, half precision becomes float32.

    Args:
        values: an array, a tensor, or a sequence of either or of plain values.

    Raises:
        ArrayError: for a sequence whose parts have different shapes.
    """
    # Who has a tensor has imported torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        plain = values.detach().cpu()
        narrow = plain.is_floating_point() and plain.dtype not in (torch.float32, torch.float64)
        return np.asarray((plain.float() if narrow else plain).numpy())
    if not isinstance(values, list | tuple):
        return np.asarray(values)
    parts = [value if np.isscalar(value) else as_array(value) for value in values]
    shapes = {np.shape(part) for part in parts}
    if len(shapes) > 1:
        raise ArrayError(f"expected values of one shape, got {' and '.join(map(str, sorted(shapes)[:2]))}")
    return np.asarray(parts)


def as_activations(values: Any) -> np.ndarray:
    """Return activations as an array of real numbers; see :func:`as_array`.

    Raises:
        ArrayError: for anything else than real numbers.
    """
    array = as_array(values)
    if array.dtype.kind not in "fiu":
        raise ArrayError(f"expected activations as real numbers, got {array.dtype} of shape {array.shape}")
    return array


def are_harmful(labels: Any) -> np.ndarray:
    """Return labels as bool, true for harmful, in their shape.

    Args:
        labels: booleans, 1 for harmful and 0 for harmless, or these two words.

    Raises:
        ArrayError: for other labels.
    """
    array = as_array(labels)
    known = {*array.ravel().tolist()}
    if known <= _WORDS.keys():
        return np.asarray(array == "harmful")
    if known <= {0, 1}:
        return array.astype(bool)
    strange = sorted({repr(label) for label in known - _WORDS.keys() - {0, 1}} or map(repr, known))
    raise ArrayError(
        f"expected the labels harmful and harmless, true and false, or 1 and 0; got {', '.join(strange[:3]):.80}"
    )
