"""CSV files of annotations: tables in which every row is about one prompt, known by its prompt_id or its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from refusal_core.errors import PromptError
from refusal_core.prompts.columns import TEXT_COLUMNS, listed
from refusal_core.prompts.delimited import decode, read_csv
from refusal_core.prompts.sets import PROMPT_ID, prompt_id

MOST_BYTES = 5_000_000
"""Largest file of ratings or marks that is read."""


@dataclass(frozen=True)
class AnnotationRow:
    """A row of a file of annotations.

    Attributes:
        where: file and row, as errors name them.
        given_id: content of the column ``prompt_id``; empty without one.
        text: of the prompt; empty without a text column.
        cells: by column.
    """

    where: str
    given_id: str
    text: str
    cells: Mapping[str, str]

    @property
    def prompt_id(self) -> str:
        """The prompt_id that the row gives, or else the one of its text.

        Raises:
            PromptError: when the row has neither.
        """
        if PROMPT_ID.fullmatch(self.given_id.strip()):
            return self.given_id.strip()
        if self.text.strip():
            return prompt_id(self.text)
        raise PromptError(
            f"{self.where}: expected a prompt_id of twelve hexadecimal digits or a text, found {self.given_id!r:.60}"
        )


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """A CSV file of annotations.

    Attributes:
        name: of the file.
        table: of its cells, which are texts.
    """

    name: str
    table: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [str(column) for column in self.table.columns]

    def column(self, name: str) -> str | None:
        """Return the column of a name, in upper or lower case; ``None`` without one."""
        return {column.strip().lower(): column for column in self.columns}.get(name)

    def rows(self) -> list[AnnotationRow]:
        """Return the rows in order.

        Raises:
            PromptError: when no column says which prompt a row is about.
        """
        id_column = self.column("prompt_id")
        text_column = next((column for name in TEXT_COLUMNS if (column := self.column(name))), None)
        if id_column is None and text_column is None:
            raise PromptError(
                f"{self.name}: expected a prompt_id or a text column to join by, found {listed(self.columns)}"
            )
        return [
            AnnotationRow(
                where=f"{self.name}, row {number}",
                given_id=cells[id_column] if id_column else "",
                text=cells[text_column] if text_column else "",
                cells=cells,
            )
            for number, cells in enumerate(self.table.to_dict("records"), start=1)
        ]


def read_annotation_file(source: str | Path | BinaryIO) -> AnnotationFile:
    """Read a CSV file, given as a path or open.

    Raises:
        PromptError: when it cannot be read, or is larger than such files are.
    """
    content, name = _read_bytes(source)
    return AnnotationFile(name, read_csv(decode(content, name), name))


def column_names(source: str | Path | BinaryIO) -> list[str]:
    """Return the names of a CSV file's columns.

    Raises:
        PromptError: see :func:`read_annotation_file`.
    """
    return read_annotation_file(source).columns


def _read_bytes(source: str | Path | BinaryIO) -> tuple[bytes, str]:
    """Return a file's content and name."""
    if not isinstance(source, (str, Path)):
        source.seek(0)
        content, name = source.read(MOST_BYTES + 1), Path(getattr(source, "name", "uploaded.csv")).name
    else:
        path = Path(source).expanduser()
        name = path.name
        try:
            if not path.is_file():
                raise PromptError(f"cannot read {str(source)!r:.120}: expected a csv file, found none")
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no file can have that name"
            raise PromptError(f"cannot read {name!r:.120}: {why}") from error
    if len(content) > MOST_BYTES:
        raise PromptError(f"{name}: expected at most {MOST_BYTES / 1e6:.0f} MB, found more")
    return content, name
