"""Is it real? Everything that tells a direction about harm from chance, style and length, at every site of a run.

Eight questions, each with its own tables; nothing here needs the model. All refitting goes through Gram matrices, and
the same bootstrap draws and permutations serve every site.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from refusal_core.analysis import groups
from refusal_core.analysis.baselines import text_baselines
from refusal_core.analysis.crossfit import TOO_FEW_GROUPS
from refusal_core.analysis.directions import Directions
from refusal_core.analysis.gram import BLOCK, EXPLICIT
from refusal_core.analysis.inference import corrected_p, onset, onset_interval, permutation_p
from refusal_core.evidence import questions
from refusal_core.evidence.design import CONTRAST, Design, plan_design
from refusal_core.evidence.questions import BOTH
from refusal_core.evidence.rows import Rows
from refusal_core.evidence.site_answers import answer_site
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import detected_pairs
from refusal_core.runs.evidence_tables import Evidence

__all__ = ["BOTH", "CONTRAST", "Evidence", "evaluate"]

TESTING = "testing (sites)"
MOST_WORKERS = 8
MOST_MEMORY = 300e6
"""Bytes that the sites which are under way may take together."""


def evaluate(
    hidden: np.ndarray,
    prompts: pd.DataFrame,
    directions: Directions,
    *,
    seed: int = 0,
    folds: int = 10,
    repeats: int = 5,
    permutations: int = 1000,
    draws: int = 1000,
    random_directions: int = 1000,
    learning_draws: int = 20,
    progress: Progress = no_progress,
) -> tuple[Evidence, np.ndarray]:
    """Compute the evidence of a run, and the cross-fitted projections that it rests on.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: one row per prompt in the same order: ``prompt_id, text, label, pair_id, source, fitted, n_tokens,
            refusal_log_odds``.
        directions: fitted on the fitted prompts.
        seed: of everything random here; the same seed gives the same numbers on any number of cores.
        folds: of the cross-fitting.
        repeats: how often the folds are dealt anew.
        permutations: of the labels.
        draws: of the bootstrap.
        random_directions: how many of a kind.
        learning_draws: training samples of every size.
        progress: called once per site.

    Returns:
        The evidence, and ``(fitted prompt, site)`` float64 cross-fitted projections, 0 at the training folds' midpoint.

    Raises:
        ValueError: when the fitted prompts have one label only, or the shapes disagree.
    """
    n_prompts, n_sites, d_model = hidden.shape
    if n_prompts != len(prompts) or directions.n_sites != n_sites:
        raise ValueError(
            f"expected activations of {len(prompts)} prompts at {directions.n_sites} sites, "
            f"got {n_prompts} at {n_sites}"
        )
    design = plan_design(
        prompts,
        seed=seed,
        folds=folds,
        repeats=repeats,
        permutations=permutations,
        draws=draws,
        random_directions=random_directions,
        learning_draws=learning_draws,
    )
    workers = _workers(n_prompts, n_sites, d_model, len(design.contrast.sampled.is_harmful) * draws)
    collected = _answer_all(hidden, design, workers, progress)
    settings = {"permutations": permutations, "draws": draws, "d_model": d_model}
    return _evidence(collected, design, directions, settings), np.stack(collected.held_out, axis=1)


def _answer_all(hidden: np.ndarray, design: Design, workers: int, progress: Progress) -> Rows:
    """Ask every site all questions, several sites side by side, and then the texts theirs."""
    n_sites = hidden.shape[1]
    collected = Rows()
    if not design.transfers:
        reason = "the run has no transfer set"
        collected.explain("transfer", dict.fromkeys(("d", "auroc", "pair_accuracy"), reason), None)
    if not design.samples:
        collected.explain("learning", dict.fromkeys(("d", "cosine"), TOO_FEW_GROUPS), None)
    # One site per core: the matrices are too small to be worth sharing out, and BLAS threads that wait for each other
    # on a busy machine took three times as long as none.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        progress(TESTING, 0, n_sites)
        answered = pool.map(lambda site: answer_site(site, hidden[:, site], design), range(n_sites))
        for done, answers in enumerate(answered, start=1):
            collected.extend(answers)
            progress(TESTING, done, n_sites)
        _add_baselines(design, collected)
    return collected


def _evidence(collected: Rows, design: Design, directions: Directions, settings: Mapping[str, int]) -> Evidence:
    """Make the tables, and answer what is asked of all sites together."""
    null = np.stack(collected.draws.pop(("null", CONTRAST)), axis=1)
    observed = np.array(collected.draws.pop(("observed", CONTRAST)))
    sites = collected.table("sites")
    sites["permutation_p"] = permutation_p(observed, null)
    sites["permutation_p_corrected"] = corrected_p(observed, null)
    transfer = collected.table("transfer", ("site", "source", "d", "d_low", "d_high", "auroc", "pair_accuracy"))
    return Evidence(
        sites=sites,
        transfer=transfer,
        onset=_onsets(sites, transfer, collected.draws),
        random_directions=collected.table("random_directions"),
        permutations=_null_quantiles(null),
        learning=collected.table(
            "learning", ("site", "size", "d", "d_low", "d_high", "cosine", "cosine_low", "cosine_high")
        ),
        baselines=collected.table("baselines"),
        refusal=collected.table("refusal"),
        geometry=collected.table("geometry"),
        cosines=_site_cosines(directions),
        components=pd.concat(collected.components, ignore_index=True),
        reasons=collected.table("reasons", ("table", "number", "source", "site", "reason")).astype(
            {"table": str, "number": str, "source": str, "site": "Int64", "reason": str}
        ),
        settings=_settings(design, **settings),
    )


def _settings(design: Design, permutations: int, draws: int, d_model: int) -> pd.DataFrame:
    contrast = design.contrast
    fold = contrast.bootstrap.fold
    settings = {
        "seed": design.seed,
        "folds": int(fold.max()) + 1 if len(fold) else 0,
        "repeats": contrast.repeats,
        "permutations": permutations,
        "draws": draws,
        "n_harmful": int(contrast.is_harmful.sum()),
        "n_harmless": int((~contrast.is_harmful).sum()),
        "n_pairs": len(contrast.twins),
        "n_detected_pairs": len(detected_pairs(design.prompts[design.fitted])),
        "most_redrawn": groups.MOST_REDRAWN,
        "d_model": d_model,
    }
    return pd.DataFrame([settings])


def _workers(n_prompts: int, n_sites: int, d_model: int, drawn: int) -> int:
    """Return how many sites to have under way; ``drawn`` is draws times the prompts that they are of."""
    side = n_prompts if n_prompts <= EXPLICIT else d_model
    # Projections of all draws and what ranks them, a few blocks of activations, a square matrix and its eigenvectors.
    numbers = 10 * drawn + 4 * min(n_prompts, BLOCK) * d_model + 2 * side**2
    most = int(MOST_MEMORY // (numbers * np.dtype(np.float64).itemsize))
    return max(1, min(os.cpu_count() or 1, MOST_WORKERS, n_sites, most))


def _add_baselines(design: Design, collected: Rows) -> None:
    contrast = design.contrast
    baselines = text_baselines(
        design.prompts,
        design.fitted,
        contrast.is_harmful,
        contrast.groups,
        contrast.folds,
        contrast.repeats,
        contrast.seed,
    )
    sources = [
        (CONTRAST, np.flatnonzero(design.fitted), contrast.is_harmful, contrast.bootstrap.counts, contrast.sample)
    ]
    for transfer in design.transfers:
        sources.append((transfer.source, transfer.rows, transfer.is_harmful, transfer.counts, transfer.sample))
    for baseline in baselines:
        for source, rows, is_harmful, counts, sample in sources:
            score = baseline.score[rows]
            point = (baseline.d, baseline.auroc) if source == CONTRAST else None
            numbers, reason = questions.baseline_numbers(score, is_harmful, counts, point, sample)
            collected.add("baselines", baseline=baseline.name, source=source, **numbers)
            if reason is not None:
                own = source == CONTRAST or not np.isfinite(score).all()
                collected.explain("baselines", {baseline.name: (own and baseline.reason) or reason}, None, source)


def _null_quantiles(null: np.ndarray) -> pd.DataFrame:
    shares = np.linspace(0, 1, 101)
    return pd.concat(
        [
            pd.DataFrame({"site": np.int16(site), "quantile": shares, "d": questions.quantiles(values, tuple(shares))})
            for site, values in enumerate(null.T)
        ],
        ignore_index=True,
    )


def _onsets(
    sites: pd.DataFrame, transfer: pd.DataFrame, draws: Mapping[tuple[str, str], list[np.ndarray]]
) -> pd.DataFrame:
    rows = []
    for (measure, source), per_site in draws.items():
        table = sites if source == CONTRAST else transfer[transfer["source"].eq(source)]
        point, lower = table[measure].to_numpy(), table[f"{measure}_low"].to_numpy()
        low, high = onset_interval(np.stack(per_site, axis=1), point, lower)
        rows.append((measure, source, onset(lower), low, high))
    without_crossings = np.flatnonzero(sites["mean_crossings"].to_numpy() == 0)
    published = int(without_crossings[0]) if len(without_crossings) else None
    rows.append(("mean_crossings", CONTRAST, published, None, None))
    table = pd.DataFrame(rows, columns=["measure", "source", "site", "site_low", "site_high"])
    return table.astype(dict.fromkeys(("site", "site_low", "site_high"), "Int64"))


def _site_cosines(directions: Directions) -> pd.DataFrame:
    unit = directions.unit_direction.astype(np.float64)
    exists = unit.any(axis=1)
    cosine = np.where(np.outer(exists, exists), unit @ unit.T, np.nan)
    site, other = np.indices(cosine.shape).astype(np.int16)
    return pd.DataFrame({"site": site.ravel(), "other": other.ravel(), "cosine": cosine.ravel()})
