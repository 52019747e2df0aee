"""What the space of one site looks like, from inner products: dimension, clusters, components, random directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.metrics import silhouette_score

from refusal_core.analysis.gram import Gram, InnerProducts
from refusal_core.analysis.weighted_statistics import weighted_d

_MEDIAN_STEPS = 200
_MEDIAN_TOLERANCE = 1e-7
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of the fitted prompts at one site (Jolliffe 2002, section 3.5, from the Gram matrix).

    Attributes:
        vectors: ``(prompt, component)`` orthonormal eigenvectors of the Gram matrix, largest variance first.
        values: ``(component,)`` its eigenvalues, above rounding only.
        variance: the sum of all eigenvalues, of those that were not asked for too.
    """

    vectors: np.ndarray
    values: np.ndarray
    variance: float

    @property
    def scores(self) -> np.ndarray:
        """``(prompt, component)`` projections on the components, in activation units."""
        scores: np.ndarray = self.vectors * np.sqrt(self.values)
        return scores

    @property
    def shares(self) -> np.ndarray:
        """``(component,)`` share of the total variance."""
        return self.values / self.variance

    def project(self, cross_gram: Gram, count: int) -> np.ndarray:
        """Return the scores of other prompts on the first components.

        Args:
            cross_gram: ``(prompt, other)`` inner products of the fitted prompts with the others.
            count: of components.

        Returns:
            ``(other, count)`` in activation units.
        """
        scores: np.ndarray = cross_gram.T @ (self.vectors[:, :count] / np.sqrt(self.values[:count]))
        return scores


def principal_components(gram: Gram, count: int) -> Components:
    """Return the eigenvectors of the centred Gram matrix; none where activations are constant.

    Args:
        gram: ``(prompt, prompt)``.
        count: how many are needed; of a matrix that is held all come.
    """
    if isinstance(gram, InnerProducts):
        width = len(gram.covariance)
        values, vectors = eigh(gram.covariance, subset_by_index=(max(width - count, 0), width - 1))
    else:
        values, vectors = np.linalg.eigh(gram)
    positive = np.flatnonzero(values > _RANK_TOLERANCE * max(values[-1], np.finfo(float).tiny))[::-1]
    vectors, variance = vectors[:, positive], float(values[positive].sum())
    if isinstance(gram, InnerProducts):
        vectors, variance = gram.along(vectors) / np.sqrt(values[positive]), float(gram.diagonal().sum())
    # The sign of an eigenvector is arbitrary; a fixed one makes runs comparable.
    largest = np.abs(vectors).argmax(axis=0)
    return Components(vectors * np.sign(vectors[largest, np.arange(len(positive))]), values[positive], variance)


def effective_dimension(gram: Gram) -> float:
    """Return over how many directions the variance is spread: the participation ratio ``(Σλ)² / Σλ²``.

    Litwin-Kumar et al. 2017, equation 1.

    Args:
        gram: ``(prompt, prompt)``, centred; its eigenvalues are the covariance's times the number of prompts.
    """
    square = float(((gram.covariance if isinstance(gram, InnerProducts) else gram) ** 2).sum())
    return float(gram.diagonal().sum() ** 2 / square) if square > 0 else float("nan")


def variance_share(gram: Gram, weights: np.ndarray) -> float:
    """Return the share of the activations' total variance that lies along the direction: ``‖K w‖² / (wᵀ K w · tr K)``.

    Args:
        gram: ``(prompt, prompt)``, centred.
        weights: ``(prompt,)`` of the direction.
    """
    products = gram @ weights
    denominator = float(weights @ products) * float(gram.diagonal().sum())
    return float(products @ products / denominator) if denominator > 0 else float("nan")


def cosine(gram: Gram, weights: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of two directions of every draw: ``wᵀ K u / (‖·‖ ‖·‖)``.

    Args:
        gram: ``(prompt, prompt)``.
        weights: ``(draw, prompt)`` or ``(1, prompt)`` of one direction.
        other: ``(draw, prompt)`` or ``(1, prompt)`` of the other.

    Returns:
        ``(draw,)``; NaN where a direction has no length.
    """
    products, other_products = weights @ gram, other @ gram
    square = (products * weights).sum(axis=1) * (other_products * other).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(square > 0, (products * other).sum(axis=1) / np.sqrt(square), np.nan)


def silhouette(gram: np.ndarray, is_harmful: np.ndarray) -> float:
    """Return how much nearer prompts are to their own label's prompts than to the other's (Rousseeuw 1987).

    Args:
        gram: ``(prompt, prompt)``.
        is_harmful: ``(prompt,)`` bool.

    Returns:
        -1 to 1; NaN of fewer than three prompts, without both labels, or where activations are constant. A lone prompt
        of its label counts 0.
    """
    norms = gram.diagonal()
    distance = np.sqrt(np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0))
    np.fill_diagonal(distance, 0.0)
    if len(is_harmful) < 3 or not distance.any() or is_harmful.all() or not is_harmful.any():
        return float("nan")
    return float(silhouette_score(distance, is_harmful, metric="precomputed"))


def mean_weights(gram: Gram) -> np.ndarray:
    """Return the ``(prompt,)`` weights of a label's mean activation; ``gram`` is of its prompts."""
    return np.full(len(gram), 1 / len(gram))


def geometric_median_weights(gram: Gram) -> np.ndarray:
    """Return the point with the least summed distance to the prompts, as their weighted mean (Weiszfeld 1937).

    Args:
        gram: ``(prompt, prompt)`` of one label's prompts.

    Returns:
        ``(prompt,)`` weights that sum to 1.
    """
    norms = gram.diagonal()
    weights = np.full(len(gram), 1 / len(gram))
    # Smoothed, so that a median that falls on a prompt divides by something.
    floor = 1e-12 * max(norms.max(), np.finfo(float).tiny)
    for _ in range(_MEDIAN_STEPS):
        products = gram @ weights
        squared = norms - 2 * products + weights @ products
        closeness = 1 / np.sqrt(np.maximum(squared, floor))
        updated = closeness / closeness.sum()
        moved, weights = np.abs(updated - weights).sum(), updated
        if moved < _MEDIAN_TOLERANCE:
            break
    return weights


def residual_geometry(gram: Gram, on_mean: np.ndarray, mean_square: float, is_harmful: np.ndarray) -> dict[str, float]:
    """Return the columns of heretic's table of residual geometry (Weidmann 2025), under its names.

    ``g`` and ``b`` are the mean activations of harmless and harmful prompts, ``r = b - g``, a star marks geometric
    medians in place of means; ``S(x,y)`` is a cosine, ``|x|`` a norm in activation units. Its last column, ``Silh``,
    is the :func:`silhouette`.

    Args:
        gram: ``(prompt, prompt)`` of activations from which their mean ``m`` was taken off.
        on_mean: ``(prompt,)`` inner products of those centred activations with ``m``.
        mean_square: ``‖m‖²``.
        is_harmful: ``(prompt,)`` bool.
    """
    columns: dict[str, float] = {}
    for star, centre_weights in (("", mean_weights), ("*", geometric_median_weights)):
        good, bad = np.zeros(len(gram)), np.zeros(len(gram))
        good[~is_harmful] = centre_weights(gram[np.ix_(~is_harmful, ~is_harmful)])
        bad[is_harmful] = centre_weights(gram[np.ix_(is_harmful, is_harmful)])
        difference = bad - good
        # A point is the mean plus a weighted sum of centred activations; of a difference the mean drops out.
        good_good = mean_square + 2 * good @ on_mean + good @ gram @ good
        bad_bad = mean_square + 2 * bad @ on_mean + bad @ gram @ bad
        good_bad = mean_square + (good + bad) @ on_mean + good @ gram @ bad
        along = float(difference @ gram @ difference)
        good_r = difference @ on_mean + good @ gram @ difference
        bad_r = difference @ on_mean + bad @ gram @ difference
        columns[f"S(g{star},b{star})"] = _ratio(good_bad, good_good * bad_bad)
        columns[f"S(g{star},r{star})"] = _ratio(good_r, good_good * along)
        columns[f"S(b{star},r{star})"] = _ratio(bad_r, bad_bad * along)
        columns[f"|g{star}|"] = float(np.sqrt(max(good_good, 0.0)))
        columns[f"|b{star}|"] = float(np.sqrt(max(bad_bad, 0.0)))
        columns[f"|r{star}|"] = float(np.sqrt(max(along, 0.0)))
    return columns


def random_direction_d(
    components: Components, is_harmful: np.ndarray, draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return |d| of the contrast set along directions that know nothing of the labels.

    - ``isotropic``: all directions of the space alike. The projections of X on a standard normal vector are normal
      with covariance ``K``, so they are drawn as ``U √Λ z`` and equal directions drawn in all of d_model dimensions.
    - ``covariance``: drawn from the activations' own covariance, ``v = Xᵀ z``, projections ``K z``.
    - ``component``: every principal component once; there are no more of them than prompts.

    Args:
        components: of the fitted prompts.
        is_harmful: ``(prompt,)`` bool.
        draws: how many of the first two kinds.
        rng: draws the directions.

    Returns:
        kind → ``(direction,)`` absolute Cohen's d.
    """
    harmful = is_harmful[None, :].astype(np.float64)
    noise = rng.standard_normal((draws, len(components.values)))
    projections = {
        "isotropic": noise @ components.scores.T,
        "covariance": (noise * np.sqrt(components.values)) @ components.scores.T,
        "component": components.scores.T,
    }
    return {kind: np.abs(weighted_d(values, harmful, 1 - harmful)) for kind, values in projections.items()}


def _ratio(product: float, square: float) -> float:
    return float(product / np.sqrt(square)) if square > 0 else float("nan")
