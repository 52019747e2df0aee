"""Runs in the cache: save, open, list, rename, verify, delete, restore.

A run is one folder of the cache: written to a temporary folder beside it, renamed when complete, never changed
afterwards. A run folder may come from a stranger, so its files are checked against the manifest's hashes, only known
file names are read, links are not followed, and nothing in it is ever executed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from refusal_core import __version__
from refusal_core.errors import ModelError, PromptError, RunError, first_line
from refusal_core.files import PARTIAL, atomic_folder, sha256_of, write_atomically
from refusal_core.options import DEFAULT_ESTIMATOR, ESTIMATORS
from refusal_core.runs.manifest import (
    ACTIVATIONS,
    FORMAT_VERSION,
    KINDS,
    MANIFEST,
    REQUIRED,
    Manifest,
    PositionsManifest,
    format_version_of,
    parse_manifest,
)
from refusal_core.runs.migrations import migrated_manifest

if TYPE_CHECKING:
    # pandas takes longer to import than runs to list: what reads tables is imported when they are read.
    import numpy as np
    import pandas as pd

    from refusal_core.runs.run import Run
    from refusal_core.runs.run_files import RunTables

_UNFINISHED = ".unfinished-"
_DELETED = ".deleted-"
DAYS_IN_BIN = 7
"""How long a deleted run can be restored."""
_HOURS_KEPT = {
    PARTIAL: 24,
    _DELETED: DAYS_IN_BIN * 24,
    **dict.fromkeys((_UNFINISHED, *(f".{kind.kind}" for kind in KINDS)), 30 * 24),
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,180}")
_FILE_NAME = re.compile(r"[a-z0-9_]+\.(parquet|safetensors)")
_TITLES, _NOTES = ".titles.json", ".notes.json"
_SOUND_RUNS = ".sound.json"
_MOST_BYTES_OF_SOUND = 1_000_000
LONGEST_TITLE, LONGEST_NOTE = 80, 300
_MEND = "delete the run and make it again"
_SOUND: set[str] = set()
"""Digests of the manifests whose tables were held to their schemas, so that a list reads them once."""


@dataclass(frozen=True)
class RunSummary:
    """A run in the list, without its tables.

    Attributes:
        title: empty where it was given none.
        note: empty where it was given none.
        origin: what it was made from besides prompts, in words: another run, or vectors of someone else's.
        measured: the kinds of later measurements it has, see :data:`.manifest.KINDS`.
    """

    run_id: str
    title: str
    note: str
    origin: str
    model: str
    n_layers: int
    d_model: int
    contrast_set: str
    counts: Mapping[str, int]
    dtype: str
    created: str
    size_bytes: int
    measured: tuple[str, ...]


@dataclass(frozen=True)
class BrokenRun:
    """A folder of the cache that cannot be opened, and why."""

    name: str
    reason: str


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the folder that runs are kept in, whether it is there or not.

    It is the argument, else ``$REFUSAL_CACHE``, else ``cache`` in the current folder where there is one, else a folder
    of the user's data.
    """
    named = cache or os.environ.get("REFUSAL_CACHE")
    if named:
        return Path(named).expanduser()
    here = Path.cwd() / "cache"
    return here if here.is_dir() else platformdirs.user_data_path("refusal-directions") / "cache"


def writable_cache(cache: str | Path | None = None) -> Path:
    """Return the folder that runs are kept in, made when it is not there, so that no run is computed for nothing.

    What a killed process left half-written there is removed after a day, deleted runs after a week, unfinished
    extractions and measurements after a month.

    Raises:
        RunError: when it cannot be written to.
    """
    folder = cache_folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for prefix, hours in _HOURS_KEPT.items():
            for left in [*folder.glob(f"{prefix}*"), *folder.glob(f"*/{prefix}*")]:
                # Of a run that is here, whoever made it was killed before its work was removed.
                done = prefix == _UNFINISHED and (folder / left.name.removeprefix(prefix)).exists()
                if done or time.time() - left.stat().st_mtime > hours * 3600:
                    _remove(left)
    except OSError as error:
        raise RunError(f"runs cannot be kept in {folder} ({error.strerror}): choose another folder as cache") from error
    return folder


@contextmanager
def unfinished_work(folder: Path, what: str) -> Iterator[Path]:
    """Yield a folder for work that is under way, to one process at a time.

    It stays when the work is stopped, so that it can go on there, and is removed once the work is done or refused.

    Args:
        folder: where the work is.
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
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunError(
            f"{what}: there is no room on the disk for more ({error.strerror}); with room, it goes on where it was"
        ) from error
    finally:
        lock.release()


def unfinished_run(run_id: str, cache: str | Path | None = None) -> Path:
    """Return where a run that is being made keeps its work."""
    return writable_cache(cache) / f"{_UNFINISHED}{run_id}"


def save_run(
    manifest: Manifest,
    tables: RunTables,
    evidence: Mapping[str, pd.DataFrame],
    activations: np.ndarray | None = None,
    cache: str | Path | None = None,
) -> Run:
    """Write a run and open it; a reader never sees half of one. A run of its name that is there already stays.

    Args:
        manifest: all but ``files``, which are set here.
        tables: its tables and arrays.
        evidence: tables by name, kept as ``evidence_<name>.parquet``.
        activations: ``(prompt, site, d_model)``, kept only when given.
        cache: the folder of runs.

    Raises:
        RunError: when it cannot be written.
    """
    from refusal_core.runs.run_files import write_activations, write_tables

    folder = writable_cache(cache)
    target = _run_folder(manifest.run_id, folder)
    if target.exists():
        return open_run(manifest.run_id, cache)
    try:
        with atomic_folder(target) as partial:
            write_tables(tables, evidence, partial)
            if activations is not None:
                write_activations(activations, partial / ACTIVATIONS)
            files = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
            complete = manifest.model_copy(update={"format_version": FORMAT_VERSION, "files": files})
            (partial / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
    except OSError as error:
        # Another process may have written the same run meanwhile.
        if not target.exists():
            raise RunError(
                f"the run cannot be kept in {folder} ({error.strerror}); nothing half-written is left"
            ) from error
    return open_run(manifest.run_id, cache)


def open_run(run_id: str, cache: str | Path | None = None, *, everything: bool = False) -> Run:
    """Open a run, checking every file it reads against the manifest.

    Args:
        run_id: its name.
        cache: the folder of runs.
        everything: check stored activations too.

    Raises:
        RunError: when there is no such run, a hash does not match, its tables are not what those of a run are, or a
            newer version wrote it.
    """
    path = _run_folder(run_id, cache_folder(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}: expected the name of a run in that folder")
    return _opened(path, *_checked_manifest(path, everything), everything)


def _opened(path: Path, manifest: Manifest, version: int, everything: bool = False) -> Run:
    """Open a run whose files are those of its manifest, if its tables are what those of a run are."""
    from refusal_core.runs.run import Run
    from refusal_core.runs.run_files import map_activations, read_tables

    run_id = path.name
    try:
        model = manifest.model
        imported = manifest.direction is not None
        tables = read_tables(path, version, model.n_layers + 1, model.d_model, imported, manifest.estimator)
        run = Run(run_id, path, manifest, tables)
        run.check_evidence()
        if everything and ACTIVATIONS in manifest.files:
            map_activations(path / ACTIVATIONS, (len(tables.prompts), *tables.directions.unit_direction.shape))
    except RunError:
        raise
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run_id!r} cannot be read: {first_line(error)}; {_MEND}") from error
    _SOUND.add(_digest(manifest))
    return run


def list_runs(cache: str | Path | None = None) -> tuple[list[RunSummary], list[BrokenRun]]:
    """Return all runs of the cache by name, and the folders that are not complete runs, each with the reason."""
    folder = cache_folder(cache)
    titles, notes, known = run_titles(cache), run_notes(cache), _sound_runs(folder)
    _SOUND.update(known)
    listed: set[str] = set()
    runs: list[RunSummary] = []
    broken: list[BrokenRun] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not (path.is_dir() or path.is_symlink()):
            continue
        try:
            manifest, version = _checked_manifest(_run_folder(path.name, folder), everything=False)
            digest = _digest(manifest)
            if digest not in _SOUND:
                _opened(path, manifest, version)
            listed.add(digest)
            runs.append(
                RunSummary(
                    run_id=path.name,
                    title=titles.get(path.name, ""),
                    note=notes.get(path.name, ""),
                    origin=_origin(manifest),
                    model=manifest.model.name,
                    n_layers=manifest.model.n_layers,
                    d_model=manifest.model.d_model,
                    contrast_set=manifest.prompts.name,
                    counts=manifest.prompts.counts,
                    dtype=manifest.compute.dtype,
                    created=manifest.created,
                    size_bytes=sum((path / name).stat().st_size for name in [*manifest.files, MANIFEST]),
                    measured=tuple(kind.kind for kind in KINDS if (path / f"{kind.kind}.json").is_file()),
                )
            )
        except RunError as error:
            broken.append(BrokenRun(path.name, str(error)))
    if listed != known:
        # A cache that cannot be written to is read anew the next time.
        with suppress(OSError):
            write_atomically(folder / _SOUND_RUNS, json.dumps(sorted(listed), indent=2) + "\n")
    return runs, broken


def _sound_runs(folder: Path) -> set[str]:
    """Return the digests of the runs that were sound when they were last listed; none from an unreadable file.

    Their files are compared with their manifests at every listing, and with their schemas whenever a run is opened.
    """
    path = folder / _SOUND_RUNS
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES_OF_SOUND:
            return set()
        return {str(digest) for digest in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()


def run_titles(cache: str | Path | None = None) -> dict[str, str]:
    """Return the titles that runs were given, by run; they are kept beside the runs, which are never changed."""
    return _texts(cache, _TITLES, LONGEST_TITLE)


def run_notes(cache: str | Path | None = None) -> dict[str, str]:
    """Return the notes that runs were given, by run, kept as titles are."""
    return _texts(cache, _NOTES, LONGEST_NOTE)


def rename_run(run_id: str, title: str, cache: str | Path | None = None) -> None:
    """Show a run under a title of one's own instead of its name, which stays; an empty one removes the title.

    Raises:
        RunError: when there is no such run, the title is too long or not printable, or titles cannot be saved.
    """
    _keep_text(run_id, title, cache, _TITLES, LONGEST_TITLE)


def note_run(run_id: str, note: str, cache: str | Path | None = None) -> None:
    """Keep a note of one line beside a run; an empty one removes it.

    Raises:
        RunError: when there is no such run, the note is too long or not printable, or notes cannot be saved.
    """
    _keep_text(run_id, note, cache, _NOTES, LONGEST_NOTE)


def _texts(cache: str | Path | None, name: str, longest: int) -> dict[str, str]:
    """Return the texts that a file of the cache has, by run, without what is none; none from an unreadable one."""
    texts: dict[str, str] = {}
    with suppress(RunError):
        for run_id, text in _kept(cache_folder(cache) / name).items():
            with suppress(RunError):
                texts[run_id] = printable(text, longest)
    return texts


def _kept(path: Path) -> dict[str, object]:
    """Return what a file of texts has, by run, as it is; nothing where there is no file.

    Raises:
        RunError: when it cannot be read.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read ({first_line(error)}): mend or remove it; nothing was changed"
        ) from error
    if not isinstance(kept, dict):
        raise RunError(f"expected texts by run in {path}, found something else: mend or remove it; nothing was changed")
    return kept


def _keep_text(run_id: str, text: str, cache: str | Path | None, name: str, longest: int) -> None:
    path = _run_folder(run_id, writable_cache(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}; nothing was changed")
    text = printable(text, longest)
    kept = path.with_name(name)
    try:
        with FileLock(kept.with_suffix(".lock")):
            # What cannot be shown stays as well: it is not this run's to remove.
            texts = {other: of for other, of in _kept(kept).items() if other != run_id}
            written = json.dumps(texts | ({run_id: text} if text else {}), indent=2, ensure_ascii=False)
            write_atomically(kept, written + "\n")
    except OSError as error:
        raise RunError(f"this cannot be saved for {run_id!r} ({error.strerror}); nothing was changed") from error


def verify_run(run_id: str, cache: str | Path | None = None) -> list[str]:
    """Check every file of a run, stored activations and later measurements included.

    Returns:
        The names of the files whose hashes were found to match.

    Raises:
        RunError: naming the first file that is missing or differs.
    """
    from refusal_core.runs.additions import POSITION_ACTIVATIONS, load_position_activations, read_addition

    run = open_run(run_id, cache, everything=True)
    added = [f"{kind.kind}.parquet" for kind in KINDS if read_addition(run, kind) is not None]
    positions = read_addition(run, PositionsManifest)
    if positions is not None:
        for name in run.positions:
            run.at(name)
        added += positions[1].files
        if load_position_activations(run, positions[1]) is not None:
            added.append(POSITION_ACTIVATIONS)
    return [*run.manifest.files, *added]


def delete_run(run_id: str, cache: str | Path | None = None, *, forever: bool = False) -> None:
    """Take a run's folder, complete or damaged, out of the cache; it can be restored for a week.

    Args:
        run_id: its name.
        cache: the folder of runs.
        forever: free its disk space at once.

    Raises:
        RunError: when there is none of that name in the cache, or it cannot be moved.
    """
    path = _run_folder(run_id, cache_folder(cache))
    if not path.is_dir():
        raise RunError(f"no run called {run_id!r} in {path.parent}; nothing was deleted")
    binned = path.with_name(f"{_DELETED}{path.name}")
    try:
        _remove(binned)
        path.rename(binned)
        # The week begins now, not when the run was made.
        os.utime(binned)
    except OSError as error:
        raise RunError(f"{run_id!r} cannot be deleted ({error.strerror}); nothing was deleted") from error
    if forever:
        _remove(binned)


def deleted_runs(cache: str | Path | None = None) -> list[str]:
    """Return the names of the deleted runs that can be restored, the last deleted first."""
    binned = [path for path in cache_folder(cache).glob(f"{_DELETED}*") if path.is_dir() and not path.is_symlink()]
    ordered = sorted(binned, key=lambda path: path.stat().st_mtime, reverse=True)
    names = [path.name.removeprefix(_DELETED) for path in ordered]
    return [name for name in names if _RUN_ID.fullmatch(name)]


def restore_run(run_id: str, cache: str | Path | None = None) -> None:
    """Put a deleted run back where it was.

    Raises:
        RunError: when it was not deleted within a week, or a run of its name is there again.
    """
    path = _run_folder(run_id, cache_folder(cache))
    if run_id not in deleted_runs(cache):
        raise RunError(f"no deleted run called {run_id!r} in {path.parent}: they are kept for {DAYS_IN_BIN} days")
    if path.exists():
        raise RunError(f"a run called {run_id!r} is there again; delete that one first to restore this")
    try:
        path.with_name(f"{_DELETED}{run_id}").rename(path)
    except OSError as error:
        raise RunError(f"{run_id!r} cannot be restored ({error.strerror})") from error


def _digest(manifest: Manifest) -> str:
    """Return what identifies a run's files and what they have to fit: they are compared with it at every opening.

    Another version of this program may ask more of them.
    """
    return hashlib.sha256(f"{__version__} {manifest.to_json()}".encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def printable(typed: object, longest: int) -> str:
    """Return what somebody typed as one line.

    Raises:
        RunError: when it is longer than it may be, or not printable.
    """
    text = " ".join(unicodedata.normalize("NFC", str(typed)).split())
    if len(text) > longest or not text.isprintable():
        raise RunError(f"expected at most {longest} printable characters, got {text!r:.120}")
    return text


def _origin(manifest: Manifest) -> str:
    """Return what a run was made from besides prompts, in words; empty for a run of its own."""
    if manifest.direction is not None:
        return f"vectors in {manifest.direction.file} on {manifest.direction.parent}"
    estimator = "" if manifest.estimator == DEFAULT_ESTIMATOR else ESTIMATORS[manifest.estimator]
    refit = "" if manifest.refit is None else f"refit of {manifest.refit.parent}"
    return ", ".join(filter(None, (estimator, refit)))


def _run_folder(run_id: str, folder: Path) -> Path:
    if not _RUN_ID.fullmatch(run_id):
        raise RunError(f"{run_id!r} is no run name: expected lower-case letters, digits, dots and dashes")
    path = folder / run_id
    if path.is_symlink():
        raise RunError(f"{run_id!r} is a link; a run has to be a folder inside {folder}")
    return path


def _checked_manifest(path: Path, everything: bool) -> tuple[Manifest, int]:
    """Compare a run's files, but for stored activations unless asked for, with the hashes of its manifest.

    Returns:
        The manifest in the present format, and the format version that the run was written in.
    """
    name = path.name
    if (path / MANIFEST).is_symlink():
        raise RunError(f"the manifest of {name!r} is a link, and links are not followed; delete the run")
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = format_version_of(content)
        files = dict(content["files"])
    except FileNotFoundError:
        raise RunError(f"{name!r} is not a run: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"the manifest of {name!r} cannot be read ({first_line(error)}); {_MEND}") from error
    if version > FORMAT_VERSION:
        raise RunError(
            f"run {name!r} has format version {version}, this program reads up to {FORMAT_VERSION}: update the program"
        )
    manifest = parse_manifest(Manifest, migrated_manifest(content, version), f"run {name!r}: the manifest", _MEND)
    for file in dict.fromkeys((*REQUIRED, *files)):
        if not _FILE_NAME.fullmatch(file) or file not in files:
            raise RunError(f"run {name!r}: the manifest and {file!r:.80} do not belong together; {_MEND}")
        if (path / file).is_symlink() or not (path / file).is_file():
            raise RunError(f"run {name!r} lacks its file {file}; {_MEND}")
        if (everything or file != ACTIVATIONS) and sha256_of(path / file) != files[file]:
            raise RunError(
                f"run {name!r}: {file} is not the file the manifest describes (its SHA-256 differs); {_MEND}"
            )
    return manifest, version
