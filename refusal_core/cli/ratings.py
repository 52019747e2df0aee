"""What ``show --ratings`` prints: how projection correlates with people's ratings of harm."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_core.annotations import raters, ratings
from refusal_core.cli.parameters import print_json, print_table, records
from refusal_core.runs.run import Run


def show_ratings(
    run: Run,
    files: Sequence[str],
    rating_column: str | None,
    rater_column: str | None,
    export: str | None,
    cache: str | None,
    as_json: bool,
) -> None:
    """Print how ratings and projections of a run's prompts correlate.

    Args:
        run: the run.
        files: CSV files of ratings; those made in the dashboard without.
        rating_column: its name in the file, where it is not ``rating``.
        rater_column: its name in the file, where it is not ``rater``.
        export: where to write the ratings as CSV.
        cache: the folder of runs and ratings.
        as_json: print JSON in place of text.

    Raises:
        RatingError: when ratings cannot be read or written.
    """
    read = [ratings.read_ratings(file, rating_column, rater_column) for file in files]
    everything = ratings.combine(read) if read else raters.load_all_ratings(cache)
    if export is not None:
        ratings.write_csv(everything, export)
    of_run = ratings.ratings_of_run(run, everything)
    numbers = ratings.correlation_by_site(run, of_run)
    if as_json:
        print_json({"run_id": run.run_id, "ratings": ratings.describe_ratings(of_run), "sites": records(numbers)})
        return
    print(ratings.describe_ratings(of_run))
    strongest = ratings.strongest_sites(numbers)
    if strongest.empty:
        print(f"too few to compare: at least {ratings.MINIMUM} prompts of a kind have to be rated, and differ")
        return
    print(f"\n{ratings.describe_correlations(run, numbers, int(strongest['site'].iloc[0]))}\n\nstrongest layers")
    print_table(strongest.assign(site=[run.site_label(int(site)) for site in strongest["site"]]))
