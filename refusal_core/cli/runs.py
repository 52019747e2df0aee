"""Verbs on the runs of the cache: ``list``, ``show``, ``evidence``, ``verify``, ``rename``, ``delete``, ``restore``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from refusal_core.cli.parameters import AsJson, Cache, Position, RunName, print_json, print_table, records
from refusal_core.errors import RefusalError
from refusal_core.glossary import name_of
from refusal_core.runs import store

if TYPE_CHECKING:
    from refusal_core.runs.run import Run

_COLUMNS = (
    "magnitude",
    "in_sample_d",
    "crossfit_d",
    "probe_d",
    "probe_auroc",
    "mean_crossings",
    "range_overlap",
    "log10_p",
)
_QUESTIONS = {
    "in_sample_d": "does it fit",
    "crossfit_d": "does it hold on new prompts",
    "probe_d": "is it about harm",
}
_PARTS = Group("In place of the layers, at most one of", sort_key=1, validator=LimitedChoice())
_Part = Annotated[bool, Parameter(group=_PARTS, negative=())]
_RATINGS = Group("Options of --ratings", sort_key=2)


def list_runs(*, as_json: AsJson = False, cache: Cache = None) -> None:
    """List the runs in the cache."""
    summaries, broken = store.list_runs(cache)
    for problem in broken:
        print(f"not readable: {problem.reason}", file=sys.stderr)
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    if not summaries and not broken:
        print(f"no runs in {store.cache_folder(cache)}; `refusal run` makes one")
    for summary in summaries:
        counts = " + ".join(str(n) for n in summary.counts.values())
        title = f"“{summary.title}”, " if summary.title else ""
        print(
            f"{summary.run_id}\n    {title}{summary.model}, {summary.n_layers} layers, {summary.contrast_set} "
            f"({counts}), {summary.dtype}, {summary.created}, {summary.size_bytes / 1e6:.1f} MB"
        )


def show(
    run: RunName,
    /,
    *,
    behaviour: Annotated[_Part, Parameter(help="Show how the model answers the prompts.")] = False,
    verdicts: Annotated[
        str | None,
        Parameter(
            help="With --behaviour: CSV of verdicts on the replies from elsewhere, with a prompt_id or text column."
        ),
    ] = None,
    intervention: Annotated[_Part, Parameter(help="Show what edits of the model change.")] = False,
    judgement: Annotated[
        _Part, Parameter(help="Show whether steering moves the model's judgement or its refusing alone.")
    ] = False,
    subspace: Annotated[_Part, Parameter(help="Show how many directions the run's categories need.")] = False,
    positions: Annotated[_Part, Parameter(help="Show the direction at the other read positions.")] = False,
    trajectory: Annotated[_Part, Parameter(help="Show the projection along the model's replies.")] = False,
    attribution: Annotated[
        _Part, Parameter(help="Show what adds to the direction, and which words it would write.")
    ] = False,
    ratings: Annotated[
        _Part, Parameter(help="Show whether projection goes with how harmful people find the prompts.")
    ] = False,
    file: Annotated[
        tuple[str, ...],
        Parameter(
            group=_RATINGS,
            help="CSV of ratings with a prompt_id or text column; may be repeated (default: those made in the "
            "dashboard).",
        ),
    ] = (),
    rating_column: Annotated[str | None, Parameter(group=_RATINGS, help="Column of ratings (default: rating).")] = None,
    rater_column: Annotated[
        str | None,
        Parameter(group=_RATINGS, help="Column of raters (default: rater; without one, a file is one rater's)."),
    ] = None,
    export: Annotated[str | None, Parameter(group=_RATINGS, help="Write the ratings to this CSV.")] = None,
    position: Position = "t_post",
    as_json: AsJson = False,
    cache: Cache = None,
) -> None:
    """Show a run's table of layers, or what was measured on it."""
    if verdicts is not None and not behaviour:
        raise RefusalError("verdicts are compared with the replies: give --behaviour as well")
    given = {"--file": file, "--rating-column": rating_column, "--rater-column": rater_column, "--export": export}
    of_ratings = [option for option, value in given.items() if value not in (None, ())]
    if of_ratings and not ratings:
        raise RefusalError(f"only ratings take {' and '.join(of_ratings)}: give --ratings as well")
    opened = store.open_run(run, cache).at(position)
    # They need different modules.
    if behaviour:
        from refusal_core.cli.measuring import show_behaviour

        show_behaviour(opened, verdicts, as_json)
    elif intervention:
        from refusal_core.cli.measuring import show_intervention

        show_intervention(opened, as_json)
    elif judgement:
        from refusal_core.cli.measuring import show_judgement

        show_judgement(opened, as_json)
    elif subspace:
        from refusal_core.cli.measuring import show_subspace

        show_subspace(opened, as_json)
    elif positions:
        from refusal_core.cli.measuring import show_positions

        show_positions(opened, as_json)
    elif trajectory:
        from refusal_core.cli.measuring import show_trajectory

        show_trajectory(opened, as_json)
    elif attribution:
        from refusal_core.cli.measuring import show_attribution

        show_attribution(opened, as_json)
    elif ratings:
        from refusal_core.cli.ratings import show_ratings

        show_ratings(opened, file, rating_column, rater_column, export, cache, as_json)
    else:
        _show_layers(opened, as_json)


def evidence(run: RunName, /, *, position: Position = "t_post", as_json: AsJson = False, cache: Cache = None) -> None:
    """Show the answers to the questions, and their numbers layer by layer."""
    from refusal_core.evidence.answers import QUESTIONS, answer
    from refusal_core.evidence.findings import notes, overview_table, verdict

    opened = store.open_run(run, cache).at(position)
    numbers = opened.evidence
    answers = {question: answer(numbers, name, opened.best_site()) for name, question in QUESTIONS.items()}
    if as_json:
        tables = {name: records(table) for name, table in (("sites", numbers.sites), ("reasons", numbers.reasons))}
        print_json({"run_id": opened.run_id, "verdict": verdict(numbers), "answers": answers, **tables})
        return
    print(*filter(None, [opened.direction_note]), verdict(numbers), *notes(opened), sep="\n")
    table = overview_table(numbers).rename(index=lambda site: opened.site_label(int(site)))
    table.index.name = None
    print_table(table, index=True)
    for question, sentence in answers.items():
        print(f"\n{question}\n    {sentence}")
    for (number, source, reason), rows in numbers.reasons.groupby(["number", "source", "reason"], sort=False):
        sites = [] if rows["site"].isna().any() else [opened.site_label(int(site)) for site in rows["site"]]
        where = "" if len(sites) in (0, opened.n_sites) else f" at {', '.join(sites)}"
        print(f"missing: {number} ({source}){where}: {reason}", file=sys.stderr)


def verify(run: RunName, /, *, cache: Cache = None) -> None:
    """Check every file of a run against its manifest."""
    files = store.verify_run(run, cache)
    print(f"{run}: {len(files)} files match the manifest")


def rename(
    run: RunName,
    title: Annotated[str, Parameter(help="The title; an empty one removes it.")],
    /,
    *,
    cache: Cache = None,
) -> None:
    """Give a run a title; its name stays."""
    store.rename_run(run, title, cache)
    print(run)


def delete(
    run: RunName,
    /,
    *,
    forever: Annotated[bool, Parameter(negative=(), help="Free its disk space at once.")] = False,
    cache: Cache = None,
) -> None:
    """Remove a run and everything measured on it; it can be restored for a week."""
    store.delete_run(run, cache, forever=forever)
    print(f"deleted {run}")
    if not forever:
        print(f"`refusal restore {run}` brings it back within {store.DAYS_IN_BIN} days", file=sys.stderr)


def restore(run: RunName, /, *, cache: Cache = None) -> None:
    """Put a deleted run back into the cache."""
    store.restore_run(run, cache)
    print(f"restored {run}")


def headline(run: Run) -> str:
    """Return the answers to the three questions at the layer with the highest cross-fitted d, one line per question."""
    site = run.best_site()
    numbers = run.layer_stats.set_index("site").loc[site]
    names = {column: f"{question} ({name_of(column)})" for column, question in _QUESTIONS.items()}
    if run.imported:
        names = {"crossfit_d": "d on the contrast set", "probe_d": names["probe_d"]}
    lines = [f"{name}: {numbers[column]:.2f}" for column, name in names.items() if numbers.notna()[column]]
    where = f"at {run.site_label(site)}, which does best on {'the contrast set' if run.imported else 'new prompts'}:"
    if numbers.isna()["crossfit_d"]:
        where, lines = "no layer has a direction that could be tested on the contrast set", []
    return "\n".join([*filter(None, [run.direction_note]), where, *lines])


def _show_layers(run: Run, as_json: bool) -> None:
    if as_json:
        print_json({"run_id": run.run_id, "model": run.model_name, "sites": records(run.layer_stats)})
        return
    table = run.layer_stats.set_index("site")[list(_COLUMNS)].rename(index=lambda site: run.site_label(int(site)))
    table.index.name = None
    print(headline(run))
    print_table(table, digits=3, index=True)
