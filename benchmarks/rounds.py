"""What a benchmark is made of: ways to do one thing, timed in turn for several rounds, and the rows they give."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from refusal_core.models.opening import ChatModel

COLUMNS = ("section", "row", "wanted", "found", "rounds from - to", "note")


@dataclass(frozen=True, eq=False)
class Bench:
    """What every section is given.

    Attributes:
        texts: the prompts, as a person would type them.
        rounds: how often everything is timed.
        visitors: how many visit a server at the same time.
        minutes: how long they do.
        roam: whether they look at other pages between their prompts.
    """

    chat_model: ChatModel
    texts: list[str]
    rounds: int
    visitors: int = 20
    minutes: float = 10.0
    roam: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure in every round, and what is wanted of it.

    Attributes:
        values: one a round.
        unit: behind the figures, such as ``x`` or ``%``.
        wanted: in words, such as ``>= 2.5 x``.
        seconds: what was timed for it, every round.
    """

    section: str
    name: str
    wanted: str
    values: list[float] = field(default_factory=list)
    unit: str = "x"
    note: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """The row as text, in the order of :data:`COLUMNS`; the figure is the median of the rounds."""
        if not self.values:
            return [self.section, self.name, self.wanted, "not measured", "", self.note]
        found = f"{statistics.median(self.values):.3g} {self.unit}"
        spread = f"{min(self.values):.3g} - {max(self.values):.3g}"
        return [self.section, self.name, self.wanted, found, spread, self.note]

    def to_json(self) -> dict[str, Any]:
        """The row as plain numbers and texts, its median beside its rounds."""
        return asdict(self) | {"median": statistics.median(self.values) if self.values else None}


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; in a round all are run one after the other. Warm them before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    lines = [list(COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
