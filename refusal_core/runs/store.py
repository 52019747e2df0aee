"""Runs in the cache: save, open, list, rename, verify, delete.

A run is one folder of ``cache/``: written to a temporary folder beside it, renamed when complete, never changed
afterwards. A run folder may come from a stranger, so its files are checked against the manifest's hashes, only known
file names are read, links are not followed, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save_file

from refusal_core.analysis.directions import Directions
from refusal_core.errors import ModelError, PromptError, RunError
from refusal_core.sites import site_label

FORMAT_VERSION = 1

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / "cache"

MANIFEST = "manifest.json"
PROMPTS = "prompts.parquet"
PROJECTIONS = "projections.parquet"
LAYER_STATS = "layer_stats.parquet"
DIRECTIONS = "directions.safetensors"
ACTIVATIONS = "activations.safetensors"
ADDITIONS = ("behaviour", "intervention")
"""Later measurements that may lie beside a run's own files."""
LEFT_OUT = "left-out"
"""The transfer set of a refit: what it is not fitted on any more."""
_REQUIRED = (PROMPTS, PROJECTIONS, LAYER_STATS, DIRECTIONS)

PARTIAL, _UNFINISHED = ".partial-", ".unfinished-"
_HOURS_KEPT = {PARTIAL: 24, _UNFINISHED: 30 * 24}
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,180}")
_FILE_NAME = re.compile(r"[a-z0-9_]+\.(parquet|safetensors)")
_TITLES = ".titles.json"
LONGEST_TITLE = 80
BLOCK = 256
"""Prompts whose activations are written together."""
_MOST_CELLS = 200_000_000


@dataclass(frozen=True, eq=False)
class Run:
    """One model on one contrast set under one set of options, as read from its folder.

    Attributes:
        manifest: what defines the run and how it was made, as in ``manifest.json``.
        prompts: one row a prompt, fitted ones first: ``prompt_id, text, label, category, pair_id, source, note, fitted,
            n_tokens, first_token, refusal_log_odds``.
        projections: ``(prompt, site)`` float64, in activation units, rows as in ``prompts``.
        projections_crossfit: ``(prompt, site)`` float64, 0 at the training folds' midpoint; NaN for transfer prompts.
        layer_stats: one row a site.
        directions: the direction at every site.
    """

    run_id: str
    path: Path
    manifest: dict
    prompts: pd.DataFrame
    projections: np.ndarray
    projections_crossfit: np.ndarray
    layer_stats: pd.DataFrame
    directions: Directions

    @property
    def n_sites(self) -> int:
        return self.projections.shape[1]

    @property
    def n_layers(self) -> int:
        return self.n_sites - 1

    @property
    def model_name(self) -> str:
        return self.manifest["model"]["name"]

    @property
    def contrast_name(self) -> str:
        return self.manifest["prompts"]["name"]

    def site_label(self, site: int) -> str:
        """``layer 18 of 28``, or ``final norm``."""
        return site_label(site, self.n_layers)

    def rows(self, label: str | None = None, source: str | None = None) -> np.ndarray:
        """``(prompt,)`` bool: fitted prompts of a label, or a transfer set's prompts when ``source`` names one."""
        table = self.prompts
        chosen = table["fitted"] if source is None else table["source"].eq(source) & ~table["fitted"]
        if label is not None:
            chosen = chosen & table["label"].eq(label)
        return chosen.to_numpy()

    @cached_property
    def transfer_sources(self) -> list[str]:
        """Names of the transfer sets, in order."""
        return list(self.prompts.loc[~self.prompts["fitted"], "source"].unique())

    def evidence_tables(self) -> dict[str, pd.DataFrame]:
        """The tables of evidence kept with the run, by name; empty for a run without.

        Raises:
            RunError: when they cannot be read, as those of a run that was deleted since it was opened.
        """
        names = [name for name in self.manifest["files"] if name.startswith("evidence_")]
        try:
            tables = {name: _read_table(self.path / name) for name in names}
        except (OSError, ValueError) as error:
            raise RunError(f"run {self.run_id!r}: its evidence cannot be read ({_first_line(error)})") from error
        return {name.removeprefix("evidence_").removesuffix(".parquet"): table for name, table in tables.items()}


@dataclass(frozen=True)
class RunSummary:
    """A run in the list, without its tables; ``title`` is empty where it was given none."""

    run_id: str
    title: str
    model: str
    n_layers: int
    contrast_set: str
    counts: Mapping[str, int]
    dtype: str
    created: str
    size_bytes: int


@dataclass(frozen=True)
class BrokenRun:
    """A folder of the cache that cannot be opened, and why."""

    name: str
    reason: str


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder runs are kept in: the argument, else ``$REFUSAL_CACHE``, else ``cache/`` beside the code."""
    return Path(cache or os.environ.get("REFUSAL_CACHE") or DEFAULT_CACHE).expanduser()


def writable_cache(cache: str | Path | None = None) -> Path:
    """The folder runs are kept in, made when it is not there, so that no run is computed that cannot be kept.

    What a killed process left half-written there is removed after a day, unfinished extractions after a month.

    Raises:
        RunError: when it cannot be written to.
    """
    folder = cache_folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for prefix, hours in _HOURS_KEPT.items():
            for left in folder.glob(f"{prefix}*"):
                if time.time() - left.stat().st_mtime > hours * 3600:
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"runs cannot be kept in {folder} ({error.strerror}): choose another folder with --cache or REFUSAL_CACHE"
        ) from error
    return folder


@contextmanager
def unfinished_work(folder: Path, what: str) -> Iterator[Path]:
    """A folder for work that is under way, of one process at a time.

    It stays when the work is stopped, so that it can go on there, and is removed once the work is done or refused.

    Args:
        what: names the work in errors.

    Raises:
        RunError: when another process is at it, or the folder cannot be written to.
    """
    try:
        if folder.is_symlink():
            raise RunError(f"{folder} is a link, and links are not followed; remove it")
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{what} is under way in another process; wait for it, or stop it first") from None
    except OSError as error:
        raise RunError(f"{what}: work cannot be kept in {folder} ({error.strerror})") from error
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    except (ModelError, PromptError):
        # It would be refused again.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.release()


def unfinished_run(run_id: str, cache: str | Path | None = None) -> Path:
    """Where a run that is being made keeps its work."""
    return writable_cache(cache) / f"{_UNFINISHED}{run_id}"


def save_run(
    run_id: str,
    manifest: dict,
    prompts: pd.DataFrame,
    projections: np.ndarray,
    projections_crossfit: np.ndarray,
    layer_stats: pd.DataFrame,
    directions: Directions,
    evidence: Mapping[str, pd.DataFrame],
    activations: np.ndarray | None = None,
    cache: str | Path | None = None,
) -> Run:
    """Write a run and open it; a reader never sees half of one.

    Args:
        manifest: all but ``format_version``, ``run_id`` and ``files``, which are added here.
        evidence: tables by name, kept as ``evidence_<name>.parquet``.
        activations: ``(prompt, site, d_model)``, kept only when given.
    """
    folder = writable_cache(cache)
    target = _run_folder(run_id, folder)
    if target.exists():
        return open_run(run_id, cache)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        prompts.to_parquet(partial / PROMPTS, index=False)
        _long(prompts["prompt_id"], projections, projections_crossfit).to_parquet(partial / PROJECTIONS, index=False)
        layer_stats.to_parquet(partial / LAYER_STATS, index=False)
        save_file(
            {
                "unit_direction": np.ascontiguousarray(directions.unit_direction),
                "harmful_mean": np.ascontiguousarray(directions.harmful_mean),
                "harmless_mean": np.ascontiguousarray(directions.harmless_mean),
            },
            partial / DIRECTIONS,
        )
        for name, table in evidence.items():
            table.to_parquet(partial / f"evidence_{name}.parquet", index=False)
        if activations is not None:
            _write_activations(activations, partial / ACTIVATIONS)
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        complete = {"format_version": FORMAT_VERSION, "run_id": run_id, **manifest, "files": files}
        (partial / MANIFEST).write_text(json.dumps(complete, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
    except OSError as error:
        raise RunError(
            f"the run cannot be kept in {folder} ({error.strerror}); nothing half-written is left"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_run(run_id, cache)


def open_run(run_id: str, cache: str | Path | None = None) -> Run:
    """Open a run, checking every file it reads against the manifest.

    Raises:
        RunError: when there is no such run, a hash does not match, or a newer version wrote it.
    """
    path = _run_folder(run_id, cache_folder(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}; `python -m refusal_core list` shows what there is")
    manifest = _checked_manifest(path, everything=False)
    try:
        prompts = _read_table(path / PROMPTS)
        long = _read_table(path / PROJECTIONS)
        layer_stats = _read_table(path / LAYER_STATS)
        tensors = load_file(path / DIRECTIONS)
        directions = Directions(tensors["unit_direction"], tensors["harmful_mean"], tensors["harmless_mean"])
        _check_prompts(prompts)
        shape = (len(prompts), len(layer_stats))
        projections = long["projection"].to_numpy(np.float64).reshape(shape)
        crossfit = long["projection_crossfit"].to_numpy(np.float64).reshape(shape)
        if not (long["prompt_id"].iloc[:: shape[1]].to_numpy() == prompts["prompt_id"].to_numpy()).all():
            raise ValueError("projections are of other prompts")
        if not directions.n_sites == shape[1] == manifest["model"]["n_layers"] + 1:
            raise ValueError("its tables are of different numbers of sites")
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run_id!r} cannot be read: {_first_line(error)}; delete it and run again") from error
    return Run(run_id, path, manifest, prompts, projections, crossfit, layer_stats, directions)


def load_activations(run: Run) -> np.ndarray | None:
    """The run's ``(prompt, site, d_model)`` float32 activations, or ``None`` when they were not kept.

    They are checked against the manifest, and then read from the file as they are used.

    Raises:
        RunError: when they are not what the manifest describes.
    """
    if ACTIVATIONS not in run.manifest["files"]:
        return None
    path = run.path / ACTIVATIONS
    described = (len(run.prompts), *run.directions.unit_direction.shape)
    try:
        if _sha256(path) != run.manifest["files"][ACTIVATIONS]:
            raise ValueError("its SHA-256 differs")
        # Safetensors: the header's length in eight bytes, the header, the numbers.
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(size))["activations"]
        if entry["dtype"] != "F32" or tuple(entry["shape"]) != described:
            raise ValueError(f"expected float32 of shape {described}")
        return np.memmap(path, np.float32, "r", 8 + size + int(entry["data_offsets"][0]), described)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"run {run.run_id!r}: {ACTIVATIONS} is not the file the manifest describes ({error}); "
            "delete the run and make it again"
        ) from error


def save_addition(run: Run, name: str, table: pd.DataFrame, manifest: dict) -> None:
    """Keep a later measurement beside a run, whose own files stay as they are; an older one of the name is replaced.

    Args:
        name: one of :data:`ADDITIONS`; the files are ``<name>.parquet`` and ``<name>.json``, its own manifest.
        manifest: all but ``format_version``, ``run_id`` and the table's hash, which are added here.
    """
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=writable_cache(run.path.parent)))
    try:
        table.to_parquet(partial / f"{name}.parquet", index=False)
        described = {
            "format_version": FORMAT_VERSION,
            **manifest,
            "run_id": run.run_id,
            "sha256": _sha256(partial / f"{name}.parquet"),
        }
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        (partial / f"{name}.json").write_text(text, encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        # Without its manifest a table is not read, so the two are never seen apart.
        (run.path / f"{name}.json").unlink(missing_ok=True)
        for ending in ("parquet", "json"):
            (partial / f"{name}.{ending}").replace(run.path / f"{name}.{ending}")
    except OSError as error:
        raise RunError(f"{name} cannot be kept beside the run in {run.path} ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_addition(run: Run, name: str) -> tuple[pd.DataFrame, dict] | None:
    """A later measurement kept beside a run and its manifest, or ``None`` when there is none.

    Raises:
        RunError: when its files do not belong together, or to this run.
    """
    manifest_path, table_path = run.path / f"{name}.json", run.path / f"{name}.parquet"
    if not manifest_path.exists():
        return None
    again = "measure it again"
    if manifest_path.is_symlink() or table_path.is_symlink() or not table_path.is_file():
        raise RunError(f"run {run.run_id!r}: {name}.json and {name}.parquet do not belong together; {again}")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        belongs = manifest["run_id"] == run.run_id and manifest["sha256"] == _sha256(table_path)
        newer = int(manifest["format_version"]) > FORMAT_VERSION
        table = _read_table(table_path) if belongs and not newer else None
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run.run_id!r}: {name} cannot be read ({_first_line(error)}); {again}") from error
    if newer:
        raise RunError(f"run {run.run_id!r}: a newer version of this program wrote {name}: update the program")
    if table is None:
        raise RunError(f"run {run.run_id!r}: {name}.parquet is not the table that {name}.json describes; {again}")
    return table, manifest


def list_runs(cache: str | Path | None = None) -> tuple[list[RunSummary], list[BrokenRun]]:
    """All runs of the cache by name, and the folders that are not whole runs, each with the reason."""
    folder = cache_folder(cache)
    titles = run_titles(cache)
    runs: list[RunSummary] = []
    broken: list[BrokenRun] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not (path.is_dir() or path.is_symlink()):
            continue
        try:
            manifest = _checked_manifest(_run_folder(path.name, folder), everything=False)
            runs.append(
                RunSummary(
                    run_id=path.name,
                    title=titles.get(path.name, ""),
                    model=manifest["model"]["name"],
                    n_layers=manifest["model"]["n_layers"],
                    contrast_set=manifest["prompts"]["name"],
                    counts=manifest["prompts"]["counts"],
                    dtype=manifest["compute"]["dtype"],
                    created=manifest["created"],
                    size_bytes=sum((path / name).stat().st_size for name in [*manifest["files"], MANIFEST]),
                )
            )
        except RunError as error:
            broken.append(BrokenRun(path.name, str(error)))
    return runs, broken


def run_titles(cache: str | Path | None = None) -> dict[str, str]:
    """The titles that runs were given, by run; they are kept beside the runs, which are never changed."""
    try:
        kept = json.loads((cache_folder(cache) / _TITLES).read_text(encoding="utf-8"))
        return {str(run_id): _title(title) for run_id, title in kept.items()}
    except (OSError, ValueError, AttributeError, RunError):
        return {}


def rename_run(run_id: str, title: str, cache: str | Path | None = None) -> None:
    """Show a run under a title of one's own instead of its name, which stays; an empty one takes the title away.

    Raises:
        RunError: when there is no such run, or the title is too long or not printable.
    """
    path = _run_folder(run_id, writable_cache(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}; nothing was renamed")
    title = _title(title)
    kept = path.with_name(_TITLES)
    with FileLock(kept.with_suffix(".lock")):
        titles = {name: other for name, other in run_titles(cache).items() if name != run_id}
        beside = path.with_name(f"{_TITLES}.{os.getpid()}")
        text = json.dumps(titles | ({run_id: title} if title else {}), indent=2, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(kept)


def _title(typed: object) -> str:
    title = " ".join(unicodedata.normalize("NFC", str(typed)).split())
    if len(title) > LONGEST_TITLE or not title.isprintable():
        raise RunError(f"expected a title of at most {LONGEST_TITLE} printable characters, found {title!r:.120}")
    return title


def check_files(run_id: str, cache: str | Path | None = None) -> list[str]:
    """Compare every file of a run with its hash in the manifest and return their names; none is opened otherwise.

    Raises:
        RunError: naming the first file that is missing or differs.
    """
    return list(_checked_manifest(_run_folder(run_id, cache_folder(cache)), everything=True)["files"])


def verify_run(run_id: str, cache: str | Path | None = None) -> list[str]:
    """Check every file of a run, stored activations included.

    Returns:
        The names of the files whose hashes were found to match.

    Raises:
        RunError: naming the first file that is missing or differs.
    """
    files = check_files(run_id, cache)
    run = open_run(run_id, cache)
    added = [f"{name}.parquet" for name in ADDITIONS if read_addition(run, name) is not None]
    return [*files, *added]


def delete_run(run_id: str, cache: str | Path | None = None) -> None:
    """Remove a run's folder, whole or damaged.

    Raises:
        RunError: when there is none of that name in the cache.
    """
    path = _run_folder(run_id, cache_folder(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}; nothing was deleted")
    doomed = path.with_name(f".deleted-{path.name}-{os.getpid()}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _run_folder(run_id: str, folder: Path) -> Path:
    if not _RUN_ID.fullmatch(run_id):
        raise RunError(f"{run_id!r} is no run name: expected lower-case letters, digits, dots and dashes")
    path = folder / run_id
    if path.is_symlink():
        raise RunError(f"{run_id!r} is a link; a run has to be a folder inside {folder}")
    return path


def _checked_manifest(path: Path, everything: bool) -> dict:
    name = path.name
    if (path / MANIFEST).is_symlink():
        raise RunError(f"the manifest of {name!r} is a link, and links are not followed; delete the run")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
        files = dict(manifest["files"])
    except FileNotFoundError:
        raise RunError(f"{name!r} is not a run: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RunError(
            f"the manifest of {name!r} cannot be read ({error}); delete the run and make it again"
        ) from error
    if version <= FORMAT_VERSION:
        check_shape(manifest, _MANIFEST_SHAPE, name)
        _check_options(manifest, name)
        if "refit" in manifest:
            check_shape(manifest["refit"], _REFIT_SHAPE, name, "the manifest: refit")
        for each in (manifest["prompts"], *manifest["transfer"]):
            check_shape(each["counts"], dict.fromkeys(each["counts"], int), name, "the manifest: counts")
    else:
        raise RunError(
            f"run {name!r} has format version {version}, this program reads up to {FORMAT_VERSION}: update the program"
        )
    for file in {*_REQUIRED, *files}:
        if not _FILE_NAME.fullmatch(file) or file not in files:
            raise RunError(
                f"run {name!r}: the manifest and {file!r} do not belong together; delete the run and make it again"
            )
        if (path / file).is_symlink() or not (path / file).is_file():
            raise RunError(f"run {name!r} lacks its file {file}; delete the run and make it again")
        if (everything or file != ACTIVATIONS) and _sha256(path / file) != files[file]:
            raise RunError(
                f"run {name!r}: {file} is not the file the manifest describes (its SHA-256 differs); "
                "delete the run and make it again"
            )
    return manifest


def _check_options(manifest: dict, name: str) -> None:
    """Raise RunError where what a manifest may lack, as those of earlier versions do, is not what it should be."""
    template, compute = manifest["template"], manifest["compute"]
    if not isinstance(template.get("thinking"), (bool, type(None))):
        raise RunError(f"run {name!r}: the manifest's thinking is neither true, false nor null; make it again")
    if template.get("day") is not None:
        try:
            date.fromisoformat(template["day"])
        except (TypeError, ValueError) as error:
            raise RunError(f"run {name!r}: the manifest's day is no date ({error}); make it again") from error
    if template.get("borrowed") is not None:
        check_shape(template["borrowed"], {"from": str, "text": str}, name, "the borrowed template")
    if compute.get("quantise") not in (None, 4, 8):
        raise RunError(f"run {name!r}: the manifest does not say how the model was quantised; make it again")


def _read_table(path: Path) -> pd.DataFrame:
    """A table of a run, unless its few bytes stand for more than memory holds."""
    metadata = pq.read_metadata(path)
    if metadata.num_rows * metadata.num_columns > _MOST_CELLS:
        raise ValueError(f"{path.name} has {metadata.num_rows} rows, more than a run can have")
    return pd.read_parquet(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_prompts(prompts: pd.DataFrame) -> None:
    """Raise ValueError where the table of prompts, which may be a stranger's, is not what every reader relies on."""
    missing = (_PROMPT_TEXTS | _PROMPT_NUMBERS | {"fitted"}) - set(prompts.columns)
    if missing:
        raise ValueError(f"{PROMPTS} lacks {', '.join(sorted(missing))}")
    texts = all(
        pd.api.types.is_string_dtype(prompts[name]) and prompts[name].notna().all()
        for name in ("prompt_id", "text", "label", "source")
    )
    numbers = all(pd.api.types.is_numeric_dtype(prompts[name]) for name in _PROMPT_NUMBERS)
    if not texts or not numbers or not pd.api.types.is_bool_dtype(prompts["fitted"]):
        raise ValueError(f"{PROMPTS} has other kinds of values than prompts have")


def check_shape(
    value: Any,
    shape: Any,
    name: str,
    where: str = "the manifest",
    mend: str = "delete the run and make it again",
) -> None:
    """Raise RunError where a manifest lacks what every reader of it relies on.

    Args:
        shape: a dict of shapes by key, a list of one shape that all entries have, or types.
        name: of the run.
        mend: what to do, for the message.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict) or not shape.keys() <= value.keys():
            lacking = ", ".join(sorted(shape.keys() - value.keys())) if isinstance(value, dict) else "its entries"
            raise RunError(f"run {name!r}: {where} lacks {lacking}; {mend}")
        for key, inner in shape.items():
            check_shape(value[key], inner, name, f"{where}: {key}", mend)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise RunError(f"run {name!r}: {where} is no list; {mend}")
        for each in value:
            check_shape(each, shape[0], name, where, mend)
    elif not isinstance(value, shape) or isinstance(value, bool):
        raise RunError(f"run {name!r}: {where} is {value!r:.40}; {mend}")


_PROMPT_TEXTS = {"prompt_id", "text", "label", "category", "pair_id", "source", "note", "first_token"}
_PROMPT_NUMBERS = {"n_tokens", "refusal_log_odds"}
_OPTIONAL_TEXT = (str, type(None))
_REFIT_SHAPE = {"parent": str, "left_out": int, "sha256": str, "activations": str}
_SET_SHAPE = {"name": str, "counts": dict}
_MANIFEST_SHAPE = {
    "created": str,
    "model": {
        "name": str,
        "source": str,
        "revision": _OPTIONAL_TEXT,
        "sha256": _OPTIONAL_TEXT,
        "architecture": str,
        "n_layers": int,
        "d_model": int,
        "quantisation": _OPTIONAL_TEXT,
        "licence": _OPTIONAL_TEXT,
    },
    "prompts": _SET_SHAPE | {"counts": {"harmful": int, "harmless": int}},
    "transfer": [_SET_SHAPE],
    "template": {
        "sha256": _OPTIONAL_TEXT,
        "system_prompt": _OPTIONAL_TEXT,
        "default_system_prompt": _OPTIONAL_TEXT,
        "token_position": str,
        "token_limit": int,
    },
    "compute": {"device": str, "dtype": str, "seed": int},
}


def _long(prompt_ids: pd.Series, projections: np.ndarray, crossfit: np.ndarray) -> pd.DataFrame:
    n_prompts, n_sites = projections.shape
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(prompt_ids.to_numpy(), n_sites),
            "site": np.tile(np.arange(n_sites, dtype=np.int16), n_prompts),
            "projection": projections.ravel(),
            "projection_crossfit": crossfit.ravel(),
        }
    )


def _write_activations(activations: np.ndarray, path: Path) -> None:
    """As safetensors, prompt after prompt: those of many prompts are in a file larger than memory."""
    entry = {"dtype": "F32", "shape": activations.shape, "data_offsets": [0, 4 * activations.size]}
    header = json.dumps({"activations": entry}).encode()
    # The header's length in eight bytes, the header, filled up to a multiple of eight, the numbers.
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, len(activations), BLOCK):
            block = activations[start : start + BLOCK]
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
