"""Finished work on disk while more is under way: a line a pass, so that what was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


class FinishedPasses:
    """Passes of one request, kept as they are finished; a context manager.

    The first line of the file says what was asked for. Passes of another request are thrown away, and a line that was
    being written when the work stopped is not whole and counts as never written.
    """

    def __init__(self, path: Path, request: dict) -> None:
        self._path = path
        self._request = json.loads(json.dumps(request))
        self._passes: dict[str, list[dict]] = {}
        self.resumed = False
        """Whether there was work of the same request to go on from."""
        self.seconds = 0.0
        """What all passes took, those of earlier attempts included."""

    def __enter__(self) -> FinishedPasses:
        lines = list(_whole_lines(self._path))
        self.resumed = bool(lines) and lines[0] == self._request
        handle, beside = tempfile.mkstemp(dir=self._path.parent)
        self._file = os.fdopen(handle, "w", encoding="utf-8")
        self._write(self._request)
        for line in lines[1:] if self.resumed else []:
            if not _is_pass(line):
                break
            self.add(line["pass"], line["prompts"], line["seconds"])
        os.replace(beside, self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, name: str) -> list[dict] | None:
        """What a pass found, or ``None`` when it is not done."""
        return self._passes.get(name)

    def add(self, name: str, prompts: list[dict], seconds: float) -> None:
        """Keep what a pass found; on disk when this returns."""
        self._write({"pass": name, "prompts": prompts, "seconds": seconds})
        self._passes[name] = prompts
        self.seconds += seconds

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _is_pass(line: dict) -> bool:
    name, prompts, seconds = line.get("pass"), line.get("prompts"), line.get("seconds")
    return isinstance(name, str) and isinstance(prompts, list) and isinstance(seconds, (int, float))


def _whole_lines(path: Path) -> Iterator[dict]:
    if path.is_symlink() or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not isinstance(record, dict):
                return
            yield record
