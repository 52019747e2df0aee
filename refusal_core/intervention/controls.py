"""Directions that an intervention with the found one is held against: what any direction of the kind would do."""

from __future__ import annotations

import numpy as np

ISOTROPIC, PERMUTED, ORTHOGONAL = "isotropic", "permuted", "orthogonal"


def control_names(random_directions: int) -> list[str]:
    """Names of the controls: half of the random directions isotropic, half from the covariance, then two more."""
    isotropic = (random_directions + 1) // 2
    names = [f"{ISOTROPIC} {number}" for number in range(1, isotropic + 1)]
    names += [f"covariance {number}" for number in range(1, random_directions - isotropic + 1)]
    return [*names, PERMUTED, ORTHOGONAL]


def control_direction(
    name: str, hidden: np.ndarray, is_harmful: np.ndarray, found: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw one control direction at one site.

    - ``isotropic``: all directions of the space alike.
    - ``covariance``: normal with the covariance of activations within the labels, so that it lies where activations
      vary, and is no second copy of the difference between the labels.
    - ``permuted``: the direction between two random halves that have equal shares of both labels. An unbalanced
      permutation leaves a little of the found direction, which grows to its full length with the unit norm.
    - ``orthogonal``: drawn as ``covariance``, the found direction taken off.

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
    values = hidden.astype(np.float64)
    for label in (is_harmful, ~is_harmful):
        values[label] -= values[label].mean(axis=0)
    if name == PERMUTED:
        side = np.empty(len(values))
        for label in (is_harmful, ~is_harmful):
            side[label] = rng.permutation(np.arange(label.sum()) % 2) - 0.5
        return _unit(side @ values)
    drawn = rng.standard_normal((1, len(values)))[0] @ values
    if name == ORTHOGONAL:
        direction = found.astype(np.float64)
        drawn = drawn - (drawn @ direction) * direction
    return _unit(drawn)


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return (vector / norm if norm > 0 else vector).astype(np.float32)
