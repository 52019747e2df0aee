"""Progress on a terminal: one bar per stage, with rate and time left, on stderr."""

from __future__ import annotations

import re
import sys
from types import TracebackType

from tqdm import tqdm


class ProgressBars:
    """A :data:`~refusal_core.progress.Progress` callback that draws one bar per stage; a context manager."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm | None = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units of a stage are finished; 0 means that the total is unknown."""
        if stage != self._stage:
            self._close()
            name, unit = _name_and_unit(stage)
            in_bytes = unit == "bytes"
            self._bar = tqdm(
                desc=name,
                unit="B" if in_bytes else f" {unit}",
                unit_scale=in_bytes,
                unit_divisor=1000,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.2,
            )
            self._stage = stage
        assert self._bar is not None
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


def _name_and_unit(stage: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.*) \((\w+)\)", stage)
    return (match[1], match[2]) if match else (stage, "it")
