"""Uploaded files of prompts or vectors, stored in the cache under a name derived from their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from refusal_core.annotations.csv_files import MOST_BYTES
from refusal_core.errors import RefusalError
from refusal_core.files import write_atomically
from refusal_core.pipeline.vector_files import ENDINGS
from refusal_core.prompts.records import check_ending, stem
from refusal_core.prompts.sets import slug
from refusal_core.runs.store import cache_folder, writable_cache
from refusal_core.ui.server import require_owner

LARGEST = 20_000_000
"""The most bytes of one file."""
_FOLDER = ".uploads"
_MOST_STORED = 100


def annotation_file(label: str, key: str) -> UploadedFile | None:
    """Show a field for a csv of annotations, which is read in memory, and return what was sent."""
    return st.file_uploader(label, type="csv", max_upload_size=MOST_BYTES // 1_000_000, key=key)


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
