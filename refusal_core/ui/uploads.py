"""Uploaded files of prompts or vectors, stored in the cache under a name derived from their content."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, TypeVar

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from refusal_core.annotations.csv_files import MOST_BYTES
from refusal_core.children import LARGE, BusyError, in_child
from refusal_core.errors import RefusalError, RunError
from refusal_core.files import PARTIAL, write_atomically
from refusal_core.pipeline.vector_files import ENDINGS
from refusal_core.prompts.records import check_ending, stem
from refusal_core.prompts.sets import slug
from refusal_core.runs.store import cache_folder, writable_cache
from refusal_core.sharing.archives import UnpackedRun, unpack_run
from refusal_core.ui.server import require_owner

T = TypeVar("T")

LARGEST = 20_000_000
"""The most bytes of one file."""
_FOLDER = ".uploads"
_MOST_STORED = 100


def annotation_file(label: str, key: str) -> UploadedFile | None:
    """Show a field for a csv of annotations, which is read in memory, and return what was sent."""
    return st.file_uploader(label, type="csv", max_upload_size=MOST_BYTES // 1_000_000, key=key)


def read_sent(function: Callable[..., T], name: str, content: bytes, *arguments: object) -> T:
    """Return what a function makes of a file that was sent, which a process of its own reads; once for each content.

    Args:
        function: of this package, which takes the open file first.
        name: of the file.
        content: of the file.
        arguments: that follow the file.

    Raises:
        RefusalError: saying what is wrong with the file, or that it takes too much to be read.
    """
    read, problem = _read(f"{function.__module__}.{function.__qualname__}", function, name, content, arguments)
    if problem is not None:
        raise problem
    result: T = read
    return result


@st.cache_data(max_entries=8, show_spinner="Reading the file …")
def _read(
    called: str, _function: Callable[..., Any], name: str, content: bytes, arguments: tuple[object, ...]
) -> tuple[Any, RefusalError | None]:
    try:
        return in_child(_function, *arguments, sent=(name, content)), None
    except BusyError:
        raise
    except RefusalError as error:
        # Kept as well: each rerun of the page would read the file again.
        return None, error


def import_sent(sent: BinaryIO) -> UnpackedRun:
    """Put the run of an archive that someone sent into the cache; see :func:`.archives.unpack_run`.

    Raises:
        RefusalError: saying in one sentence what is wrong with the archive, or that it takes too much to be read.
    """
    cache = writable_cache().absolute()
    try:
        with tempfile.NamedTemporaryFile(dir=cache, prefix=PARTIAL, suffix=".zip") as file:
            sent.seek(0)
            copyfileobj(sent, file)
            file.flush()
            return in_child(unpack_run, file.name, str(cache), limits=LARGE)
    except OSError as error:
        raise RunError(f"the file cannot be kept for reading ({error.strerror})") from error


def store_upload(name: str, content: bytes, cache: str | Path | None = None) -> Path:
    """Store a file of prompts and return its path.

    Args:
        name: of the file, as uploaded.
        content: of the file.
        cache: folder of the runs; by default the one in use.

    Raises:
        RefusalError: when it is too large, of no readable kind, cannot be stored, or the visitor may not store any.
    """
    require_owner()
    return _store(name, check_ending(name), content, cache)


def store_vectors(name: str, content: bytes) -> Path:
    """Store a file of vectors and return its path; it is read where the command that imports them runs.

    Raises:
        RefusalError: as :func:`store_upload`.
    """
    require_owner()
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise RefusalError(f"{name!r:.80}: expected a file of vectors, ending in {', '.join(ENDINGS)}")
    return _store(name, ending, content, None)


def _store(name: str, ending: str, content: bytes, cache: str | Path | None) -> Path:
    """Store a file: the same one once, and only the newest hundred of all.

    The sender's path is not followed: the folder is named after the content, the file after the letters, digits and
    dots of its name, since prompts are called by it on screen.
    """
    if len(content) > LARGEST:
        raise RefusalError(f"{name!r:.80} has {len(content) / 1e6:.0f} MB, expected at most {LARGEST / 1e6:.0f} MB")
    writable_cache(cache)
    folder = uploads_folder(cache)
    path = folder / hashlib.sha256(content).hexdigest()[:16] / f"{slug(stem(name))}{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        _remove_oldest(folder)
    except OSError as error:
        raise RefusalError(f"{name!r:.80} cannot be stored in {folder} ({error.strerror})") from error
    return path


def uploads_folder(cache: str | Path | None = None) -> Path:
    """Return the folder that uploads are stored in."""
    return (cache_folder(cache) / _FOLDER).resolve()


def _remove_oldest(folder: Path) -> None:
    newest_first = sorted(folder.glob("*/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[_MOST_STORED:]:
        path.unlink(missing_ok=True)
