"""Progress for another program: a small JSON file that is always whole, and says how the work ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType

from refusal_core.errors import RefusalError

_SECONDS_BETWEEN_WRITES = 0.2


class ProgressFile:
    """A :data:`~refusal_core.progress.Progress` callback that keeps a file up to date; a context manager.

    The file holds ``stage``, ``done``, ``total``, ``state`` (``running``, ``done`` or ``failed``), ``message`` (one
    line on failure, else empty) and ``pid``, so that whoever reads it can tell a process that died without a word.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._status = {"stage": "", "done": 0, "total": 0, "state": "running", "message": "", "pid": os.getpid()}
        self._written = 0.0

    def __enter__(self) -> ProgressFile:
        try:
            self._write()
        except OSError as error:
            raise RefusalError(f"the progress file {self._path} cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._status["state"] = "done"
        else:
            message = str(error) if isinstance(error, RefusalError) else f"{type(error).__name__}: {error}"
            self._status |= {"state": "failed", "message": (message.splitlines() or [""])[0]}
        self._write()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Record that ``done`` of ``total`` units of a stage are finished."""
        new_stage = stage != self._status["stage"]
        self._status |= {"stage": stage, "done": done, "total": total}
        if new_stage or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self._status), encoding="utf-8")
        os.replace(beside, self._path)
        self._written = time.monotonic()
