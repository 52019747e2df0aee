"""The folders of the machine that visitors may name a path in: those that the owner named, and no others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from refusal_core.errors import AccessError

FOLDERS = "REFUSAL_FOLDERS"
"""Environment variable with the folders, separated as those of ``PATH`` are."""
_BEGINNINGS = ("/", "\\", "~", ".")
_QUOTES = "\"'( "
_IN_TEXT = re.compile(
    r"file:/"
    r"|(?<![A-Za-z])[A-Za-z]:[\\/](?!/)"  # of Windows
    r"|\\\\\w"
    r"|(?<![\w~])~[\w.-]*/"
    r"|(?<![\w.])\.{1,2}/"
    r"|(?<![\w./~:-])/(?=[^\s/])"
    r"|(?<=\w):/(?=[^\s/])"
)


def named_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders that visitors may name paths in.

    Args:
        environment: variables; by default those of the process.
    """
    listed = (os.environ if environment is None else environment).get(FOLDERS, "").split(os.pathsep)
    return tuple(Path(folder).expanduser().resolve() for folder in listed if folder.strip())


def check_typed(typed: str, folders: tuple[Path, ...]) -> None:
    """Hold what a visitor typed, names or paths with commas between them, to the folders that paths may lie in.

    What a path leads to, or whether it leads anywhere, is not told.

    Args:
        typed: names of the hub pass.
        folders: those that paths may lie in.

    Raises:
        AccessError: for a path that lies elsewhere.
    """
    for part in (each.strip() for each in typed.split(",")):
        if part and _is_path(part) and not _lies_in(part, folders):
            raise AccessError(
                "a path outside the folders that are open to visitors: expected the name of something on the hub, an "
                f"upload, or a path in a folder that whoever started this server named, got {part!r:.80}"
            )


def without_paths(text: str) -> str:
    """Return a text up to the first path of the machine in it, where a path with blanks ends being anybody's guess."""
    path = _IN_TEXT.search(text)
    if path is None:
        return text
    return f"{text[: path.start()].rstrip(_QUOTES)} … (a place on the server, of which its owner is told)"


def _is_path(part: str) -> bool:
    if part.startswith(_BEGINNINGS) or ":" in part[1:3] or "\\" in part or part.count("/") > 1:
        return True
    try:
        return Path(part).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _lies_in(part: str, folders: tuple[Path, ...]) -> bool:
    try:
        path = Path(part).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return any(path.is_relative_to(folder) for folder in folders)
