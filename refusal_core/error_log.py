"""What nobody foresaw: its details in a log file of limited size, and one sentence with their reference."""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MOST_BYTES = 1_000_000
"""Size at which the log file is put aside for a new one."""
N_OLD = 3
"""How many of those that were put aside stay."""


@dataclass(frozen=True)
class Failure:
    """What nobody foresaw, as it was logged.

    Attributes:
        what: what happened, in words that quote nothing.
        file: that could not be read or written; empty where it was none.
        reference: under which the details are in the log.
        log: the log file; ``None`` where it cannot be written, and the details went to standard error.
    """

    what: str
    file: str
    reference: str
    log: Path | None

    def __str__(self) -> str:
        """Return one sentence for whoever started the program."""
        what = f"{self.what}: {self.file}" if self.file else self.what
        where = f"in {self.log}" if self.log else "above"
        return f"{what}; the details are {where}, reference {self.reference}"


def log_path() -> Path:
    """Return where the log file is, or would be."""
    # Not above: every command would wait for it.
    import platformdirs

    return Path(platformdirs.user_log_path("refusal-directions")) / "errors.log"


def log_failure(error: BaseException) -> Failure:
    """Write an error's traceback to the log file, and return what may be said of it.

    Args:
        error: that nobody foresaw.
    """
    reference, log = secrets.token_hex(4), log_path()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    details = f"{now} reference {reference}\n{''.join(traceback.format_exception(error))}\n"
    file = str(error.filename or "") if isinstance(error, OSError) and error.strerror else ""
    try:
        _write(log, details)
    except OSError:
        print(details, file=sys.stderr)
        return Failure(in_words(error), file, reference, None)
    return Failure(in_words(error), file, reference, log)


def in_words(error: BaseException) -> str:
    """Return what happened, without anything that the error quotes."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"this failed in a way that was not foreseen ({type(error).__name__})"


def _write(log: Path, details: str) -> None:
    # Not above: every command would wait for it.
    from logging.handlers import RotatingFileHandler

    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size + len(details) > MOST_BYTES:
        handler = RotatingFileHandler(log, backupCount=N_OLD, delay=True)
        handler.doRollover()
        handler.close()
    with open(log, "a", encoding="utf-8", errors="backslashreplace", opener=_private) as file:
        file.write(details)


def _private(path: str, flags: int) -> int:
    # A traceback may quote what a visitor typed.
    return os.open(path, flags, 0o600)
