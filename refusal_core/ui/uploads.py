"""Prompt files that came through the browser, kept beside the runs under a name made from their content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from refusal_core.errors import PromptError
from refusal_core.prompts.sets import READABLE, slug
from refusal_core.runs.store import writable_cache

LARGEST = 20_000_000
"""Bytes of one file."""
_FOLDER = ".uploads"
_KEPT = 100


def keep_upload(name: str, content: bytes, cache: str | Path | None = None) -> Path:
    """Keep a file and return where; the same file is kept once. The oldest of more than a hundred go.

    Nothing of the sender's path is followed: the folder is named after the content, the file after what of its name is
    letters, digits and dots, since that is what the prompts are called on screen.

    Raises:
        RefusalError: when it is too large, of no kind that prompts are read from, or cannot be kept.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in READABLE:
        raise PromptError(f"{name!r:.80}: expected a file ending in {', '.join(READABLE)}")
    if len(content) > LARGEST:
        raise PromptError(f"{name!r:.80} has {len(content) / 1e6:.0f} MB, expected at most {LARGEST / 1e6:.0f} MB")
    folder = writable_cache(cache) / _FOLDER
    path = folder / hashlib.sha256(content).hexdigest()[:16] / f"{slug(Path(name).stem)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_bytes(content)
        beside.replace(path)
        _forget_oldest(folder)
    except OSError as error:
        raise PromptError(f"{name!r:.80} cannot be kept in {folder} ({error.strerror})") from error
    return path


def _forget_oldest(folder: Path) -> None:
    newest_first = sorted(folder.glob("*/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[_KEPT:]:
        path.unlink(missing_ok=True)
