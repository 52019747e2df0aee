"""Measures how many directions the categories of a run need, which share one, and what other estimators find."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from refusal_core.analysis import groups, subspace
from refusal_core.analysis.gram import gram_matrix
from refusal_core.analysis.groups import assign_folds, sample_groups
from refusal_core.evidence.estimators import estimator_numbers, plan_estimators
from refusal_core.options import FOLDS
from refusal_core.pipeline.refit import extract_again
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import SubspaceManifest
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import COSINE, LEFT_OVER
from refusal_core.runs.store import unfinished_work, writable_cache

TESTING = "testing (sites)"
DRAWS = 999
COLUMNS = (
    *("site", "measure", "removed", "subject", "other"),
    *("number", "number_low", "number_high", "chance_low", "chance_high", "p"),
)


def record(
    run: Run,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Count and compare a run's directions at every site, of categories and estimators, and store them beside the run.

    It is done from the run's stored activations, or else the run's model reads the prompts again.

    Args:
        run: the run.
        model: where the run's model is, when it came from a folder or a GGUF file; not needed with stored activations.
        device: where the model is opened.
        progress: called for loading, extracting and testing.
        draws: of permutations, bootstrap and exchanged categories.

    Returns:
        One row per number: ``site, measure, removed, subject, other, number, number_low, number_high, chance_low,
        chance_high, p``. The rows of ``left_over`` have the held-out AUROC after ``removed`` directions were projected
        out, where 95 % of permuted labels lie, and the share of them that reach it. Those of ``cosine`` have the cosine
        of two categories' directions (``subject`` and ``other``) with its interval, where it lies if they have one
        direction, and the chance of so low a one, corrected for the number of pairs at the site (Holm); there are none
        of either where no two categories have enough prompts of both labels. The others are of an estimator
        (``subject``), see :func:`.evidence.estimators.estimator_numbers`.

    Raises:
        RefusalError: when activations were not stored and the model cannot be had, or the result cannot be stored.
    """
    # Not after minutes of work.
    run.check_own_position(SubspaceManifest.kind)
    writable_cache(run.path.parent)
    began = time.monotonic()
    stored = run.load_activations()
    under_way = unfinished_work(run.path / f".{SubspaceManifest.kind}", f"measuring the subspace of {run.run_id}")
    with under_way as folder:
        hidden = stored
        if hidden is None:
            hidden, _, _ = extract_again(run, run.prompts, model, device, folder, progress)
        table, drawn = measure(hidden, run.prompts, run.manifest.compute.seed, draws, progress)
        manifest = SubspaceManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            activations="extracted again" if stored is None else "stored",
            seed=run.manifest.compute.seed,
            draws=draws,
            categories=() if drawn is None else drawn.names,
            reason=None if drawn is not None else _too_few(),
            versions={name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
            timings={"seconds": round(time.monotonic() - began, 3)},
        )
        save_addition(run, table, manifest)
    return table


def measure(
    hidden: np.ndarray, prompts: pd.DataFrame, seed: int, draws: int = DRAWS, progress: Progress = no_progress
) -> tuple[pd.DataFrame, subspace.CategoryDraws | None]:
    """Return the table of :func:`record`, and the categories that it is of, None where there are none.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: a run's prompt table, rows in the same order.
        seed: of folds and draws.
        draws: of permutations, bootstrap and exchanged categories.
        progress: called once per site.
    """
    positions, drawn = _draw(prompts, seed, draws)
    design = plan_estimators(prompts, FOLDS, draws, seed)
    rows: list[dict[str, Any]] = []
    n_sites = hidden.shape[1]
    chosen = np.zeros(len(prompts), dtype=bool)
    chosen[positions] = True
    # The matrices are too small to be worth sharing out.
    with threadpool_limits(1, user_api="blas"):
        for site in range(n_sites):
            progress(TESTING, site, n_sites)
            numbers = [*estimator_numbers(hidden[:, site], design)]
            if drawn is not None:
                gram = np.asarray(gram_matrix(hidden[:, site], chosen))
                numbers += [*_left_over(gram, drawn), *_cosines(gram, drawn)]
            rows += [{"site": site, **row} for row in numbers]
    progress(TESTING, n_sites, n_sites)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"removed": "Int64"})
    for name in ("subject", "other"):
        # A column of texts that are all missing would be stored as one of numbers.
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    return table, drawn


def _left_over(gram: np.ndarray, drawn: subspace.CategoryDraws) -> Iterator[dict[str, Any]]:
    left = subspace.left_over(gram, drawn)
    for removed, number in enumerate(left.auroc):
        low, high = left.chance[:, removed]
        yield {
            "measure": LEFT_OVER,
            "removed": removed,
            "number": number,
            "chance_low": low,
            "chance_high": high,
            "p": left.p[removed],
        }


def _cosines(gram: np.ndarray, drawn: subspace.CategoryDraws) -> Iterator[dict[str, Any]]:
    alike = subspace.likeness(gram, drawn)
    corrected = subspace.holm(np.array([pair.p_one for pair in alike.values()]))
    for ((first, second), pair), p in zip(alike.items(), corrected, strict=True):
        yield {
            "measure": COSINE,
            "subject": drawn.names[first],
            "other": drawn.names[second],
            "number": pair.cosine,
            "number_low": pair.low,
            "number_high": pair.high,
            "chance_low": pair.one_low,
            "chance_high": pair.one_high,
            "p": p,
        }


def _draw(prompts: pd.DataFrame, seed: int, draws: int) -> tuple[np.ndarray, subspace.CategoryDraws | None]:
    """Return positions of the prompts whose categories have enough of both labels, and the draws of them."""
    fitted = np.flatnonzero(prompts["fitted"].to_numpy(bool))
    table = prompts.iloc[fitted]
    sample = sample_groups(
        table["label"].eq("harmful").to_numpy(), prompt_groups(table), groups.MOST_REDRAWN, np.random.default_rng(seed)
    )
    positions = fitted[sample]
    table = prompts.iloc[positions]
    counts = pd.crosstab(table["category"], table["label"]).reindex(columns=["harmful", "harmless"], fill_value=0)
    enough = counts[counts.min(axis=1) >= subspace.FEWEST_OF_CATEGORY].sum(axis=1)
    names = tuple(sorted(enough.nlargest(subspace.MOST_CATEGORIES).index))
    inside = table["category"].isin(names).to_numpy()
    if len(names) < 2:
        return positions[:0], None
    positions, table = positions[inside], table[inside]
    is_harmful, prompt_group = table["label"].eq("harmful").to_numpy(), prompt_groups(table)
    fold = assign_folds(is_harmful, prompt_group, FOLDS, 1, np.random.default_rng(seed))[0]
    category = np.array([names.index(name) for name in table["category"]])
    return positions, subspace.draw_categories(
        names, category, is_harmful, prompt_group, prompt_pairs(table), fold, draws, seed
    )


def _too_few() -> str:
    return (
        f"it takes two categories of the contrast set with at least {subspace.FEWEST_OF_CATEGORY} harmful and "
        f"{subspace.FEWEST_OF_CATEGORY} harmless prompts"
    )
