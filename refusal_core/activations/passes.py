"""Finished work on disk while more is under way: a line per pass, so that work that was stopped can go on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


class FinishedPasses:
    """The finished passes of one request, in a file; a context manager.

    The first line of the file says what was asked for. Passes of another request are thrown away, and a line that was
    being written when the work stopped is incomplete and counts as never written.

    Attributes:
        resumed: whether there was work of the same request to go on from.
        seconds: what all passes took, those of earlier attempts included.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        """Choose the file; it is read and written anew on entering.

        Args:
            path: the file.
            request: what is asked for, as JSON can hold it.
        """
        self._path = path
        self._request = json.loads(json.dumps(request))
        self._passes: dict[str, list[dict[str, Any]]] = {}
        self.resumed = False
        self.seconds = 0.0

    def __enter__(self) -> FinishedPasses:
        """Read what is finished, and open the file for more."""
        lines = list(_complete_lines(self._path))
        self.resumed = bool(lines) and lines[0] == self._request
        handle, temporary = tempfile.mkstemp(dir=self._path.parent)
        self._file = os.fdopen(handle, "w", encoding="utf-8")
        self._write(self._request)
        for line in lines[1:] if self.resumed else []:
            if not _is_pass(line):
                break
            self.add(line["pass"], line["prompts"], line["seconds"])
        os.replace(temporary, self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, which stays."""
        self._file.close()

    def get(self, name: str) -> list[dict[str, Any]] | None:
        """Return what a pass measured, or ``None`` when it is not finished."""
        return self._passes.get(name)

    def add(self, name: str, prompts: list[dict[str, Any]], seconds: float) -> None:
        """Keep what a pass measured; it is on disk when this returns.

        Args:
            name: tells the pass from the request's others.
            prompts: what was measured of each prompt, as JSON can hold it.
            seconds: how long the pass took.
        """
        self._write({"pass": name, "prompts": prompts, "seconds": seconds})
        self._passes[name] = prompts
        self.seconds += seconds

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _is_pass(line: dict[str, Any]) -> bool:
    name, prompts, seconds = line.get("pass"), line.get("prompts"), line.get("seconds")
    return isinstance(name, str) and isinstance(prompts, list) and isinstance(seconds, (int, float))


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
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
