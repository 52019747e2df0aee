"""Runs on a direction that someone else made: their vectors, put to our questions on the prompts of an existing run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from refusal_core.analysis.directions import imported_directions
from refusal_core.errors import RefusalError
from refusal_core.options import DEFAULT_ESTIMATOR
from refusal_core.pipeline.analysis import analyse
from refusal_core.pipeline.refit import extract_again
from refusal_core.pipeline.request import run_id
from refusal_core.pipeline.steps import RunResult, library_versions, save
from refusal_core.pipeline.vector_files import ImportedVectors, read_vectors
from refusal_core.progress import Progress, no_progress
from refusal_core.runs import store
from refusal_core.runs.manifest import DIRECTIONS, DirectionRecord
from refusal_core.runs.run import Run

_IDENTITY_FORMAT = 1
"""Version of what the run's name is a digest of; another one would give every such run another name."""


def import_direction(
    run: Run,
    path: str | Path,
    numbering: str | None = None,
    layer: int | None = None,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> RunResult:
    """Make a run on imported vectors in place of fitted directions, or find it in the cache.

    Prompts, model and options are those of ``run``, which stays as it is. Activations are its stored ones, or else its
    model reads the prompts again. Sites without a vector have no direction.

    Args:
        run: a run of the model that the vectors are of.
        path: safetensors, npy or GGUF control vector; see :func:`.vector_files.read_vectors`.
        numbering: how the file counts layers, a key of :data:`.vector_files.NUMBERINGS`.
        layer: for a file of one vector: the number of its layer.
        model: where the run's model is, when it came from a folder or a GGUF file; not needed with stored activations.
        device: where the model is opened.
        progress: called for loading, extracting, testing and saving.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    run.check_own_position("imported vectors")
    vectors = read_vectors(path, numbering, layer, run.n_layers, run.manifest.model.d_model)
    if vectors.sha256 == run.manifest.files.get(DIRECTIONS):
        raise RefusalError(
            f"these are the directions that {run.run_id} fitted on its own prompts: expected vectors from elsewhere, "
            "or another run of the model to put them to"
        )
    name, cache = _run_id(run, vectors, layer), run.path.parent
    if (cache / name).exists():
        return RunResult(store.open_run(name, cache), cached=True)
    with store.unfinished_work(store.unfinished_run(name, cache), f"the import {name}") as folder:
        table = run.prompts.reset_index(drop=True)
        hidden = run.load_activations()
        # Of this run nothing was loaded nor extracted where activations are stored.
        changed: dict[str, Any] = {"versions": library_versions(), "timings": None}
        embeddings: np.ndarray | None = None
        activations = "stored"
        if hidden is None:
            activations = "extracted again"
            hidden, embeddings, changed = extract_again(run, table, model, device, folder, progress)
        fitted = table["fitted"].to_numpy(bool)
        directions = imported_directions(vectors.unit, hidden, table["label"].eq("harmful").to_numpy(), fitted)
        analysis = analyse(
            hidden,
            table,
            seed=run.manifest.compute.seed,
            embeddings=embeddings,
            imported=directions,
            progress=progress,
        )
        changed |= {
            "run_id": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "refit": None,
            "estimator": DEFAULT_ESTIMATOR,
            "direction": DirectionRecord(
                file=Path(path).name,
                sha256=vectors.sha256,
                numbering=vectors.numbering,
                sites=tuple(sorted(vectors.unit)),
                parent=run.run_id,
                activations=activations,
            ),
        }
        manifest = run.manifest.model_copy(update=changed)
        return RunResult(save(manifest, table, analysis, None, cache, progress), cached=False)


def _run_id(run: Run, vectors: ImportedVectors, layer: int | None) -> str:
    """Return the name of the run on imported vectors."""
    identity = {
        "imported": vectors.sha256,
        "numbering": vectors.numbering,
        "layer": layer,
        "run": run.run_id,
        "format": _IDENTITY_FORMAT,
    }
    manifest = run.manifest
    return run_id(run.model_name, run.contrast_name, manifest.prompts.counts, identity, manifest.compute.dtype)
