"""Activations and labels to directions, projections and evidence, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.baselines import Baseline
from refusal_core.analysis.directions import Directions, estimated_directions, fit_directions
from refusal_core.analysis.effect_sizes import layer_statistics
from refusal_core.analysis.refitting import REFITTED, estimate_unit_directions
from refusal_core.evidence.claims import probe_source
from refusal_core.evidence.evaluation import evaluate
from refusal_core.options import DEFAULT_ESTIMATOR, FOLDS, REPEATS
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run_files import RunTables

DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that follows from activations and labels, without the model.

    Attributes:
        directions: the direction at every site.
        projections: ``(prompt, site)`` float64 of every prompt on the directions, in activation units.
        projections_crossfit: ``(prompt, site)`` float64, 0 at the training folds' midpoint; NaN for transfer prompts.
        layer_stats: one row per site.
        evidence: the answers to the questions, with their intervals.
    """

    directions: Directions
    projections: np.ndarray
    projections_crossfit: np.ndarray
    layer_stats: pd.DataFrame
    evidence: Evidence

    def tables(self, prompts: pd.DataFrame) -> RunTables:
        """Return the tables of a run of these prompts."""
        return RunTables(prompts, self.projections, self.projections_crossfit, self.layer_stats, self.directions)


def analyse(
    hidden: np.ndarray,
    prompts: pd.DataFrame,
    *,
    seed: int = 0,
    embeddings: np.ndarray | None = None,
    baselines: Sequence[Baseline] | None = None,
    imported: Directions | None = None,
    estimator: str = DEFAULT_ESTIMATOR,
    draws: int = DRAWS,
    progress: Progress = no_progress,
) -> Analysis:
    """Fit directions on the fitted prompts and test them, or test imported ones on those prompts.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: a run's prompt table, rows in the same order.
        seed: of the folds and of everything random in the evidence.
        embeddings: ``(prompt, width)`` of :func:`.mean_input_embeddings`, where the model is at hand.
        baselines: the text models' scores, where they are known; see :func:`.evaluate`.
        imported: directions that came from elsewhere; None to fit them.
        estimator: that directions are fitted by, a key of :data:`refusal_core.options.ESTIMATORS`.
        draws: of the bootstrap.
        progress: called once per site.
    """
    fitted = prompts["fitted"].to_numpy()
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    if estimator in REFITTED:
        groups, pairs = prompt_groups(prompts), prompt_pairs(prompts)
        unit = estimate_unit_directions(estimator, hidden, is_harmful, groups, pairs, fitted)
        directions = estimated_directions(estimator, unit, hidden, is_harmful, fitted)
    else:
        directions = imported or fit_directions(hidden, is_harmful, fitted)
    projections = directions.project(hidden)
    evidence, held_out = evaluate(
        hidden,
        prompts,
        directions,
        seed=seed,
        folds=FOLDS,
        repeats=REPEATS,
        draws=draws,
        embeddings=embeddings,
        baselines=baselines,
        imported=imported is not None,
        estimator=estimator,
        progress=progress,
    )
    projections_crossfit = np.full_like(projections, np.nan)
    projections_crossfit[fitted] = held_out
    probes = evidence.transfer[evidence.transfer["source"].eq(probe_source(evidence))].set_index("site")
    layer_stats = layer_statistics(projections[fitted], is_harmful[fitted], directions.magnitude)
    layer_stats["crossfit_d"] = evidence.sites["crossfit_d"]
    layer_stats["crossfit_auroc"] = evidence.sites["crossfit_auroc"]
    layer_stats["probe_d"] = probes["d"].reindex(layer_stats["site"]).to_numpy(float)
    layer_stats["probe_auroc"] = probes["auroc"].reindex(layer_stats["site"]).to_numpy(float)
    return Analysis(directions, projections, projections_crossfit, layer_stats, evidence)
