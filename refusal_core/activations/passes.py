"""Finished work on disk while more is under way: a line per pass, so that work that was stopped can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from refusal_core.files import write_atomically


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
        first, *others = [*_complete_lines(self._path)] or [{}]
        self.resumed = first == self._request
        finished = list(takewhile(_is_pass, others)) if self.resumed else []
        write_atomically(self._path, "".join(map(_as_line, [self._request, *finished])))
        for line in finished:
            self._keep(line["pass"], line["prompts"], line["seconds"])
        self._file = self._path.open("a", encoding="utf-8")
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
        self._file.write(_as_line({"pass": name, "prompts": prompts, "seconds": seconds}))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keep(name, prompts, seconds)

    def _keep(self, name: str, prompts: list[dict[str, Any]], seconds: float) -> None:
        self._passes[name] = prompts
        self.seconds += seconds


def _as_line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


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
