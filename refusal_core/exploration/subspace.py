"""What was measured of a run's directions: how many its categories need, which share one, and sentences that say so."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd

from refusal_core.analysis.estimators import ESTIMATORS, MEAN_DIFFERENCE
from refusal_core.analysis.subspace import SIGNIFICANT, rank_of
from refusal_core.errors import RunError
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import SubspaceManifest
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import COSINE, ESTIMATED, LEFT_OVER

SUMMARY = (
    *("crossfit_d", "crossfit_auroc", "auroc_gain", "auroc_gain_low", "auroc_gain_high"),
    *("intent", "cue", "stability", "mean_difference_cosine"),
)
"""The columns of :func:`estimator_table` that are shown at a glance, where there are such."""

Measured = tuple[pd.DataFrame, SubspaceManifest]
_OF_QUARTETS = frozenset({"intent", "cue", "intent_lead"})


def load_subspace(run: Run) -> Measured | None:
    """Return what was measured of a run's directions and its manifest, or ``None`` when that was not measured.

    Raises:
        RunError: when it is damaged, of other categories or estimators, or not of every site.
    """
    stored = read_addition(run, SubspaceManifest)
    if stored is None:
        return None
    table, manifest = stored
    categories = set(manifest.categories)
    cosines = table[table["measure"].eq(COSINE)]
    of_estimators = table.loc[table["measure"].isin(ESTIMATED), "subject"]
    if not {*cosines["subject"], *cosines["other"]} <= categories or not of_estimators.isin(list(ESTIMATORS)).all():
        raise RunError(f"run {run.run_id!r}: subspace.parquet is of other categories or estimators; measure it again")
    rows_at: dict[int, list[tuple[str, int, str, str]]] = {site: [] for site in range(run.n_sites)}
    columns = table[["site", "measure", "removed", "subject", "other"]].fillna({"removed": -1})
    for site, *row in columns.itertuples(index=False, name=None):
        rows_at[site].append(tuple(row))
    for site, rows in rows_at.items():
        if not _is_complete(rows, manifest):
            raise RunError(
                f"run {run.run_id!r}: subspace.parquet is incomplete at site {site} or has rows twice; measure it again"
            )
    return table, manifest


def _is_complete(rows: list[tuple[str, int, str, str]], manifest: SubspaceManifest) -> bool:
    """Return whether a site has all of its rows once; where nothing can be fitted it has none of estimators.

    Args:
        rows: measure, directions removed, subject and other of the rows.
        manifest: whose categories they are of.
    """
    if manifest.reason is None:
        n_categories = len(manifest.categories)
        if not n_categories or [row[1] for row in rows if row[0] == LEFT_OVER] != list(range(n_categories)):
            return False
        if sorted(row[2:] for row in rows if row[0] == COSINE) != sorted(combinations(manifest.categories, 2)):
            return False
    of_estimators = sorted((subject, measure) for measure, _, subject, _ in rows if measure in ESTIMATED)
    if not of_estimators:
        return True
    names, measures = {subject for subject, _ in of_estimators}, {measure for _, measure in of_estimators}
    return (
        MEAN_DIFFERENCE in names
        and measures in (set(ESTIMATED), set(ESTIMATED) - _OF_QUARTETS)
        and of_estimators == sorted(product(names, measures))
    )


def left_over_at(table: pd.DataFrame, site: int) -> pd.DataFrame:
    """Return one row per number of directions that were projected out at a site, from none on."""
    return table[table["measure"].eq(LEFT_OVER) & table["site"].eq(site)].reset_index(drop=True)


def cosines_at(table: pd.DataFrame, site: int) -> pd.DataFrame:
    """Return one row per two categories at a site: ``subject, other``, the cosine as ``number``, and its chance."""
    return table[table["measure"].eq(COSINE) & table["site"].eq(site)].reset_index(drop=True)


def ranks(table: pd.DataFrame) -> pd.Series:
    """Return how many directions are found at every site: the fewest after whose removal nothing is left."""
    left = table[table["measure"].eq(LEFT_OVER)]
    return left.groupby("site")["p"].agg(lambda p: rank_of(p.to_numpy(float))).astype(int)


def verdict(run: Run, measured: Measured, site: int) -> str:
    """Say how many directions a site has, and how many pairs of categories do not share one, if there are any."""
    table, manifest = measured
    if manifest.reason is not None:
        return "How many directions there are cannot be said of this contrast set."
    n_directions = ranks(table)[site]
    left = left_over_at(table, site)["number"]
    if not n_directions:
        sentence = "no direction of harm is found."
    elif n_directions == 1:
        sentence = "one direction of harm is found; more prompts might find more."
    else:
        sentence = (
            f"harm takes at least {n_directions} directions; without the first, AUROC falls from {left[0]:.2f} to "
            f"{left[1]:.2f}."
        )
    cosines = _known_cosines(table, site)
    apart = f" {_not_sharing(cosines)}." if cosines["p"].le(SIGNIFICANT).any() else ""
    return f"At {run.site_label(site)} {sentence}{apart}"


def how_many(measured: Measured, site: int) -> str:
    """Say what is left after as many directions as are found, and after one less."""
    table, manifest = measured
    if manifest.reason is not None:
        return f"Missing: {manifest.reason}."
    left, n_directions = left_over_at(table, site), ranks(table)[site]
    after = left.iloc[min(n_directions, len(left) - 1)]
    chance = f"permuted labels {after['chance_low']:.2f} to {after['chance_high']:.2f}"
    if not n_directions:
        return (
            f"The directions of {len(manifest.categories)} categories separate harmful from harmless prompts of their "
            f"category no better than chance: held-out AUROC {after['number']:.2f}, {chance}."
        )
    before = left.iloc[n_directions - 1]
    removed = f"After {n_directions - 1} projected out" if n_directions > 1 else "With nothing projected out"
    sentence = (
        f"{removed}, the {len(manifest.categories)} categories' own directions still separate "
        f"harmful from harmless prompts of their category: held-out AUROC {before['number']:.2f}, permuted labels at "
        f"most {before['chance_high']:.2f} in 97.5 % (p {_p(before['p'])})."
    )
    if n_directions == len(left):
        return f"{sentence} There are no more categories to tell more directions by."
    return f"{sentence} After {n_directions} what is left is within chance: AUROC {after['number']:.2f}, {chance}."


def which_share(measured: Measured, site: int) -> str:
    """Say which categories' directions differ, beyond what so few prompts make of one direction."""
    table, manifest = measured
    if manifest.reason is not None:
        return f"Missing: {manifest.reason}."
    cosines = _known_cosines(table, site)
    differ, n = cosines[cosines["p"].le(SIGNIFICANT)], len(cosines)
    if not n:
        return "The categories have no directions here: all their prompts have the same activation."
    above = int(cosines["number_low"].gt(0).sum())
    common = f"Of {n} cosines between categories' directions {above} lie above 0 with their 95 % interval."
    lowest = cosines.loc[(cosines["chance_low"] - cosines["number"]).idxmax()]
    example = (
        f"{lowest['subject']} and {lowest['other']} (cosine {lowest['number']:.2f}, {lowest['number_low']:.2f} to "
        f"{lowest['number_high']:.2f}; of one direction, fitted on as few prompts, {lowest['chance_low']:.2f} to "
        f"{lowest['chance_high']:.2f})"
    )
    if differ.empty:
        return f"{common} No two categories are told apart from sharing one direction; the least alike are {example}."
    alone = sorted({*differ["subject"], *differ["other"]})
    sharing = [name for name in manifest.categories if name not in alone]
    shared = f" Different from none: {', '.join(sharing)}." if sharing else ""
    return (
        f"{common} {_not_sharing(cosines)} (p ≤ {SIGNIFICANT}, corrected for {n} pairs), most clearly {example}."
        f"{shared}"
    )


def _known_cosines(table: pd.DataFrame, site: int) -> pd.DataFrame:
    return cosines_at(table, site).dropna(subset=["number", "chance_low"])


def _not_sharing(cosines: pd.DataFrame) -> str:
    n_apart = int(cosines["p"].le(SIGNIFICANT).sum())
    return f"{n_apart} of {len(cosines)} pairs of categories do{'es' if n_apart == 1 else ''} not share one direction"


def estimator_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per estimator at a site: every number that was measured of it, with the ends of its interval."""
    table = measured[0]
    rows = table[table["measure"].isin(ESTIMATED) & table["site"].eq(site)]
    known = [name for name in ESTIMATORS if name in set(rows["subject"])]
    numbers: dict[str, pd.Series] = {}
    for measure in ESTIMATED:
        of_measure = rows[rows["measure"].eq(measure)].set_index("subject").reindex(known)
        for column, end in (("number", ""), ("number_low", "_low"), ("number_high", "_high")):
            if of_measure[column].notna().any():
                numbers[f"{measure}{end}"] = of_measure[column].astype(float)
    return pd.DataFrame(numbers, index=pd.Index(known, name="estimator"))


def which_estimator(run: Run, measured: Measured, site: int) -> str:
    """Say which estimators separate held-out prompts better than the difference of means, and which follow intent."""
    table = estimator_table(measured, site)
    if table.empty:
        return f"At {run.site_label(site)} there is nothing to fit."
    # A number that is missing of all estimators has no column.
    table = table.reindex(columns=[f"{measure}{end}" for measure in ESTIMATED for end in ("", "_low", "_high")])
    base, others = table.loc[MEAN_DIFFERENCE], table.drop(index=MEAN_DIFFERENCE)
    sentences = [
        f"On held-out prompts the {MEAN_DIFFERENCE} reaches AUROC {base['crossfit_auroc']:.2f} "
        f"({base['crossfit_auroc_low']:.2f} to {base['crossfit_auroc_high']:.2f})."
    ]
    for verb, chosen in (
        ("more", others[others["auroc_gain_low"].gt(0)].sort_values("auroc_gain", ascending=False)),
        ("less", others[others["auroc_gain_high"].lt(0)].sort_values("auroc_gain")),
    ):
        named = [
            f"{row.Index} ({row.auroc_gain:+.3f}, {row.auroc_gain_low:+.3f} to {row.auroc_gain_high:+.3f})"
            for row in chosen.itertuples()
        ]
        if named:
            sentence = f"{_listed(named)} reach{'' if len(named) > 1 else 'es'} {verb}."
            sentences.append(sentence[0].upper() + sentence[1:])
    if not others["auroc_gain_low"].gt(0).any():
        sentences.append("No other is better than that.")
    if table["intent"].notna().any():
        follow = list(table.index[table["intent_lead_low"].gt(0)])
        strongest = table["intent"].idxmax()
        row = table.loc[strongest]
        who = f"{_listed(follow)} follow{'' if len(follow) > 1 else 's'}" if follow else "none is shown to follow"
        sentences.append(
            f"On quartets {who} what is asked more than how alarming it sounds. The largest effect of intent is that "
            f"of the {strongest}, {row['intent']:.2f} ({row['intent_low']:.2f} to {row['intent_high']:.2f}), not "
            f"compared with the others'; alarming wording moves it {row['cue']:.2f} ({row['cue_low']:.2f} to "
            f"{row['cue_high']:.2f})."
        )
    return " ".join(sentences)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _p(p: float) -> str:
    return "≤ 0.001" if p <= 0.001 else f"= {p:.3f}"


def pair_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per two categories at a site, those that differ most first, under the columns' names on screen."""
    cosines = cosines_at(measured[0], site)
    ordered = cosines.loc[(cosines["number"] - cosines["chance_low"]).sort_values(kind="stable").index]
    return pd.DataFrame(
        {
            "category": ordered["subject"],
            "other_category": ordered["other"],
            "category_cosine": ordered["number"],
            "category_cosine_low": ordered["number_low"],
            "category_cosine_high": ordered["number_high"],
            "one_direction_low": ordered["chance_low"],
            "one_direction_high": ordered["chance_high"],
            "p_one_direction": ordered["p"],
        }
    )


def cosine_matrix(measured: Measured, site: int) -> pd.DataFrame:
    """Return ``(category, category)`` cosines at a site, 1 on the diagonal."""
    table, manifest = measured
    names = list(manifest.categories)
    matrix = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for row in cosines_at(table, site).itertuples():
        matrix.loc[row.subject, row.other] = matrix.loc[row.other, row.subject] = row.number
    return matrix


def differing(measured: Measured, site: int) -> set[tuple[str, str]]:
    """Return the two categories, either way round, of every pair that does not share one direction."""
    cosines = cosines_at(measured[0], site)
    pairs = cosines.loc[cosines["p"].le(SIGNIFICANT), ["subject", "other"]]
    return {pair for first, second in pairs.itertuples(index=False) for pair in ((first, second), (second, first))}
