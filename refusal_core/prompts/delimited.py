"""Text files: tables whose fields are separated by commas, semicolons or tabs, and lists with a prompt per line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from refusal_core.errors import PromptError
from refusal_core.prompts.columns import names_labels, names_texts
from refusal_core.prompts.labels import NOTHING_CHOSEN, Choice, is_label, label_word
from refusal_core.prompts.records import Records, Row, check_rows, first_line, number_rows

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_SIDES = {"first": "a label, a tab and a prompt per line", "last": "a prompt, a tab and a label per line"}
_UNNAMED = "(column {})"
_LONGEST_HEADER = 100_000
_SAMPLE = 2000
"""Bytes by which UTF-16 without a byte order mark is told: every second one of Latin text is null."""
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SAVE_AS_UTF_8 = "save it as UTF-8 (a spreadsheet calls that CSV UTF-8)"


def decode(content: bytes, name: str) -> str:
    """Return a file's bytes as text, its line ends as line feeds.

    Raises:
        PromptError: naming the line that is not UTF-8, the encoding that it looks like, and the cure.
    """
    encoding = next((found for mark, found in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    halves = content[:_SAMPLE:2], content[1:_SAMPLE:2]
    if encoding is None and any(len(half) > 1 and half.count(0) * 10 > 9 * len(half) for half in halves):
        encoding = "UTF-16"
    if encoding is not None:
        raise PromptError(f"{name}, line 1: expected UTF-8 text, found {encoding}; {_SAVE_AS_UTF_8}")
    try:
        return re.sub(r"\r\n?", "\n", content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PromptError(
            f"{name}, line {line}: expected UTF-8 text, found byte {error.object[error.start]:#x}, as in files "
            f"that are encoded in Windows-1252 or Latin-1; {_SAVE_AS_UTF_8}, or convert it with "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def read_csv(text: str, name: str) -> pd.DataFrame:
    """Read a table with as many fields in every row as its header names; rows that are blank lines are skipped.

    Args:
        text: of the file.
        name: what errors call it.

    Returns:
        A table of texts.

    Raises:
        PromptError: when it is not such a table.
    """
    header, body, _ = _table(text, name, NOTHING_CHOSEN)
    return pd.DataFrame([row for _, row in body], columns=header)


def read_delimited(text: str, name: str, choice: Choice = NOTHING_CHOSEN) -> Records:
    """Read a table whose fields are separated by commas, semicolons or tabs, whichever its first row has.

    Raises:
        PromptError: when it is not such a table.
    """
    header, body, delimiter = _table(text, name, choice)
    notes: tuple[str, ...] = ()
    label = _label_without_header([header, *(row for _, row in body)], choice)
    if label is not None:
        body = [(1, header), *((place + 1, row) for place, row in body)]
        header = ["label" if column == label else "text" for column in range(2)]
        notes = ("the first row is no header: it holds a prompt and its label",)
    rows: list[Row] = []
    for place, fields in body:
        # A blank line in between is a row without anything, so that rows count as they do on screen.
        rows += [{}] * (place - 1 - len(rows))
        rows.append(dict(zip(header, fields, strict=True)))
    shape = f"table with {_DELIMITERS.get(delimiter, repr(delimiter))} between the fields"
    return Records(name, shape, _without_unnamed(rows, header), number_rows(len(rows)), notes)


def rows_of_lists(table: Sequence[Sequence[object]], name: str) -> list[Row]:
    """Return the rows of a table that is a list of lists, the first of which is the header.

    Raises:
        PromptError: when a row has another length than the header, or the header is none.
    """
    header, *body = table
    if not all(isinstance(column, str) for column in header) or not any(names_texts(str(column)) for column in header):
        raise PromptError(
            f"{name}: expected the names of the columns in the first list, found {list(header)!r:.60}; "
            "add them, or give objects"
        )
    for place, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise PromptError(f"{name}, row {place}: expected {len(header)} values as in the header, found {len(row)}")
    return [dict(zip(map(str, header), row, strict=True)) for row in body]


def read_lines(text: str, name: str, choice: Choice = NOTHING_CHOSEN) -> Records:
    """Read a list with a prompt per line, or with a label and a prompt per line with a tab between them.

    Only a line feed ends a line, since a prompt may hold other separators.

    Raises:
        PromptError: where some lines have a label and others have none, or fields that are neither.
    """
    lines = text.rstrip("\n").split("\n")
    check_rows(len(lines), name)
    filled = {place: line for place, line in enumerate(lines, start=1) if line.strip()}
    places = number_rows(len(lines))
    plain: list[Row] = [{"text": line} if line.strip() else {} for line in lines]
    if not any("\t" in line for line in filled.values()):
        return Records(name, "a prompt per line", plain, places, has_columns=False)
    header = [field.strip() for field in next(iter(filled.values())).split("\t")]
    if len(header) > 1 and (any(names_texts(field, choice) for field in header) or all(map(label_word, header))):
        return _lines_under_header(filled, name)
    for side, words in (
        ("first", "a label, a tab and a prompt per line"),
        ("last", "a prompt, a tab and a label per line"),
    ):
        fields = {place: _label_and_text(line, side) for place, line in filled.items()}
        known = [place for place, (label, _) in fields.items() if label is not None and is_label(label, choice)]
        if 2 * len(known) >= len(filled):
            return Records(name, words, _labelled_lines(fields, len(lines), name, words), places)
        mixed = [place for place in known if label_word(str(fields[place][0])) or choice.meaning(fields[place][0])]
        if mixed:
            raise PromptError(
                f"{name}, row {mixed[0]}: expected a prompt as on other lines, found a label and a prompt; give every "
                "line a label or none"
            )
    if all("\t" in line for line in filled.values()):
        place, line = next(iter(filled.items()))
        raise PromptError(
            f"{name}, row {place}: expected a prompt, or a label, a tab and a prompt, found {line!r:.60}; say what the "
            "labels mean, name the columns in the first line, or take the tabs out"
        )
    notes = ("tabs within lines are taken for a part of the prompts",)
    return Records(name, "a prompt per line", plain, places, notes, has_columns=False)


def _lines_under_header(filled: Mapping[int, str], name: str) -> Records:
    """Return the rows of lines with tabs, the first of which names the columns; quotes are a part of the prompts."""
    (start, first), *others = filled.items()
    header = _checked_header([field.strip() for field in first.split("\t")], name)
    rows: list[Row] = []
    for line_number, line in others:
        place, fields = line_number - start, line.split("\t")
        if len(fields) != len(header):
            raise PromptError(f"{name}, row {place}: {_wrong_length(header, fields)}; take tabs out of the prompts")
        rows += [{}] * (place - 1 - len(rows))
        rows.append(dict(zip(header, fields, strict=True)))
    return Records(name, "lines with tabs under a line of column names", rows, number_rows(len(rows)))


def _labelled_lines(fields: Mapping[int, tuple[str | None, str]], n_lines: int, name: str, words: str) -> list[Row]:
    rows: list[Row] = [{}] * n_lines
    for place, (label, text) in fields.items():
        if label is None:
            raise PromptError(
                f"{name}, row {place}: expected {words} as on other lines, found no tab in {text!r:.60}; give every "
                "line a label or none"
            )
        rows[place - 1] = {"label": label.strip(), "text": text}
    return rows


def _table(text: str, name: str, choice: Choice) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Return header, rows with their numbers (blank lines are counted and left out), and delimiter of a table."""
    delimiter, text = _delimiter(text, choice)
    spaced = _has_spaced_header(text, delimiter)
    header: list[str] | None = None
    body: list[tuple[int, list[str]]] = []
    place = 0
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced):
            if header is None:
                header = _checked_header(row, name) if row else None
                continue
            place += 1
            if not row:
                continue
            if len(row) != len(header):
                separator = _SEPARATORS.get(delimiter, repr(delimiter))
                raise PromptError(
                    f"{name}, row {place}: {_wrong_length(header, row)}; a text with {separator} in it needs quotes "
                    "around it"
                )
            body.append((place, row))
            check_rows(place, name, len(header))
    except csv.Error as error:
        where = "the header" if header is None else f"row {place + 1}"
        backslashes = ", not with a backslash before it" if '\\"' in text else ""
        raise PromptError(
            f"{name}, {where}: not a readable csv table ({first_line(error)}); put quotes around the text, and write a "
            f"quote within it twice{backslashes}"
        ) from error
    if header is None:
        raise PromptError(f"{name}: not a readable csv table (it is empty); expected the names of columns, and prompts")
    return header, body, delimiter


def _wrong_length(header: Sequence[str], fields: Sequence[str]) -> str:
    return f"expected {len(header)} fields as in the header, found {len(fields)}"


def _checked_header(header: Sequence[str], name: str) -> list[str]:
    """Return the names of columns, those without one numbered."""
    named = [column if column.strip() else _UNNAMED.format(place) for place, column in enumerate(header, start=1)]
    repeated = {column for column in named if named.count(column) > 1}
    if repeated:
        raise PromptError(
            f"{name}: expected every column once, found {sorted(repeated)[0]!r:.60} more than once; rename one of them"
        )
    return named


def _without_unnamed(rows: list[Row], header: Sequence[str]) -> list[Row]:
    """Leave out columns that have neither a name nor anything in them, as spreadsheets write them."""
    unnamed = {_UNNAMED.format(place) for place in range(1, len(header) + 1)} & set(header)
    empty = {column for column in unnamed if not any(str(row.get(column, "")).strip() for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows] if empty else rows


def _delimiter(text: str, choice: Choice) -> tuple[str, str]:
    """Return what separates the fields, and the text without the line in which a spreadsheet says so."""
    line = re.match(r'"?sep=(.)"?\n', text, flags=re.IGNORECASE)
    if line:
        return line[1], text[line.end() :]
    ranks = {}
    for delimiter in _SEPARATORS:
        header = _first_row(text, delimiter)
        known = sum(names_texts(field, choice) or names_labels(field) for field in header)
        ranks[delimiter] = known, sum(is_label(field, choice) for field in header), len(header)
    return max(ranks, key=ranks.__getitem__), text


def _first_row(text: str, delimiter: str) -> list[str]:
    beginning = io.StringIO(text.lstrip("\n")[:_LONGEST_HEADER], newline="")
    try:
        return next(csv.reader(beginning, delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


def _has_spaced_header(text: str, delimiter: str) -> bool:
    """Return whether a space follows every delimiter of the header, so that the space is part of no field."""
    first, *others = text.lstrip("\n").split("\n", 1)[0].split(delimiter)
    return bool(first and others) and all(field.startswith(" ") for field in others)


def _label_without_header(table: Sequence[Sequence[str]], choice: Choice) -> int | None:
    """Return the column of labels of a table of prompts and labels alone that has no header, else ``None``."""
    first, *others = table
    if len(first) != 2 or any(names_texts(field, choice) for field in first):
        return None
    columns = [column for column in range(2) if all(is_label(row[column], choice) for row in table)]
    if len(columns) != 1 or first[columns[0]] not in {row[columns[0]] for row in others}:
        return None
    return columns[0]


def _label_and_text(line: str, side: str) -> tuple[str | None, str]:
    """Return the first or last field of a line and the rest of it; without a tab there is no field."""
    if "\t" not in line:
        return None, line
    if side == "first":
        label, _, text = line.partition("\t")
    else:
        text, _, label = line.rpartition("\t")
    return label, text
