"""How many directions the categories of a contrast set need, and which of them share one, from inner products.

Once the difference of the labels' means is projected out, no linear classifier is left that tells the labels (Belrose
et al. 2023, theorem 3.1): of one harm there is one direction. A second one is a direction along which harm of one
category differs from harm of another, so that each category's own difference of means is what is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.groups import bootstrap_counts, find_twins, permute_labels
from refusal_core.analysis.inference import LEVEL, interval, permutation_p
from refusal_core.analysis.projections import contrast_weights
from refusal_core.analysis.weighted_statistics import weighted_auroc

FEWEST_OF_CATEGORY = 8
"""Prompts of either label that a category's direction is fitted on."""
MOST_CATEGORIES = 12
"""Categories that are looked at, the largest; of more, pairs are too many to be told from chance."""
SIGNIFICANT = 0.05
"""Above this p-value a number counts as chance."""

_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class CategoryDraws:
    """Contrast-set prompts of categories that have both labels, and the draws of them that serve every site.

    Attributes:
        names: ``(category,)`` of the categories.
        category: ``(prompt,)`` int, the place in ``names``.
        is_harmful: ``(prompt,)`` bool.
        fold: ``(prompt,)`` int.
        permuted: ``(draw, prompt)`` bool, labels that are as likely as the true ones if labels mean nothing.
        redrawn: ``(draw, prompt)`` bootstrap multiplicities.
        exchanged: for every two categories, ``(draw, prompt of the two)`` bool: which prompts count as the first's, as
            likely as the true ones if the two categories have one direction.
    """

    names: tuple[str, ...]
    category: np.ndarray
    is_harmful: np.ndarray
    fold: np.ndarray
    permuted: np.ndarray
    redrawn: np.ndarray
    exchanged: dict[tuple[int, int], np.ndarray]

    def members(self, *categories: int) -> np.ndarray:
        """Return positions of the prompts of these categories, in order."""
        return np.flatnonzero(np.isin(self.category, categories))


@dataclass(frozen=True, eq=False)
class LeftOver:
    """What categories' directions still tell after the first directions were projected out, at one site.

    Attributes:
        auroc: ``(removed,)`` held-out, mean over the categories weighted by prompts; ``removed`` counts from 0.
        chance: ``(2, removed)`` where 95 % of permuted labels lie.
        p: ``(removed,)`` share of permuted labels that reach it.
    """

    auroc: np.ndarray
    chance: np.ndarray
    p: np.ndarray


@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike two categories' directions are, at one site.

    Attributes:
        cosine, low, high: of the two, with its 95 % bootstrap interval.
        one_low, one_high: where 95 % of the cosines lie if the two have one direction.
        p_one: chance of so low a cosine if they have one, before any correction.
    """

    cosine: float
    low: float
    high: float
    one_low: float
    one_high: float
    p_one: float


def draw_categories(
    names: tuple[str, ...],
    category: np.ndarray,
    is_harmful: np.ndarray,
    groups: np.ndarray,
    pairs: np.ndarray,
    fold: np.ndarray,
    draws: int,
    seed: int,
) -> CategoryDraws:
    """Draw all that :func:`left_over` and :func:`likeness` need.

    Args:
        names: of the categories.
        category: ``(prompt,)`` int, the place in ``names``.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split: the quartet, the matched pair, or the prompt by itself.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        fold: ``(prompt,)`` int, whole groups in one.
        draws: permutations of the labels and bootstrap draws; of exchanged categories there are twice as many.
        seed: of the draws.
    """
    permuting, redrawing, exchanging = (np.random.default_rng([seed, purpose]) for purpose in range(3))
    permuted = np.tile(is_harmful, (draws, 1))
    for place in range(len(names)):
        rows = np.flatnonzero(category == place)
        twins = find_twins(is_harmful[rows], pairs[rows])
        order = permute_labels(is_harmful[rows], groups[rows], draws, permuting, twins)
        # Of few pairs there are fewer flips than draws.
        permuted[:, rows] = is_harmful[rows][order[np.arange(draws) % len(order)]]
    exchanged = {}
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            rows = np.flatnonzero((category == first) | (category == second))
            exchanged[first, second] = _exchange(
                category[rows] == first, is_harmful[rows], groups[rows], 2 * draws, exchanging
            )
    redrawn = bootstrap_counts(is_harmful, groups, draws, redrawing)
    return CategoryDraws(names, category, is_harmful, fold, permuted, redrawn, exchanged)


def left_over(gram: np.ndarray, drawn: CategoryDraws) -> LeftOver:
    """Project out the first directions of the categories, one more at a time, and test what is left on other prompts.

    The directions that are projected out are the principal ones of the categories' differences of means, each weighted
    by its prompts; they and the categories' directions in what is left are fitted in the training folds, and scored
    within their category. Permuted labels are fitted and scored in the same rest.

    Args:
        gram: ``(prompt, prompt)`` of :func:`.gram.gram_matrix`.
        drawn: the prompts, their categories and permuted labels.
    """
    n_categories = len(drawn.names)
    labels = np.concatenate([drawn.is_harmful[None], drawn.permuted])
    projections = np.full((n_categories, *labels.shape), np.nan)
    for fold in np.unique(drawn.fold):
        training = drawn.fold != fold
        along = _principal_projections(gram, drawn, training)
        for place in range(n_categories):
            rows = drawn.members(place)
            fitted, rest = training[rows], gram[np.ix_(rows, rows)].copy()
            for removed in range(n_categories):
                if removed and removed <= len(along):
                    rest -= np.outer(along[removed - 1, rows], along[removed - 1, rows])
                held_out = _project_within(rest, labels[:, rows], fitted)
                projections[removed][:, rows[~fitted]] = held_out
    auroc = np.zeros((n_categories, len(labels)))
    for place in range(n_categories):
        rows = drawn.members(place)
        for removed in range(n_categories):
            within = weighted_auroc(projections[removed][:, rows], 1.0 * labels[:, rows], 1.0 * ~labels[:, rows])
            auroc[removed] += within * len(rows) / len(drawn.category)
    tails = np.nanquantile(auroc[:, 1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return LeftOver(auroc[:, 0], tails, permutation_p(auroc[:, 0], auroc[:, 1:].T))


def rank_of(p: np.ndarray) -> int:
    """Return the fewest directions after whose removal what is left is within chance; all if something always is.

    Args:
        p: ``(removed,)`` of :class:`LeftOver`.
    """
    # One-sided, like the upper end of the 95 % band of permuted labels.
    chance = np.flatnonzero(~(p <= (1 - LEVEL) / 2))
    return int(chance[0]) if len(chance) else len(p)


def likeness(gram: np.ndarray, drawn: CategoryDraws) -> dict[tuple[int, int], Likeness]:
    """Return how alike every two categories' directions are.

    A cosine of two directions that were fitted on few prompts is below that of the directions which they stand for.
    What it would be if the two were one is measured: prompts, whole pairs, change category at random.

    Args:
        gram: ``(prompt, prompt)`` of :func:`.gram.gram_matrix`.
        drawn: the prompts, their categories and draws.
    """
    alike = {}
    counts = np.vstack([np.ones(len(drawn.category)), drawn.redrawn])
    for (first, second), exchanged in drawn.exchanged.items():
        rows = drawn.members(first, second)
        products, is_harmful = gram[np.ix_(rows, rows)], drawn.is_harmful[rows]
        in_first = (drawn.category[rows] == first)[None]
        cosines = _cosines(products, is_harmful, counts[:, rows] * in_first, counts[:, rows] * ~in_first)
        of_one = _cosines(products, is_harmful, 1.0 * exchanged, 1.0 * ~exchanged)
        low, high = interval(cosines[1:], cosines[0], -1.0, 1.0)
        # Not by `nanquantile`, which warns where no cosine exists.
        known = of_one[np.isfinite(of_one)] if np.isfinite(cosines[0]) else np.array([np.nan])
        one_low, one_high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        p_one = permutation_p(-cosines[:1], -of_one[:, None])[0]
        alike[first, second] = Likeness(
            float(cosines[0]), float(low), float(high), float(one_low), float(one_high), float(p_one)
        )
    return alike


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number (Holm 1979); NaN stays NaN.

    Args:
        p: ``(test,)``.
    """
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def _principal_projections(gram: np.ndarray, drawn: CategoryDraws, training: np.ndarray) -> np.ndarray:
    """Return all prompts on the principal directions of the categories' differences in the training folds.

    Returns:
        ``(direction, prompt)``; the strongest direction first, none that is rounding.
    """
    weights = np.vstack(list(_weights_by_category(drawn, training)))
    products = weights @ gram
    values, vectors = np.linalg.eigh(products @ weights.T)
    strongest = np.flatnonzero(values > _RANK_TOLERANCE * max(values[-1], np.finfo(float).tiny))[::-1]
    along: np.ndarray = (vectors[:, strongest] / np.sqrt(values[strongest])).T @ products
    return along


def _weights_by_category(drawn: CategoryDraws, training: np.ndarray) -> Iterator[np.ndarray]:
    """Yield ``(1, prompt)`` weights of every category's direction, times the root of its share of the prompts."""
    for place in range(len(drawn.names)):
        inside = training & (drawn.category == place)
        harmful, harmless = (1.0 * (inside & label)[None] for label in (drawn.is_harmful, ~drawn.is_harmful))
        weights = contrast_weights(harmful, harmless)
        yield np.nan_to_num(weights) * np.sqrt(inside.mean())


def _project_within(gram: np.ndarray, labels: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return test prompts of one category on its direction in every draw, relative to the training midpoint.

    Args:
        gram: ``(prompt, prompt)`` of the category.
        labels: ``(draw, prompt)`` bool.
        fitted: ``(prompt,)`` bool.

    Returns:
        ``(draw, test prompt)``, divided by the direction's length.
    """
    weights = np.nan_to_num(contrast_weights(1.0 * (labels & fitted), 1.0 * (~labels & fitted)))
    products = weights @ gram
    square = np.einsum("dp,dp->d", weights, products)
    midpoint = np.einsum("dp,dp->d", np.abs(weights), products) / 2
    # What projecting out leaves of a direction may be rounding; any scale will do for that.
    scale = np.sqrt(np.maximum(square, _RANK_TOLERANCE * max(gram.diagonal().max(), np.finfo(float).tiny)))
    held_out: np.ndarray = (products[:, ~fitted] - midpoint[:, None]) / scale[:, None]
    return held_out


def _cosines(gram: np.ndarray, is_harmful: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` cosines of two directions, each of the prompts that count ``(draw, prompt)`` times for it."""
    weights, other = (contrast_weights(counts * is_harmful, counts * ~is_harmful) for counts in (first, second))
    products, other_products = weights @ gram, other @ gram
    square = np.einsum("dp,dp->d", weights, products) * np.einsum("dp,dp->d", other, other_products)
    # Of rounding a cosine says nothing.
    known = square > (_RANK_TOLERANCE * max(gram.diagonal().max(), np.finfo(float).tiny)) ** 2
    product = np.einsum("dp,dp->d", weights, other_products)
    cosines: np.ndarray = np.where(known, product / np.sqrt(np.where(known, square, 1.0)), np.nan)
    return cosines


def _exchange(
    in_first: np.ndarray, is_harmful: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return which prompts count as the first category's if whole groups change category at random.

    Pairs change places with pairs and a label's single prompts with each other, so that both categories keep theirs.

    Returns:
        ``(draw, prompt)`` bool.
    """
    # A quartet may have pairs in both categories.
    _, group_of = np.unique(2 * np.unique(groups, return_inverse=True)[1] + in_first, return_inverse=True)
    n_groups = group_of.max() + 1
    kinds = np.stack([np.bincount(group_of, label, n_groups) for label in (is_harmful, ~is_harmful)])
    first = np.zeros(n_groups, dtype=bool)
    first[group_of] = in_first
    drawn = np.tile(first, (draws, 1))
    for kind in np.unique(kinds, axis=1).T:
        alike = (kind == kinds.T).all(axis=1)
        drawn[:, alike] = rng.permuted(drawn[:, alike], axis=1)
    return drawn[:, group_of]
