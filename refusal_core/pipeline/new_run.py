"""Prompts and a model to a run: load, extract, fit, test, store."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refusal_core.analysis.crossfit import crossfit
from refusal_core.analysis.directions import Directions, fit_directions
from refusal_core.analysis.effect_sizes import layer_statistics
from refusal_core.analysis.gram import gram_matrix
from refusal_core.errors import PromptError, RefusalError, RunError
from refusal_core.evidence.evaluation import CONTRAST, Evidence, evaluate
from refusal_core.models.devices import DTYPES, ENGINES, RAY, SPREAD, choose_device, choose_dtype
from refusal_core.models.opening import (
    ChatModel,
    as_opened,
    default_system_prompt,
    identify,
    load_model,
    template_sha256,
)
from refusal_core.models.templates import borrow_template, tells_the_date
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import (
    LABELS,
    MINIMUM_PER_LABEL,
    TOKEN_LIMIT,
    TRANSFER_SETS,
    PromptSet,
    load_contrast_set,
    load_transfer_set,
    prompt_groups,
    slug,
    without,
)
from refusal_core.runs import store
from refusal_core.runs.store import LEFT_OUT, Run

if TYPE_CHECKING:
    from refusal_core.activations.extraction import Extraction

FOLDS = 10
REPEATS = 5
LOADING = "loading (model)"
SAVING = "saving (run)"

TOKEN_POSITION = "last token of the templated prompt, generation prompt included"


@dataclass(frozen=True)
class RunResult:
    """A run, and whether it was already in the cache."""

    run: Run
    cached: bool


def run(
    model: str | Path,
    prompts: str = "pairs",
    *,
    revision: str | None = None,
    transfer: tuple[str, ...] = (),
    limit: int | None = None,
    system_prompt: str | None = None,
    thinking: bool | None = None,
    template: str | None = None,
    quantise: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    token_limit: int = TOKEN_LIMIT,
    text_column: str | None = None,
    label_column: str | None = None,
    keep_activations: bool = False,
    engine: str = ENGINES[0],
    actors: int | None = None,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
) -> RunResult:
    """Extract, fit and test a model's refusal directions on a contrast set, or find that run in the cache.

    An extraction that was stopped goes on where it was when the same run is asked for again.

    Args:
        model: fetched name, hub id, folder or GGUF file; ``revision`` for a hub id.
        prompts: see :func:`refusal_core.prompts.sets.load_contrast_set`; ``limit`` is prompts a label.
        transfer: labelled files to score besides the bundled transfer sets.
        thinking: for templates that can switch it: whether the model is to think before it replies; by default what
            the template does by itself.
        template: whose chat template is borrowed, see :func:`refusal_core.models.templates.borrow_template`.
        quantise: 8 or 4 bits; see :func:`refusal_core.models.opening.load_model`.
        dtype: ``auto`` takes what is fast on the device, and accepts a cached run of any dtype.
        seed: of the folds and of everything random in the evidence.
        engine: of :data:`ENGINES`: read prompts in this process, or by Ray's actors, each with the model. The numbers
            are the same.
        actors: how many there are, with ``ray``; by default one a GPU, or two.
        progress: called for loading, extracting, testing and saving.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    contrast = load_contrast_set(prompts, limit, text_column, label_column)
    transfer_sets = [
        without(load_transfer_set(source, text_column, label_column), contrast)
        for source in (*TRANSFER_SETS, *transfer)
    ]
    _check_names(contrast, [chosen for chosen, _ in transfer_sets])
    if seed < 0:
        raise RefusalError(f"expected a seed of 0 or more, got {seed}")
    borrowed = None if template is None else borrow_template(template)
    info = as_opened(identify(model, revision), quantise)
    _check_engine(engine, actors, device)
    request = {
        "model": info.fingerprint,
        "prompts": contrast.sha256,
        "transfer": [(chosen.name, chosen.sha256) for chosen, _ in transfer_sets],
        "system_prompt": system_prompt,
        "token_position": TOKEN_POSITION,
        "folds": [FOLDS, REPEATS, seed],
        "format": store.FORMAT_VERSION,
    }
    if thinking is not None:
        request["thinking"] = thinking
    if borrowed is not None:
        request["template"] = hashlib.sha256(borrowed.encode()).hexdigest()
    if quantise is not None:
        request["quantise"] = quantise
    stem = _run_stem(info.name, contrast.name, contrast.counts, request)
    for candidate in DTYPES if dtype == "auto" else [dtype]:
        run_id = f"{stem}--{candidate}"
        if (store.cache_folder(cache) / run_id).exists():
            found = store.open_run(run_id, cache)
            if keep_activations and store.ACTIVATIONS not in found.manifest["files"]:
                raise RefusalError(
                    f"the run {run_id} is in the cache without its activations: delete it first "
                    f"(`python -m refusal_core delete {run_id}`), or use another cache, to compute and keep them"
                )
            return RunResult(found, cached=True)

    # The engine imports torch; a cached run never gets here.
    from refusal_core.activations.extraction import Engine, extract, in_process
    from refusal_core.activations.reader import REFUSAL_OPENINGS, refusal_token_ids

    reading: Engine = in_process
    if engine == RAY:
        from refusal_core.activations.ray_engine import on_actors

        reading = on_actors(model, revision, actors, template=borrowed, quantise=quantise)
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    run_id = f"{stem}--{dtype}"
    with store.unfinished_work(store.unfinished_run(run_id, cache), f"the run {run_id}") as folder:
        progress(LOADING, 0, 1)
        chat_model = load_model(model, revision, device, dtype, template=borrowed, quantise=quantise)
        progress(LOADING, 1, 1)
        day = datetime.now().date().isoformat() if tells_the_date(chat_model.tokenizer) else None
        table = _prompt_table(contrast, [chosen for chosen, _ in transfer_sets])
        extraction = extract(
            chat_model,
            table["text"].tolist(),
            system_prompt,
            thinking,
            token_limit,
            progress,
            places=_places(table),
            folder=folder,
            day=day,
            engine=reading,
        )
        _add_replies(table, extraction)

        analysis = analyse(extraction.hidden, table, seed=seed, progress=progress)

        progress(SAVING, 0, 1)
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": {key: value for key, value in asdict(info).items() if key != "path"},
            "prompts": _described(contrast),
            "transfer": [{**_described(chosen), "left_out": left_out} for chosen, left_out in transfer_sets],
            "template": {
                "sha256": template_sha256(chat_model.tokenizer),
                "system_prompt": system_prompt,
                "default_system_prompt": default_system_prompt(chat_model.tokenizer, day),
                "day": day,
                "borrowed": None if borrowed is None else {"from": _named(str(template)), "text": borrowed},
                "thinking": thinking,
                "token_position": TOKEN_POSITION,
                "token_limit": token_limit,
            },
            "refusal": {
                "openings": list(REFUSAL_OPENINGS),
                "token_ids": refusal_token_ids(chat_model.tokenizer),
            },
            "compute": {
                "device": extraction.placement,
                "dtype": dtype,
                "quantise": quantise,
                "weights": chat_model.weights_in_words,
                "engine": engine,
                "batch_tokens": extraction.batch_tokens,
                "batch_note": extraction.batch_note,
                "pack_note": extraction.pack_note,
                "prefix_tokens": extraction.prefix_tokens,
                "prefix_note": extraction.prefix_note,
                "seed": seed,
                "folds": FOLDS,
                "repeats": REPEATS,
            },
            "versions": _versions(),
            "timings": _timings(chat_model, extraction),
        }
        saved = _save(run_id, manifest, table, analysis, extraction.hidden if keep_activations else None, cache)
        progress(SAVING, 1, 1)
    return RunResult(saved, cached=False)


def refit(
    run: Run,
    without: Collection[str],
    *,
    model: str | Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> RunResult:
    """Make a run again without some of its prompts, or find that refit in the cache; the run itself stays as it is.

    It is made from the run's stored activations, or else the run's model reads the prompts again. What is left out is
    scored as a transfer set called :data:`LEFT_OUT`. Behaviour and interventions do not carry over. A refit of a refit
    is one of the original run, while that is in the cache, without the prompts of both.

    Args:
        without: prompt_ids; see :func:`leave_out`.
        model: where the run's model is, when it came from a folder or a GGUF file; not needed with stored activations.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    original, table = _left_out_of_original(run, without)
    run_id = _refit_id(original, table)
    cache = original.path.parent
    if (cache / run_id).exists():
        return RunResult(store.open_run(run_id, cache), cached=True)
    with store.unfinished_work(store.unfinished_run(run_id, cache), f"the refit {run_id}") as folder:
        manifest = {key: value for key, value in original.manifest.items() if key not in _OF_ONE_RUN}
        stored = store.load_activations(original)
        rows, table = table.index.to_numpy(), table.reset_index(drop=True)
        if stored is not None:
            hidden: np.ndarray = np.memmap(folder / "hidden.f32", np.float32, "w+", shape=stored.shape)
            for site in range(original.n_sites):
                hidden[:, site] = stored[rows, site]
        else:
            # The engine imports torch; stored activations are read without.
            from refusal_core.activations.extraction import extract
            from refusal_core.pipeline.scoring import check_model, load_model_for

            progress(LOADING, 0, 1)
            chat_model = load_model_for(original, model, device)
            check_model(original, chat_model)
            progress(LOADING, 1, 1)
            template = original.manifest["template"]
            extraction = extract(
                chat_model,
                table["text"].tolist(),
                template["system_prompt"],
                template.get("thinking"),
                template["token_limit"],
                progress,
                places=_places(table),
                folder=folder,
                day=template.get("day"),
            )
            hidden = extraction.hidden
            _add_replies(table, extraction)
            manifest["compute"] = manifest["compute"] | {
                "device": extraction.placement,
                "weights": chat_model.weights_in_words,
                "batch_tokens": extraction.batch_tokens,
                "batch_note": extraction.batch_note,
                "pack_note": extraction.pack_note,
                "prefix_tokens": extraction.prefix_tokens,
                "prefix_note": extraction.prefix_note,
            }
            manifest |= {"versions": _versions(), "timings": _timings(chat_model, extraction)}

        analysis = analyse(hidden, table, seed=original.manifest["compute"]["seed"], progress=progress)

        progress(SAVING, 0, 1)
        known = {each["name"]: each for each in original.manifest["transfer"]}
        transfer = table[~table["fitted"]]
        manifest |= {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "prompts": _left(original.manifest["prompts"], table[table["fitted"]]),
            "transfer": [
                _left(known.get(name, {"name": name}), part) for name, part in transfer.groupby("source", sort=False)
            ],
            "refit": {
                "parent": original.run_id,
                "left_out": int(table["source"].eq(LEFT_OUT).sum()),
                "sha256": _left_out_sha256(table),
                "activations": "extracted again" if stored is None else "stored",
            },
        }
        saved = _save(run_id, manifest, table, analysis, None, cache)
        progress(SAVING, 1, 1)
    return RunResult(saved, cached=False)


def refit_id(run: Run, without: Collection[str]) -> str:
    """What the refit of a run without some prompts is called, whether there is one or not. Raises what refit raises."""
    return _refit_id(*_left_out_of_original(run, without))


def original_of(run: Run) -> Run:
    """The run that a refit is of, while that is in the cache; else the run itself."""
    described = run.manifest.get("refit")
    if described is None:
        return run
    try:
        return store.open_run(described["parent"], run.path.parent)
    except RunError:
        return run


def leave_out(prompts: pd.DataFrame, without: Collection[str]) -> pd.DataFrame:
    """A run's prompt table with some prompts no longer fitted on, nor in their transfer set.

    A matched pair is left out whole: a twin by itself would tilt the two labels' forms and topics, which pairs are
    there to hold equal, and a pair of which one prompt is mislabelled says nothing of harm.

    Args:
        prompts: a run's prompt table.
        without: prompt_ids; those of other prompts count for nothing.

    Returns:
        The table with what is left out at its end, in the set :data:`LEFT_OUT`; the index is the row in ``prompts``.

    Raises:
        PromptError: when none of them is there, or too few prompts of a label are left.
    """
    # Pairs of two sets may have one name.
    pair = prompts["source"].str.cat(prompts["pair_id"], sep=" ")
    out = prompts["prompt_id"].isin(list(without))
    if not out.any():
        raise PromptError(f"expected prompts of this run to leave out, found none of them among {len(without)}")
    out |= pair.isin(pair[out].dropna())
    table = prompts.assign(
        fitted=prompts["fitted"] & ~out,
        source=prompts["source"].mask(out, LEFT_OUT),
        pair_id=prompts["pair_id"].mask(out, pair),
    )
    counts = table.loc[table["fitted"], "label"].value_counts()
    for label in LABELS:
        if (left := counts.get(label, 0)) < MINIMUM_PER_LABEL:
            raise PromptError(
                f"without {int(out.sum())} prompts {left} {label} ones are left to fit on, expected at least "
                f"{MINIMUM_PER_LABEL}: leave fewer out"
            )
    return pd.concat([table[~out], table[out]])


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that follows from activations and labels, without the model.

    Attributes:
        projections: ``(prompt, site)`` float64 of every prompt on the directions, in activation units.
        projections_crossfit: ``(prompt, site)`` float64, 0 at the training folds' midpoint; NaN for transfer prompts.
        layer_stats: one row a site.
    """

    directions: Directions
    projections: np.ndarray
    projections_crossfit: np.ndarray
    layer_stats: pd.DataFrame
    evidence: Evidence


def analyse(hidden: np.ndarray, prompts: pd.DataFrame, *, seed: int = 0, progress: Progress = no_progress) -> Analysis:
    """Fit directions on the fitted prompts and test them.

    Args:
        hidden: ``(prompt, site, d_model)`` activations of all prompts, fitted and transfer.
        prompts: a run's prompt table, rows in the same order.
        seed: of the folds and of everything random in the evidence.
    """
    fitted = prompts["fitted"].to_numpy()
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    directions = fit_directions(hidden, is_harmful, fitted)
    is_harmful = is_harmful[fitted]
    projections = directions.project(hidden)
    projections_crossfit = np.full_like(projections, np.nan)
    groups = prompt_groups(prompts[fitted])
    for site in range(directions.n_sites):
        held_out = crossfit(gram_matrix(hidden[:, site], fitted), is_harmful, groups, FOLDS, REPEATS, seed)
        projections_crossfit[fitted, site] = held_out.projection
    evidence = evaluate(hidden, prompts, directions, seed=seed, folds=FOLDS, repeats=REPEATS, progress=progress)
    probes = evidence.transfer[evidence.transfer["source"].eq("probe-pairs")].set_index("site")
    layer_stats = layer_statistics(projections[fitted], is_harmful, directions.magnitude)
    layer_stats["crossfit_d"] = evidence.sites["crossfit_d"]
    layer_stats["crossfit_auroc"] = evidence.sites["crossfit_auroc"]
    layer_stats["probe_d"] = probes["d"].reindex(layer_stats["site"]).to_numpy(float)
    layer_stats["probe_auroc"] = probes["auroc"].reindex(layer_stats["site"]).to_numpy(float)
    return Analysis(directions, projections, projections_crossfit, layer_stats, evidence)


def version_of_this() -> str:
    """The version of this program."""
    from refusal_core import __version__

    return __version__


def _named(source: str) -> str:
    """A template's source as a run may say it: a known name or hub id, or a file's name without where it lies."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


_OF_ONE_RUN = ("format_version", "run_id", "files", "refit")
"""What a refit's manifest does not take over from the run it is of."""


def _run_stem(model: str, contrast: str, counts: Mapping[str, int], request: dict) -> str:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    sizes = f"{counts['harmful']}x{counts['harmless']}"
    return f"{slug(Path(model).name)}--{slug(contrast)}--{sizes}--{digest}"


def _refit_id(original: Run, table: pd.DataFrame) -> str:
    request = {"refit": original.run_id, "left_out": _left_out_sha256(table), "format": store.FORMAT_VERSION}
    counts = table.loc[table["fitted"], "label"].value_counts()
    stem = _run_stem(original.model_name, original.contrast_name, counts, request)
    return f"{stem}--{original.manifest['compute']['dtype']}"


def _left_out_of_original(run: Run, without: Collection[str]) -> tuple[Run, pd.DataFrame]:
    """The run that a refit is of, and its prompts after :func:`leave_out`."""
    original = original_of(run)
    if original is run:
        return run, leave_out(run.prompts, without)
    earlier = run.prompts.loc[run.prompts["source"].eq(LEFT_OUT), "prompt_id"]
    return original, leave_out(original.prompts, {*earlier, *without})


def _left_out_sha256(table: pd.DataFrame) -> str:
    """Digest of the left-out prompt_ids, whatever their order."""
    ids = sorted(table.loc[table["source"].eq(LEFT_OUT), "prompt_id"])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _left(described: dict, table: pd.DataFrame) -> dict:
    """What a manifest says of a set, for the part of it that is left."""
    return described | _described(PromptSet(described["name"], described.get("revision"), table))


def _add_replies(table: pd.DataFrame, extraction: Extraction) -> None:
    """Put into a prompt table what was read besides activations."""
    table["n_tokens"] = extraction.n_tokens
    table["first_token"] = extraction.first_token
    table["refusal_log_odds"] = extraction.refusal_log_odds


def _versions() -> dict[str, str]:
    return {
        "refusal_core": version_of_this(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
    }


def _timings(chat_model: ChatModel, extraction: Extraction) -> dict[str, float]:
    return {
        "load_seconds": round(chat_model.load_seconds, 3),
        "extract_seconds": round(extraction.seconds, 3),
        "prompts_per_second": round(len(extraction.n_tokens) / extraction.seconds, 3),
    }


def _save(
    run_id: str,
    manifest: dict,
    table: pd.DataFrame,
    analysis: Analysis,
    activations: np.ndarray | None,
    cache: str | Path | None,
) -> Run:
    return store.save_run(
        run_id,
        manifest,
        table,
        analysis.projections,
        analysis.projections_crossfit,
        analysis.layer_stats,
        analysis.directions,
        analysis.evidence.to_tables(),
        activations=activations,
        cache=cache,
    )


def _check_engine(engine: str, actors: int | None, device: str) -> None:
    if engine not in ENGINES:
        raise RefusalError(f"there is no engine {engine!r}; choose {' or '.join(ENGINES)}")
    if actors is not None and (engine != RAY or actors < 1):
        raise RefusalError(f"expected actors, 1 or more, with the engine {RAY}; got {actors} with {engine}")
    if engine == RAY and device == SPREAD:
        raise RefusalError(f"each actor of {RAY} has one device: choose another than {SPREAD}, or another engine")


def _check_names(contrast: PromptSet, transfer: list[PromptSet]) -> None:
    """Every set of a run needs a name of its own, by which its numbers are told apart."""
    taken = {
        contrast.name: "the contrast set",
        CONTRAST: "the contrast set in the tables of evidence",
        LEFT_OUT: "the prompts that a refit leaves out",
    }
    for chosen in transfer:
        if chosen.name in taken:
            raise RefusalError(
                f"the transfer set {chosen.name!r} has the name of {taken[chosen.name]}: rename its file, "
                "so that their numbers can be told apart"
            )
        taken[chosen.name] = "another transfer set"


def _prompt_table(contrast: PromptSet, transfer: list[PromptSet]) -> pd.DataFrame:
    parts = [contrast.table.assign(fitted=True), *(chosen.table.assign(fitted=False) for chosen in transfer)]
    table = pd.concat(parts, ignore_index=True)
    repeated = table["prompt_id"].duplicated()
    if repeated.any():
        row = table[repeated].iloc[0]
        raise RefusalError(
            f"the prompt {row['text']!r:.60} is in two transfer sets, of which one is {row['source']}; keep it in one"
        )
    return table


def _places(table: pd.DataFrame) -> list[str]:
    """Where each prompt comes from, as errors say it: ``borderline, row 3``."""
    rows = table.groupby("source", sort=False).cumcount() + 1
    return [f"{source}, row {row}" for source, row in zip(table["source"], rows, strict=True)]


def _described(prompts: PromptSet) -> dict:
    return {
        "name": prompts.name,
        "revision": prompts.revision,
        "sha256": prompts.sha256,
        "counts": prompts.counts,
    }
