"""How harmful people find a run's prompts, against where those project.

Ratings join a run by prompt: those made in the dashboard (:mod:`refusal_core.annotations.raters`) or any csv with a
rating column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import krippendorff
import numpy as np
import pandas as pd

from refusal_core.analysis.groups import bootstrap_counts
from refusal_core.analysis.inference import correlation_interval
from refusal_core.analysis.weighted_statistics import weighted_ranks
from refusal_core.annotations.csv_files import read_annotation_file
from refusal_core.children import Table
from refusal_core.errors import RatingError
from refusal_core.prompts.columns import find_column
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.run import Run

COLUMNS = ("prompt_id", "text", "rater", "rating", "rated_at")
GROUPS = ("all", "harmful", "harmless", "transfer")
"""Groups of prompts that are compared; see :func:`correlation_by_site`."""
MINIMUM = 5
MOST_VALUES = 101
"""Different ratings on a scale whose raters can be said to agree: up to those of a slider from 0 to 100."""
_LARGEST = 1e9


@dataclass(frozen=True, eq=False)
class Ratings:
    """Who rated which prompt how.

    Attributes:
        table: one row per rater and prompt with the columns ``prompt_id, text, rater, rating, rated_at``.
        blank: number of rows without a rating, which are left out.
        repeated: number of ratings that their rater replaced later; the last one counts.
        elsewhere: number of ratings left out by :func:`ratings_of_run`.
    """

    table: Table
    blank: int = 0
    repeated: int = 0
    elsewhere: int = 0

    @property
    def n_prompts(self) -> int:
        """How many prompts were rated."""
        return int(self.table["prompt_id"].nunique())

    @property
    def n_raters(self) -> int:
        """How many people rated."""
        return int(self.table["rater"].nunique())


def read_ratings(
    source: str | Path | BinaryIO, rating_column: str | None = None, rater_column: str | None = None
) -> Ratings:
    """Read a csv of ratings: a ``rating`` column, a ``prompt_id`` or text column, and where there is one ``rater``.

    Without a rater column all of it is one rater's, who is called by the file's name. A row without a rating is counted
    and left out, as surveys leave gaps; of several ratings of a prompt by one rater the last row counts.

    Args:
        source: a file's path or an open file.
        rating_column: its name in the file, where it is not ``rating``.
        rater_column: its name in the file, where it is not ``rater``.

    Raises:
        RefusalError: when it cannot be read, naming the row.
    """
    file = read_annotation_file(source)
    rating_column = find_column(file.columns, rating_column, ("rating",), file.name, "rating")
    if rater_column is None:
        rater_column = file.column("rater")
    else:
        rater_column = find_column(file.columns, rater_column, (), file.name, "rater")
    table, blank = [], 0
    for row in file.rows():
        if not row.cells[rating_column].strip():
            blank += 1
            continue
        rater = row.cells[rater_column].strip() if rater_column else Path(file.name).stem
        if not rater:
            raise RatingError(f"{row.where}: expected a rater in column {rater_column!r}, found none")
        rating = _parse_rating(row.cells[rating_column], row.where)
        table.append((row.prompt_id, row.text, rater, rating, row.cells.get("rated_at", "")))
    return combine([Ratings(pd.DataFrame(table, columns=list(COLUMNS)).astype({"rating": float}), blank)])


def combine(parts: Sequence[Ratings]) -> Ratings:
    """Return the ratings of several files as one; of several ratings of a prompt by one rater the last counts."""
    table = pd.concat([part.table for part in parts], ignore_index=True)
    once = table.drop_duplicates(["prompt_id", "rater"], keep="last", ignore_index=True)
    repeated = sum(part.repeated for part in parts) + len(table) - len(once)
    return Ratings(once, sum(part.blank for part in parts), repeated)


def ratings_of_run(run: Run, ratings: Ratings) -> Ratings:
    """Return the ratings of a run's prompts; those of other prompts are counted in ``elsewhere``."""
    known = ratings.table["prompt_id"].isin(run.prompts["prompt_id"])
    return replace(ratings, table=ratings.table[known].reset_index(drop=True), elsewhere=int((~known).sum()))


def to_csv(ratings: Ratings) -> bytes:
    """Return the ratings as a csv that :func:`read_ratings` reads, without anything that a run says about them."""
    return bytes(ratings.table.to_csv(index=False).encode())


def write_csv(ratings: Ratings, path: str | Path) -> None:
    """Write :func:`to_csv` into a file.

    Raises:
        RatingError: when it cannot be written.
    """
    try:
        Path(path).expanduser().write_bytes(to_csv(ratings))
    except OSError as error:
        raise RatingError(f"the ratings cannot be written to {path} ({error.strerror})") from error


def mean_ratings(run: Run, ratings: Ratings) -> np.ndarray:
    """Return the mean rating of every prompt over its raters, ``(prompt,)``; NaN where a prompt was not rated."""
    # In one order, since a sum's last digit decides what is tied.
    table = ratings.table.sort_values(["prompt_id", "rater"])
    return np.asarray(run.prompts["prompt_id"].map(table.groupby("prompt_id")["rating"].mean()).to_numpy(dtype=float))


def in_group(run: Run, group: str) -> np.ndarray:
    """Return which prompts belong to one of :data:`GROUPS`, ``(prompt,)`` bool."""
    if group == "all":
        return np.ones(len(run.prompts), dtype=bool)
    return ~run.rows() if group == "transfer" else run.rows(group)


def correlation_by_site(run: Run, ratings: Ratings, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return Spearman's rho of projection and rating at every site, with 95 % bootstrap intervals over prompts.

    Four groups of rated prompts answer different questions. ``all``, fitted and transfer prompts together: a direction
    fitted on labels that raters agree with is bound to do well here. ``harmful`` and ``harmless``, the fitted prompts
    of one label: what projection says beyond the label. ``transfer``, the prompts that no direction was fitted on,
    labels together: the only group that is held out.

    Raters are held fixed: with few of them, intervals for other raters would be wider.

    Returns:
        ``site, group, rho, rho_low, rho_high, n``; NaN with fewer than five rated prompts, or where nothing varies.
    """
    rng = np.random.default_rng(seed)
    means = mean_ratings(run, ratings)
    rows: list[tuple[int, str, float, float, float, int]] = []
    for group in GROUPS:
        chosen = in_group(run, group) & np.isfinite(means)
        n = int(chosen.sum())
        if n < MINIMUM:
            rows.extend((site, group, np.nan, np.nan, np.nan, n) for site in range(run.n_sites))
            continue
        # Twins are drawn together where both labels are compared.
        prompts = run.prompts[chosen]
        counts = bootstrap_counts(prompts["label"].eq("harmful").to_numpy(), prompt_groups(prompts), draws, rng)
        counts = np.vstack([np.ones(n), counts])
        ranks = weighted_ranks(np.broadcast_to(means[chosen], counts.shape), counts)
        for site in range(run.n_sites):
            rows.append((site, group, *correlation_interval(run.projections[chosen, site], ranks, counts), n))
    return pd.DataFrame(rows, columns=["site", "group", "rho", "rho_low", "rho_high", "n"])


def correlation_margin(n_prompts: int) -> float:
    """Return how far from 0 a rank correlation of so many prompts may come to lie by chance, in 95 of 100 cases.

    By Fisher's transformation with the standard error of Fieller et al. 1957; NaN of fewer than five prompts.
    """
    if n_prompts < 5:
        return float("nan")
    return float(np.tanh(1.96 * np.sqrt(1.06 / (n_prompts - 3))))


def strongest_sites(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the row with the highest rho of every group of :func:`correlation_by_site` that has one."""
    known = numbers.dropna(subset="rho")
    return known.loc[known.groupby("group", sort=False)["rho"].idxmax()]


def krippendorff_alpha(ratings: Ratings) -> float:
    """Return Krippendorff's alpha of ordinal ratings (Krippendorff 2011): 1 when raters agree, 0 as by chance.

    NaN without a prompt that two raters rated, when all ratings are the same, or with more than :data:`MOST_VALUES`
    different ones.
    """
    shared = ratings.table[ratings.table["prompt_id"].duplicated(keep=False)]
    if not 2 <= shared["rating"].nunique() <= MOST_VALUES:
        return float("nan")
    counts = pd.crosstab(shared["prompt_id"], shared["rating"]).to_numpy()
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="ordinal"))


def describe_ratings(ratings: Ratings) -> str:
    """Say how many prompts were rated by how many people, how far they agree, and what is left out."""
    raters = f"{ratings.n_raters} rater{'s' * (ratings.n_raters != 1)}"
    sentences = [f"{ratings.n_prompts} of this run's prompts are rated, by {raters}."]
    alpha = krippendorff_alpha(ratings)
    if np.isfinite(alpha):
        sentences.append(f"Krippendorff's α = {alpha:.2f} (ordinal; 1: raters agree, 0: as by chance).")
    elif ratings.n_raters > 1:
        sentences.append("How far they agree is unknown: too few prompts in common, or no common scale.")
    return " ".join([*sentences, describe_left_out(ratings)]).strip()


def describe_left_out(ratings: Ratings) -> str:
    """Say which ratings are not compared; empty when all of them are."""
    sentences = []
    for count, reason in (
        (ratings.elsewhere, "of prompts that this run does not have, left out"),
        (ratings.repeated, "given again by the same rater: the last one counts"),
        (ratings.blank, "left blank"),
    ):
        if count:
            sentences.append(f"{count} rating{'s' * (count != 1)} {reason}.")
    return " ".join(sentences)


_WHERE = {
    "all": "Over all rated prompts",
    "harmful": "Within the harmful prompts",
    "harmless": "Within the harmless prompts",
    "transfer": "On the transfer sets, which no direction was fitted on",
}


def describe_correlations(run: Run, numbers: pd.DataFrame, site: int) -> str:
    """Say how projection and rating go together at a site.

    Args:
        run: the run.
        numbers: of :func:`correlation_by_site`.
        site: a layer, or the final norm.
    """
    sentences = []
    for row in numbers[numbers["site"].eq(site)].itertuples():
        number = f"ρ = {row.rho:.2f} ({row.rho_low:.2f} to {row.rho_high:.2f}, {row.n} prompts)"
        if row.n < MINIMUM:
            finding = f"{row.n} are rated, too few to compare"
        elif np.isnan(row.rho):
            finding = "nothing varies that could be compared"
        elif row.rho_low > 0:
            finding = f"those further along the direction are rated higher, {number}"
        elif row.rho_high < 0:
            finding = f"those further along the direction are rated lower, {number}"
        else:
            finding = f"a link of projection and rating is not distinguishable from chance, {number}"
        sentences.append(f"{_WHERE[row.group]}: {finding}.")
    return f"At {run.site_label(site)}. {' '.join(sentences)}"


def rank_differences(run: Run, ratings: Ratings, site: int) -> pd.DataFrame:
    """Return the rated prompts, those first whose rating and projection at a site differ most in rank.

    Returns:
        The run's prompt columns with ``rating`` (mean), ``n_raters``, ``projection``, ``rating_rank`` and
        ``projection_rank`` (percent of the rated prompts, ties in the middle) and ``difference`` of the two, positive
        where people find a prompt more harmful than its projection says; index as in ``run.prompts``.
    """
    counts = ratings.table.groupby("prompt_id").size()
    table = run.prompts.assign(
        rating=mean_ratings(run, ratings),
        n_raters=run.prompts["prompt_id"].map(counts),
        projection=run.projections[:, site],
    )
    table = table[table["rating"].notna()].astype({"n_raters": int})
    for number in ("rating", "projection"):
        table[f"{number}_rank"] = 100 * (table[number].rank() - 0.5) / len(table)
    table["difference"] = table["rating_rank"] - table["projection_rank"]
    return table.loc[table["difference"].abs().sort_values(ascending=False, kind="stable").index]


def _parse_rating(value: str, where: str) -> float:
    try:
        rating = float(value)
    except ValueError:
        rating = float("nan")
    if not abs(rating) <= _LARGEST:
        raise RatingError(f"{where}: expected a number as rating, found {value!r:.60}")
    return rating
