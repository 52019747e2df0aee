"""Comparison of runs over relative depth, on shared prompts, by category, and by the cosine of their directions.

Layers of different models are matched by relative depth (:func:`refusal_core.sites.matched_site`), prompts by
``prompt_id``. Prompts that both runs fitted are compared by their cross-fitted projections, those of a transfer set
by their projections. The two kinds are never ranked together, and a prompt that only one of the runs fitted is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from refusal_core.analysis.groups import bootstrap_counts
from refusal_core.analysis.inference import interval
from refusal_core.analysis.weighted_statistics import (
    auroc_of_ranks,
    tied_counts,
    weighted_correlation,
    weighted_d,
    weighted_ranks,
)
from refusal_core.evidence.claims import detectable_from, probe_source
from refusal_core.exploration.outliers import standardised
from refusal_core.glossary import name_of
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import Run
from refusal_core.sites import matched_site, relative_depth, site_label, site_short

LABELS = ("both", "harmful", "harmless")
MINIMUM = 5
MOST_DRAWN = 1000
"""Most prompts that ranks and categories are compared on; of more, those whose ids, which are hashes, come first."""

NUMBERS = ("probe_d", "probe_auroc", "crossfit_d", "in_sample_d")
"""Columns of :func:`numbers_over_depth`."""


@dataclass(frozen=True, eq=False)
class Shared:
    """The prompts that two runs share.

    Attributes:
        run: the first run.
        other: the second run.
        source: the first run's transfer set that they belong to, or None for prompts that both runs fitted.
        prompts: ``prompt_id, text, label, other_label, category, pair_id, source`` as the first run has them, and
            ``row, other_row`` in the two runs.
    """

    run: Run
    other: Run
    source: str | None
    prompts: pd.DataFrame

    @cached_property
    def scores(self) -> np.ndarray:
        """Projections in the first run, ``(prompt, site)``, in activation units; cross-fitted where it fitted them."""
        return np.asarray(_scores(self.run, self.source)[self.prompts["row"]])

    @cached_property
    def other_scores(self) -> np.ndarray:
        """Projections in the other run, ``(prompt, other_site)``."""
        return np.asarray(_scores(self.other, self.source)[self.prompts["other_row"]])

    def of_label(self, label: str) -> np.ndarray:
        """Return the prompts that both runs give a label, or all for ``both``, as ``(prompt,)`` bool."""
        if label == "both":
            return np.ones(len(self.prompts), dtype=bool)
        return np.asarray((self.prompts["label"].eq(label) & self.prompts["other_label"].eq(label)).to_numpy())


def shared_prompts(run: Run, other: Run, source: str | None = None) -> Shared:
    """Join two runs by ``prompt_id``, whatever the order of their rows.

    Args:
        run: the run.
        other: the other run.
        source: a transfer set of the first run; without it the prompts that both runs fitted.
    """
    columns = ["prompt_id", "text", "label", "category", "pair_id", "source"]
    ours = run.prompts[run.rows(source=source)].drop_duplicates("prompt_id")
    theirs = other.prompts[other.prompts["fitted"].eq(source is None)].drop_duplicates("prompt_id")
    joined = (
        ours[columns]
        .assign(row=ours.index)
        .merge(
            theirs[["prompt_id", "label"]].rename(columns={"label": "other_label"}).assign(other_row=theirs.index),
            on="prompt_id",
        )
    )
    return Shared(run, other, source, joined)


def shared_sources(run: Run, other: Run) -> list[str]:
    """Return the first run's transfer sets of which the other run has prompts that it did not fit."""
    unfitted = other.prompts.loc[~other.prompts["fitted"], "prompt_id"]
    ours = run.prompts[~run.prompts["fitted"] & run.prompts["prompt_id"].isin(unfitted)]
    return [source for source in run.transfer_sources if ours["source"].eq(source).any()]


def count_left_out(run: Run, other: Run) -> int:
    """Return how many shared prompts only one of the runs fitted."""
    both = run.prompts[["prompt_id", "fitted"]].merge(other.prompts[["prompt_id", "fitted"]], on="prompt_id")
    return int((both["fitted_x"] != both["fitted_y"]).sum())


def site_in_other(run: Run, site: int, other: Run) -> int:
    """Return the site of the other run at the same relative depth."""
    return matched_site(site, run.n_layers, other.n_layers)


def numbers_over_depth(run: Run, evidence: Evidence | None) -> pd.DataFrame:
    """Return the numbers of :data:`NUMBERS` over relative depth, with the intervals that the evidence has.

    Returns:
        One row per site: ``site, depth`` (NaN at the final norm), the numbers and their ``_low`` and ``_high``, which
        are NaN for a run without evidence.
    """
    table = run.layer_stats[["site", *NUMBERS]].assign(
        depth=[relative_depth(site, run.n_layers) for site in range(run.n_sites)]
    )
    for number in NUMBERS:
        table[[f"{number}_low", f"{number}_high"]] = np.nan
    if evidence is None:
        return table
    table[["crossfit_d_low", "crossfit_d_high"]] = evidence.sites[["crossfit_d_low", "crossfit_d_high"]]
    probes = (
        evidence.transfer[evidence.transfer["source"].eq(probe_source(evidence))]
        .set_index("site")
        .reindex(table["site"])
    )
    for number in ("d", "auroc"):
        if f"{number}_low" in probes:
            ends = probes[[f"{number}_low", f"{number}_high"]].to_numpy(float)
            table[[f"probe_{number}_low", f"probe_{number}_high"]] = ends
    return table


def describe_detectable_from(run: Run, evidence: Evidence | None) -> str:
    """Name the site from which d on matched pairs stays above chance, with its interval; a dash without evidence."""
    if evidence is None:
        return "–"
    table, source = evidence.detectable_from, probe_source(evidence)
    row = table[table["measure"].eq("d") & table["source"].eq(source)]
    if source is None or row.empty:
        return "–"
    first = detectable_from(evidence, "d", source)
    low, high = (
        "never" if pd.isna(end) else site_short(int(end), run.n_layers)
        for end in row[["site_low", "site_high"]].iloc[0]
    )
    label = "never" if first is None else run.site_label(first)
    return f"{label} ({low} to {high})"


def rank_correlations(shared: Shared, site: int, other_site: int, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return Spearman's rho and Kendall's tau-b of the two runs' projections, over and within the labels.

    Intervals are 95 % bootstrap intervals over prompts, matched pairs drawn together where both labels are compared;
    the directions are held fixed.

    Returns:
        One row per label of :data:`LABELS`: ``label, n, rho, rho_low, rho_high, tau, tau_low, tau_high``; NaN with
        fewer than five prompts, or where nothing varies.
    """
    sampled = _sampled(shared.prompts, MOST_DRAWN)
    table = pd.DataFrame({"label": LABELS, "n": 0})
    points, drawn = np.full((2, len(LABELS)), np.nan), np.full((draws, 2, len(LABELS)), np.nan)
    for place, label in enumerate(LABELS):
        chosen = sampled & shared.of_label(label)
        ours, theirs = shared.scores[chosen, site], shared.other_scores[chosen, other_site]
        exist = np.isfinite(ours) & np.isfinite(theirs)
        ours, theirs, n = ours[exist], theirs[exist], int(exist.sum())
        table.loc[place, "n"] = n
        if n < MINIMUM or not (np.ptp(ours) > 0 and np.ptp(theirs) > 0):
            continue
        counts = _draw_counts(shared.prompts[chosen][exist], draws, seed)
        points[:, place] = stats.spearmanr(ours, theirs).statistic, stats.kendalltau(ours, theirs).statistic
        drawn[:, 0, place] = weighted_correlation(weighted_ranks(ours, counts), weighted_ranks(theirs, counts), counts)
        drawn[:, 1, place] = _draw_kendall(ours, theirs, counts)
    low, high = interval(drawn, points, -1, 1)
    for number, name in enumerate(("rho", "tau")):
        table[name], table[f"{name}_low"], table[f"{name}_high"] = points[number], low[number], high[number]
    return table


def rank_matrix(shared: Shared, label: str = "both") -> np.ndarray:
    """Return Spearman's rho of every site of one run with every site of the other.

    Returns:
        ``(site, other_site)``; NaN where nothing varies, everywhere with fewer than five prompts.
    """
    chosen = shared.of_label(label)
    if chosen.sum() < MINIMUM:
        return np.full((shared.run.n_sites, shared.other.n_sites), np.nan)
    ours, theirs = (_unit_ranks(scores[chosen]) for scores in (shared.scores, shared.other_scores))
    return np.asarray(ours.T @ theirs)


def rank_differences(shared: Shared, site: int, other_site: int) -> pd.DataFrame:
    """Return the shared prompts, those first that the runs rank most differently at these sites.

    Returns:
        The columns of :attr:`Shared.prompts` with ``projection, other_projection`` (activation units), ``percentile,
        other_percentile`` (percent of the shared prompts below, ties in the middle) and ``difference``, positive where
        the first run puts a prompt further along its direction than the other does.
    """
    table = shared.prompts.assign(
        projection=shared.scores[:, site], other_projection=shared.other_scores[:, other_site]
    ).dropna(subset=["projection", "other_projection"])
    for prefix in ("", "other_"):
        table[f"{prefix}percentile"] = 100 * (table[f"{prefix}projection"].rank() - 0.5) / max(len(table), 1)
    table["difference"] = table["percentile"] - table["other_percentile"]
    furthest = table.assign(by=-table["difference"].abs()).sort_values(["by", "prompt_id"])
    return furthest.drop(columns="by").reset_index(drop=True)


def separation_by_category(run: Run, source: str | None, site: int, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return where every category's harmful prompts lie along the direction, and how well it separates them.

    Args:
        run: the run.
        source: a transfer set of the run; without it the prompts it fitted, cross-fitted.
        site: a layer, or the final norm.
        draws: bootstrap draws.
        seed: of everything random.

    Returns:
        One row per category with harmful prompts: ``category, n_harmful, n_harmless, mean`` (projection of the harmful
        prompts in pooled standard deviations from the midpoint) and ``auroc`` of harmful against harmless prompts of
        the category, both with 95 % bootstrap intervals over prompts; NaN with fewer than three prompts. Of more than
        :data:`MOST_DRAWN` prompts, so many.
    """
    scores = _standard_scores(run, source)[:, site]
    categories = _draw_categories(run, source, draws, seed, MOST_DRAWN)
    means, areas = np.full((2, 1 + draws, len(categories)), np.nan)
    for place, category in enumerate(categories):
        values = scores[category.rows]
        if category.n_harmful >= 3:
            means[:, place] = category.harmful @ values / category.harmful.sum(axis=1)
        if min(category.n_harmful, category.n_harmless) >= 3 and np.isfinite(values).all():
            ranks = weighted_ranks(values, category.harmful + category.harmless)
            areas[:, place] = auroc_of_ranks(ranks, category.harmful, category.harmless)
    rows = [(category.name, category.n_harmful, category.n_harmless) for category in categories]
    table = pd.DataFrame(rows, columns=["category", "n_harmful", "n_harmless"])
    for number, drawn, bounds in (("mean", means, (-np.inf, np.inf)), ("auroc", areas, (0.0, 1.0))):
        table[number] = drawn[0]
        table[f"{number}_low"], table[f"{number}_high"] = interval(drawn[1:], drawn[0], *bounds)
    return table


def same_model(run: Run, other: Run) -> bool:
    """Whether two runs are of the same weights, so that their directions live in one space."""
    ours, theirs = run.manifest.model, other.manifest.model
    return bool(ours.fingerprint) and ours.fingerprint == theirs.fingerprint and ours.d_model == theirs.d_model


def direction_cosines(run: Run, other: Run) -> np.ndarray | None:
    """Return the cosines of two runs' directions, ``(site,)``, NaN where one is missing; None for different models."""
    if not same_model(run, other) or run.n_sites != other.n_sites:
        return None
    ours, theirs = (side.directions.unit_direction.astype(np.float64) for side in (run, other))
    exist = (np.linalg.norm(ours, axis=1) > 0) & (np.linalg.norm(theirs, axis=1) > 0)
    return np.where(exist, np.einsum("sd,sd->s", ours, theirs), np.nan)


def is_control(run: Run) -> bool:
    """Whether the run is of a base model, as far as its manifest says: it has no chat template, or a borrowed one."""
    template = run.manifest.template
    return template.sha256 is None or template.borrowed is not None


def describe_probe_d(runs: Sequence[Run], names: Sequence[str], tables: Sequence[pd.DataFrame]) -> str:
    """Say how d on matched pairs compares between the runs.

    Args:
        runs: the runs, in the order of their letters.
        names: of the runs on screen.
        tables: of :func:`numbers_over_depth`, one per run.
    """
    known = [place for place, table in enumerate(tables) if table["probe_d"].notna().any()]
    lacking = [name for place, name in enumerate(names) if place not in known]
    sentences = []
    if known:
        best = {place: tables[place].loc[runs[place].best_site()] for place in known}
        order = sorted(known, key=lambda place: -best[place]["probe_d"])
        numbers = [
            f"{names[place]} {best[place]['probe_d']:.2f}{_ends(best[place], 'probe_d')} at "
            f"{_place(int(best[place]['site']), runs[place].n_layers)}"
            for place in order
        ]
        sentences.append(f"{name_of('probe_d')} where the cross-fitted d is highest: {'; '.join(numbers)}.")
        if len(order) > 1 and any(np.isnan(best[place]["probe_d_low"]) for place in order):
            sentences.append("Not every run has intervals here, so the difference may be chance.")
        elif len(order) > 1:
            sites = [int(best[place]["site"]) for place in order]
            sentences.append(
                _compare_highest([runs[place] for place in order], sites, [names[place] for place in order])
            )
    if lacking:
        have = "has" if len(lacking) == 1 else "have"
        sentences.append(f"{_enumerate(lacking)} {have} no matched pairs, so nothing is known about harm.")
    return " ".join(sentences)


def describe_rank_correlations(
    shared: Shared, numbers: pd.DataFrame, site: int, other_site: int, names: Sequence[str]
) -> str:
    """Say how far two runs agree in rank.

    Args:
        shared: the prompts of both runs.
        numbers: of :func:`rank_correlations` at these sites.
        site: of the first run: a layer, or the final norm.
        other_site: of the other run.
        names: of the two runs on screen.
    """
    kind = f"of {shared.source}" if shared.source else "that both fitted, cross-fitted,"
    if shared.prompts.empty:
        where = f"of {shared.source}" if shared.source else "that both fitted"
        return f"{names[0]} and {names[1]} share no prompt {where}, so there is nothing to rank."
    rows = numbers.set_index("label")
    over = rows.loc["both"]
    if np.isnan(over["rho"]):
        few = f"{over['n']:.0f} can be ranked and at least {MINIMUM} are needed"
        reason = few if over["n"] < MINIMUM else "one of the runs projects them all alike"
        return f"On the {len(shared.prompts)} shared prompts {kind} there is no rank correlation: {reason}."
    places = (
        f"At {_place(site, shared.run.n_layers)} of {names[0]} and {_place(other_site, shared.other.n_layers)} of "
        f"{names[1]} the {over['n']:.0f} shared prompts {kind}"
    )
    if over["rho"] > 1 - 1e-12:
        return f"{places} are ranked identically."
    if over["rho_low"] > 0:
        finding = "agree in rank more than by chance"
    elif over["rho_high"] < 0:
        finding = "are ranked the other way round"
    else:
        finding = "agree in rank no more than by chance"
    sentences = [f"{places} {finding}: ρ = {_number(over, 'rho')}."]
    within = {label: rows.loc[label] for label in LABELS[1:] if np.isfinite(rows.loc[label, "rho"])}
    if len(within) == 2:
        numbers_within = " and ".join(f"{_number(row, 'rho')} among the {label}" for label, row in within.items())
        sentences.append(f"Within a label, where the labels cannot help, ρ is {numbers_within} ones.")
    elif len(within) == 1 and rows.loc[next(iter(within)), "n"] == over["n"]:
        sentences.append(f"All of these are {next(iter(within))}.")
    return " ".join(sentences)


@dataclass(frozen=True, eq=False)
class _Category:
    """A harm category's prompts, and bootstrap draws of them.

    Attributes:
        name: of the category.
        rows: of its prompts in the run, ``(prompt,)``.
        harmful: how often a prompt counts as harmful, ``(1 + draw, prompt)``; the first row is the sample itself.
        harmless: how often a prompt counts as harmless, likewise.
    """

    name: str
    rows: np.ndarray
    harmful: np.ndarray
    harmless: np.ndarray

    @property
    def n_harmful(self) -> int:
        return int(self.harmful[0].sum())

    @property
    def n_harmless(self) -> int:
        return int(self.harmless[0].sum())


def _draw_categories(run: Run, source: str | None, draws: int, seed: int, most: int) -> list[_Category]:
    """Return the categories that have harmful prompts; they are the same at every site."""
    prompts = run.prompts[run.rows(source=source) & run.prompts["category"].notna()]
    prompts = prompts[prompts["label"].isin(("harmful", "harmless"))]
    categories = []
    for category, table in prompts[_sampled(prompts, most)].groupby("category"):
        is_harmful = table["label"].eq("harmful").to_numpy()
        if is_harmful.any():
            counts = np.vstack([np.ones(len(table)), _draw_counts(table, draws, seed)])
            categories.append(
                _Category(str(category), table.index.to_numpy(), counts * is_harmful, counts * ~is_harmful)
            )
    return categories


def _sampled(prompts: pd.DataFrame, most: int) -> np.ndarray:
    """Return the prompts that draws are made of, ``(prompt,)`` bool."""
    if len(prompts) <= most:
        return np.ones(len(prompts), dtype=bool)
    return np.asarray(prompts["prompt_id"].isin(np.sort(prompts["prompt_id"].to_numpy())[:most]).to_numpy())


def _draw_counts(prompts: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Return :func:`~refusal_core.analysis.groups.bootstrap_counts`, for the same prompts the same at every site.

    They are float32, which holds them and the ranks among them exactly: the computations with them wait for memory.
    """
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    return _draw_counts_once(is_harmful.tobytes(), tuple(prompt_groups(prompts).tolist()), draws, seed).astype(
        np.float32
    )


@lru_cache(maxsize=64)
def _draw_counts_once(is_harmful: bytes, groups: tuple[str, ...], draws: int, seed: int) -> np.ndarray:
    # The same for every site, and drawing takes a third of the time that a site's numbers do. Small integers: memory.
    rng = np.random.default_rng(seed)
    counts = bootstrap_counts(np.frombuffer(is_harmful, dtype=bool), np.array(groups), draws, rng)
    return counts.astype(np.uint16)


def _scores(run: Run, source: str | None) -> np.ndarray:
    return run.projections_crossfit if source is None else run.projections


def _standard_scores(run: Run, source: str | None) -> np.ndarray:
    """Return scores in pooled standard deviations from the midpoint, ``(prompt, site)``."""
    if source is not None:
        return standardised(run, run.projections)
    # Cross-fitted projections have the midpoint at 0.
    values = run.projections_crossfit
    spread = np.sqrt((np.var(values[run.rows("harmful")], axis=0) + np.var(values[run.rows("harmless")], axis=0)) / 2)
    return values / np.where(spread > 0, spread, np.nan)


def _draw_kendall(ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b of every draw, ``(draw,)``, prompts counted as often as they were drawn (Kendall 1945).

    The order of two prompts is the same in every draw, so tau of a draw is a quadratic form in its counts.
    """
    signs, others = (np.sign(values[:, None] - values) for values in (ours, theirs))
    weights = counts.astype(np.float32, copy=False)
    agreeing = np.einsum("dp,dp->d", weights @ (signs * others).astype(np.float32), weights)
    pairs = counts.sum(axis=1) ** 2
    untied, others_untied = (pairs - _squares(values, counts) for values in (ours, theirs))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(agreeing / np.sqrt(untied * others_untied))


def _squares(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the number of ordered pairs of equal values in every draw, ``(draw,)``, pairs with itself included."""
    tied = counts if len(np.unique(values)) == len(values) else tied_counts(values, counts)
    return np.asarray(np.einsum("dv,dv->d", tied, tied))


def _unit_ranks(scores: np.ndarray) -> np.ndarray:
    """Return ranks within every site, ``(prompt, site)``, centred and of norm one; NaN where nothing varies."""
    ranks = stats.rankdata(scores, axis=0, nan_policy="propagate")
    ranks = ranks - ranks.mean(axis=0)
    norm = np.linalg.norm(ranks, axis=0)
    return np.asarray(ranks / np.where(norm > 0, norm, np.nan))


def _compare_highest(runs: Sequence[Run], sites: Sequence[int], names: Sequence[str]) -> str:
    """Say whether the highest of several d, whose run is first, stands out, by differences on shared prompts."""
    sentences = []
    for other, site, name in zip(runs[1:], sites[1:], names[1:], strict=True):
        source = _asked_of_both(runs[0], other)
        if source is None:
            sentences.append(
                f"{names[0]} and {name} were asked on different prompts, so their numbers cannot be compared."
            )
            continue
        difference, low, high = d_difference(shared_prompts(runs[0], other, source), sites[0], site)
        if np.isnan(low):
            continue
        number = f"{difference:.2f} ({low:.2f} to {high:.2f})"
        if low > 0:
            sentences.append(f"On the same prompts d of {names[0]} is higher than that of {name} by {number}.")
        else:
            sentences.append(f"That {names[0]} is higher than {name} may be chance: the difference is {number}.")
    return " ".join(sentences)


def d_difference(
    shared: Shared, site: int, other_site: int, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Return how much higher d of the first run is on shared prompts, and its 95 % bootstrap interval.

    Prompts are redrawn, quartets and pairs as one and the same for both runs; the directions are held fixed.

    Args:
        shared: the prompts.
        site: of the first run.
        other_site: of the other run.
        draws: bootstrap draws.
        seed: of the draws.

    Returns:
        Difference, lower and upper bound; NaN without prompts of both labels that both runs label alike.
    """
    labelled = shared.of_label("harmful") | shared.of_label("harmless")
    prompts = shared.prompts[labelled]
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    if is_harmful.all() or not is_harmful.any():
        return np.nan, np.nan, np.nan
    counts = np.vstack([np.ones(len(prompts)), _draw_counts(prompts, draws, seed)])
    d = [
        weighted_d(np.broadcast_to(scores, counts.shape), counts * is_harmful, counts * ~is_harmful)
        for scores in (shared.scores[labelled, site], shared.other_scores[labelled, other_site])
    ]
    difference = d[0] - d[1]
    low, high = interval(difference[1:], difference[0])
    return float(difference[0]), float(low), float(high)


def _asked_of_both(run: Run, other: Run) -> str | None:
    """Return the transfer set that both runs are asked about harm with, or None."""
    if not run.has_evidence or not other.has_evidence:
        return None
    source = probe_source(run.evidence)
    return source if source == probe_source(other.evidence) and source in shared_sources(run, other) else None


def _place(site: int, n_layers: int) -> str:
    label = site_label(site, n_layers)
    return f"the {label}" if site == n_layers else label


def _ends(row: pd.Series, number: str) -> str:
    low, high = row[f"{number}_low"], row[f"{number}_high"]
    return "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"


def _number(row: pd.Series, number: str) -> str:
    return f"{row[number]:.2f}{_ends(row, number)}"


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
