"""Is it real? Everything that tells a direction about harm from chance, style and length, at every site of a run.

Eight questions, each with its own tables; nothing here needs the model. Differences of means are refitted through Gram
matrices, other estimators one by one (:mod:`refusal_core.analysis.refitting`). The same bootstrap draws and
permutations serve every site.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from refusal_core.analysis import groups
from refusal_core.analysis.baselines import Baseline
from refusal_core.analysis.crossfit import TOO_FEW_GROUPS
from refusal_core.analysis.directions import Directions
from refusal_core.analysis.gram import BLOCK, EXPLICIT
from refusal_core.analysis.inference import (
    LEVEL,
    corrected_p,
    corrected_p_either_way,
    detectable_from,
    detectable_interval,
    permutation_p,
    smallest_significant,
)
from refusal_core.analysis.refitting import REFITTED, Refitted
from refusal_core.evidence import questions
from refusal_core.evidence.claims import FALSE_ALARMS
from refusal_core.evidence.design import Design, plan_design
from refusal_core.evidence.estimated_direction import TOO_MANY_FITS
from refusal_core.evidence.fixed_direction import NOT_FITTED
from refusal_core.evidence.rows import Rows
from refusal_core.evidence.site_answers import answer_site
from refusal_core.evidence.text_answers import answer_texts, score_texts, strongest_text_model, text_separations
from refusal_core.evidence.wording import Compared, compared_prompts, wording_table
from refusal_core.options import DEFAULT_ESTIMATOR
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import detected_pairs
from refusal_core.runs.evidence_tables import CONTRAST, QUARTETS_COLUMNS, TRANSFER_COLUMNS, Evidence

TESTING = "testing (sites)"
POWER = 0.8
"""Chance with which an effect that is called detectable would have been detected."""
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
    embeddings: np.ndarray | None = None,
    baselines: Sequence[Baseline] | None = None,
    imported: bool = False,
    estimator: str = DEFAULT_ESTIMATOR,
    progress: Progress = no_progress,
) -> tuple[Evidence, np.ndarray]:
    """Compute the evidence of a run, and the cross-fitted projections that it rests on.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: one row per prompt in the same order: ``prompt_id, text, label, pair_id, source, fitted, n_tokens,
            refusal_log_odds``.
        directions: fitted on the fitted prompts, or imported.
        seed: of everything random here; the same seed gives the same numbers on any number of cores.
        folds: of the cross-fitting.
        repeats: how often the folds are dealt anew.
        permutations: of the labels.
        draws: of the bootstrap.
        random_directions: how many of a kind.
        learning_draws: training samples of every size.
        embeddings: ``(prompt, width)`` mean of the model's input embeddings over each prompt's own tokens, for one more
            text model to exceed.
        baselines: the text models' scores, where they are known of the same prompts, folds and seed; see
            :func:`.text_answers.score_texts`.
        imported: whether the directions came from elsewhere: they are tested as they are, and nothing is held out.
            Sites without one have zeros.
        estimator: that the directions were fitted by; others than the difference of means are fitted anew less often,
            see :class:`.Refitted`.
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
    refitted = REFITTED.get(estimator)
    if refitted is not None:
        draws, repeats = min(draws, refitted.draws), min(repeats, refitted.repeats)
        learning_draws = min(learning_draws, refitted.learning_draws)
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
    workers = parallel_sites(n_prompts, n_sites, d_model, len(design.contrast.sampled.is_harmful) * draws)
    compared = compared_prompts(design)
    fixed = None
    if refitted is not None:
        # Of the other sets' labels the direction is not fitted on, there are as many as ever.
        permutations = min(permutations, refitted.permutations)
        contrast = design.contrast
        few = replace(contrast, permutations=contrast.permutations.first(permutations))
        design = replace(design, contrast=few)
    if imported:
        design = replace(design, samples=[])
        fixed = np.where(directions.unit_direction.any(axis=-1), directions.project(hidden), np.nan)
    collected, baselines = _answer_all(
        hidden,
        design,
        compared,
        lambda: score_texts(design, embeddings) if baselines is None else baselines,
        workers,
        progress,
        fixed,
        refitted,
    )
    compared_with_text = wording_table(
        compared,
        collected.separations,
        text_separations(design, compared, baselines),
        strongest_text_model(baselines, design.contrast.is_harmful),
    )
    settings: dict[str, int | str] = {"permutations": permutations, "draws": draws, "d_model": d_model}
    if imported:
        settings["imported"] = 1
    if refitted is not None:
        settings["estimator"] = estimator
    return _evidence(collected, compared_with_text, design, directions, settings), np.stack(collected.held_out, axis=1)


def _answer_all(
    hidden: np.ndarray,
    design: Design,
    compared: Sequence[Compared],
    text_scores: Callable[[], Sequence[Baseline]],
    workers: int,
    progress: Progress,
    fixed: np.ndarray | None,
    refitted: Refitted | None,
) -> tuple[Rows, Sequence[Baseline]]:
    """Ask every site all questions, several sites side by side, and the texts theirs.

    ``fixed`` are ``(prompt, site)`` projections on a direction that was imported, ``refitted`` the estimator where that
    is not the difference of means.
    """
    n_sites = hidden.shape[1]
    collected = Rows()
    if not design.transfers:
        reason = "the run has no transfer set"
        collected.explain("transfer", dict.fromkeys(("d", "auroc", "pair_accuracy"), reason), None)
    if not design.samples:
        reason = TOO_FEW_GROUPS if fixed is None else NOT_FITTED
        if refitted is not None and not refitted.learning_draws:
            reason = TOO_MANY_FITS
        collected.explain("learning", dict.fromkeys(("d", "cosine"), reason), None)
    # One site per core: the matrices are too small to be worth sharing out, and BLAS threads that wait for each other
    # on a busy machine took three times as long as none.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        progress(TESTING, 0, n_sites)
        scored = pool.submit(text_scores)
        answered = pool.map(
            lambda site: answer_site(
                site, hidden[:, site], design, compared, None if fixed is None else fixed[:, site], refitted
            ),
            range(n_sites),
        )
        for done, answers in enumerate(answered, start=1):
            collected.extend(answers)
            progress(TESTING, done, n_sites)
        baselines = scored.result()
        collected.extend(answer_texts(design, compared, baselines))
    return collected, baselines


def _evidence(
    collected: Rows,
    compared_with_text: pd.DataFrame,
    design: Design,
    directions: Directions,
    settings: Mapping[str, Any],
) -> Evidence:
    """Make the tables, and answer what is asked of all sites together."""
    observed, null = _permutations(CONTRAST, collected)
    sites = collected.table("sites")
    sites["permutation_p"] = permutation_p(observed, null)
    sites["permutation_p_corrected"] = corrected_p(observed, null)
    transfer = collected.table("transfer", TRANSFER_COLUMNS)
    by_source = {each.source: _permutations(each.source, collected) for each in design.transfers}
    transfer = _with_permutations(transfer, by_source)
    quartets = collected.table("quartets", QUARTETS_COLUMNS).assign(cue_p_corrected=np.nan)
    for source in quartets["source"].unique():
        rows = quartets["source"].eq(source)
        quartets.loc[rows, "cue_p_corrected"] = corrected_p_either_way(*_permutations(source, collected, " cue"))
    return Evidence(
        sites=sites,
        transfer=transfer,
        quartets=quartets,
        wording=compared_with_text,
        detectable_from=_first_sites(sites, transfer, collected.draws),
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


def _permutations(source: str, collected: Rows, of: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return ``(site,)`` a number of a set, d unless another is named, and ``(draw, site)`` of permuted labels."""
    observed, null = (collected.draws.pop((f"{name}{of}", source)) for name in ("observed", "null"))
    return np.array(observed), np.stack(null, axis=1)


def _with_permutations(transfer: pd.DataFrame, by_source: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Return the transfer table with corrected p-values and the d that would have been seen four times in five."""
    table = transfer.assign(permutation_p_corrected=np.nan, d_detectable=np.nan)
    for source, (observed, null) in by_source.items():
        rows = table["source"].eq(source)
        table.loc[rows, "permutation_p_corrected"] = corrected_p_either_way(observed, null)
        standard_error = (table.loc[rows, "d_high"] - table.loc[rows, "d_low"]) / (2 * norm.ppf((1 + LEVEL) / 2))
        needed = smallest_significant(observed, null, FALSE_ALARMS)
        table.loc[rows, "d_detectable"] = needed + norm.ppf(POWER) * standard_error
    return table


def _settings(design: Design, permutations: int, draws: int, d_model: int, **origin: Any) -> pd.DataFrame:
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
    } | origin
    return pd.DataFrame([settings])


def parallel_sites(n_prompts: int, n_sites: int, d_model: int, drawn: int) -> int:
    """Return how many sites to have under way; ``drawn`` is draws times the prompts that they are of."""
    side = n_prompts if n_prompts <= EXPLICIT else d_model
    # Projections of all draws and what ranks them, a few blocks of activations, a square matrix and its eigenvectors.
    numbers = 10 * drawn + 4 * min(n_prompts, BLOCK) * d_model + 2 * side**2
    most = int(MOST_MEMORY // (numbers * np.dtype(np.float64).itemsize))
    return max(1, min(os.cpu_count() or 1, MOST_WORKERS, n_sites, most))


def _null_quantiles(null: np.ndarray) -> pd.DataFrame:
    shares = np.linspace(0, 1, 101)
    return pd.concat(
        [
            pd.DataFrame({"site": np.int16(site), "quantile": shares, "d": questions.quantiles(values, tuple(shares))})
            for site, values in enumerate(null.T)
        ],
        ignore_index=True,
    )


def _first_sites(
    sites: pd.DataFrame, transfer: pd.DataFrame, draws: Mapping[tuple[str, str], list[np.ndarray]]
) -> pd.DataFrame:
    rows = []
    for (measure, source), per_site in draws.items():
        table = sites if source == CONTRAST else transfer[transfer["source"].eq(source)]
        point, lower = table[measure].to_numpy(), table[f"{measure}_low"].to_numpy()
        low, high = detectable_interval(np.stack(per_site, axis=1), point, lower)
        rows.append((measure, source, detectable_from(lower), low, high))
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
