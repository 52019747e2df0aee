"""The verbs of ``measure``, and what ``show`` prints of what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import pandas as pd
from cyclopts import Parameter

from refusal_core.cli.parameters import (
    Cache,
    Device,
    Flat,
    RunName,
    WhereModelIs,
    print_json,
    print_table,
    printable,
    records,
)
from refusal_core.cli.reporting import ProgressFileOption, ReporterArgument
from refusal_core.errors import RunError
from refusal_core.options import (
    BehaviourOptions,
    InterventionOptions,
    JudgementOptions,
    ModelOptions,
    PositionOptions,
    TrajectoryOptions,
)
from refusal_core.runs import store
from refusal_core.runs.run import Run

if TYPE_CHECKING:
    from refusal_core.models.opening import ChatModel

Stored = TypeVar("Stored")
Again = Annotated[bool, Parameter(negative=(), help="Measure again, replacing the stored result.")]


def behaviour(
    run: RunName,
    /,
    *,
    options: Annotated[BehaviourOptions | None, Flat] = None,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Measure how the model answers a run's prompts."""
    from refusal_core.behaviour import measurement
    from refusal_core.behaviour.openings import BUNDLED, read_rules

    options = options or BehaviourOptions()
    opened = store.open_run(run, cache)
    rules = read_rules(options.rules or BUNDLED)
    if not again and measurement.relabel(opened, rules) is not None:
        print("the run has its openings: they were labelled by these rules, nothing was generated (--again does)")
        return
    with reporter.progress() as progress:
        table = measurement.record(opened, load_model_of(opened, where or ModelOptions()), options, progress)
    print(f"measured on {len(table)} prompts; `refusal show {opened.run_id} --behaviour` shows the result")


def intervention(
    run: RunName,
    /,
    *,
    options: Annotated[InterventionOptions | None, Flat] = None,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Ablate and add a run's direction, and measure what changes."""
    from refusal_core.intervention import experiment

    opened = store.open_run(run, cache)
    stored = None if again else experiment.load_interventions(opened)
    if stored is not None:
        table, manifest = stored
        print(
            f"the run has its interventions, on {table['prompt_id'].nunique()} prompts of "
            f"{manifest.prompts.source} with {len(manifest.controls.names)} controls: nothing was computed "
            "(--again measures anew)"
        )
        return
    with reporter.progress() as progress:
        model = load_model_of(opened, where or ModelOptions())
        table = experiment.record(opened, model, options or InterventionOptions(), progress)
    n_prompts = table["prompt_id"].nunique()
    print(f"measured on {n_prompts} prompts; `refusal show {opened.run_id} --intervention` shows the result")


def judgement(
    run: RunName,
    /,
    *,
    options: Annotated[JudgementOptions | None, Flat] = None,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Steer along harm and along refusal, and measure whether the model's judgement moves or its refusing alone."""
    from refusal_core.intervention.judgement import load_judgement, record

    opened = store.open_run(run, cache)
    if not again and load_judgement(opened) is not None:
        print("the run has its judgements: nothing was computed (--again measures anew)")
        return
    with reporter.progress() as progress:
        table = record(opened, load_model_of(opened, where or ModelOptions()), options or JudgementOptions(), progress)
    n_prompts = table["prompt_id"].nunique()
    print(f"measured on {n_prompts} prompts; `refusal show {opened.run_id} --judgement` shows the result")


def subspace(
    run: RunName,
    /,
    *,
    again: Again = False,
    model: WhereModelIs = None,
    device: Device = "auto",
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Count and compare the directions of a run's categories and estimators, from stored activations or the model."""
    from refusal_core.exploration.subspace import load_subspace
    from refusal_core.pipeline.subspace import record

    opened = store.open_run(run, cache)
    if not again and load_subspace(opened) is not None:
        print("the run has its subspace: nothing was computed (--again measures anew)")
        return
    with reporter.progress(not opened.keeps_activations) as progress:
        record(opened, model=model, device=device, progress=progress)
    print(f"measured at {opened.n_sites} sites; `refusal show {opened.run_id} --subspace` shows the result")


def positions(
    run: RunName,
    /,
    *,
    options: Annotated[PositionOptions | None, Flat] = None,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Read a run's prompts where their instruction ends and at the closing tokens behind it, and test the direction."""
    from refusal_core.behaviour.positions import compare_with_new_replies, has_new_replies, record
    from refusal_core.exploration.positions import load_positions
    from refusal_core.runs.positions import positions_of

    opened = store.open_run(run, cache)
    stored = None if again else load_positions(opened)
    if stored is not None and not has_new_replies(opened, stored[1]):
        print(
            f"the run has its {len(positions_of(stored[1]))} read positions: nothing was computed "
            "(--again measures anew)"
        )
        if len(opened.positions) == 1 and not opened.imported:
            print("an earlier version measured them: --again also keeps what the run is at each, for --position")
        return
    with reporter.progress() as progress:
        table = None if again else compare_with_new_replies(opened, progress)
        if table is None:
            model = load_model_of(opened, where or ModelOptions())
            table = record(opened, model, options or PositionOptions(), progress)
    n_positions = table["position"].nunique()
    print(f"measured at {n_positions} read positions; `refusal show {opened.run_id} --positions` shows the result")


def trajectory(
    run: RunName,
    /,
    *,
    options: Annotated[TrajectoryOptions | None, Flat] = None,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Let the model reply to some prompts, and follow the projection on the run's direction token by token."""
    from refusal_core.behaviour.trajectory import record
    from refusal_core.exploration.trajectory import load_trajectory

    opened = store.open_run(run, cache)
    if not again and load_trajectory(opened) is not None:
        print("the run has its trajectory: nothing was computed (--again measures anew)")
        return
    with reporter.progress() as progress:
        table = record(opened, load_model_of(opened, where or ModelOptions()), options or TrajectoryOptions(), progress)
    n_prompts = table["prompt_id"].nunique()
    print(f"measured on {n_prompts} prompts; `refusal show {opened.run_id} --trajectory` shows the result")


def attribution(
    run: RunName,
    /,
    *,
    again: Again = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Find which attentions and MLPs add to a run's direction, and which tokens the direction would write."""
    from refusal_core.exploration.attribution import load_attribution
    from refusal_core.pipeline.attribution import record

    opened = store.open_run(run, cache)
    if not again and load_attribution(opened) is not None:
        print("the run has its attribution: nothing was computed (--again measures anew)")
        return
    with reporter.progress() as progress:
        record(opened, load_model_of(opened, where or ModelOptions()), progress)
    print(f"measured at {opened.n_sites} sites; `refusal show {opened.run_id} --attribution` shows the result")


def show_behaviour(run: Run, verdicts_file: str | None, as_json: bool) -> None:
    """Print how a run's model answers its prompts, and how far that agrees with verdicts from elsewhere.

    Raises:
        RefusalError: when that was not measured, or is damaged, or the verdicts cannot be read.
    """
    from refusal_core.behaviour import first_tokens, measurement, verdicts

    stored = _measured(measurement.load_behaviour(run), run, "behaviour was not measured on the run")
    table, _ = stored
    elsewhere = None if verdicts_file is None else verdicts.read_verdicts(verdicts_file)
    numbers = measurement.correlation_by_site(run, table)
    if as_json:
        agreement = {} if elsewhere is None else {"verdicts": records(verdicts.agreement(run, table, elsewhere))}
        print_json({"run_id": run.run_id, "prompts": records(table), "sites": records(numbers), **agreement})
        return
    print(measurement.describe_behaviour(run, table, numbers, run.best_site()), end="\n\n")
    print(pd.crosstab(run.prompts["label"], table["opening_label"]).to_string(), end="\n\n")
    print_table(verdicts.measure_agreement(run, table))
    print(f"\n{first_tokens.describe_first_tokens(run, table)}")
    if elsewhere is not None:
        print(f"\n{verdicts.describe_verdicts(run, table, elsewhere)}")
        print_table(verdicts.agreement(run, table, elsewhere))


def show_intervention(run: Run, as_json: bool) -> None:
    """Print what edits of a run's model change.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.intervention import effects, experiment

    stored = _measured(experiment.load_interventions(run), run, "no intervention was measured on the run")
    table, _ = stored
    summary = effects.summarise(run, table)
    candidates = effects.candidates(run, table)
    if as_json:
        tables = {"conditions": records(effects.numbers(run, summary)), "candidates": records(candidates)}
        print_json({"run_id": run.run_id, **tables})
        return
    print(effects.headline(run, summary), *effects.reading(run, table, summary), sep="\n", end="\n\n")
    print_table(effects.numbers(run, summary))
    print("\nThe published choice, least bypass first:")
    print_table(candidates.head(10))


def show_judgement(run: Run, as_json: bool) -> None:
    """Print what steering along harm and along refusal moves, the model's judgement or its refusing.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.intervention import judgement as measured_judgement
    from refusal_core.intervention import judgement_effects

    stored = _measured(
        measured_judgement.load_judgement(run), run, "the model's judgements were not measured on the run"
    )
    summary = judgement_effects.summarise(run, stored)
    if as_json:
        answered = records(judgement_effects.answered(stored).reset_index())
        print_json({"run_id": run.run_id, "changes": records(summary), "answered": answered})
        return
    said = [judgement_effects.headline(run, stored, summary), *judgement_effects.reading(run, stored, summary)]
    print(*said, sep="\n", end="\n\n")
    print_table(summary)


def show_subspace(run: Run, as_json: bool) -> None:
    """Print how many directions a run's categories need, and how alike those are.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.exploration import subspace as measured_subspace

    stored = _measured(measured_subspace.load_subspace(run), run, "the subspace was not measured on the run")
    table, manifest = stored
    if as_json:
        print_json({"run_id": run.run_id, "categories": manifest.categories, "numbers": records(table)})
        return
    site = run.best_site()
    print(measured_subspace.which_estimator(run, stored, site), end="\n\n")
    estimators = measured_subspace.estimator_table(stored, site)
    print_table(estimators[estimators.columns.intersection(measured_subspace.SUMMARY, sort=False)], index=True)
    print()
    print(measured_subspace.verdict(run, stored, site), printable(measured_subspace.how_many(stored, site)), sep="\n")
    if manifest.reason is not None:
        return
    print(printable(measured_subspace.which_share(stored, site)), end="\n\n")
    pairs = measured_subspace.pair_table(stored, site)
    for column in ("category", "other_category"):
        pairs[column] = pairs[column].map(printable)
    print_table(pairs)
    n_directions = measured_subspace.ranks(table).rename("directions").to_frame()
    n_directions.index = pd.Index([run.site_label(int(place)) for place in n_directions.index])
    print()
    print_table(n_directions, index=True)


def show_positions(run: Run, as_json: bool) -> None:
    """Print how a run's direction does at every read position, at the run's best layer.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.exploration import positions as measured_positions

    stored = _measured(measured_positions.load_positions(run), run, "the read positions were not measured on the run")
    table, manifest = stored
    if as_json:
        print_json({"run_id": run.run_id, "closing_tokens": manifest.closing_tokens, "numbers": records(table)})
        return
    site = run.best_site()
    print(measured_positions.verdict(run, stored, site))
    for said in (measured_positions.what_follows, measured_positions.how_alike):
        if sentence := said(stored, site):
            print(sentence)
    print(measured_positions.where_read(run, stored, site), end="\n\n")
    print_table(measured_positions.numbers_table(stored, site), index=True)


def show_trajectory(run: Run, as_json: bool) -> None:
    """Print how the projection moves along a run's replies at its best layer.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.exploration import trajectory as measured_trajectory

    stored = _measured(measured_trajectory.load_trajectory(run), run, "replies were not followed on the run")
    site = run.best_site()
    curves, gaps = measured_trajectory.curves(stored, site), measured_trajectory.gaps(stored, site)
    if as_json:
        print_json({"run_id": run.run_id, "site": site, "curves": records(curves), "gaps": records(gaps)})
        return
    print(measured_trajectory.what_happens(run, stored, site), end="\n\n")
    print_table(gaps)
    print()
    print_table(curves[curves["token"] % 4 == 0])


def show_attribution(run: Run, as_json: bool) -> None:
    """Print what adds to a run's direction at its best layer, and which tokens it would write.

    Raises:
        RunError: when that was not measured, or is damaged.
    """
    from refusal_core.exploration import attribution as measured_attribution

    stored = _measured(
        measured_attribution.load_attribution(run), run, "what adds to the direction was not measured on the run"
    )
    table, manifest = stored
    if as_json:
        print_json({"run_id": run.run_id, "parts": manifest.parts, "numbers": records(table)})
        return
    site = run.best_site()
    print(measured_attribution.verdict(run, stored, site))
    print(printable(measured_attribution.what_adds(run, stored, site)), end="\n\n")
    parts = measured_attribution.part_table(stored, site)
    if len(parts):
        print_table(parts.head(10))
        print()
    print(measured_attribution.which_tokens(run, stored, site))
    # They are printed as they are written: a token is a stranger's text.
    tokens = measured_attribution.token_table(stored, site)
    if len(tokens):
        print_table(tokens.map(lambda value: printable(value) if isinstance(value, str) else value))


def load_model_of(run: Run, where: ModelOptions) -> ChatModel:
    """Open a run's model where and as the options say; see :meth:`.Run.load_model`.

    Raises:
        RefusalError: when it cannot be found, or is not the run's model.
    """
    return run.load_model(where.model, device=where.device, dtype=where.dtype)


def _measured(stored: Stored | None, run: Run, lacking: str) -> Stored:
    """Return what was measured on a run, or raise RunError, which says what is lacking."""
    if stored is None:
        raise RunError(f"{lacking} {run.run_id!r}")
    return stored
