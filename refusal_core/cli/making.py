"""Verbs that make a run or fetch what one needs: ``run``, ``refit``, ``import-direction``, ``fetch``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from refusal_core.cli.parameters import Cache, Device, Flat, RunName, WhereModelIs, print_table
from refusal_core.cli.reporting import ProgressFileOption, ReporterArgument
from refusal_core.options import Estimator, RunOptions


def run(
    *,
    options: Annotated[RunOptions, Flat],
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Make a run, or find it in the cache."""
    from refusal_core.cli.runs import headline
    from refusal_core.pipeline.run import run as make

    with reporter.progress() as progress:
        result = make(options, cache=cache, progress=progress)
    made = result.run
    if result.cached:
        print(f"found in the cache, nothing computed: {made.path}")
    else:
        timings = made.manifest.timings
        if timings is not None:
            print(
                f"{len(made.prompts)} prompts in {timings.extract_seconds:.1f} s "
                f"({timings.prompts_per_second:.2f} prompts/s), model opened in {timings.load_seconds:.1f} s"
            )
        print(f"weights: {made.manifest.compute.weights}")
        print(headline(made))
    print(made.run_id)


def refit(
    run: RunName,
    /,
    *,
    estimator: Annotated[
        Estimator | None,
        Parameter(help="How the direction is got from the activations (default: as in the run)."),
    ] = None,
    without: Annotated[
        str | None,
        Parameter(
            help="CSV of marks with a prompt_id or text column; without a mark column all its prompts are left out "
            "(default: the marks made in the dashboard)."
        ),
    ] = None,
    marked: Annotated[
        str | None,
        Parameter(
            help="Marks that leave a prompt out: mislabelled, ambiguous, fine, joined by commas (default: mislabelled; "
            "none where an estimator is given without marks)."
        ),
    ] = None,
    model: WhereModelIs = None,
    device: Device = "auto",
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Make a run again without some prompts, or with another estimator, and say what changed."""
    from refusal_core.annotations import marks
    from refusal_core.exploration import refits
    from refusal_core.pipeline.refit import original_of
    from refusal_core.pipeline.refit import refit as make
    from refusal_core.runs import store

    parent = store.open_run(run, cache)
    kinds = (marked or "mislabelled").split(",")
    table = (
        marks.load_marks(cache) if without is None else marks.marks_table(marks.read_marks(without, default=kinds[0]))
    )
    # With another estimator the prompts stay what they are, unless it is said which do not.
    same_prompts = estimator is not None and without is None and marked is None
    left_out = [] if same_prompts else marks.marked_prompt_ids(table, kinds)
    with_model = not original_of(parent).keeps_activations
    with reporter.progress(with_model) as progress:
        result = make(parent, left_out, estimator=estimator, model=model, device=device, progress=progress)
    if result.cached:
        print(f"found in the cache, nothing computed: {result.run.path}")
    change = refits.compare(original_of(result.run), result.run)
    print(refits.describe_change(change))
    print_table(refits.change_table(change), digits=3)
    print(result.run.run_id)


def import_direction(
    file: Annotated[
        str, Parameter(help="Vectors: safetensors, npy or a GGUF control vector. Pickles (.pt, .bin) are refused.")
    ],
    /,
    *,
    run: Annotated[str, Parameter(help="A run of the model that the vectors are of; its prompts are taken.")],
    layers: Annotated[
        str | None,
        Parameter(
            help="How the file counts layers: blocks (output of each block, from 0; llama.cpp, repeng, "
            "steering-vectors), block-inputs (Arditi et al.'s code, resid_pre) or hidden-states (Hugging Face's, the "
            "embeddings first; heretic, RepE). GGUF files count blocks; files of this program say it themselves."
        ),
    ] = None,
    layer: Annotated[int | None, Parameter(help="For a file of one vector: its layer, in that numbering.")] = None,
    model: WhereModelIs = None,
    device: Device = "auto",
    cache: Cache = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Put someone else's vectors to the questions on a run's prompts, as a new run."""
    from refusal_core.children import in_child
    from refusal_core.cli.runs import headline
    from refusal_core.pipeline.imported import import_direction as make
    from refusal_core.pipeline.vector_files import count_vectors
    from refusal_core.runs import store

    parent = store.open_run(run, cache)
    # Somebody else's file, whose few bytes may take any memory: what it takes is found out where that is limited.
    in_child(count_vectors, str(file))
    with reporter.progress(not parent.keeps_activations) as progress:
        result = make(parent, file, layers, layer, model=model, device=device, progress=progress)
    if result.cached:
        print(f"found in the cache, nothing computed: {result.run.path}")
    print(headline(result.run))
    print(result.run.run_id)


def fetch(
    name: Annotated[str, Parameter(help="Known name, or a hub id such as Qwen/Qwen2.5-1.5B-Instruct.")],
    /,
    *,
    revision: Annotated[str | None, Parameter(help="Commit, tag or branch of a hub model.")] = None,
    progress_file: ProgressFileOption = None,
    reporter: ReporterArgument,
) -> None:
    """Download a model and make it ready to open."""
    from refusal_core.models.fetching import fetch as fetch_model

    with reporter.progress(with_model=False) as progress:
        folder = fetch_model(name, progress, revision)
    print(folder)
