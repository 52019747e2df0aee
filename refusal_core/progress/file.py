"""Progress for another program: a small JSON file that is always complete, and says how the work ended."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from refusal_core.error_log import in_words
from refusal_core.errors import RefusalError

WAITING = "waiting for other work to end"
"""The stage of work that has to wait for its turn."""
_SECONDS_BETWEEN_WRITES = 0.2
_SECONDS_OF_RATE = 30.0


class ProgressFile:
    """A :data:`~refusal_core.progress.Progress` callback that keeps a file up to date; a context manager.

    The file holds ``stage``, ``done``, ``total``, ``rate`` (units per second over the last half minute, null when not
    known yet), ``state`` (``running``, ``done``, ``failed`` or ``cancelled``), ``message`` (one line on failure, else
    empty), ``updated`` (when it was written, in Unix seconds), ``clock`` (the same in seconds of the machine's
    monotonic clock, which nobody sets back) and ``pid``, so that a reader can recognise a process that died.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._status = {
            "stage": "",
            "done": 0,
            "total": 0,
            "rate": None,
            "state": "running",
            "message": "",
            "updated": 0.0,
            "clock": 0.0,
            "pid": os.getpid(),
        }
        self._written = 0.0
        self._seen: deque[tuple[float, int]] = deque()

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
        elif isinstance(error, KeyboardInterrupt):
            self._status["state"] = "cancelled"
        else:
            message = str(error) if isinstance(error, RefusalError) else in_words(error)
            self._status |= {"state": "failed", "message": (message.splitlines() or [""])[0]}
        self._write()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Record that ``done`` of ``total`` units of a stage are finished."""
        new_stage = stage != self._status["stage"]
        self._status |= {"stage": stage, "done": done, "total": total}
        if new_stage or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._status["rate"] = self._rate(done, new_stage)
            self._write()

    def _rate(self, done: int, new_stage: bool) -> float | None:
        """Return recent units per second; those already finished when a stage began do not count."""
        now = time.monotonic()
        if new_stage:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _SECONDS_OF_RATE:
            self._seen.popleft()
        since, already = self._seen[0]
        return (done - already) / (now - since) if done > already and now > since else None

    def _write(self) -> None:
        self._status |= {"updated": time.time(), "clock": time.monotonic()}
        # Replaced several times a second, so without the fsync of files.write_atomically: a lost update is no loss.
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(self._status), encoding="utf-8")
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)
        self._written = time.monotonic()
