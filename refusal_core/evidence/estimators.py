"""The estimators of the direction, each held to the same evidence: held-out prompts, quartets, halves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from refusal_core.analysis import groups
from refusal_core.analysis.estimators import MEAN_DIFFERENCE, Estimated, compare_estimators
from refusal_core.analysis.groups import assign_folds, bootstrap_counts, redraw_prompts, sample_groups
from refusal_core.analysis.inference import interval
from refusal_core.analysis.weighted_statistics import auroc_of_ranks, weighted_d, weighted_ranks
from refusal_core.evidence.quartets import FEWEST_QUARTETS, standardised
from refusal_core.prompts.sets import find_quartets, prompt_groups, prompt_pairs


@dataclass(frozen=True, eq=False)
class EstimatorDesign:
    """What the comparison of estimators has in common at all sites.

    Attributes:
        fitted: ``(prompt,)`` int, positions of the prompts that are fitted on.
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is never split.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        fold: ``(1, prompt)`` int; without rows where there are too few prompts.
        counts: ``(1 + draw, prompt)`` multiplicities, every prompt once in the first row.
        cells: ``(quartet, 4)`` int, positions of the prompts of quartets; without rows where there are too few.
        cell_counts: ``(1 + draw, quartet)`` multiplicities, every quartet once in the first row.
        seed: of the halvings.
    """

    fitted: np.ndarray
    is_harmful: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    fold: np.ndarray
    counts: np.ndarray
    cells: np.ndarray
    cell_counts: np.ndarray
    seed: int


def plan_estimators(prompts: pd.DataFrame, folds: int, draws: int, seed: int) -> EstimatorDesign:
    """Deal folds and make the draws.

    Args:
        prompts: a run's prompt table.
        folds: of the cross-fitting.
        draws: of the bootstrap.
        seed: of folds and draws.
    """
    rng = np.random.default_rng([seed, 3])
    fitted = np.flatnonzero(prompts["fitted"].to_numpy(bool))
    table = prompts.iloc[fitted]
    is_harmful, prompt_group = table["label"].eq("harmful").to_numpy(), prompt_groups(table)
    sample = sample_groups(is_harmful, prompt_group, groups.MOST_REDRAWN, rng)
    fitted, is_harmful, prompt_group = fitted[sample], is_harmful[sample], prompt_group[sample]
    pairs = prompt_pairs(table)[sample]
    counts = np.vstack([np.ones(len(fitted)), bootstrap_counts(is_harmful, prompt_group, draws, rng)])
    cells = _quartets(prompts)
    cell_counts = np.ones((1, 0))
    if len(cells):
        cell_counts = np.vstack([np.ones(len(cells)), redraw_prompts(len(cells), draws, rng)])
    fold = assign_folds(is_harmful, prompt_group, folds, 1, np.random.default_rng(seed))
    return EstimatorDesign(fitted, is_harmful, prompt_group, pairs, fold, counts, cells, cell_counts, seed)


def estimator_numbers(hidden_site: np.ndarray, design: EstimatorDesign) -> Iterator[dict[str, Any]]:
    """Yield the numbers of every estimator at a site: ``measure, subject, number`` and its interval where it has one.

    Intervals are of redrawn prompts, whole pairs, and of redrawn quartets, each direction as it is; the gain in AUROC
    over the difference of means is of the same redrawn prompts.

    Args:
        hidden_site: ``(prompt, d_model)`` activations of all prompts of the run.
        design: what is fitted and drawn.
    """
    if not len(design.fold):
        return
    compared = compare_estimators(
        hidden_site[design.fitted],
        hidden_site[design.cells.ravel()],
        design.is_harmful,
        design.groups,
        design.pairs,
        design.fold[0],
        design.seed,
    )
    areas = {name: _auroc(estimated, design) for name, estimated in compared.items()}
    for name, estimated in compared.items():
        harmful, harmless = design.counts * design.is_harmful, design.counts * ~design.is_harmful
        d = weighted_d(np.broadcast_to(estimated.held_out, harmful.shape), harmful, harmless)
        drawn = {"crossfit_d": d, "crossfit_auroc": areas[name], "auroc_gain": areas[name] - areas[MEAN_DIFFERENCE]}
        if len(design.cells):
            cells = np.broadcast_to(
                estimated.transferred.reshape(design.cells.shape), (*design.cell_counts.shape, design.cells.shape[1])
            )
            effects = standardised(cells, design.cell_counts)
            drawn |= {"intent": effects["intent"], "cue": effects["cue"]}
            drawn["intent_lead"] = effects["intent"] - np.abs(effects["cue"])
        for measure, numbers in drawn.items():
            low, high = interval(numbers[1:], numbers[0])
            yield {
                "measure": measure,
                "subject": name,
                "number": numbers[0],
                "number_low": float(low),
                "number_high": float(high),
            }
        yield {"measure": "stability", "subject": name, "number": estimated.stability}
        yield {"measure": "mean_difference_cosine", "subject": name, "number": estimated.cosine}


def _auroc(estimated: Estimated, design: EstimatorDesign) -> np.ndarray:
    """Return ``(1 + draw,)`` AUROC of the held-out projections."""
    ranks = weighted_ranks(estimated.held_out, design.counts)
    area: np.ndarray = auroc_of_ranks(ranks, design.counts * design.is_harmful, design.counts * ~design.is_harmful)
    return area


def _quartets(prompts: pd.DataFrame) -> np.ndarray:
    """Return ``(quartet, 4)`` positions of the first transfer set that has enough quartets."""
    scored = prompts[~prompts["fitted"].to_numpy(bool)]
    for source in scored["source"].unique():
        rows = np.flatnonzero((~prompts["fitted"] & prompts["source"].eq(source)).to_numpy(bool))
        quartets = find_quartets(prompts.iloc[rows])
        if len(quartets) >= FEWEST_QUARTETS:
            positions: np.ndarray = rows[quartets]
            return positions
    return np.empty((0, 4), dtype=int)
