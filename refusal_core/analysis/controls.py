"""Directions that the found one is held against: what any direction of the kind would do."""

from __future__ import annotations

import numpy as np

from refusal_core.analysis.groups import permute_labels
from refusal_core.analysis.projections import contrast_weights

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
    - ``covariance``: normal with the covariance of activations within the labels, the found directions taken off, so
      that it lies where activations vary, and shares nothing with what it is compared with.

    Args:
        name: one of :func:`control_names`.
        hidden: ``(prompt, d_model)`` activations of the prompts the direction was fitted on.
        is_harmful: ``(prompt,)`` bool.
        found: ``(d_model,)`` the found unit direction, or ``(direction, d_model)`` several.
        rng: source of random numbers.

    Returns:
        ``(d_model,)`` float32 unit vector; zeros where activations do not vary.
    """
    if name.startswith(ISOTROPIC):
        return _unit(rng.standard_normal((1, hidden.shape[1]))[0])
    values = hidden.astype(np.float64)
    for label in (is_harmful, ~is_harmful):
        values[label] -= values[label].mean(axis=0)
    (drawn,) = rng.standard_normal((1, len(values))) @ values
    taken: list[np.ndarray] = []
    for direction in np.atleast_2d(found).astype(np.float64):
        # Of what others leave of it, since found directions share much.
        for other in taken:
            direction = direction - (direction @ other) * other
        norm = np.linalg.norm(direction)
        if taken and norm > 1e-6:
            direction = direction / norm
        drawn = drawn - (drawn @ direction) * direction
        taken.append(direction)
    return _unit(drawn)


def permuted_weights(
    is_harmful: np.ndarray, groups: np.ndarray, twins: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the weights of the differences of means that permuted labels have: as likely as the found one by chance.

    Nothing of the found direction is taken off: that of labels without a meaning leans as these do on where activations
    vary most, and controls without it would reach less far than chance does.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is permuted as one, see :func:`.permute_labels`.
        twins: ``(pair, 2)`` as there.
        draws: how many at most.
        rng: permutes the labels.

    Returns:
        ``(draw, prompt)``.
    """
    permuted = is_harmful[permute_labels(is_harmful, groups, draws, rng, twins)]
    return contrast_weights(1.0 * permuted, 1.0 * ~permuted)


def covariance_weights(is_harmful: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the weights of sums of activations that vary as these do within the labels, ``(draw, prompt)``.

    Args:
        is_harmful: ``(prompt,)`` bool.
        draws: how many.
        rng: source of random numbers.
    """
    weights = rng.standard_normal((draws, len(is_harmful)))
    for label in (is_harmful, ~is_harmful):
        weights[:, label] -= weights[:, label].mean(axis=1, keepdims=True)
    return weights


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return (vector / norm if norm > 0 else vector).astype(np.float32)
