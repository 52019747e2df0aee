"""Runs as zip files to send to colleagues, and the checks that an archive from anyone passes before it is a run here.

An archive holds the run's folder, its owner's note and nothing else. Its content is untrusted: sizes, names and hashes
are checked before any file is parsed, the tables are read before the run is put in place, and nothing is ever executed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from refusal_core.behaviour import measurement
from refusal_core.errors import RunError, first_line
from refusal_core.exploration.attribution import load_attribution
from refusal_core.exploration.kept_lists import load_lists
from refusal_core.exploration.positions import load_positions
from refusal_core.exploration.subspace import load_subspace
from refusal_core.exploration.trajectory import load_trajectory
from refusal_core.files import PARTIAL, move_into_place
from refusal_core.intervention import experiment
from refusal_core.intervention.judgement import load_judgement
from refusal_core.runs.additions import FILES as ADDED_FILES
from refusal_core.runs.additions import load_position_activations
from refusal_core.runs.manifest import KINDS, MANIFEST, ListsManifest
from refusal_core.runs.run import Run
from refusal_core.runs.store import (
    LONGEST_NOTE,
    cache_folder,
    note_run,
    open_run,
    printable,
    run_notes,
    verify_run,
    writable_cache,
)

LARGEST = 8 * 2**30
"""Bytes that a run may have once it is unpacked."""
_LARGEST_RATIO = 25
_SMALL = 2**20
_MOST_FILES = 64
_ENTRY = re.compile(r"([a-z0-9][a-z0-9._-]{0,180})/([a-z0-9_]+\.(?:parquet|safetensors)|[a-z]+\.json)")
_NOTE = "note.json"
_JSON = {MANIFEST, _NOTE, *(name for name in ADDED_FILES if name.endswith(".json"))}
_BLOCK = 1 << 20


@dataclass(frozen=True)
class UnpackedRun:
    """A run that came in an archive; ``new`` is False when the very same run was here already."""

    run_id: str
    new: bool


def pack_run(run_id: str, file: str | Path | BinaryIO, cache: str | Path | None = None, private: bool = True) -> None:
    """Write a run, with what was measured later, its note and the lists kept with it, to one zip file.

    Args:
        run_id: of the run.
        file: ends in ``.zip``, or what to write to.
        cache: folder of the runs; by default the one in use.
        private: whether what was written for people one knows goes with it: the note, with its tags, and the lists.

    Raises:
        RunError: when there is no such run, it is damaged, or the file cannot be written.
    """
    names = [name for name in verify_run(run_id, cache) if private or name != f"{ListsManifest.kind}.parquet"]
    described = [f"{kind.kind}.json" for kind in KINDS if f"{kind.kind}.parquet" in names]
    folder = cache_folder(cache) / run_id
    if isinstance(file, str | Path):
        path = Path(file).expanduser()
        if path.suffix.lower() != ".zip":
            raise RunError(f"expected a file that ends in .zip to pack the run into, got {path.name!r:.80}")
        file = path
    try:
        with _whole(file) as opened, zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in [MANIFEST, *names, *described]:
                archive.write(folder / name, f"{run_id}/{name}")
            note = run_notes(cache).get(run_id) if private else None
            if note:
                archive.writestr(f"{run_id}/{_NOTE}", json.dumps({"note": note}, ensure_ascii=False))
    except OSError as error:
        raise RunError(f"{run_id} cannot be packed into {file} ({error.strerror}); nothing was written") from error


@contextmanager
def _whole(file: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Yield what to write to, so that a path has all of it at the end or is as it was before."""
    if not isinstance(file, Path):
        yield file
        return
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "no ordinary file")
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=PARTIAL, delete=False) as partial:
        try:
            yield cast(BinaryIO, partial)
            partial.flush()
            os.fsync(partial.fileno())
            Path(partial.name).chmod(0o644)
            Path(partial.name).replace(file)
        finally:
            Path(partial.name).unlink(missing_ok=True)


def unpack_run(archive: str | Path | BinaryIO, cache: str | Path | None = None) -> UnpackedRun:
    """Put an archive's run into the cache once it passes every check; nothing is left of one that is refused.

    The note that came with it is kept, unless the run was here already.

    Raises:
        RunError: when something is wrong with the archive.
    """
    folder = writable_cache(cache)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        run_id = _extract_files(archive, partial)
        note = _take_note(partial / run_id / _NOTE)
        _check_run(run_id, partial)
        unpacked = _put_in_place(partial / run_id, folder / run_id)
        if unpacked.new and note:
            # The run is here: that there is no place for its note is no reason to say that it is not.
            with suppress(RunError):
                note_run(run_id, note, folder)
        return unpacked
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise RunError(f"this is no zip file, or a damaged one ({first_line(error)}); ask for it again") from error
    except OSError as error:
        raise RunError(f"the run cannot be unpacked in {folder} ({error.strerror or first_line(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract_files(archive: str | Path | BinaryIO, partial: Path) -> str:
    """Unpack a run's folder into ``partial`` and return its name, once the list of contents is valid."""
    if isinstance(archive, str | Path):
        archive = Path(archive).expanduser()
        # A pipe or a device may have no end.
        if archive.exists() and not archive.is_file():
            raise RunError(f"expected a zip file, and {archive.name!r:.80} is no ordinary file")
    with zipfile.ZipFile(archive) as opened:
        entries = [entry for entry in opened.infolist() if not _is_run_folder(entry)]
        if not entries or len(entries) > _MOST_FILES:
            raise RunError(f"a run has 5 to {_MOST_FILES} files, this zip file has {len(entries)}; it was refused")
        names: dict[str, zipfile.ZipInfo] = {}
        folders = set()
        for entry in entries:
            match = _ENTRY.fullmatch(entry.filename)
            if match is None or (match[2].endswith(".json") and match[2] not in _JSON):
                raise RunError(
                    f"this zip file holds {entry.filename!r:.80}, which is no file of a run; expected RUN/{MANIFEST} "
                    "and the run's tables, and nothing else"
                )
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                raise RunError(f"{entry.filename} is a link or a device in this zip file; only files are unpacked")
            if entry.flag_bits & 1:
                raise RunError("this zip file has a password; ask for one without")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RunError(f"{entry.filename} is compressed in a way that runs are not; it was refused")
            folders.add(match[1])
            if len(folders) > 1:
                raise RunError("this zip file holds more than one run; expected one")
            if match[2] in names:
                raise RunError(f"this zip file holds {entry.filename} twice; it was refused")
            names[match[2]] = entry
        _check_sizes(entries, partial)
        run_id = folders.pop()
        (partial / run_id).mkdir()
        for name, entry in names.items():
            with opened.open(entry) as packed, (partial / run_id / name).open("xb") as file:
                shutil.copyfileobj(packed, file, _BLOCK)
    return run_id


def _take_note(path: Path) -> str:
    """Return the note that came with a run and take its file away, which is none of the run's; empty without one."""
    if not path.exists():
        return ""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))["note"]
        if not isinstance(note, str):
            raise TypeError("it is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"the note in this zip file cannot be read ({first_line(error)}); ask for it again") from error
    path.unlink()
    return printable(note, LONGEST_NOTE)


def _is_run_folder(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry is the run's folder itself, which archives made by hand list too."""
    return entry.is_dir() and _ENTRY.fullmatch(f"{entry.filename}{MANIFEST}") is not None


def _check_sizes(entries: list[zipfile.ZipInfo], partial: Path) -> None:
    # No more than an entry declares is ever read from it.
    unpacked, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if unpacked > LARGEST:
        raise RunError(f"unpacked this would be {unpacked / 1e9:.1f} GB, expected at most {LARGEST / 1e9:.1f} GB")
    if unpacked > _SMALL + _LARGEST_RATIO * packed:
        raise RunError(f"{packed} bytes that unpack to {unpacked} are not a run's: its files hardly compress")
    for entry in entries:
        if entry.filename.endswith(".json") and entry.file_size > _SMALL:
            raise RunError(f"{entry.filename} is {entry.file_size} bytes long, expected at most {_SMALL}")
    free = shutil.disk_usage(partial).free
    if unpacked > free:
        raise RunError(f"unpacked this is {unpacked / 1e6:.0f} MB and {free / 1e6:.0f} MB of disk are free")


def _check_run(run_id: str, partial: Path) -> None:
    """Raise RunError unless the unpacked folder is a complete run that every page could read."""
    try:
        # Hashes before anything is opened: no library reads what the manifest does not vouch for.
        run = open_run(run_id, partial, everything=True)
        extra = {path.name for path in run.path.iterdir()} - {MANIFEST, *run.manifest.files, *ADDED_FILES}
        if extra:
            raise RunError(f"{min(extra)} is not in the run's manifest; it was refused")
        if run.manifest.run_id != run_id:
            raise RunError(f"the folder is called {run_id!r} and its manifest is of another run; it was refused")
        _check_readable(run)
    except RunError as error:
        raise RunError(str(error).replace("delete the run and make it again", "ask for it again")) from error


def _check_readable(run: Run) -> None:
    try:
        if run.has_evidence:
            run.evidence  # noqa: B018 - reads it
        measurement.load_behaviour(run)
        experiment.load_interventions(run)
        load_subspace(run)
        load_attribution(run)
        load_lists(run)
        load_trajectory(run)
        load_judgement(run)
        if positions := load_positions(run):
            load_position_activations(run, positions[1])
        for name in run.positions:
            run.at(name)
    except RunError:
        raise
    except Exception as error:  # a malformed file, whatever its reader calls it
        raise RunError(f"run {run.run_id!r} cannot be read: {first_line(error)}; ask for it again") from error


def _put_in_place(unpacked: Path, target: Path) -> UnpackedRun:
    if target.exists():
        if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == (unpacked / MANIFEST).read_bytes():
            return UnpackedRun(target.name, new=False)
        raise RunError(f"another run called {target.name!r} is here already; delete that one first to import this")
    move_into_place(unpacked, target)
    return UnpackedRun(target.name, new=True)
