"""Refits: runs made again without some of their prompts, or with another estimator of the direction."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import pandas as pd

from refusal_core.errors import PromptError, RefusalError, RunError
from refusal_core.options import MINIMUM_PER_LABEL, Estimator
from refusal_core.pipeline.analysis import analyse
from refusal_core.pipeline.request import check_estimator, run_id
from refusal_core.pipeline.steps import (
    LOADING,
    Reading,
    RunResult,
    described_extraction,
    described_set,
    embed_prompts,
    extract_prompts,
    library_versions,
    save,
    timings,
)
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.sets import PromptSet, prompt_groups
from refusal_core.runs import store
from refusal_core.runs.manifest import ContrastRecord, Manifest, RefitRecord, TransferRecord
from refusal_core.runs.run import LEFT_OUT, Run

_Set = TypeVar("_Set", ContrastRecord, TransferRecord)
_IDENTITY_FORMAT = 1
"""Version of what a refit's name is a digest of; another one would give every refit another name."""


def refit(
    run: Run,
    without: Collection[str] = (),
    *,
    estimator: str | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> RunResult:
    """Make a run again without some of its prompts or with another estimator, or find that refit in the cache.

    The run itself stays as it is.

    It is made from the run's stored activations, or else the run's model reads the prompts again. The prompts that are
    left out are scored as a transfer set called :data:`LEFT_OUT`. Behaviour and interventions do not carry over.
    A refit of a refit is one of the original run, while that is in the cache, without the prompts of both.
    Its estimator is the run's unless another is given.

    Args:
        run: the run, or a refit of it.
        without: prompt_ids; see :func:`leave_out`. None where the estimator is another one.
        estimator: how the direction is got, a key of :data:`refusal_core.options.ESTIMATORS`.
        model: where the run's model is, when it came from a folder or a GGUF file; not needed with stored activations.
        device: where the model is opened.
        progress: called for loading, extracting, testing and saving.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    original, table, fitted_by = _asked_of_original(run, without, estimator)
    name, cache = _refit_id(original, table, fitted_by), original.path.parent
    if (cache / name).exists():
        return RunResult(store.open_run(name, cache), cached=True)
    with store.unfinished_work(store.unfinished_run(name, cache), f"the refit {name}") as folder:
        stored = original.load_activations()
        changed: dict[str, Any] = {}
        embeddings: np.ndarray | None = None
        if stored is not None:
            hidden = _rows_of_stored(stored, table.index.to_numpy(), folder / "hidden.f32")
            table = table.reset_index(drop=True)
        else:
            table = table.reset_index(drop=True)
            hidden, embeddings, changed = extract_again(original, table, model, device, folder, progress)
        seed = original.manifest.compute.seed
        analysis = analyse(hidden, table, seed=seed, embeddings=embeddings, estimator=fitted_by, progress=progress)
        manifest = _manifest(name, original, table, "extracted again" if stored is None else "stored")
        changed["estimator"] = fitted_by
        manifest = manifest.model_copy(update=changed)
        return RunResult(save(manifest, table, analysis, None, cache, progress), cached=False)


def refit_id(run: Run, without: Collection[str] = (), estimator: str | None = None) -> str:
    """Return the name of the refit of a run, whether there is one or not; arguments as for :func:`refit`.

    Raises:
        RefusalError: see :func:`refit`.
    """
    return _refit_id(*_asked_of_original(run, without, estimator))


def original_of(run: Run) -> Run:
    """Return the run that a refit is of, while that is in the cache; else the run itself."""
    if run.manifest.refit is None:
        return run
    try:
        return store.open_run(run.manifest.refit.parent, run.path.parent)
    except RunError:
        return run


def leave_out(prompts: pd.DataFrame, without: Collection[str]) -> pd.DataFrame:
    """Return a run's prompt table with some prompts no longer fitted on, nor in their transfer set.

    A matched pair, and a quartet, is left out as one: a twin by itself would tilt the two labels' forms and topics,
    which pairs are there to hold equal, and a group of which one prompt is mislabelled says nothing of harm.

    Args:
        prompts: a run's prompt table.
        without: prompt_ids; those of other prompts count for nothing.

    Returns:
        The table with what is left out at its end, in the set :data:`LEFT_OUT`; the index is the row in ``prompts``.

    Raises:
        PromptError: when none of them is there, or too few prompts of a label are left.
    """
    # Pairs of two sets may have one name.
    named = prompts.assign(pair_id=prompts["source"].str.cat(prompts["pair_id"], sep=" "))
    group = pd.Series(prompt_groups(named), index=prompts.index)
    out = prompts["prompt_id"].isin(list(without))
    if not out.any():
        raise PromptError(f"expected prompts of this run to leave out, found none of them among {len(without)}")
    out |= group.isin(group[out])
    table = prompts.assign(
        fitted=prompts["fitted"] & ~out,
        source=prompts["source"].mask(out, LEFT_OUT),
        pair_id=prompts["pair_id"].mask(out, named["pair_id"]),
    )
    counts = table.loc[table["fitted"], "label"].value_counts()
    for label in LABELS:
        if (left := counts.get(label, 0)) < MINIMUM_PER_LABEL:
            raise PromptError(
                f"without {int(out.sum())} prompts {left} {label} ones are left to fit on, expected at least "
                f"{MINIMUM_PER_LABEL}: leave fewer out"
            )
    return pd.concat([table[~out], table[out]])


def _rows_of_stored(stored: np.ndarray, rows: np.ndarray, path: Path) -> np.ndarray:
    """Return stored activations in another order of prompts, from a file: they may be more than memory holds."""
    hidden: np.ndarray = np.memmap(path, np.float32, "w+", shape=stored.shape)
    for site in range(stored.shape[1]):
        hidden[:, site] = stored[rows, site]
    return hidden


def extract_again(
    original: Run, table: pd.DataFrame, model: str | Path | None, device: str, folder: Path, progress: Progress
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read a table's prompts with a run's model; activations, input embeddings, and what changes in the manifest.

    Args:
        original: the run.
        table: of prompts, as :attr:`.Run.prompts`.
        model: where the run's model is, when it came from a folder or a GGUF file.
        device: where the model is opened.
        folder: where activations lie until they are no longer needed.
        progress: called for loading and extracting.

    Raises:
        RefusalError: when the model cannot be had, or is not the run's.
    """
    # The engine imports torch; stored activations are read without.
    from refusal_core.pipeline.scoring import check_model, load_model_for

    progress(LOADING, 0, 1)
    chat_model = load_model_for(original, model, device)
    check_model(original, chat_model)
    progress(LOADING, 1, 1)
    template = original.manifest.template
    reading = Reading(template.system_prompt, template.thinking, template.day, template.token_limit)
    extraction = extract_prompts(chat_model, table, reading, folder, progress)
    return (
        extraction.hidden,
        embed_prompts(chat_model, table),
        {
            "compute": original.manifest.compute.model_copy(update=described_extraction(chat_model, extraction)),
            "versions": library_versions(),
            "timings": timings(chat_model, extraction),
        },
    )


def _manifest(name: str, original: Run, table: pd.DataFrame, activations: str) -> Manifest:
    """Return a refit's manifest: that of the run it is of, with its own prompts."""
    known = {described.name: described for described in original.manifest.transfer}
    transfer = table[~table["fitted"]].groupby("source", sort=False)
    changed = {
        "run_id": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompts": _left(original.manifest.prompts, table[table["fitted"]]),
        "transfer": tuple(
            _left(known.get(source) or TransferRecord(name=source, counts={}), part) for source, part in transfer
        ),
        "refit": RefitRecord(
            parent=original.run_id,
            left_out=int(table["source"].eq(LEFT_OUT).sum()),
            sha256=_left_out_sha256(table),
            activations=activations,
        ),
    }
    return original.manifest.model_copy(update=changed)


def _left(described: _Set, table: pd.DataFrame) -> _Set:
    """Return what a manifest says of a set, for the part of it that is left."""
    return described.model_copy(update=described_set(PromptSet(described.name, described.revision, table)))


def _asked_of_original(
    run: Run, without: Collection[str], estimator: str | None
) -> tuple[Run, pd.DataFrame, Estimator]:
    """Return the run that a refit is of, its prompts after :func:`leave_out`, and the estimator."""
    run.check_own_position("refit")
    if run.manifest.direction is not None:
        raise RunError(
            f"the direction of {run.run_id} was imported, so leaving out prompts does not change it: choose "
            f"{run.manifest.direction.parent}, or another run whose direction was fitted"
        )
    fitted_by = _known(run.manifest.estimator if estimator is None else estimator)
    original = original_of(run)
    out = {*without}
    if original is not run:
        out |= {*run.prompts.loc[run.prompts["source"].eq(LEFT_OUT), "prompt_id"]}
    alone = not out and fitted_by != original.manifest.estimator
    table = original.prompts if alone else leave_out(original.prompts, out)
    check_estimator(fitted_by, table[table["fitted"]])
    return original, table, fitted_by


def _known(estimator: str) -> Estimator:
    for name in get_args(Estimator):
        if name == estimator:
            return cast(Estimator, name)
    raise RefusalError(f"expected an estimator ({', '.join(get_args(Estimator))}), got {estimator!r:.40}")


def _refit_id(original: Run, table: pd.DataFrame, estimator: str) -> str:
    """Return a refit's name."""
    identity = {"refit": original.run_id, "left_out": _left_out_sha256(table), "format": _IDENTITY_FORMAT}
    # An option that came later counts only where it is used.
    if estimator != original.manifest.estimator:
        identity["estimator"] = estimator
    counts = table.loc[table["fitted"], "label"].value_counts()
    dtype = original.manifest.compute.dtype
    return run_id(original.model_name, original.contrast_name, counts, identity, dtype)


def _left_out_sha256(table: pd.DataFrame) -> str:
    """Return the digest of the left-out prompt_ids, whatever their order."""
    ids = sorted(table.loc[table["source"].eq(LEFT_OUT), "prompt_id"])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
