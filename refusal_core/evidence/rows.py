"""The answers of every site on their way into tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from refusal_core.evidence.wording import Separation
from refusal_core.runs.evidence_tables import CONTRAST


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of the evidence's tables, and what is needed for statements about all sites together.

    Attributes:
        rows: by table.
        draws: by number and source, ``(draw,)`` per site.
        components: a table per site.
        held_out: ``(fitted prompt,)`` cross-fitted projections per site.
        separations: by source and prompts, how well the direction separates them, per site.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    draws: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)
    components: list[pd.DataFrame] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    separations: dict[tuple[str, str], list[Separation]] = field(default_factory=dict)

    def add(self, table: str, /, **columns: object) -> None:
        """Add a row to a table."""
        self.rows.setdefault(table, []).append(columns)

    def explain(self, table: str, reasons: Mapping[str, str], site: int | None, source: str = CONTRAST) -> None:
        """Say why numbers of a table are missing; without a site, at every site."""
        for number, reason in reasons.items():
            self.add("reasons", table=table, number=number, source=source, site=site, reason=reason)

    def extend(self, other: Rows) -> None:
        """Add the rows and draws of another site."""
        for table, rows in other.rows.items():
            self.rows.setdefault(table, []).extend(rows)
        for name, draws in other.draws.items():
            self.draws.setdefault(name, []).extend(draws)
        self.components.extend(other.components)
        self.held_out.extend(other.held_out)
        for compared, separations in other.separations.items():
            self.separations.setdefault(compared, []).extend(separations)

    def table(self, name: str, columns: Iterable[str] = ()) -> pd.DataFrame:
        """Return the rows of a table; ``columns`` for one without any."""
        return pd.DataFrame(self.rows[name]) if name in self.rows else pd.DataFrame(columns=list(columns), dtype=float)
