"""Directions that the found one is held against: what any direction of the kind would do."""

from __future__ import annotations

import numpy as np

ISOTROPIC, COVARIANCE = "isotropic", "covariance"


def control_names(random_directions: int) -> list[str]:
    """Return the names of the controls: a fifth of them isotropic, the others from the covariance."""
    isotropic = max(1, random_directions // 5)
    names = [f"{ISOTROPIC} {number}" for number in range(1, isotropic + 1)]
    return names + [f"{COVARIANCE} {number}" for number in range(1, random_directions - isotropic + 1)]


def control_direction(
    name: str, hidden: np.ndarray, is_harmful: np.ndarray, found: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw one control direction at one site.

    - ``isotropic``: all directions of the space alike.
    - ``covariance``: normal with the covariance of activations within the labels, the found direction taken off, so
      that it lies where activations vary, and shares nothing with what it is compared with.

    Args:
        name: one of :func:`control_names`.
        hidden: ``(prompt, d_model)`` activations of the prompts the direction was fitted on.
        is_harmful: ``(prompt,)`` bool.
        found: ``(d_model,)`` the found unit direction.
        rng: source of random numbers.

    Returns:
        ``(d_model,)`` float32 unit vector; zeros where activations do not vary.
    """
    if name.startswith(ISOTROPIC):
        return _unit(rng.standard_normal((1, hidden.shape[1]))[0])
    drawn: np.ndarray = covariance_directions(hidden, is_harmful, found, 1, rng)[0]
    return drawn


def covariance_directions(
    hidden: np.ndarray, is_harmful: np.ndarray, found: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw ``covariance`` controls at one site, ``(draw, d_model)`` float32; see :func:`control_direction`.

    Args:
        hidden: ``(prompt, d_model)`` activations of the prompts the direction was fitted on.
        is_harmful: ``(prompt,)`` bool.
        found: ``(d_model,)`` the found unit direction.
        draws: how many.
        rng: source of random numbers.
    """
    values = hidden.astype(np.float64)
    for label in (is_harmful, ~is_harmful):
        values[label] -= values[label].mean(axis=0)
    drawn = rng.standard_normal((draws, len(values))) @ values
    direction = found.astype(np.float64)
    return np.stack([_unit(vector - (vector @ direction) * direction) for vector in drawn])


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return (vector / norm if norm > 0 else vector).astype(np.float32)
