"""Activations and labels to directions, directions and activations to projections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.gram import BLOCK, mean_activation


@dataclass(frozen=True, eq=False)
class Directions:
    """The difference-in-means direction at every site (Arditi et al. 2024, section 2.3).

    Attributes:
        unit_direction: ``(site, d_model)`` float32, ``harmful_mean - harmless_mean`` over its norm; zeros at a site
            where the two means coincide and no direction exists.
        harmful_mean: ``(site, d_model)`` float32, mean activation of the harmful prompts.
        harmless_mean: ``(site, d_model)`` float32, mean activation of the harmless prompts.
    """

    unit_direction: np.ndarray
    harmful_mean: np.ndarray
    harmless_mean: np.ndarray

    @property
    def n_sites(self) -> int:
        return self.unit_direction.shape[0]

    @property
    def magnitude(self) -> np.ndarray:
        """``(site,)`` float64, the norm of the difference of means, in activation units."""
        difference = self.harmful_mean.astype(np.float64) - self.harmless_mean
        return np.linalg.norm(difference, axis=-1)

    def project(self, hidden: np.ndarray) -> np.ndarray:
        """Project activations onto the unit direction of their site.

        Args:
            hidden: ``(..., site, d_model)``, any leading axes (prompts, tokens).

        Returns:
            ``(..., site)`` float64, in activation units.
        """
        expected = self.unit_direction.shape
        if hidden.shape[-2:] != expected:
            raise ValueError(f"activations must end in (site, d_model) = {expected}, got {hidden.shape}")
        flat = hidden.reshape(-1, *expected)
        projections = np.empty(flat.shape[:-1])
        for site in range(self.n_sites):
            unit = self.unit_direction[site].astype(np.float64)
            # In blocks, since the activations of many prompts are in a file larger than memory.
            for start in range(0, len(flat), BLOCK):
                block = slice(start, start + BLOCK)
                projections[block, site] = flat[block, site].astype(np.float64) @ unit
        return projections.reshape(hidden.shape[:-1])


def fit_directions(hidden: np.ndarray, is_harmful: np.ndarray, fitted: np.ndarray | None = None) -> Directions:
    """Fit the direction at every site as the difference of the two labels' means.

    Args:
        hidden: ``(prompt, site, d_model)`` activations.
        is_harmful: ``(prompt,)`` bool.
        fitted: ``(prompt,)`` bool, the prompts to fit on; all without.

    Raises:
        ValueError: when a label has no prompt or the shapes disagree.
    """
    if hidden.ndim != 3 or is_harmful.shape != hidden.shape[:1]:
        raise ValueError(
            "expected activations (prompt, site, d_model) and one label a prompt, "
            f"got {hidden.shape} and {is_harmful.shape}"
        )
    fitted = np.ones(len(hidden), dtype=bool) if fitted is None else fitted
    labels = is_harmful & fitted, ~is_harmful & fitted
    if not all(rows.any() for rows in labels):
        raise ValueError("a direction needs prompts of both labels")
    means = [np.stack([mean_activation(hidden[:, site], rows) for site in range(hidden.shape[1])]) for rows in labels]
    return directions_of_means(*means)


def directions_of_means(harmful: np.ndarray, harmless: np.ndarray) -> Directions:
    """The directions between two labels' mean activations, ``(site, d_model)`` float64 each."""
    difference = harmful - harmless
    norm = np.linalg.norm(difference, axis=-1, keepdims=True)
    # Two means that agree to the last bits of float32 differ by rounding alone.
    scale = np.maximum(np.linalg.norm(harmful, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    exists = norm > 1e-6 * scale
    unit = np.where(exists, difference / np.where(exists, norm, 1.0), 0.0)
    return Directions(unit.astype(np.float32), harmful.astype(np.float32), harmless.astype(np.float32))
