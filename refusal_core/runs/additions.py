"""Later measurements beside a run's own files: for each kind a table, and a manifest of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from refusal_core.errors import RunError, first_line
from refusal_core.files import sha256_of, write_together
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.manifest import (
    DIRECTIONS,
    FORMAT_VERSION,
    KINDS,
    LAYER_STATS,
    PROJECTIONS,
    AdditionManifest,
    PositionsManifest,
    format_version_of,
    parse_manifest,
)
from refusal_core.runs.migrations import migrated_addition, migrated_addition_manifest
from refusal_core.runs.run import LAST_TOKEN, Run
from refusal_core.runs.run_files import (
    EVIDENCE_TABLES,
    RunTables,
    at_positions,
    map_activations,
    read_table,
    write_activations,
    write_positions,
)
from refusal_core.runs.schemas import ADDITIONS, check_table

POSITION_ACTIVATIONS = f"{PositionsManifest.kind}.safetensors"
"""The activations at the last token of the instruction and of the template, ``(prompt, 2, site, d_model)``."""
POSITION_FILES = tuple(
    map(at_positions, (PROJECTIONS, LAYER_STATS, DIRECTIONS, *(f"evidence_{name}.parquet" for name in EVIDENCE_TABLES)))
)
"""What the run is at other read positions than its own: see :func:`.run_files.write_positions`."""
FILES = (
    *(f"{each.kind}.{ending}" for each in KINDS for ending in ("parquet", "json")),
    POSITION_ACTIVATIONS,
    *POSITION_FILES,
)
"""The names of the files that may lie beside a run's own."""
_MEND = "measure it again"

AnyAddition = TypeVar("AnyAddition", bound=AdditionManifest)


def save_addition(
    run: Run,
    table: pd.DataFrame,
    manifest: AdditionManifest,
    activations: np.ndarray | None = None,
    read_at: Mapping[int, tuple[RunTables, Evidence]] | None = None,
) -> None:
    """Store a later measurement beside a run, in place of an older one; the run's own files stay as they are.

    Args:
        run: the run.
        table: as it was recorded.
        manifest: all but ``run_id`` and the digests of the files, which are set here.
        activations: ``(prompt, 2, site, d_model)`` at the first and the last read position, where they are kept.
        read_at: the run's tables and evidence at other read positions than its own; ``None`` to leave those that a
            manifest names.

    Raises:
        RunError: when it cannot be written.
    """
    if not manifest.of_prompts:
        run.check_own_position(manifest.kind)
    content = table.to_parquet(index=False)
    digests: dict[str, Any] = {"run_id": run.path.name, "sha256": hashlib.sha256(content).hexdigest()}
    described = run.path / f"{manifest.kind}.json"
    try:
        if isinstance(manifest, PositionsManifest):
            # Without its manifest nothing is read, so what belongs together is never seen apart.
            described.unlink(missing_ok=True)
            digests |= _replace_activations(run.path / POSITION_ACTIVATIONS, activations)
            if read_at is not None or not manifest.files:
                digests["files"] = _replace_positions(run.path, read_at or {})
        described_by = manifest.model_copy(update=digests).to_json()
        write_together({run.path / f"{manifest.kind}.parquet": content, described: described_by})
    except OSError as error:
        raise RunError(f"{manifest.kind} cannot be kept beside the run in {run.path} ({error.strerror})") from error


def remove_addition(run: Run, kind: type[AdditionManifest]) -> None:
    """Remove a later measurement from beside a run, if it is there.

    Raises:
        RunError: when it cannot be removed.
    """
    try:
        for ending in ("json", "parquet"):
            (run.path / f"{kind.kind}.{ending}").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{kind.kind} cannot be removed from {run.path} ({error.strerror})") from error


def _replace_activations(path: Path, activations: np.ndarray | None) -> dict[str, str]:
    """Write activations in place of earlier ones, if there are any; return their digest as a manifest has it."""
    path.unlink(missing_ok=True)
    if activations is None:
        return {}
    write_activations(activations, path)
    return {"activations_sha256": sha256_of(path)}


def _replace_positions(folder: Path, read_at: Mapping[int, tuple[RunTables, Evidence]]) -> dict[str, str]:
    """Write what a run is at other positions in place of earlier files; return their digests as a manifest has them."""
    for name in POSITION_FILES:
        (folder / name).unlink(missing_ok=True)
    if not read_at:
        return {}
    tables = {position: read for position, (read, _) in read_at.items()}
    evidence = {position: answers.to_tables() for position, (_, answers) in read_at.items()}
    write_positions(tables, evidence, folder)
    return {name: sha256_of(folder / name) for name in POSITION_FILES}


def keeps_position_activations(run: Run, manifest: PositionsManifest) -> bool:
    """Return whether the activations at the first and the last read position are beside the run."""
    return manifest.activations_sha256 is not None and (run.path / POSITION_ACTIVATIONS).exists()


def load_position_activations(run: Run, manifest: PositionsManifest) -> np.ndarray | None:
    """Return ``(prompt, 2, site, d_model)`` float32 at the first and the last read position, or None where not kept.

    They are checked against the manifest, and then read from the file as they are used. A run may be sent without them.

    Raises:
        RunError: when they are not what the manifest describes.
    """
    path = run.path / POSITION_ACTIVATIONS
    if not keeps_position_activations(run, manifest):
        return None
    n_sites, d_model = run.directions.unit_direction.shape
    try:
        if path.is_symlink() or sha256_of(path) != manifest.activations_sha256:
            raise ValueError("its SHA-256 differs")
        return map_activations(path, (len(run.prompts), 2, n_sites, d_model))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"run {run.run_id!r}: {path.name} is not the file that {manifest.kind}.json describes ({error}); {_MEND}"
        ) from error


def read_addition(run: Run, kind: type[AnyAddition]) -> tuple[pd.DataFrame, AnyAddition] | None:
    """Return a later measurement on a run and its manifest, or ``None`` when there is none.

    What was measured with the run's direction is none of a run at another read position.

    Raises:
        RunError: when its files are damaged, do not belong together or to this run, or are of a newer version.
    """
    name = kind.kind
    manifest_path, table_path = run.path / f"{name}.json", run.path / f"{name}.parquet"
    if not manifest_path.exists() or not (kind.of_prompts or run.position == LAST_TOKEN):
        return None
    if manifest_path.is_symlink() or table_path.is_symlink() or not table_path.is_file():
        raise RunError(f"run {run.run_id!r}: {name}.json and {name}.parquet do not belong together; {_MEND}")
    try:
        content = json.loads(manifest_path.read_text(encoding="utf-8"))
        version = format_version_of(content)
        belongs = content["run_id"] == run.path.name and content["sha256"] == sha256_of(table_path)
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run.run_id!r}: {name} cannot be read ({first_line(error)}); {_MEND}") from error
    if version > FORMAT_VERSION:
        raise RunError(f"run {run.run_id!r}: a newer version of this program wrote {name}: update the program")
    if not belongs:
        raise RunError(f"run {run.run_id!r}: {name}.parquet is not the table that {name}.json describes; {_MEND}")
    manifest = parse_manifest(kind, migrated_addition_manifest(content), f"run {run.run_id!r}: {name}.json", _MEND)
    try:
        table = migrated_addition(name, read_table(table_path), version)
        check_table(f"{name}.parquet", table, ADDITIONS[name], run.n_sites)
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run.run_id!r}: {name} cannot be read ({first_line(error)}); {_MEND}") from error
    return table, manifest
