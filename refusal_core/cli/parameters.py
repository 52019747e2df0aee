"""Parameters that several verbs share, and how tables are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from refusal_core.glossary import name_of
from refusal_core.options import DEVICES

if TYPE_CHECKING:
    import pandas as pd

RunName = Annotated[str, Parameter(help="Name of a run, as `refusal list` shows it.")]
Cache = Annotated[
    str | None,
    Parameter(
        name="--cache",
        help="Folder of runs (default: REFUSAL_CACHE, else ./cache where there is one, else the user's data folder).",
    ),
]
Device = Annotated[str, Parameter(help=DEVICES)]
WhereModelIs = Annotated[
    str | None,
    Parameter(help="Where the run's model is, when it was local and activations were not stored."),
]
Position = Annotated[
    str,
    Parameter(
        help="Where prompts are read: t_post, the template's last token; once positions were measured, t_inst, the "
        "instruction's last, and the numbers of the tokens between them, counted from the end (--position=-3)."
    ),
]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
Flat = Parameter(name="*")
"""Makes every field of an options object an option of its own."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values for JSON; what is missing is null."""
    plain = table.astype(object)
    rows: list[dict[str, Any]] = plain.where(plain.notna(), None).to_dict("records")
    return rows


def print_json(value: object) -> None:
    """Print plain values as JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(table: pd.DataFrame, digits: int = 2, index: bool = False) -> None:
    """Print a table with the glossary's names of its columns and rounded numbers; what is missing is a dash."""
    rounded: Callable[[float], str] = f"{{:.{digits}f}}".format
    print(table.rename(columns=name_of).to_string(index=index, float_format=rounded, na_rep="–"))


def printable(text: str) -> str:
    """Return a stranger's text on one line of a terminal, control characters escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
