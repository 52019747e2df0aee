"""Harm and refusal, a direction of each in one residual stream: how alike they are, and what each of them follows.

Zhao et al. 2025 ("LLMs encode harmfulness and refusal separately") read what is asked at the last token of the
instruction and whether it is refused at the last of the template. Here both are fitted at both:

- *harm* is the difference of the labels' means, as everywhere;
- *refusal* is the difference of the means of refused and other prompts **within a label**, so that it is not the label
  again: of every label with at least :data:`FEWEST` of either, weighted by ``n₁ n₂ / (n₁ + n₂)``, as a regression on
  label and reply weighs them.

What a direction follows is asked in the same way, held out: *asked* is the difference of harmful and harmless prompts
within those that the model treats alike, *done* that of refused and other prompts within a label, both in standard
deviations within a cell (label and reply).

Two directions of few prompts have a low cosine even where they are one. So noise is taken off the inner products
(Spearman 1904): that of two means is ``Σ_g u_g' E_g w_g`` with ``E_g`` the inner products of what the prompts of a
group differ from their cell's means by, groups being what is redrawn as one. The *corrected cosine* is 1 where refusing
adds along harm, however few prompts there are. It is not 1 where replies are a noisy threshold of the projection on
harm ``u`` and activations vary unevenly within a label: refused less other prompts then point along ``Σ u``. So a value
below 1 does not show two directions. Directions of two positions are not compared: the basis may turn between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from refusal_core.analysis.gram import gram_matrices
from refusal_core.analysis.inference import NORMAL, interval, permutation_p
from refusal_core.analysis.projections import contrast_weights, crossfit_draws, project_draws
from refusal_core.evidence.design import Contrast, Design, TransferSet, random_stream
from refusal_core.evidence.positions import plan_positions
from refusal_core.evidence.quartets import FEWEST_QUARTETS, standardised
from refusal_core.evidence.questions import FEWEST_BEHAVIOURS as FEWEST
from refusal_core.evidence.questions import quantiles
from refusal_core.progress import Progress
from refusal_core.runs.schemas import (
    ASKED,
    BOTH_DIRECTIONS,
    CELLS,
    CORRECTED,
    COSINE,
    DONE,
    HARM,
    QUARTET_CELLS,
    REFUSAL,
)

COMPARING = "comparing harm and refusal (sites)"
COLUMNS = (
    *("position", "site", "subject", "measure"),
    *("number", "number_low", "number_high", "chance_low", "chance_high", "p"),
)
Weigh = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Replies:
    """What the model did with the contrast set's prompts of which draws are taken.

    Attributes:
        refused: ``(prompt,)`` bool.
        labels: ``(stratum, prompt)`` bool, the labels that have enough refused and other prompts.
        behaviours: ``(stratum, prompt)`` bool, refused or not, where there are enough of both labels.
        permuted: ``(draw, prompt)`` bool, replies that are as likely as the true ones when they follow the label alone.
        counts: prompts per cell, by the names of :data:`.schemas.CELLS`.
    """

    refused: np.ndarray
    labels: np.ndarray
    behaviours: np.ndarray
    permuted: np.ndarray
    counts: dict[str, int]

    @property
    def why_none(self) -> str | None:
        """Why refusing has no direction of its own, or None."""
        if len(self.labels):
            return None
        refused = {label: self.counts[f"{label}_refused"] for label in ("harmful", "harmless")}
        total = {label: refused[label] + self.counts[f"{label}_answered"] for label in refused}
        return (
            f"the model refuses {refused['harmful']} of {total['harmful']} harmful and {refused['harmless']} of "
            f"{total['harmless']} harmless prompts, and a direction of refusing takes {FEWEST} refused and {FEWEST} "
            "other prompts of one label"
        )


def plan_replies(is_harmful: np.ndarray, refused: np.ndarray, draws: int, seed: int) -> Replies:
    """Find what can be compared, and permute the replies within the labels.

    Args:
        is_harmful: ``(prompt,)`` bool.
        refused: ``(prompt,)`` bool.
        draws: of permuted replies.
        seed: of them.
    """
    rng = random_stream(seed, 9)
    permuted = np.empty((draws, len(refused)), dtype=bool)
    for label in (is_harmful, ~is_harmful):
        permuted[:, label] = rng.permuted(np.tile(refused[label], (draws, 1)), axis=1)
    return Replies(
        refused=refused,
        labels=_strata(refused, (is_harmful, ~is_harmful)),
        behaviours=_strata(is_harmful, (refused, ~refused)),
        permuted=permuted,
        counts={name: int(cell.sum()) for name, cell in zip(CELLS, _cells(is_harmful, refused), strict=True)},
    )


def _strata(first: np.ndarray, strata: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return those strata, ``(stratum, prompt)``, with enough prompts of the first kind and enough others."""
    enough = [of for of in strata if min((first & of).sum(), (~first & of).sum()) >= FEWEST]
    return np.array(enough, dtype=bool).reshape(len(enough), len(first))


def _cells(is_harmful: np.ndarray, refused: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return ``(…, prompt)`` bool of every cell of label and reply, in the order of :data:`.schemas.CELLS`."""
    return is_harmful & refused, is_harmful & ~refused, ~is_harmful & refused, ~is_harmful & ~refused


def weights_within(counts: np.ndarray, first: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return the weights of the difference of two kinds of prompts within strata.

    Args:
        counts: ``(draw, prompt)`` multiplicities.
        first: ``(prompt,)`` or ``(draw, prompt)`` bool, the prompts of the first kind.
        strata: ``(stratum, prompt)`` bool.

    Returns:
        ``(draw, prompt)``, each kind's weights summing to 1 in size; NaN in a draw that has no stratum with both kinds.
    """
    shape = np.broadcast_shapes(counts.shape, first.shape)
    weights, size = np.zeros(shape), np.zeros(shape[0])
    for stratum in strata:
        one, other = counts * (first & stratum), counts * (~first & stratum)
        n_one, n_other = one.sum(axis=1), other.sum(axis=1)
        share = n_one * n_other / np.maximum(n_one + n_other, 1)
        weights += np.nan_to_num(contrast_weights(one, other)) * share[:, None]
        size += share
    with np.errstate(invalid="ignore"):
        within: np.ndarray = weights / size[:, None]
    return within


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The prompts of one run, and their draws; the first draw has every prompt once.

    Attributes:
        contrast: the prompts that are fitted on, all of them redrawn.
        rows: ``(prompt,)`` int, where they are in the run.
        counts: ``(1 + draw, prompt)``.
        replies: of those prompts.
        transfer: the set with quartets, all of it redrawn; None without.
        transfer_counts: ``(1 + draw, quartet)``.
        without_group: ``(group, prompt)`` every prompt once but those of one group.
    """

    contrast: Contrast
    rows: np.ndarray
    counts: np.ndarray
    replies: Replies
    transfer: TransferSet | None
    transfer_counts: np.ndarray
    without_group: np.ndarray

    def directions(self) -> dict[str, Weigh]:
        """Return how the directions are weighed in draws, by name."""
        is_harmful, replies = self.contrast.is_harmful, self.replies
        weigh: dict[str, Weigh] = {HARM: lambda counts: contrast_weights(counts * is_harmful, counts * ~is_harmful)}
        if len(replies.labels):
            weigh[REFUSAL] = lambda counts: weights_within(counts, replies.refused, replies.labels)
        return weigh


def apart_table(
    ends: np.ndarray,
    positions: tuple[int, int],
    prompts: pd.DataFrame,
    refused: np.ndarray,
    seed: int,
    progress: Progress,
    draws: int,
) -> tuple[pd.DataFrame, Replies]:
    """Compare harm and refusal at two read positions and every site.

    Args:
        ends: ``(prompt, 2, site, d_model)`` activations of all prompts.
        positions: what the two are called.
        prompts: a run's prompt table, rows in the same order.
        refused: ``(prompt,)`` bool, read of the fitted prompts alone.
        seed: of folds and draws.
        progress: called once per site.
        draws: of bootstrap and permutations.

    Returns:
        One row per number: ``position, site, subject, measure, number, number_low, number_high, chance_low,
        chance_high, p``; ``subject`` is the direction. Its held-out projections have a mean for every cell of label and
        reply, without an interval where that has fewer than :data:`FEWEST` prompts, and for every cell of quartets, and
        the effects ``asked`` and ``done``, all in standard deviations within a cell of label and reply; ``p`` of
        ``done`` on refusal is the share of permuted replies that reach it. The cosine is that of harm and refusal at a
        position, with the 95 % of permuted replies. And what the model did with how many prompts.
    """
    drawn = _plan(plan_positions(prompts, seed, draws), refused, draws)
    rows: list[dict[str, Any]] = []
    n_sites = ends.shape[2]
    with threadpool_limits(1, user_api="blas"):
        for site in range(n_sites):
            progress(COMPARING, site, n_sites)
            for place, position in enumerate(positions):
                numbers = _at_position(ends[:, place, site].astype(np.float64), drawn)
                rows += [{"position": position, "site": site, **row} for row in numbers]
    progress(COMPARING, n_sites, n_sites)
    return pd.DataFrame(rows, columns=list(COLUMNS)), drawn.replies


def _plan(design: Design, refused: np.ndarray, draws: int) -> _Drawn:
    contrast = design.contrast.sampled
    rows = np.flatnonzero(design.fitted)[design.contrast.sample]
    transfer = next((each for each in design.transfers if len(each.sampled.quartets) >= FEWEST_QUARTETS), None)
    counts = np.ones((1, 0))
    if transfer is not None:
        first_of_quartet = transfer.sampled.quartets[:, 0]
        counts = np.vstack([np.ones(len(first_of_quartet)), transfer.counts[:, first_of_quartet]])
    return _Drawn(
        contrast=contrast,
        rows=rows,
        counts=np.vstack([np.ones(len(rows)), contrast.bootstrap.counts]),
        replies=plan_replies(contrast.is_harmful, refused[rows], draws, design.seed),
        transfer=None if transfer is None else transfer.sampled,
        transfer_counts=counts,
        without_group=(np.unique(contrast.groups)[:, None] != contrast.groups[None, :]).astype(np.float64),
    )


def _at_position(hidden_site: np.ndarray, drawn: _Drawn) -> Iterator[dict[str, Any]]:
    """Yield what each direction follows at a position and site, and their cosine there."""
    contrast, replies, transfer = drawn.contrast, drawn.replies, drawn.transfer
    others = np.empty(0, dtype=int) if transfer is None else transfer.rows
    fitted = np.arange(len(drawn.rows) + len(others)) < len(drawn.rows)
    products = np.asarray(gram_matrices(hidden_site[np.concatenate([drawn.rows, others])], fitted))
    gram, cross = products[np.ix_(fitted, fitted)], products[np.ix_(fitted, ~fitted)]
    cells = _cells(contrast.is_harmful, replies.refused)
    for subject, weigh in drawn.directions().items():
        held_out = _held_out(gram, drawn.counts, weigh, contrast)
        spread = _spread(held_out, drawn.counts, cells)
        for name, cell in zip(CELLS, cells, strict=True):
            of_cell = drawn.counts * cell
            with np.errstate(invalid="ignore"):
                mean = (held_out * of_cell).sum(axis=1) / of_cell.sum(axis=1)
            few = {} if replies.counts[name] >= FEWEST else {"number_low": np.nan, "number_high": np.nan}
            yield _number(subject, name, mean / spread) | few
        asked = (held_out * weights_within(drawn.counts, contrast.is_harmful, replies.behaviours)).sum(axis=1) / spread
        yield _number(subject, ASKED, asked)
        done = _done(held_out, drawn.counts, replies.refused, replies.labels, spread)
        p = _permutation_p(gram, drawn, done[0]) if subject == REFUSAL else np.nan
        yield _number(subject, DONE, done) | {"p": p}
        if transfer is not None:
            projected = project_draws(gram, weigh(drawn.counts), cross)[:, transfer.quartets]
            shares = drawn.transfer_counts / drawn.transfer_counts.sum(axis=1, keepdims=True)
            for place, name in enumerate(QUARTET_CELLS):
                yield _number(subject, name, (shares * projected[:, :, place]).sum(axis=1) / spread)
            if subject == REFUSAL:
                effects = standardised(projected, drawn.transfer_counts)
                yield from (_number(subject, name, effects[name]) for name in ("intent", "cue"))
    yield from _cosines(gram, drawn)


def _held_out(gram: np.ndarray, counts: np.ndarray, weigh: Weigh, contrast: Contrast) -> np.ndarray:
    """Return ``(draw, prompt)`` projections on directions that were fitted without the prompt's fold."""
    fold = contrast.bootstrap.fold
    if not len(fold):
        return np.full(counts.shape, np.nan)
    training = np.stack([weigh(counts * (fold != k)) for k in range(int(fold.max()) + 1)])
    return crossfit_draws(gram, training, fold)


def _done(
    held_out: np.ndarray, counts: np.ndarray, refused: np.ndarray, labels: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Return ``(draw,)`` the difference of refused and other prompts within the labels, in standard deviations."""
    difference: np.ndarray = (held_out * weights_within(counts, refused, labels)).sum(axis=1) / spread
    return difference


def _spread(held_out: np.ndarray, counts: np.ndarray, cells: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the ``(draw,)`` standard deviation within cells."""
    square, size = np.zeros(len(held_out)), np.zeros(len(held_out))
    for cell in cells:
        of_cell = counts * cell
        n_of_cell = of_cell.sum(axis=1)
        mean = (held_out * of_cell).sum(axis=1) / np.maximum(n_of_cell, 1)
        square += (of_cell * (held_out - mean[:, None]) ** 2).sum(axis=1)
        size += n_of_cell
    return np.sqrt(np.where(square > 0, square, np.nan) / size)


def _permutation_p(gram: np.ndarray, drawn: _Drawn, observed: float) -> float:
    """Return the share of permuted replies whose own direction follows them as far, itself counted."""
    contrast, replies = drawn.contrast, drawn.replies
    once = np.ones((1, len(drawn.rows)))
    held_out = _held_out(gram, once, lambda counts: weights_within(counts, replies.permuted, replies.labels), contrast)
    spread = _spread(held_out, once, _cells(contrast.is_harmful, replies.permuted))
    null = _done(held_out, once, replies.permuted, replies.labels, spread)
    return float(permutation_p(np.array([observed]), null[:, None])[0])


def _cosines(gram: np.ndarray, drawn: _Drawn) -> Iterator[dict[str, Any]]:
    """Yield the cosine of harm and refusal from the ``(prompt, prompt)`` inner products of the prompts."""
    replies = drawn.replies
    if not len(replies.labels):
        return
    of = {"harm": (HARM, HARM), "both": (HARM, REFUSAL), "refusal": (REFUSAL, REFUSAL)}
    weigh, once = drawn.directions(), drawn.counts[:1]
    weights = {name: of_draw(drawn.counts) for name, of_draw in weigh.items()}
    without_group = {name: of_draw(drawn.without_group) for name, of_draw in weigh.items()}
    noise = {name: _noise(gram, weights[one][0], weights[other][0], drawn) for name, (one, other) in of.items()}
    raw, left = (
        {name: ((given[one] @ gram) * given[other]).sum(axis=1) for name, (one, other) in of.items()}
        for given in (weights, without_group)
    )
    permuted = weights_within(once, replies.permuted, replies.labels)
    permuted_products = {
        "harm": raw["harm"][:1],
        "both": ((weights[HARM][:1] @ gram) * permuted).sum(axis=1),
        "refusal": ((permuted @ gram) * permuted).sum(axis=1),
    }
    low, high = quantiles(_ratio(permuted_products), (0.025, 0.975))
    yield _number(BOTH_DIRECTIONS, COSINE, _ratio(raw).clip(-1, 1)) | {"chance_low": low, "chance_high": high}
    corrected = float(_ratio({name: raw[name][:1] - noise[name] for name in raw})[0])
    error = _jackknife_error(_ratio({name: left[name] - noise[name] for name in left}))
    yield {
        "subject": BOTH_DIRECTIONS,
        "measure": CORRECTED,
        "number": corrected,
        "number_low": corrected - NORMAL * error,
        "number_high": corrected + NORMAL * error,
    }


def _jackknife_error(without_group: np.ndarray) -> float:
    """Return the standard error of a number from ``(group,)`` the same without each group (Efron & Stein 1981).

    A bootstrap would not do for what noise was taken off: its draws have noise of their own.
    """
    n_groups = len(without_group)
    return float(np.sqrt((n_groups - 1) ** 2 / n_groups * without_group.var(ddof=1)))


def _ratio(products: dict[str, np.ndarray]) -> np.ndarray:
    """Return ``(draw,)`` cosines; NaN where nothing is left of a direction's length."""
    exist = (products["harm"] > 0) & (products["refusal"] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(exist, products["both"] / np.sqrt(products["harm"] * products["refusal"]), np.nan)


def _noise(gram: np.ndarray, one: np.ndarray, other: np.ndarray, drawn: _Drawn) -> float:
    """Return what chance adds to the inner product of two weighted sums of the prompts, see the module.

    Args:
        gram: ``(prompt, prompt)`` inner products.
        one: ``(prompt,)`` weights.
        other: ``(prompt,)`` weights.
        drawn: the prompts, their cells and what is redrawn as one.
    """
    contrast = drawn.contrast
    residual = np.eye(len(one))
    for cell in _cells(contrast.is_harmful, drawn.replies.refused):
        size = int(cell.sum())
        residual[np.ix_(cell, cell)] -= 1 / max(size, 1)
        residual[cell] *= np.sqrt(size / max(size - 1, 1))
    together = contrast.groups[:, None] == contrast.groups[None, :]
    return float(one @ (residual @ gram @ residual.T * together) @ other)


def _number(subject: str, measure: str, drawn: np.ndarray) -> dict[str, Any]:
    """Return a number with its interval; the first of the draws is the number itself."""
    low, high = interval(drawn[1:], drawn[0])
    ends = {"number": float(drawn[0]), "number_low": float(low), "number_high": float(high)}
    return {"subject": subject, "measure": measure, **ends}
