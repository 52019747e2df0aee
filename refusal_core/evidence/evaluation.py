"""Is it real? Everything that tells a direction about harm from chance, style and length, at every site of a run.

Eight questions, each with its own tables; nothing here needs the model. All refitting goes through Gram matrices, and
the same bootstrap draws and permutations serve every site.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from refusal_core.analysis import geometry, resampling
from refusal_core.analysis.baselines import text_baselines
from refusal_core.analysis.crossfit import (
    TOO_FEW_GROUPS,
    Crossfit,
    TrainingSample,
    assign_folds,
    crossfit,
    project_draws,
    sample_training_sizes,
)
from refusal_core.analysis.directions import Directions
from refusal_core.analysis.gram import BLOCK, EXPLICIT, Gram, gram_matrices, gram_matrix, mean_products
from refusal_core.errors import RunError
from refusal_core.evidence import questions
from refusal_core.evidence.questions import BOTH, N_COMPONENTS, Contrast, TransferSet
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import prompt_groups

__all__ = ["BOTH", "CONTRAST", "Crossfit", "Evidence", "crossfit", "evaluate", "gram_matrix"]

CONTRAST = "contrast"
"""What the tables call the fitted prompts, where transfer sets go by their own names."""

TESTING = "testing (sites)"
MOST_WORKERS = 8
MOST_MEMORY = 300e6
"""Bytes that the sites which are under way may take together."""
MOST_REDRAWN = 1024
"""Most prompts of a set that are redrawn, permuted or compared each with each; of more, a sample is."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of one run as tidy tables; a number that does not exist is missing, and ``reasons`` says why.

    ``x_low`` and ``x_high`` are the 95 % bootstrap interval of ``x``: groups of prompts redrawn, the direction
    refitted in every draw (:func:`refusal_core.analysis.resampling.interval`).

    Every number is of all prompts. Of a set of more than :data:`MOST_REDRAWN`, what needs thousands of directions, or
    every prompt's distance to every other, is of a sample, whole pairs and labels in proportion: intervals (wider than
    those of all prompts would be), permutations, random directions, learning and ``Silh``. ``settings`` says so.

    Attributes:
        sites: one row a site: ``in_sample_d, in_sample_auroc, mean_crossings``; ``crossfit_d, crossfit_auroc,
            crossfit_accuracy, crossfit_range_overlap, crossfit_pair_accuracy`` with intervals; ``permutation_p`` and
            ``permutation_p_corrected`` of the in-sample d; ``chance_d_median, chance_d_95`` what shuffled labels give
            in-sample and ``chance_crossfit_low, chance_crossfit_high`` where 95 % of them lie cross-fitted;
            ``length_d, length_auroc`` cross-fitted after prompt length is regressed out of the activations, with
            intervals, and ``length_cosine`` of that direction with the full one; ``behaviour_d, behaviour_auroc``
            cross-fitted for the direction fitted on what the model refuses, and ``behaviour_cosine`` with the harm
            direction, with interval; ``effective_dimension, variance_share, pc1_share …``.
        transfer: one row a site and transfer set: ``d, auroc, pair_accuracy`` with intervals, ``n_harmful, n_harmless,
            n_pairs``.
        onset: one row a number (``measure, source``): the first ``site`` from which its lower bound stays above
            chance, and ``site_low, site_high`` the bootstrap interval of that site; the published decision layer
            (first site without mean crossings) as ``mean_crossings``. Missing means never.
        random_directions: one row a site and ``kind`` (isotropic, covariance, component): ``directions`` drawn,
            ``d_median, d_95, d_max`` of their |d|, and ``share_reaching`` the in-sample d.
        permutations: ``site, quantile, d``: the in-sample d of shuffled labels, by quantile.
        learning: ``site, size``: cross-fitted ``d`` of directions that saw ``size`` prompts and their ``cosine`` to
            the full direction; means over draws, ``_low`` and ``_high`` where 95 % of the draws lie.
        baselines: one row a text-only baseline and source: ``d, auroc`` with intervals (prompts redrawn, rule kept).
        refusal: ``site, source, label, n``: Spearman's ``rho`` of projection and refusal log-odds within the label,
            with interval; cross-fitted projections on the contrast set; ``both`` is the labels' mean weighted by
            prompts.
        geometry: one row a site, the columns of heretic's table.
        cosines: ``site, other, cosine`` of the directions of every two sites.
        components: ``prompt_id, site, pc1 …``: scores on the contrast set's principal components, in activation units.
        reasons: ``table, number, source, site, reason``: why a number is missing; a missing site means at every site.
        settings: one row: seed, draws, folds, prompts, width; ``most_redrawn`` prompts of a set.
    """

    sites: pd.DataFrame
    transfer: pd.DataFrame
    onset: pd.DataFrame
    random_directions: pd.DataFrame
    permutations: pd.DataFrame
    learning: pd.DataFrame
    baselines: pd.DataFrame
    refusal: pd.DataFrame
    geometry: pd.DataFrame
    cosines: pd.DataFrame
    components: pd.DataFrame
    reasons: pd.DataFrame
    settings: pd.DataFrame

    @property
    def n_sites(self) -> int:
        return len(self.sites)

    def to_tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name, each fit for parquet."""
        return {table.name: getattr(self, table.name) for table in fields(self)}

    @classmethod
    def from_tables(cls, tables: Mapping[str, pd.DataFrame]) -> Evidence:
        """The inverse of :meth:`to_tables`.

        Raises:
            RunError: naming the tables that are missing.
        """
        missing = [table.name for table in fields(cls) if table.name not in tables]
        if missing:
            raise RunError(f"the run's evidence lacks {', '.join(missing)}; delete the run and make it again")
        return cls(**{table.name: tables[table.name] for table in fields(cls)})

    def reason(self, table: str, number: str, site: int | None = None, source: str | None = None) -> str | None:
        """Why a number of a table is missing (at a site, of a source), or None when it is not."""
        rows = self.reasons[self.reasons["table"].eq(table) & self.reasons["number"].eq(number)]
        if site is not None:
            rows = rows[rows["site"].isna() | rows["site"].eq(site).fillna(False).astype(bool)]
        if source is not None:
            rows = rows[rows["source"].eq(source)]
        return None if rows.empty else str(rows["reason"].iloc[0])


@dataclass(frozen=True, eq=False)
class _Design:
    """What all sites share."""

    prompts: pd.DataFrame
    fitted: np.ndarray
    contrast: Contrast
    transfers: list[TransferSet]
    samples: list[TrainingSample]
    random_directions: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of the tables, and the draws that tests over sites need, as ``{name: (draw, …)}``."""

    rows: dict[str, list[dict]] = field(default_factory=dict)
    draws: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)
    components: list[pd.DataFrame] = field(default_factory=list)

    def add(self, table: str, /, **columns: object) -> None:
        self.rows.setdefault(table, []).append(columns)

    def explain(self, table: str, reasons: Mapping[str, str], site: int | None, source: str = CONTRAST) -> None:
        for number, reason in reasons.items():
            self.add("reasons", table=table, number=number, source=source, site=site, reason=reason)

    def extend(self, other: _Rows) -> None:
        for table, rows in other.rows.items():
            self.rows.setdefault(table, []).extend(rows)
        for name, draws in other.draws.items():
            self.draws.setdefault(name, []).extend(draws)
        self.components.extend(other.components)

    def table(self, name: str, columns: Iterable[str] = ()) -> pd.DataFrame:
        """The rows of a table; ``columns`` for one without any."""
        return pd.DataFrame(self.rows[name]) if name in self.rows else pd.DataFrame(columns=list(columns), dtype=float)


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
) -> Evidence:
    """Compute the evidence of a run.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: one row a prompt in the same order: ``prompt_id, text, label, pair_id, source, fitted, n_tokens,
            refusal_log_odds``.
        directions: fitted on the fitted prompts.
        seed: of everything random here; the same seed gives the same numbers on any number of cores.
        folds, repeats: of the cross-fitting.
        permutations, draws, random_directions: label permutations, bootstrap draws, random directions of a kind.
        learning_draws: training samples of every size.
        progress: called once a site.

    Raises:
        ValueError: when the fitted prompts have one label only, or the shapes disagree.
    """
    n_prompts, n_sites, d_model = hidden.shape
    if n_prompts != len(prompts) or directions.n_sites != n_sites:
        raise ValueError(
            f"expected activations of {len(prompts)} prompts at {directions.n_sites} sites, "
            f"got {n_prompts} at {n_sites}"
        )
    fitted = prompts["fitted"].to_numpy(bool)
    contrast = _contrast(prompts[fitted], folds, repeats, seed, permutations, draws)
    design = _Design(
        prompts=prompts,
        fitted=fitted,
        contrast=contrast,
        transfers=_transfer_sets(prompts, draws, seed),
        samples=sample_training_sizes(
            contrast.sampled.is_harmful, contrast.sampled.groups, learning_draws, folds, _stream(seed, 3)
        ),
        random_directions=random_directions,
        seed=seed,
    )
    collected = _Rows()
    if not design.transfers:
        reason = "the run has no transfer set"
        collected.explain("transfer", dict.fromkeys(("d", "auroc", "pair_accuracy"), reason), None)
    if not design.samples:
        collected.explain("learning", dict.fromkeys(("d", "cosine"), TOO_FEW_GROUPS), None)
    workers = _workers(n_prompts, n_sites, d_model, len(contrast.sampled.is_harmful) * draws)
    # One site a core: the matrices are too small to be worth sharing out, and BLAS threads that wait for each other
    # on a busy machine took three times as long as none.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        progress(TESTING, 0, n_sites)
        answered = pool.map(lambda site: _ask_site(site, hidden[:, site], design), range(n_sites))
        for done, answers in enumerate(answered, start=1):
            collected.extend(answers)
            progress(TESTING, done, n_sites)
        _add_baselines(design, collected)

    null = np.stack(collected.draws.pop(("null", CONTRAST)), axis=1)
    observed = np.array(collected.draws.pop(("observed", CONTRAST)))
    sites = collected.table("sites")
    sites["permutation_p"] = resampling.permutation_p(observed, null)
    sites["permutation_p_corrected"] = resampling.corrected_p(observed, null)
    transfer = collected.table("transfer", ("site", "source", "d", "d_low", "d_high", "auroc", "pair_accuracy"))
    settings = {
        "seed": seed,
        "folds": int(contrast.bootstrap.fold.max()) + 1 if len(contrast.bootstrap.fold) else 0,
        "repeats": repeats,
        "permutations": permutations,
        "draws": draws,
        "n_harmful": int(contrast.is_harmful.sum()),
        "n_harmless": int((~contrast.is_harmful).sum()),
        "n_pairs": len(contrast.twins),
        "most_redrawn": MOST_REDRAWN,
        "d_model": d_model,
    }
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
        settings=pd.DataFrame([settings]),
    )


def _workers(n_prompts: int, n_sites: int, d_model: int, drawn: int) -> int:
    """How many sites to have under way; ``drawn`` is draws times the prompts that they are of."""
    side = n_prompts if n_prompts <= EXPLICIT else d_model
    # Projections of all draws and what ranks them, a few blocks of activations, a square matrix and its eigenvectors.
    numbers = 10 * drawn + 4 * min(n_prompts, BLOCK) * d_model + 2 * side**2
    most = int(MOST_MEMORY // (numbers * np.dtype(np.float64).itemsize))
    return max(1, min(os.cpu_count() or 1, MOST_WORKERS, n_sites, most))


def _stream(seed: int, *purpose: int) -> np.random.Generator:
    """A stream of its own for every purpose, so that more draws of one change nothing in another."""
    return np.random.default_rng([seed, *purpose])


def _contrast(prompts: pd.DataFrame, folds: int, repeats: int, seed: int, permutations: int, draws: int) -> Contrast:
    is_harmful, groups = prompts["label"].eq("harmful").to_numpy(), prompt_groups(prompts)
    if is_harmful.all() or not is_harmful.any():
        raise ValueError("evidence needs fitted prompts of both labels")
    sample = resampling.sample_groups(is_harmful, groups, MOST_REDRAWN, _stream(seed, 5))
    drawn, drawn_groups = is_harmful[sample], groups[sample]
    # Of a set that is redrawn whole the first of the folds that `crossfit` deals from the same seed.
    fold = assign_folds(drawn, drawn_groups, folds, 1, np.random.default_rng(seed))
    return Contrast(
        is_harmful=is_harmful,
        groups=groups,
        n_tokens=prompts["n_tokens"].to_numpy(np.float64),
        log_odds=prompts["refusal_log_odds"].to_numpy(np.float64),
        folds=folds,
        repeats=repeats,
        seed=seed,
        bootstrap=resampling.draw_bootstrap(drawn, drawn_groups, fold, draws, _stream(seed, 0)),
        permutations=resampling.draw_permutations(drawn, drawn_groups, fold, permutations, _stream(seed, 1)),
        sample=sample,
    )


def _transfer_sets(prompts: pd.DataFrame, draws: int, seed: int) -> list[TransferSet]:
    rng, sampling = _stream(seed, 2), _stream(seed, 6)
    labelled = ~prompts["fitted"].to_numpy(bool) & prompts["label"].isin(("harmful", "harmless")).to_numpy()
    sets = []
    for source in prompts.loc[~prompts["fitted"].astype(bool), "source"].unique():
        rows = np.flatnonzero(labelled & prompts["source"].eq(source).to_numpy())
        table = prompts.iloc[rows]
        is_harmful, groups = table["label"].eq("harmful").to_numpy(), prompt_groups(table)
        sample = resampling.sample_groups(is_harmful, groups, MOST_REDRAWN, sampling)
        sets.append(
            TransferSet(
                source=str(source),
                rows=rows,
                is_harmful=is_harmful,
                log_odds=table["refusal_log_odds"].to_numpy(np.float64),
                twins=questions.find_twins(is_harmful, groups),
                counts=resampling.bootstrap_counts(is_harmful[sample], groups[sample], draws, rng),
                sample=sample,
            )
        )
    return sets


def _ask_site(site: int, hidden_site: np.ndarray, design: _Design) -> _Rows:
    answers = _Rows()
    contrast, fitted = design.contrast, design.fitted
    every_gram = gram_matrices(hidden_site, fitted)
    gram, cross_gram = every_gram[np.ix_(fitted, fitted)], every_gram[fitted]
    sampled, sampled_gram = contrast.sampled, _held(gram, contrast.sample, contrast.sample)
    if sampled is contrast:
        gram = sampled_gram
    components = geometry.principal_components(gram, N_COMPONENTS)

    fit, why_no_fit = questions.does_it_fit(gram, contrast)
    sampled_d = fit["in_sample_d"]
    if sampled is not contrast:
        sampled_d = questions.does_it_fit(sampled_gram, sampled)[0]["in_sample_d"]
    held_out = contrast.crossfit(gram)
    drawn = contrast.bootstrap.project_held_out(sampled_gram)
    chance, null = questions.is_it_chance(sampled_gram, sampled)
    answers.draws["null", CONTRAST], answers.draws["observed", CONTRAST] = [null], [np.array(sampled_d)]
    answers.draws["crossfit_d", CONTRAST] = [
        resampling.draw_d(drawn, contrast.bootstrap.harmful, contrast.bootstrap.harmless)
    ]
    site_numbers: dict[str, float] = {}
    for numbers, reasons in (
        (fit, why_no_fit),
        questions.does_it_hold(held_out, drawn, contrast),
        (chance, {}),
        questions.is_it_length(gram, sampled_gram, contrast),
        questions.is_it_the_same_as_refusing(gram, sampled_gram, contrast),
        questions.what_does_the_space_look_like(gram, contrast, components),
    ):
        site_numbers |= numbers
        answers.explain("sites", reasons, site)
    answers.add("sites", site=site, **site_numbers)

    behaviour = contrast.log_odds, contrast.is_harmful, contrast.bootstrap.counts, contrast.sample
    refusing = {CONTRAST: (held_out.projection, drawn, *behaviour)}
    for transfer in design.transfers:
        cross = cross_gram[:, transfer.rows]
        sampled_cross = _held(cross, contrast.sample, transfer.sample)
        projected = project_draws(sampled_gram, contrast.bootstrap.weights, sampled_cross)
        numbers, reasons, draws_d = questions.is_it_about_harm(gram, cross, contrast, transfer, projected)
        answers.add("transfer", site=site, source=transfer.source, **numbers)
        answers.explain("transfer", reasons, site, transfer.source)
        answers.draws["d", transfer.source] = [draws_d]
        point = project_draws(gram, contrast.weights, cross)[0]
        behaviour = transfer.log_odds, transfer.is_harmful, transfer.counts, transfer.sample
        refusing[transfer.source] = (point, projected, *behaviour)
    for source, projections_and_behaviour in refusing.items():
        for label, (numbers, reason) in questions.does_it_go_with_refusing(*projections_and_behaviour).items():
            answers.add("refusal", site=site, source=source, label=label, **numbers)
            if reason is not None:
                answers.explain("refusal", {label: reason}, site, source)
    for row in questions.how_many_prompts(sampled_gram, sampled, design.samples):
        answers.add("learning", site=site, **row)

    shape = geometry.residual_geometry(gram, *mean_products(hidden_site, fitted), contrast.is_harmful)
    shape["Silh"] = geometry.silhouette(sampled_gram, sampled.is_harmful)
    answers.add("geometry", site=site, **shape)
    of_kind = geometry.random_direction_d(
        components if sampled is contrast else geometry.principal_components(sampled_gram, N_COMPONENTS),
        sampled.is_harmful,
        design.random_directions,
        _stream(design.seed, 4, site),
    )
    _add_random_directions(site, of_kind, sampled_d, answers)
    answers.components.append(_component_scores(site, design.prompts["prompt_id"], components, cross_gram))
    return answers


def _held(gram: Gram, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
    """A part of a Gram matrix that is small enough to be held."""
    return np.asarray(gram[rows][:, columns])


def _add_random_directions(site: int, of_kind: Mapping[str, np.ndarray], in_sample: float, answers: _Rows) -> None:
    for kind, values in of_kind.items():
        median, high, most = questions.quantiles(values, (0.5, 0.95, 1.0))
        answers.add(
            "random_directions",
            site=site,
            kind=kind,
            directions=int(np.isfinite(values).sum()),
            d_median=median,
            d_95=high,
            d_max=most,
            share_reaching=float((values >= in_sample).mean()) if np.isfinite(in_sample) else np.nan,
        )


def _component_scores(
    site: int, prompt_ids: pd.Series, components: geometry.Components, cross_gram: Gram
) -> pd.DataFrame:
    scores = np.full((len(prompt_ids), N_COMPONENTS), np.nan, dtype=np.float32)
    found = min(N_COMPONENTS, len(components.values))
    scores[:, :found] = components.project(cross_gram, found)
    columns = {f"pc{k + 1}": scores[:, k] for k in range(N_COMPONENTS)}
    return pd.DataFrame({"prompt_id": prompt_ids.to_numpy(), "site": np.int16(site), **columns})


def _add_baselines(design: _Design, collected: _Rows) -> None:
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
    fitted = np.flatnonzero(design.fitted)
    sources = [(CONTRAST, fitted, contrast.is_harmful, contrast.bootstrap.counts, contrast.sample)]
    sources += [(each.source, each.rows, each.is_harmful, each.counts, each.sample) for each in design.transfers]
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
        low, high = resampling.onset_interval(np.stack(per_site, axis=1), point, lower)
        rows.append((measure, source, resampling.onset(lower), low, high))
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
