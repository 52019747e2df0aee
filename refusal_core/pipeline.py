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
from refusal_core.crossfit import crossfit, gram_matrix
from refusal_core.devices import DTYPES, choose_device, choose_dtype
from refusal_core.directions import fit_directions
from refusal_core.errors import RefusalError
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
from refusal_core.statistics import auroc, cohens_d, layer_statistics

FOLDS = 10
REPEATS = 5
LOADING = "loading (model)"
TESTING = "testing (sites)"
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

    Args:
        model: fetched name, hub id, folder or GGUF file; ``revision`` for a hub id.
        prompts: see :func:`refusal_core.prompts.load_contrast_set`; ``limit`` is prompts a label.
        transfer: labelled files to score besides the bundled transfer sets.
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
    stem = _run_stem(info, contrast, request)
    for candidate in DTYPES if dtype == "auto" else [dtype]:
        run_id = f"{stem}--{candidate}"
        if (runs.cache_folder(cache) / run_id).exists():
            return RunResult(runs.open_run(run_id, cache), cached=True)

    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    progress(LOADING, 0, 1)
    chat_model = load_model(model, revision, device, dtype)
    progress(LOADING, 1, 1)
    table = _prompt_table(contrast, [chosen for chosen, _ in transfer_sets])
    # The engine imports torch; a cached run never gets here.
    from refusal_core.activations import REFUSAL_OPENINGS, extract, refusal_token_ids

    extraction = extract(chat_model, table["text"].tolist(), system_prompt, token_limit, progress)
    table["n_tokens"] = extraction.n_tokens
    table["first_token"] = extraction.first_token
    table["refusal_log_odds"] = extraction.refusal_log_odds

    fitted = table["fitted"].to_numpy()
    is_harmful = table["label"].eq("harmful").to_numpy()
    directions = fit_directions(extraction.hidden[fitted], is_harmful[fitted])
    projections = directions.project(extraction.hidden)
    layer_stats = layer_statistics(projections[fitted], is_harmful[fitted], directions.magnitude)
    projections_crossfit = np.full_like(projections, np.nan)
    groups = _groups(table.loc[fitted])
    crossfit_columns = []
    n_sites = projections.shape[1]
    for site in range(n_sites):
        progress(TESTING, site, n_sites)
        gram = gram_matrix(extraction.hidden[fitted, site])
        held_out = crossfit(gram, is_harmful[fitted], groups, folds=FOLDS, repeats=REPEATS, seed=seed)
        projections_crossfit[fitted, site] = held_out.projection
        crossfit_columns.append({"crossfit_d": held_out.d, "crossfit_auroc": held_out.auroc})
    progress(TESTING, n_sites, n_sites)
    layer_stats = layer_stats.join(pd.DataFrame(crossfit_columns)).join(_probe_columns(table, projections))

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
            "token_position": TOKEN_POSITION,
            "token_limit": token_limit,
        },
        "refusal": {
            "openings": list(REFUSAL_OPENINGS),
            "token_ids": refusal_token_ids(chat_model.tokenizer),
        },
        "compute": {
            "device": device,
            "dtype": dtype,
            "batch_tokens": extraction.batch_tokens,
            "prefix_tokens": extraction.prefix_tokens,
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
        f"{stem}--{dtype}",
        manifest,
        table,
        projections,
        projections_crossfit,
        layer_stats,
        directions,
        evidence={},
        activations=extraction.hidden if keep_activations else None,
        cache=cache,
    )
    progress(SAVING, 1, 1)
    return RunResult(saved, cached=False)


def version_of_this() -> str:
    """The version of this program."""
    from refusal_core import __version__

    return __version__


def _run_stem(info: ModelInfo, contrast: PromptSet, request: dict) -> str:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    counts = contrast.counts
    sizes = f"{counts['harmful']}x{counts['harmless']}"
    return f"{slug(Path(info.name).name)}--{slug(contrast.name)}--{sizes}--{digest}"


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


def _groups(table: pd.DataFrame) -> np.ndarray:
    """``(prompt,)`` what has to stay in one fold: the matched pair, or the prompt by itself."""
    return table["pair_id"].where(table["pair_id"].notna(), table["prompt_id"]).to_numpy(dtype=str)


def _probe_columns(table: pd.DataFrame, projections: np.ndarray) -> pd.DataFrame:
    """d and AUROC of the probe pairs at every site, on the direction they had no part in."""
    probes = table["source"].eq("probe-pairs").to_numpy() & ~table["fitted"].to_numpy()
    harmful = projections[probes & table["label"].eq("harmful").to_numpy()]
    harmless = projections[probes & table["label"].eq("harmless").to_numpy()]
    if not len(harmful) or not len(harmless):
        return pd.DataFrame({"probe_d": np.nan, "probe_auroc": np.nan}, index=range(projections.shape[1]))
    return pd.DataFrame(
        {
            "probe_d": [cohens_d(a, b) for a, b in zip(harmful.T, harmless.T, strict=True)],
            "probe_auroc": [auroc(a, b) for a, b in zip(harmful.T, harmless.T, strict=True)],
        }
    )


def _described(prompts: PromptSet) -> dict:
    return {
        "name": prompts.name,
        "revision": prompts.revision,
        "sha256": prompts.sha256,
        "counts": prompts.counts,
    }
