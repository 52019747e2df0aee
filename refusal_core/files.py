"""Files and folders that are complete whenever they are there, and the digests that identify them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of what is still being written; a process that is killed leaves it behind."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that its readers, and a power cut, find the old content or the new one, never a part.

    Args:
        path: the file; its folder has to exist.
        content: text is written as UTF-8.

    Raises:
        OSError: when the folder cannot be written to; the old file is then still there.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Replace files of one folder, each as :func:`write_atomically` does, once there has been room for all of them.

    Args:
        contents: of each file, replaced in this order.

    Raises:
        OSError: when the folder cannot be written to; where it is full, the old files are all still there.
    """
    partials = {path: path.with_name(f"{PARTIAL}{secrets.token_hex(8)}") for path in contents}
    try:
        for path, content in contents.items():
            with partials[path].open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in partials.items():
            partial.replace(path)
            _sync(path.parent)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends; nothing is left of one that fails.

    Raises:
        OSError: when it cannot be written, or ``target`` is there already with something in it.
    """
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        move_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(folder: Path, target: Path) -> None:
    """Rename a folder within one disk, once all of it is on the disk and not only in memory.

    Raises:
        OSError: when ``target`` is there already with something in it.
    """
    for path in (folder, *folder.rglob("*")):
        _sync(path)
    folder.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Flush a file or folder to disk, where the system can do that to one that is open for reading."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
