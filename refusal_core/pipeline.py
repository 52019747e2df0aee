"""Prompts and a model to a run: load, extract, fit, test, store."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from refusal_core import runs
from refusal_core.crossfit import crossfit
from refusal_core.devices import DTYPES, choose_device, choose_dtype
from refusal_core.directions import Directions, fit_directions
from refusal_core.errors import RefusalError
from refusal_core.evidence import CONTRAST, Evidence, evaluate, prompt_groups
from refusal_core.gram import gram_matrix
from refusal_core.models import ModelInfo, default_system_prompt, identify, load_model, template_sha256
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts import (
    TOKEN_LIMIT,
    TRANSFER_SETS,
    PromptSet,
    load_contrast_set,
    load_transfer_set,
    slug,
    without,
)
from refusal_core.runs import Run
from refusal_core.statistics import layer_statistics

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
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    token_limit: int = TOKEN_LIMIT,
    text_column: str | None = None,
    label_column: str | None = None,
    keep_activations: bool = False,
    cache: str | Path | None = None,
    progress: Progress = no_progress,
) -> RunResult:
    """Extract, fit and test a model's refusal directions on a contrast set, or find that run in the cache.

    An extraction that was stopped goes on where it was when the same run is asked for again.

    Args:
        model: fetched name, hub id, folder or GGUF file; ``revision`` for a hub id.
        prompts: see :func:`refusal_core.prompts.load_contrast_set`; ``limit`` is prompts a label.
        transfer: labelled files to score besides the bundled transfer sets.
        thinking: for templates that can switch it: whether the model is to think before it replies; by default what
            the template does by itself.
        dtype: ``auto`` takes what is fast on the device, and accepts a cached run of any dtype.
        seed: of the folds and of everything random in the evidence.
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
    info = identify(model, revision)
    request = {
        "model": info.fingerprint,
        "prompts": contrast.sha256,
        "transfer": [(chosen.name, chosen.sha256) for chosen, _ in transfer_sets],
        "system_prompt": system_prompt,
        "token_position": TOKEN_POSITION,
        "folds": [FOLDS, REPEATS, seed],
        "format": runs.FORMAT_VERSION,
    }
    if thinking is not None:
        request["thinking"] = thinking
    stem = _run_stem(info, contrast, request)
    for candidate in DTYPES if dtype == "auto" else [dtype]:
        run_id = f"{stem}--{candidate}"
        if (runs.cache_folder(cache) / run_id).exists():
            found = runs.open_run(run_id, cache)
            if keep_activations and runs.ACTIVATIONS not in found.manifest["files"]:
                raise RefusalError(
                    f"the run {run_id} is in the cache without its activations: delete it first "
                    f"(`python -m refusal_core delete {run_id}`), or use another cache, to compute and keep them"
                )
            return RunResult(found, cached=True)

    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    run_id = f"{stem}--{dtype}"
    with runs.unfinished_work(runs.unfinished_run(run_id, cache), f"the run {run_id}") as folder:
        progress(LOADING, 0, 1)
        chat_model = load_model(model, revision, device, dtype)
        progress(LOADING, 1, 1)
        table = _prompt_table(contrast, [chosen for chosen, _ in transfer_sets])
        # The engine imports torch; a cached run never gets here.
        from refusal_core.activations import REFUSAL_OPENINGS, refusal_token_ids
        from refusal_core.extraction import extract

        extraction = extract(
            chat_model,
            table["text"].tolist(),
            system_prompt,
            thinking,
            token_limit,
            progress,
            places=_places(table),
            folder=folder,
        )
        table["n_tokens"] = extraction.n_tokens
        table["first_token"] = extraction.first_token
        table["refusal_log_odds"] = extraction.refusal_log_odds

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
                "default_system_prompt": default_system_prompt(chat_model.tokenizer),
                "thinking": thinking,
                "token_position": TOKEN_POSITION,
                "token_limit": token_limit,
            },
            "refusal": {
                "openings": list(REFUSAL_OPENINGS),
                "token_ids": refusal_token_ids(chat_model.tokenizer),
            },
            "compute": {
                "device": chat_model.placement,
                "dtype": dtype,
                "batch_tokens": extraction.batch_tokens,
                "prefix_tokens": extraction.prefix_tokens,
                "prefix_note": extraction.prefix_note,
                "seed": seed,
                "folds": FOLDS,
                "repeats": REPEATS,
            },
            "versions": {
                "refusal_core": version_of_this(),
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
            },
            "timings": {
                "load_seconds": round(chat_model.load_seconds, 3),
                "extract_seconds": round(extraction.seconds, 3),
                "prompts_per_second": round(len(table) / extraction.seconds, 3),
            },
        }
        saved = runs.save_run(
            run_id,
            manifest,
            table,
            analysis.projections,
            analysis.projections_crossfit,
            analysis.layer_stats,
            analysis.directions,
            analysis.evidence.to_tables(),
            activations=extraction.hidden if keep_activations else None,
            cache=cache,
        )
        progress(SAVING, 1, 1)
    return RunResult(saved, cached=False)


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


def _run_stem(info: ModelInfo, contrast: PromptSet, request: dict) -> str:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    counts = contrast.counts
    sizes = f"{counts['harmful']}x{counts['harmless']}"
    return f"{slug(Path(info.name).name)}--{slug(contrast.name)}--{sizes}--{digest}"


def _check_names(contrast: PromptSet, transfer: list[PromptSet]) -> None:
    """Every set of a run needs a name of its own, by which its numbers are told apart."""
    taken = {contrast.name: "the contrast set", CONTRAST: "the contrast set in the tables of evidence"}
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
