"""The command line: the same verbs as the API.

Results go to stdout, progress and errors to stderr. Exit status 0 when done, 1 for what the user can mend (one line
says what), 2 for a command that cannot be understood, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from refusal_core import __version__
from refusal_core.errors import RefusalError, RenderingError
from refusal_core.intervention.conditions import PRESETS
from refusal_core.models.devices import DTYPES, ENGINES
from refusal_core.progress import Progress
from refusal_core.progress.bars import ProgressBars
from refusal_core.progress.file import WAITING, ProgressFile
from refusal_core.prompts.sets import CONTRAST_SETS, TOKEN_LIMIT
from refusal_core.runs import store
from refusal_core.runs.store import Run

if TYPE_CHECKING:
    from refusal_core.models.opening import ChatModel


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _watched(options) as options.watched:
            options.command(options)
            sys.stdout.flush()
    except RefusalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it; Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refusal_core", description="Measure refusal directions in chat models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    fetch = verbs.add_parser("fetch", help="make a named model or a hub model ready to open")
    fetch.add_argument("name", metavar="NAME", help="a known name, or a hub id such as Qwen/Qwen2.5-1.5B-Instruct")
    fetch.add_argument("--revision", help="commit, tag or branch of a hub model")
    _progress_file(fetch)
    fetch.set_defaults(command=_fetch)

    run = verbs.add_parser("run", help="extract, fit and test; prints the run's name")
    run.add_argument("--model", required=True, help="fetched name, hub id, folder or GGUF file")
    run.add_argument("--revision", help="commit, tag or branch of a hub model")
    run.add_argument(
        "--prompts",
        default="pairs",
        metavar="SET_OR_FILE",
        help=f"{', '.join(CONTRAST_SETS)}; a labelled csv, json, jsonl, parquet or txt file; "
        "or HARMFUL,HARMLESS as two files or hub datasets (default: pairs)",
    )
    run.add_argument(
        "--transfer",
        action="append",
        default=[],
        metavar="FILE",
        help="labelled prompts to score too; may be repeated",
    )
    run.add_argument("--limit", type=int, metavar="N", help="prompts a label, spread evenly over the set")
    run.add_argument("--text-column", metavar="NAME")
    run.add_argument("--label-column", metavar="NAME")
    run.add_argument("--system-prompt", metavar="TEXT", help="default: what the chat template does by itself")
    run.add_argument(
        "--thinking", choices=("on", "off"), help="for models that can think first (default: what the template does)"
    )
    run.add_argument(
        "--template",
        metavar="NAME_OR_PATH",
        help="use another model's chat template: a fetched name, hub id, model folder or .jinja file",
    )
    run.add_argument(
        "--quantise", type=int, choices=(8, 4), help="open the model in so many bits (needs the extra quantised)"
    )
    run.add_argument("--token-limit", type=int, default=TOKEN_LIMIT, metavar="N", help="longest prompt accepted")
    _machine(run)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="read prompts here, or by Ray's actors (default: here)"
    )
    run.add_argument("--actors", type=int, metavar="N", help="of ray, each with the model (default: one a GPU, or 2)")
    run.add_argument("--keep-activations", action="store_true", help="store activations.safetensors with the run")
    _progress_file(run)
    run.set_defaults(command=_run)

    listing = verbs.add_parser("list", help="the runs in the cache")
    listing.set_defaults(command=_list)

    for name, command, explanation in (
        ("show", _show, "a run's table of layers"),
        ("evidence", _evidence, "what the numbers say to each question, layer by layer"),
        ("verify", _verify, "check every file of a run against its manifest"),
        ("delete", _delete, "remove a run"),
    ):
        verb = verbs.add_parser(name, help=explanation)
        verb.add_argument("run", metavar="RUN")
        verb.set_defaults(command=command)

    refit = verbs.add_parser("refit", help="make a run again without the prompts that are marked; prints its name")
    refit.add_argument("run", metavar="RUN")
    refit.add_argument(
        "--without",
        metavar="CSV",
        help="marks with a prompt_id or text column; without a mark column all its prompts are left out "
        "(default: the marks made in the dashboard)",
    )
    refit.add_argument(
        "--marked",
        default="mislabelled",
        metavar="KINDS",
        help="which marks leave a prompt out: mislabelled, ambiguous, fine, joined by commas (default: %(default)s)",
    )
    refit.add_argument("--model", help="where the run's model is, when activations were not kept and it was local")
    refit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    _progress_file(refit)
    refit.set_defaults(command=_refit)

    score = verbs.add_parser("score", help="project prompts of your own at every site of a run")
    score.add_argument("run", metavar="RUN")
    texts = score.add_mutually_exclusive_group(required=True)
    texts.add_argument("text", nargs="?", metavar="PROMPT")
    texts.add_argument("--file", metavar="FILE", help="prompts in a csv, json, jsonl, parquet or txt file")
    score.add_argument("--text-column", metavar="NAME")
    score.add_argument("--json", action="store_true", help="print a JSON array, one object a text")
    _model_of_run(score)
    score.set_defaults(command=_score)

    behaviour = verbs.add_parser("behaviour", help="measure how the model answers a run's prompts")
    behaviour.add_argument("run", metavar="RUN")
    behaviour.add_argument("--rules", metavar="FILE", help="other rules than data/openings.toml")
    behaviour.add_argument("--again", action="store_true", help="ask the model again where openings are kept already")
    _model_of_run(behaviour)
    _progress_file(behaviour)
    behaviour.set_defaults(command=_behaviour)

    ratings = verbs.add_parser("ratings", help="whether projection goes with how harmful people find the prompts")
    ratings.add_argument("run", metavar="RUN")
    ratings.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="CSV",
        help="ratings with a prompt_id or text column; may be repeated (default: those made in the dashboard)",
    )
    ratings.add_argument("--rating-column", metavar="NAME", help="default: rating")
    ratings.add_argument("--rater-column", metavar="NAME", help="default: rater; without one, a file is one rater's")
    ratings.add_argument("--export", metavar="FILE", help="write the ratings there as csv")
    ratings.set_defaults(command=_ratings)

    intervene = verbs.add_parser("intervene", help="ablate and add a run's direction, and measure what changes")
    intervene.add_argument("run", metavar="RUN")
    intervene.add_argument("--limit", type=int, default=16, metavar="N", help="prompts a label (default: 16)")
    intervene.add_argument("--source", metavar="SET", help="the set they are of (default: probe-pairs)")
    intervene.add_argument("--controls", type=int, default=20, metavar="N", help="random directions a layer (20)")
    intervene.add_argument(
        "--control-layers",
        type=int,
        nargs="+",
        default=list(PRESETS),
        metavar="LAYER",
        help="where controls are measured, besides the chosen layer (default: %(default)s)",
    )
    intervene.add_argument(
        "--range", type=int, nargs=2, dest="span", metavar=("FIRST", "LAST"), help="also ablate these layers together"
    )
    intervene.add_argument(
        "--positions",
        type=int,
        metavar="N",
        help="closing tokens of the template that the published choice considers (default: all of them)",
    )
    intervene.add_argument(
        "--tokens", choices=("all", "last"), default="all", help="edit every token, or the prompt's last (default: all)"
    )
    intervene.add_argument("--seed", type=int, default=0, help="of the control directions")
    intervene.add_argument("--again", action="store_true", help="measure anew what is kept already")
    _model_of_run(intervene)
    _progress_file(intervene)
    intervene.set_defaults(command=_intervene)

    export = verbs.add_parser("export", help="write the report's files of a run")
    export.add_argument("run", metavar="RUN")
    export.add_argument("folder", metavar="FOLDER")
    export.set_defaults(command=_export)

    pack = verbs.add_parser("pack", help="write a run to one zip file, to send to someone")
    pack.add_argument("run", metavar="RUN")
    pack.add_argument("file", metavar="FILE.zip")
    pack.set_defaults(command=_pack)

    importing = verbs.add_parser("import", help="check a packed run that someone sent and put it into the cache")
    importing.add_argument("file", metavar="FILE.zip")
    importing.set_defaults(command=_import)

    rename = verbs.add_parser("rename", help="show a run under a title of your own; its name stays")
    rename.add_argument("run", metavar="RUN")
    rename.add_argument("title", metavar="TITLE", help="an empty one takes the title away")
    rename.set_defaults(command=_rename)

    for verb in verbs.choices.values():
        verb.add_argument("--cache", metavar="DIR", help="the folder runs are kept in (default: cache/)")
    return parser


def _machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps, or spread over all of them")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))


def _model_of_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="where the run's model is, when it came from a folder or a GGUF file")
    _machine(parser)


def _progress_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress-file",
        metavar="FILE",
        help="write progress there as JSON, for another program; work with a model then waits for that beside it",
    )


def _fetch(options: argparse.Namespace) -> None:
    from refusal_core.models.opening import fetch

    with _progress(options, with_model=False) as progress:
        folder = fetch(options.name, progress, options.revision)
    print(folder)


def _run(options: argparse.Namespace) -> None:
    from refusal_core.pipeline.new_run import run

    with _progress(options) as progress:
        result = run(
            options.model,
            options.prompts,
            revision=options.revision,
            transfer=tuple(options.transfer),
            limit=options.limit,
            system_prompt=options.system_prompt,
            thinking=None if options.thinking is None else options.thinking == "on",
            template=options.template,
            quantise=options.quantise,
            device=options.device,
            dtype=options.dtype,
            seed=options.seed,
            token_limit=options.token_limit,
            text_column=options.text_column,
            label_column=options.label_column,
            keep_activations=options.keep_activations,
            engine=options.engine,
            actors=options.actors,
            cache=options.cache,
            progress=progress,
        )
    if result.cached:
        print(f"found in the cache, nothing computed: {result.run.path}")
    else:
        timings = result.run.manifest["timings"]
        print(
            f"{len(result.run.prompts)} prompts in {timings['extract_seconds']:.1f} s "
            f"({timings['prompts_per_second']:.2f} prompts/s), model opened in {timings['load_seconds']:.1f} s\n"
            f"weights: {result.run.manifest['compute']['weights']}"
        )
        print(_headline(result.run))
    print(result.run.run_id)


def _refit(options: argparse.Namespace) -> None:
    from refusal_core.annotations import marks
    from refusal_core.exploration import refits
    from refusal_core.pipeline.new_run import original_of, refit

    run = store.open_run(options.run, options.cache)
    kinds = options.marked.split(",")
    marked = marks.kept(options.cache)
    if options.without:
        marked = marks.table_of(marks.read_marks(options.without, usual=kinds[0]))
    with _progress(options, store.ACTIVATIONS not in original_of(run).manifest["files"]) as progress:
        result = refit(
            run, marks.prompts_marked(marked, kinds), model=options.model, device=options.device, progress=progress
        )
    if result.cached:
        print(f"found in the cache, nothing computed: {result.run.path}")
    change = refits.compare(store.open_run(result.run.manifest["refit"]["parent"], options.cache), result.run)
    print(refits.reading(change))
    print(refits.numbers(change).to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="–"))
    print(result.run.run_id)


def _list(options: argparse.Namespace) -> None:
    found, broken = store.list_runs(options.cache)
    if not found and not broken:
        print(
            f"no runs in {store.cache_folder(options.cache)}; make one with `python -m refusal_core run --model MODEL`"
        )
    for summary in found:
        counts = " + ".join(str(n) for n in summary.counts.values())
        title = f"“{summary.title}”, " if summary.title else ""
        print(
            f"{summary.run_id}\n    {title}{summary.model}, {summary.n_layers} layers, {summary.contrast_set} "
            f"({counts}), {summary.dtype}, {summary.created}, {summary.size_bytes / 1e6:.1f} MB"
        )
    for problem in broken:
        print(f"not readable: {problem.reason}", file=sys.stderr)


def _show(options: argparse.Namespace) -> None:
    run = store.open_run(options.run, options.cache)
    columns = {
        "magnitude": "magnitude",
        "cohens_d": "d in-sample",
        "crossfit_d": "d cross-fitted",
        "probe_d": "d probe pairs",
        "probe_auroc": "AUROC probe pairs",
        "overlap_count": "mean crossings",
        "range_overlap": "range overlap",
        "log10_p": "log10 p",
    }
    table = run.layer_stats.set_index("site")[list(columns)].rename(columns=columns)
    table.index = [run.site_label(site) for site in table.index]
    print(_headline(run))
    print(table.to_string(float_format=lambda value: f"{value:.3f}"))


def _headline(run: Run) -> str:
    lines = []
    for column, question in (
        ("cohens_d", "does it fit (in-sample d)"),
        ("crossfit_d", "does it hold on new prompts (cross-fitted d)"),
        ("probe_d", "is it about harm (d on probe pairs)"),
    ):
        values = run.layer_stats[column]
        if values.notna().any():
            site = int(values.idxmax())
            lines.append(f"{question}: strongest at {run.site_label(site)}, {values[site]:.2f}")
    return "\n".join(lines)


def _evidence(options: argparse.Namespace) -> None:
    from refusal_core.evidence.answers import QUESTIONS, answer
    from refusal_core.evidence.evaluation import Evidence
    from refusal_core.evidence.findings import overview_table, sampling, strongest_site, verdict

    run = store.open_run(options.run, options.cache)
    evidence = Evidence.from_tables(run.evidence_tables())
    print(*filter(None, (verdict(evidence), sampling(evidence))), sep="\n")
    table = overview_table(evidence)
    table.index = [run.site_label(int(site)) for site in table.index]
    print(table.to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    for name, question in QUESTIONS.items():
        print(f"\n{question}\n    {answer(evidence, name, strongest_site(evidence))}")
    for (number, source, reason), rows in evidence.reasons.groupby(["number", "source", "reason"], sort=False):
        sites = [] if rows["site"].isna().any() else [run.site_label(int(site)) for site in rows["site"]]
        where = "" if len(sites) in (0, run.n_sites) else f" at {', '.join(sites)}"
        print(f"missing: {number} ({source}){where}: {reason}", file=sys.stderr)


def _verify(options: argparse.Namespace) -> None:
    files = store.verify_run(options.run, options.cache)
    print(f"{options.run}: {len(files)} files match the manifest")


def _delete(options: argparse.Namespace) -> None:
    store.delete_run(options.run, options.cache)
    print(f"deleted {options.run}")


def _pack(options: argparse.Namespace) -> None:
    from refusal_core.sharing.archives import pack_run

    pack_run(options.run, options.file, options.cache)
    print(options.file)


def _import(options: argparse.Namespace) -> None:
    from refusal_core.sharing.archives import import_run

    imported = import_run(options.file, options.cache)
    if not imported.new:
        print("this run is here already: nothing was changed")
    print(imported.run_id)


def _rename(options: argparse.Namespace) -> None:
    store.rename_run(options.run, options.title, options.cache)
    print(options.run)


def _score(options: argparse.Namespace) -> None:
    from refusal_core.pipeline.scoring import score
    from refusal_core.prompts.sets import read_texts

    run = store.open_run(options.run, options.cache)
    texts = [options.text]
    if options.file is not None:
        texts = read_texts(options.file, options.text_column)["text"].tolist()
    scores = score(_loaded(run, options), run, texts)
    if options.json:
        print(json.dumps([result.to_json() for result in scores], ensure_ascii=False))
        return
    for result in scores:
        print(
            f"{_printable(result.text)}\n"
            f"    refusal log-odds {result.refusal_log_odds:.2f}, first token {result.first_token!r}"
        )
        for site in range(run.n_sites):
            print(
                f"    {run.site_label(site):>16}  {result.projection[site]:9.3f}  "
                f"percentile among harmful {result.percentile['harmful'][site]:5.1f}, "
                f"harmless {result.percentile['harmless'][site]:5.1f}"
            )


def _behaviour(options: argparse.Namespace) -> None:
    import pandas as pd

    from refusal_core.behaviour import measurement
    from refusal_core.behaviour.openings import BUNDLED, read_rules

    run = store.open_run(options.run, options.cache)
    rules = read_rules(options.rules or BUNDLED)
    table = None if options.again else measurement.relabelled(run, rules)
    if table is not None:
        print("the run has its openings: they were read by these rules, nothing was generated (--again does)\n")
    else:
        with _progress(options) as progress:
            table = measurement.record(run, _loaded(run, options), rules, progress)
    numbers = measurement.by_site(run, table)
    strongest = int(numbers.groupby("site")["rho"].mean().fillna(-1).idxmax())
    print(
        measurement.reading(run, table, numbers, strongest),
        pd.crosstab(run.prompts["label"], table["opening_label"]).to_string(),
        measurement.agreement(run, table).to_string(index=False, float_format=lambda value: f"{value:.2f}"),
        sep="\n\n",
    )


def _ratings(options: argparse.Namespace) -> None:
    from refusal_core.annotations import raters, ratings

    run = store.open_run(options.run, options.cache)
    files = [ratings.read_ratings(file, options.rating_column, options.rater_column) for file in options.file]
    everything = ratings.combined(files) if files else raters.all_ratings(options.cache)
    if options.export:
        ratings.write_csv(everything, options.export)
    found = ratings.of_run(run, everything)
    print(ratings.account(found))
    numbers = ratings.by_site(run, found)
    best = ratings.strongest(numbers)
    if best.empty:
        print(f"too few to compare: at least {ratings.MINIMUM} prompts of a kind have to be rated, and differ")
        return
    print(f"\n{ratings.reading(run, numbers, int(best['site'].iloc[0]))}\n\nstrongest layers")
    best["site"] = [run.site_label(site) for site in best["site"]]
    print(best.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def _intervene(options: argparse.Namespace) -> None:
    from refusal_core.behaviour.openings import read_rules
    from refusal_core.intervention import effects, experiment

    run = store.open_run(options.run, options.cache)
    found = None if options.again else experiment.recorded(run)
    if found is not None:
        table, kept = found
        print(
            f"the run has its interventions, on {table['prompt_id'].nunique()} prompts of {kept['prompts']['source']} "
            f"with {len(kept['controls']['names'])} controls: nothing was computed (--again measures anew)\n"
        )
    else:
        with _progress(options) as progress:
            table = experiment.record(
                run,
                _loaded(run, options),
                read_rules(),
                limit=options.limit,
                source=options.source,
                random_directions=options.controls,
                control_layers=options.control_layers,
                span=options.span,
                positions=options.positions,
                tokens=options.tokens,
                seed=options.seed,
                progress=progress,
            )
    summary = effects.summarise(run, table)
    print(effects.headline(run, summary), *effects.reading(run, table, summary), sep="\n", end="\n\n")
    print(effects.numbers(run, summary).to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="–"))
    print("\nThe published choice, least bypass first:")
    print(effects.candidates(run, table).head(10).to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def _loaded(run: Run, options: argparse.Namespace) -> ChatModel:
    """The run's model, in the run's dtype unless another is asked for."""
    from refusal_core.pipeline.scoring import load_model_for

    return load_model_for(run, options.model, options.device, None if options.dtype == "auto" else options.dtype)


def _printable(text: str) -> str:
    """A prompt on one line of a terminal, control characters escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _export(options: argparse.Namespace) -> None:
    from refusal_core.sharing.export import export_pictures, export_run

    run = store.open_run(options.run, options.cache)
    print(*export_run(run, Path(options.folder)), sep="\n")
    try:
        print(*export_pictures(run, Path(options.folder)), sep="\n")
    except RenderingError as error:
        print(f"without the pictures: {error}", file=sys.stderr)


def _watched(options: argparse.Namespace) -> AbstractContextManager[ProgressFile | None]:
    """The progress file, if one is asked for: open for the whole command, so that it always says how that ended."""
    path = getattr(options, "progress_file", None)
    return nullcontext() if path is None else ProgressFile(path)


@contextmanager
def _progress(options: argparse.Namespace, with_model: bool = True) -> Iterator[Progress]:
    """Bars, or the progress file; then work with a model takes turns with what has its progress file in that folder.

    Visitors start such work without knowing of each other, and two models might not fit into memory.
    """
    if options.watched is None:
        with ProgressBars() as bars:
            yield bars
        return
    turn = FileLock(Path(options.progress_file).with_name(".turn"))
    try:
        if with_model:
            try:
                turn.acquire(timeout=0)
            except Timeout:
                options.watched(WAITING, 0, 0)
                turn.acquire()
                options.watched("starting", 0, 0)
    except OSError as error:
        raise RefusalError(f"the turn of this work cannot be taken in {turn.lock_file} ({error.strerror})") from error
    try:
        yield options.watched
    finally:
        turn.release()


def run() -> None:
    """Run the command that the process was started with, and exit with its status."""
    # Asked to end, it ends as if interrupted: nothing half-written is left, and the progress file says so.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
