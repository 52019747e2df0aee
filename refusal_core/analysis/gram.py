"""Inner products of one site's activations: a Gram matrix, or what stands in for one that would not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

EXPLICIT = 2048
"""Most prompts whose inner products are held as a matrix; those of more are computed as they are used."""
BLOCK = 2048
"""Prompts whose activations are turned to float64 together."""

# Relative to the activations: what half-precision arithmetic in another order of batches can leave behind.
SPREAD_TOLERANCE = 1e-6


class InnerProducts:
    """``K = X[rows] X[columns]ᵀ`` of centred activations, computed from blocks of ``X`` as it is used.

    Understands what is asked of a Gram matrix here, with the same results: products with weights from either side,
    selection, ``.T`` and the diagonal. For more prompts than dimensions that is also less work.

    Args:
        hidden_site: ``(prompt, d_model)`` activations, which may be in a file.
        mean: ``(d_model,)`` float64, taken off every one.
        rows, columns: ``(row,)`` and ``(column,)`` int, positions of prompts.
    """

    __array_ufunc__ = None  # numpy leaves products with this to the methods below

    def __init__(self, hidden_site: np.ndarray, mean: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        """Compute nothing yet; arguments as above."""
        self._hidden, self._mean, self._rows, self._columns = hidden_site, mean, rows, columns

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    @property
    def T(self) -> InnerProducts:
        """The same products, rows and columns exchanged."""
        return InnerProducts(self._hidden, self._mean, self._columns, self._rows)

    def __getitem__(self, key: Any) -> InnerProducts:
        """Select rows, or rows and columns, by slices, positions, masks or ``np.ix_``."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        return InnerProducts(self._hidden, self._mean, _chosen(self._rows, rows), _chosen(self._columns, columns))

    def __rmatmul__(self, weights: np.ndarray) -> np.ndarray:
        """Return ``weights @ K``: ``(…, row)`` to ``(…, column)``."""
        along = sum(weights[..., part] @ block for part, block in self._blocks(self._rows))
        products = np.empty((*weights.shape[:-1], len(self._columns)))
        for part, block in self._blocks(self._columns):
            products[..., part] = along @ block.T
        return products

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        """Return ``K @ weights``: ``(column, …)`` to ``(row, …)``."""
        return (weights.T @ self.T).T

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the matrix itself, ``(row, column)``; for few prompts."""
        rows, columns = (
            np.concatenate([block for _, block in self._blocks(prompts)]) for prompts in (self._rows, self._columns)
        )
        return np.asarray(rows @ columns.T, dtype)

    def diagonal(self) -> np.ndarray:
        """Return ``(row,)`` squared distances from the mean."""
        return self._squares

    def any(self) -> bool:
        """Return whether any activation differs from the mean."""
        return bool(self._squares.any())

    @cached_property
    def covariance(self) -> np.ndarray:
        """``X[rows]ᵀ X[rows]``, ``(d_model, d_model)``, whose eigenvalues are those of ``K``."""
        total = np.zeros((len(self._mean), len(self._mean)))
        for _, block in self._blocks(self._rows):
            total += block.T @ block
        return total

    def along(self, axes: np.ndarray) -> np.ndarray:
        """Return ``X[rows]`` on ``(d_model, axis)`` axes: ``(row, axis)``."""
        return np.concatenate([block @ axes for _, block in self._blocks(self._rows)])

    @cached_property
    def _squares(self) -> np.ndarray:
        return np.concatenate([np.einsum("pd,pd->p", block, block) for _, block in self._blocks(self._rows)])

    def _blocks(self, prompts: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield centred activations in blocks, and which of the prompts they are of."""
        for start in range(0, len(prompts), BLOCK):
            block = prompts[start : start + BLOCK]
            yield slice(start, start + len(block)), self._hidden[block] - self._mean


Gram = np.ndarray | InnerProducts


def gram_matrix(hidden_site: np.ndarray, fitted: np.ndarray | None = None) -> Gram:
    """Return ``K = X Xᵀ`` of one site's activations, centred by their mean, which no difference between prompts feels.

    Args:
        hidden_site: ``(prompt, d_model)`` activations.
        fitted: ``(prompt,)`` bool, the prompts that are meant; all without.

    Returns:
        ``(fitted prompt, fitted prompt)`` float64; zeros where the activations are constant up to rounding.
    """
    chosen = np.ones(len(hidden_site), dtype=bool) if fitted is None else fitted
    rows = np.flatnonzero(chosen)
    if len(rows) <= EXPLICIT:
        return gram_matrices(hidden_site[chosen], np.ones(len(rows), dtype=bool))
    return gram_matrices(hidden_site, chosen)[np.ix_(rows, rows)]


def gram_matrices(hidden_site: np.ndarray, fitted: np.ndarray) -> Gram:
    """Return inner products of all prompts with each other after the mean of the *fitted* ones is taken off.

    Args:
        hidden_site: ``(prompt, d_model)`` activations.
        fitted: ``(prompt,)`` bool, the prompts whose mean is taken off and whose spread decides what is constant.

    Returns:
        ``(prompt, prompt)`` float64; zeros where the fitted prompts' activations are constant up to rounding.
    """
    mean, rows = mean_activation(hidden_site, fitted), np.flatnonzero(fitted)
    scale, spread = 0.0, 0.0
    for start in range(0, len(rows), BLOCK):
        block = hidden_site[rows[start : start + BLOCK]].astype(np.float64)
        scale = max(scale, np.linalg.norm(block, axis=1).max())
        spread = max(spread, np.linalg.norm(block - mean, axis=1).max())
    everything = np.arange(len(hidden_site))
    if not spread > SPREAD_TOLERANCE * scale:
        hidden_site, mean = np.broadcast_to(np.float32(0), hidden_site.shape), np.zeros_like(mean)
    products = InnerProducts(hidden_site, mean, everything, everything)
    if len(hidden_site) > EXPLICIT:
        return products
    centred = hidden_site - mean
    gram: np.ndarray = centred @ centred.T
    return gram


def mean_activation(hidden_site: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the mean of the chosen prompts' activations: ``(…, d_model)`` float64.

    Args:
        hidden_site: ``(prompt, …, d_model)`` activations, which may be in a file.
        chosen: ``(prompt,)`` bool.
    """
    rows, total = np.flatnonzero(chosen), np.zeros(hidden_site.shape[1:])
    for start in range(0, len(rows), BLOCK):
        total += hidden_site[rows[start : start + BLOCK]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def mean_products(hidden_site: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, float]:
    """Return inner products of the fitted prompts' centred activations with their mean, and of the mean with itself.

    Args:
        hidden_site: ``(prompt, d_model)`` activations.
        fitted: ``(prompt,)`` bool.

    Returns:
        ``(fitted prompt,)`` float64, and ``‖mean‖²``.
    """
    mean, rows = mean_activation(hidden_site, fitted), np.flatnonzero(fitted)
    blocks = (hidden_site[rows[start : start + BLOCK]] - mean for start in range(0, len(rows), BLOCK))
    return np.concatenate([block @ mean for block in blocks]), float(mean @ mean)


def _chosen(positions: np.ndarray, key: Any) -> np.ndarray:
    return positions[key if isinstance(key, slice) else np.ravel(key)]
