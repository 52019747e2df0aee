"""Activations and labels to directions, directions and activations to projections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refusal_core.analysis.arrays import are_harmful, as_activations, as_array
from refusal_core.analysis.gram import BLOCK, mean_activation
from refusal_core.errors import ArrayError, RefusalError
from refusal_core.options import DEFAULT_ESTIMATOR
from refusal_core.sites import site_label

if TYPE_CHECKING:
    # Directions are fitted, projected on and compared without torch.
    import torch
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Direction:
    """One unit direction in the residual stream of a model, to project on, to save, to ablate and to add.

    Attributes:
        vector: ``(d_model,)`` float32 of norm 1; zeros where no direction exists.
        magnitude: the distance between the two labels' mean activations along it, in activation units.
        site: where it was read: a layer, or ``n_layers`` for the final norm.
        n_layers: transformer blocks of the model.
    """

    vector: np.ndarray
    magnitude: float
    site: int
    n_layers: int

    def __post_init__(self) -> None:
        vector = np.array(as_activations(self.vector), dtype=np.float32)
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise ArrayError(f"expected a finite vector (d_model,), got one of shape {vector.shape}")
        norm = float(np.linalg.norm(vector))
        if norm > 0 and abs(norm - 1) > 1e-3:
            raise ArrayError(f"expected a vector of norm 1, got one of norm {norm:.4g}: divide it by its norm")
        site_label(self.site, self.n_layers)
        vector.setflags(write=False)
        object.__setattr__(self, "vector", vector)

    def __repr__(self) -> str:
        """Where it was read, its width and its magnitude."""
        where = site_label(self.site, self.n_layers)
        return f"Direction({where}, d_model={len(self.vector)}, magnitude={self.magnitude:.4g})"

    def project(self, activations: ArrayLike) -> np.ndarray:
        """Project activations on the direction.

        Args:
            activations: ``(..., d_model)``, any leading axes; an array or a tensor.

        Returns:
            ``(...)`` float64, in activation units.

        Raises:
            ArrayError: for activations of another width.
        """
        activations = as_activations(activations)
        if activations.shape[-1:] != self.vector.shape:
            raise ArrayError(f"expected activations (..., {len(self.vector)}), got {activations.shape}")
        return activations.astype(np.float64) @ self.vector.astype(np.float64)

    def cosine(self, other: Direction) -> float:
        """Return the cosine with another direction; NaN where one of the two does not exist.

        Raises:
            ArrayError: for a direction of another width.
        """
        if self.vector.shape != other.vector.shape:
            raise ArrayError(f"expected a direction of width {len(self.vector)}, got {len(other.vector)}")
        first, second = self.vector.astype(np.float64), other.vector.astype(np.float64)
        norms = np.linalg.norm(first) * np.linalg.norm(second)
        return float(first @ second / norms) if norms > 0 else float("nan")

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the vector as a tensor ``(d_model,)`` on a device, float32 unless another dtype is given."""
        import torch

        return torch.tensor(self.vector).to(device=device, dtype=dtype)

    def save(self, path: str | Path) -> None:
        """Write the direction as one safetensors file, which :meth:`load` reads and other programs too.

        The tensor is called ``direction``; site, number of layers and magnitude are in the file's metadata.
        """
        described = {"site": self.site, "n_layers": self.n_layers, "magnitude": self.magnitude}
        save_file({"direction": np.array(self.vector)}, path, {"refusal_direction": json.dumps(described)})

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read a direction that :meth:`save` wrote.

        Raises:
            RefusalError: when the file is no such direction.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                described = json.loads((file.metadata() or {})["refusal_direction"])
                vector = file.get_tensor("direction")
            return cls(vector, float(described["magnitude"]), int(described["site"]), int(described["n_layers"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RefusalError(f"expected {path} to be a direction saved by this program: {error}") from error

    def ablate(
        self, model: Any, layers: Sequence[int] | None = None, tokens: str = "all"
    ) -> AbstractContextManager[None]:
        """Project the direction out of a model's residual stream inside a ``with`` block.

        After every block ``x`` becomes ``x - (x · v) v`` (Arditi et al. 2024, section 2.4). Weights stay as they are,
        and after the ``with`` block the model computes what it did before.

        Args:
            model: a transformers model with as many blocks, or what :func:`refusal_core.load_model` returns.
            layers: the blocks after which it is projected out; all of them by default.
            tokens: ``all`` tokens of every forward pass, or only the ``last`` one of each.

        Raises:
            ModelError: for a model of another depth.
            ValueError: for a layer it does not have, or a direction of the final norm, which no block writes.
        """
        chosen = range(self.n_layers) if layers is None else layers
        return self._edited(model, "ablate", dict.fromkeys(chosen, self.vector), tokens)

    def add(
        self, model: Any, alpha: float = 1.0, layers: Sequence[int] | None = None, tokens: str = "all"
    ) -> AbstractContextManager[None]:
        """Add the direction to a model's residual stream inside a ``with`` block.

        Args:
            model: as in :meth:`ablate`.
            alpha: how much, in units of :attr:`magnitude`: 1 moves the harmless mean to the harmful one; negative
                values move the other way.
            layers: the blocks after which it is added; by default the one where it was read.
            tokens: as in :meth:`ablate`.

        Raises:
            ModelError, ValueError: as :meth:`ablate`.
        """
        chosen = [self.site] if layers is None else layers
        vector = (alpha * self.magnitude * self.vector).astype(np.float32)
        return self._edited(model, "add", dict.fromkeys(chosen, vector), tokens)

    def _edited(
        self, model: Any, kind: str, vectors: dict[int, np.ndarray], tokens: str
    ) -> AbstractContextManager[None]:
        from refusal_core import steering

        if self.site == self.n_layers:
            raise ValueError("this direction was read after the final norm, which no block writes: choose a layer's")
        # What load_model returns has the transformers model and its tokenizer.
        transformer = model.model if hasattr(model, "tokenizer") else model
        blocks = steering.find_blocks(steering.find_decoder(transformer), self.n_layers)[1]
        return steering.edited(blocks, steering.Edit(kind, vectors, tokens))


@dataclass(frozen=True, eq=False)
class Directions:
    """The direction at every site: the difference of means (Arditi et al. 2024, section 2.3), or another one.

    Attributes:
        unit_direction: ``(site, d_model)`` float32 of norm 1, ``harmful_mean - harmless_mean`` over its norm unless it
            was imported or another estimator's; zeros at a site where the two means coincide and no direction exists.
        harmful_mean: ``(site, d_model)`` float32, mean activation of the harmful prompts.
        harmless_mean: ``(site, d_model)`` float32, mean activation of the harmless prompts.
        imported: whether the unit directions came from elsewhere, so that they are not those of the two means.
        estimator: that they were fitted by, a key of :data:`refusal_core.options.ESTIMATORS`.
    """

    unit_direction: np.ndarray
    harmful_mean: np.ndarray
    harmless_mean: np.ndarray
    imported: bool = False
    estimator: str = DEFAULT_ESTIMATOR

    @property
    def are_of_means(self) -> bool:
        """Whether they are differences of the two means, so that weighted sums of activations give them."""
        return not self.imported and self.estimator == DEFAULT_ESTIMATOR

    @property
    def n_sites(self) -> int:
        """Layers and the final norm."""
        return int(self.unit_direction.shape[0])

    def __len__(self) -> int:
        """Return the number of sites."""
        return self.n_sites

    def __getitem__(self, site: int) -> Direction:
        """Return the direction of one site; the last one is the final norm's.

        Raises:
            IndexError: for a site that the model does not have.
        """
        if not -self.n_sites <= site < self.n_sites:
            raise IndexError(f"expected a site from 0 to {self.n_sites - 1}, got {site}")
        site %= self.n_sites
        return Direction(self.unit_direction[site], float(self.magnitude[site]), site, self.n_sites - 1)

    def __iter__(self) -> Iterator[Direction]:
        """Go through the directions of all sites, in order."""
        return (self[site] for site in range(self.n_sites))

    @property
    def magnitude(self) -> np.ndarray:
        """Return ``(site,)`` float64, the distance of the two means along the direction, in activation units.

        Of a difference of means that is its norm.
        """
        difference = self.harmful_mean.astype(np.float64) - self.harmless_mean
        if not self.are_of_means:
            return np.asarray(np.abs((difference * self.unit_direction).sum(axis=-1)))
        return np.asarray(np.linalg.norm(difference, axis=-1))

    def project(self, activations: ArrayLike) -> np.ndarray:
        """Project activations onto the unit direction of their site.

        Args:
            activations: ``(..., site, d_model)``, any leading axes (prompts, tokens); an array or a tensor.

        Returns:
            ``(..., site)`` float64, in activation units.

        Raises:
            ArrayError: for activations of other sites or another width.
        """
        activations, expected = as_activations(activations), self.unit_direction.shape
        if activations.shape[-2:] != expected:
            raise ArrayError(f"activations must end in (site, d_model) = {expected}, got {activations.shape}")
        flat = activations.reshape(-1, *expected)
        projections = np.empty(flat.shape[:-1])
        for site in range(self.n_sites):
            unit = self.unit_direction[site].astype(np.float64)
            # In blocks, since the activations of many prompts are in a file larger than memory.
            for start in range(0, len(flat), BLOCK):
                block = slice(start, start + BLOCK)
                projections[block, site] = flat[block, site].astype(np.float64) @ unit
        return projections.reshape(activations.shape[:-1])


def fit_directions(activations: ArrayLike, labels: ArrayLike, fitted: ArrayLike | None = None) -> Directions:
    """Fit the direction at every site as the difference of the two labels' means.

    Args:
        activations: ``(prompt, site, d_model)``, an array or a tensor, or a list of one per prompt. The last site is
            the final norm; see :mod:`refusal_core.sites`.
        labels: ``(prompt,)`` bool, true for harmful; or 1 and 0; or the words ``harmful`` and ``harmless``.
        fitted: ``(prompt,)`` bool, the prompts to fit on; all by default.

    Raises:
        ArrayError: when a label has no prompt, the labels are something else, the shapes disagree, or an activation is
            not a finite number.
    """
    return directions_of_means(*_label_means(activations, labels, fitted))


def imported_directions(
    vectors: Mapping[int, np.ndarray], activations: ArrayLike, labels: ArrayLike, fitted: ArrayLike | None = None
) -> Directions:
    """Return imported vectors as directions, beside the two labels' mean activations.

    Args:
        vectors: site → ``(d_model,)`` of norm 1; other sites have no direction.
        activations: ``(prompt, site, d_model)``.
        labels: as for :func:`fit_directions`.
        fitted: ``(prompt,)`` bool, the prompts of the contrast set; all by default.

    Raises:
        ArrayError: as :func:`fit_directions`.
    """
    harmful, harmless = (means.astype(np.float32) for means in _label_means(activations, labels, fitted))
    unit = np.zeros_like(harmful)
    for site, vector in vectors.items():
        unit[site] = vector
    return Directions(unit, harmful, harmless, imported=True)


def estimated_directions(
    estimator: str, unit: np.ndarray, activations: np.ndarray, labels: np.ndarray, fitted: np.ndarray | None = None
) -> Directions:
    """Return the directions that another estimator fitted, beside the two labels' mean activations.

    Args:
        estimator: its name.
        unit: ``(site, d_model)`` of norm 1; zeros where there is none.
        activations: ``(prompt, site, d_model)``.
        labels: as for :func:`fit_directions`.
        fitted: ``(prompt,)`` bool, the prompts of the contrast set; all by default.

    Raises:
        ArrayError: as :func:`fit_directions`.
    """
    harmful, harmless = (means.astype(np.float32) for means in _label_means(activations, labels, fitted))
    return Directions(unit.astype(np.float32), harmful, harmless, estimator=estimator)


def _label_means(activations: ArrayLike, labels: ArrayLike, fitted: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the harmful and the harmless prompts' mean activations, ``(site, d_model)`` float64 each."""
    hidden, is_harmful = as_activations(activations), are_harmful(labels)
    if hidden.ndim != 3 or is_harmful.shape != hidden.shape[:1]:
        raise ArrayError(
            "expected activations (prompt, site, d_model) and one label per prompt, "
            f"got {hidden.shape} and {is_harmful.shape}"
        )
    is_fitted = np.ones(len(hidden), dtype=bool) if fitted is None else as_array(fitted)
    if is_fitted.dtype != bool or is_fitted.shape != is_harmful.shape:
        raise ArrayError(
            f"expected one boolean per prompt ({len(hidden)}) of those to fit on, got {is_fitted.dtype} of shape "
            f"{is_fitted.shape}"
        )
    means = []
    for label, rows in (("harmful", is_harmful & is_fitted), ("harmless", ~is_harmful & is_fitted)):
        if not rows.any():
            raise ArrayError(f"a direction needs prompts of both labels, and none is {label}")
        with np.errstate(invalid="ignore"):
            mean = np.stack([mean_activation(hidden[:, site], rows) for site in range(hidden.shape[1])])
        if not np.isfinite(mean).all():
            site = int(np.flatnonzero(~np.isfinite(mean).all(axis=1))[0])
            raise ArrayError(
                f"expected finite activations, got NaN or infinity among the {label} prompts' at site {site}"
            )
        means.append(mean)
    return means[0], means[1]


def directions_of_means(harmful: np.ndarray, harmless: np.ndarray) -> Directions:
    """Return the directions between two labels' mean activations, ``(site, d_model)`` float64 each."""
    difference = harmful - harmless
    norm = np.linalg.norm(difference, axis=-1, keepdims=True)
    # Two means that agree to the last bits of float32 differ by rounding alone.
    scale = np.maximum(np.linalg.norm(harmful, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    exists = norm > 1e-6 * scale
    unit = np.where(exists, difference / np.where(exists, norm, 1.0), 0.0)
    return Directions(unit.astype(np.float32), harmful.astype(np.float32), harmless.astype(np.float32))
