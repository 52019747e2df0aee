"""The files in the folder of a run: how they are written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from refusal_core import parquet
from refusal_core.analysis.directions import Directions
from refusal_core.conversations import prompts_of
from refusal_core.options import DEFAULT_ESTIMATOR
from refusal_core.runs import schemas
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.manifest import DIRECTIONS, LAYER_STATS, PROJECTIONS, PROMPTS
from refusal_core.runs.migrations import migrated_layer_stats

EXTRA = "extra"
"""Column of the table of prompts that has what else the users' files say, a JSON object of texts per prompt."""
BLOCK = 256
"""Prompts whose activations are written together."""
_TENSORS = ("unit_direction", "harmful_mean", "harmless_mean")
EVIDENCE_TABLES = tuple(table.name for table in fields(Evidence))


@dataclass(frozen=True, eq=False)
class RunTables:
    """The tables and arrays of a run; see :class:`refusal_core.runs.run.Run`."""

    prompts: pd.DataFrame
    projections: np.ndarray
    projections_crossfit: np.ndarray
    layer_stats: pd.DataFrame
    directions: Directions

    def __post_init__(self) -> None:
        for name in ("projections", "projections_crossfit"):
            object.__setattr__(self, name, _read_only(getattr(self, name)))


def write_tables(tables: RunTables, evidence: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the tables of a run into a folder, those of evidence as ``evidence_<name>.parquet``."""
    tables.prompts.to_parquet(folder / PROMPTS, index=False)
    _long(tables).to_parquet(folder / PROJECTIONS, index=False)
    tables.layer_stats.to_parquet(folder / LAYER_STATS, index=False)
    tensors = {name: np.ascontiguousarray(getattr(tables.directions, name)) for name in _TENSORS}
    save_file(tensors, folder / DIRECTIONS)
    for name, table in evidence.items():
        table.to_parquet(folder / f"evidence_{name}.parquet", index=False)


def read_tables(
    folder: Path, version: int, n_sites: int, d_model: int, imported: bool = False, estimator: str = DEFAULT_ESTIMATOR
) -> RunTables:
    """Read the tables of a run, which may be a stranger's, and hold them to their schemas.

    Args:
        folder: of the run.
        version: the format version that it was written in.
        n_sites: the sites of its model.
        d_model: the width of its model.
        imported: whether its directions were imported.
        estimator: that they were fitted by.

    Raises:
        ValueError: when they are not what a run's are, or do not belong together.
        Exception: what the readers of parquet and safetensors raise for a malformed file.
    """
    prompts = read_table(folder / PROMPTS)
    schemas.check_table(PROMPTS, prompts, schemas.PROMPTS, n_sites)
    schemas.check_prompts(PROMPTS, prompts)
    prompts_of(prompts)  # raises for a conversation that is none
    extra_columns(prompts)
    layer_stats = migrated_layer_stats(read_table(folder / LAYER_STATS), version)
    _check_layer_stats(layer_stats, n_sites)
    tensors = _read_tensors(folder / DIRECTIONS, (n_sites, d_model))
    return _as_run(prompts, layer_stats, read_table(folder / PROJECTIONS), Directions(*tensors, imported, estimator))


def _as_run(prompts: pd.DataFrame, layer_stats: pd.DataFrame, long: pd.DataFrame, directions: Directions) -> RunTables:
    """Hold a run's projections, one row per prompt and site, to its prompts; return its tables."""
    n_sites = directions.n_sites
    schemas.check_table(PROJECTIONS, long, schemas.PROJECTIONS, n_sites)
    shape = (len(prompts), n_sites)
    if len(long) != shape[0] * shape[1]:
        raise ValueError(f"{PROJECTIONS} has other than one row per prompt and site")
    if not (long["site"].to_numpy().reshape(shape) == np.arange(n_sites)).all():
        raise ValueError(f"{PROJECTIONS} has its sites in another order")
    if not (long["prompt_id"].iloc[::n_sites].to_numpy() == prompts["prompt_id"].to_numpy()).all():
        raise ValueError(f"{PROJECTIONS} is of other prompts")
    projections = long["projection"].to_numpy(np.float64).reshape(shape)
    crossfit = long["projection_crossfit"].to_numpy(np.float64).reshape(shape)
    return RunTables(prompts, projections, crossfit, layer_stats, directions)


def _check_layer_stats(layer_stats: pd.DataFrame, n_sites: int) -> None:
    schemas.check_table(LAYER_STATS, layer_stats, schemas.LAYER_STATS, n_sites)
    schemas.check_sites(LAYER_STATS, layer_stats, n_sites)


def write_positions(
    tables: Mapping[int, RunTables], evidence: Mapping[int, Mapping[str, pd.DataFrame]], folder: Path
) -> None:
    """Write the tables of a run at other read positions than its own into a folder, each as one of all positions."""
    stacked = {PROJECTIONS: {position: _long(read) for position, read in tables.items()}}
    stacked[LAYER_STATS] = {position: read.layer_stats for position, read in tables.items()}
    for name in EVIDENCE_TABLES:
        stacked[f"evidence_{name}.parquet"] = {position: read[name] for position, read in evidence.items()}
    for name, of_positions in stacked.items():
        table = pd.concat([table.assign(position=np.int16(position)) for position, table in of_positions.items()])
        table.to_parquet(folder / at_positions(name), index=False)
    tensors = {
        name: np.stack([np.asarray(getattr(read.directions, name)) for read in tables.values()]) for name in _TENSORS
    }
    save_file(tensors, folder / at_positions(DIRECTIONS))


def at_positions(name: str) -> str:
    """Return the name of the file that has at other read positions what the run has in a file."""
    return f"positions_{name}"


def read_tables_at(
    folder: Path,
    position: int,
    place: int,
    n_positions: int,
    prompts: pd.DataFrame,
    shape: tuple[int, int],
    estimator: str,
) -> RunTables:
    """Read the tables of a run at another read position, and hold them to their schemas.

    Args:
        folder: of the run.
        position: counted from the end of the templated prompt.
        place: of the position among the other ones.
        n_positions: how many other ones there are.
        prompts: of the run.
        shape: sites and width of its model.
        estimator: that its directions were fitted by.

    Raises:
        ValueError: when they are not what a run's are, or do not belong together.
        Exception: what the readers of parquet and safetensors raise for a malformed file.
    """
    layer_stats = read_table_at(folder, LAYER_STATS, position)
    _check_layer_stats(layer_stats, shape[0])
    unit, harmful, harmless = _read_tensors(folder / at_positions(DIRECTIONS), (n_positions, *shape))
    directions = Directions(unit[place], harmful[place], harmless[place], estimator=estimator)
    return _as_run(prompts, layer_stats, read_table_at(folder, PROJECTIONS, position), directions)


def read_table_at(folder: Path, name: str, position: int) -> pd.DataFrame:
    """Read a table of a run at another read position.

    Raises:
        Exception: see :func:`read_table`; a table without positions is malformed.
    """
    table = read_table(folder / at_positions(name))
    return table[table["position"].eq(position)].drop(columns="position").reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file, unless its few bytes stand for more than memory holds.

    Raises:
        ValueError: when they do.
        Exception: what the reader raises for a malformed file.
    """
    return parquet.read_table(path, path.name, parquet.BUDGET).to_pandas()


def _read_tensors(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tensors of directions, which have to be finite float32 of a shape."""
    tensors = load_file(path)
    for name in _TENSORS:
        if name not in tensors:
            raise ValueError(f"{path.name} lacks {name}")
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ValueError(f"{path.name}: expected finite float32 of shape {shape} as {name}")
    unit_direction, harmful_mean, harmless_mean = (_read_only(tensors[name]) for name in _TENSORS)
    return unit_direction, harmful_mean, harmless_mean


def write_activations(activations: np.ndarray, path: Path) -> None:
    """Write ``(prompt, site, d_model)`` activations as float32 safetensors.

    They go prompt after prompt: those of many prompts come from a file larger than memory.
    """
    entry = {"dtype": "F32", "shape": activations.shape, "data_offsets": [0, 4 * activations.size]}
    header = json.dumps({"activations": entry}).encode()
    # The header's length in eight bytes, the header, filled up to a multiple of eight, the numbers.
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, len(activations), BLOCK):
            block = activations[start : start + BLOCK]
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


def map_activations(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return activations of a known shape, read from the file as they are used.

    Raises:
        OSError, ValueError, KeyError, TypeError: when the file is malformed or of another shape.
    """
    # Safetensors: the header's length in eight bytes, the header, the numbers.
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["activations"]
    if entry["dtype"] != "F32" or tuple(entry["shape"]) != shape:
        raise ValueError(f"expected float32 of shape {shape}")
    return np.memmap(path, np.float32, "r", 8 + size + int(entry["data_offsets"][0]), shape)


def extra_columns(prompts: pd.DataFrame) -> pd.DataFrame:
    """Return what the users' files say besides of each prompt, as texts; no columns for a run without.

    Raises:
        ValueError: when it is not a JSON object of texts per prompt.
    """
    if EXTRA not in prompts:
        return pd.DataFrame(index=prompts.index)
    cells = [json.loads(cell) if isinstance(cell, str) else {} for cell in prompts[EXTRA]]
    if not all(isinstance(cell, dict) and all(isinstance(text, str) for text in cell.values()) for cell in cells):
        raise ValueError(f"{PROMPTS} has further columns that are no texts")
    return pd.DataFrame(cells, index=prompts.index, dtype=object)


def _read_only(values: np.ndarray) -> np.ndarray:
    view = values.view()
    view.flags.writeable = False
    return view


def _long(tables: RunTables) -> pd.DataFrame:
    """The projections, one row per prompt and site."""
    n_sites = tables.projections.shape[1]
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(tables.prompts["prompt_id"].to_numpy(), n_sites),
            "site": np.tile(np.arange(n_sites, dtype=np.int16), len(tables.prompts)),
            "projection": tables.projections.ravel(),
            "projection_crossfit": tables.projections_crossfit.ravel(),
        }
    )
