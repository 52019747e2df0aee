"""JSON in the shapes that prompts come in: lists, columns, records by label, by id or under a key; a value per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from refusal_core.errors import PromptError
from refusal_core.prompts.columns import names_texts
from refusal_core.prompts.conversations import is_conversation
from refusal_core.prompts.delimited import rows_of_lists
from refusal_core.prompts.labels import label_word
from refusal_core.prompts.records import MOST_CELLS, Records, Row, check_rows, number_rows

_MESSAGES = "messages"


def read_json(text: str, name: str) -> Records:
    """Read a JSON file of one of the known shapes; one with a value per line is read as such.

    Raises:
        PromptError: for any other.
    """
    _check_values(text, name)
    try:
        value = _parsed(text)
    except ValueError as error:
        lines = text.strip().split("\n")
        if len(lines) > 1 and _is_value(lines[0]):
            return read_json_lines(text, name)
        raise PromptError(f"{name}: not valid JSON ({error})") from error
    return _from_value(value, name)


def read_json_lines(text: str, name: str) -> Records:
    """Read a file with a JSON value per line; a file that is one JSON value is read as such.

    Only a line feed ends a line, since a prompt may hold other separators.

    Raises:
        PromptError: naming the line that is not valid JSON.
    """
    _check_values(text, name)
    lines = text.rstrip("\n").split("\n")
    check_rows(len(lines), name)
    values: list[Any] = []
    commas = False
    for row, line in enumerate(lines, start=1):
        try:
            values.append(_parsed(line) if line.strip() else {})
        except ValueError as error:
            trimmed = line.rstrip().removesuffix(",")
            if trimmed != line.rstrip() and _is_value(trimmed):
                values.append(_parsed(trimmed))
                commas = True
                continue
            if row == 1 and len(lines) > 1 and _is_value(text):
                records = _from_value(_parsed(text), name)
                return replace(records, notes=(*records.notes, "the file is one JSON value, not one per line"))
            raise PromptError(f"{name}, row {row}: not valid JSON ({error})") from error
    if len(values) == 1 and not (isinstance(values[0], dict) and _has_prompt(values[0])):
        return _from_value(values[0], name)
    records = _from_list(values, name)
    notes = ("commas at the ends of the lines are skipped",) if commas else ()
    return replace(records, shape=f"a JSON value per line: {records.shape.removeprefix('JSON: ')}", notes=notes)


def _from_value(value: Any, name: str) -> Records:
    if isinstance(value, dict):
        return _from_object(value, name)
    if not isinstance(value, list):
        raise PromptError(f"{name}: expected a list or an object with prompts, found {value!r:.60}")
    return _from_list(value, name)


def _from_list(values: list[Any], name: str) -> Records:
    check_rows(len(values), name)
    if is_conversation(values):
        return _records(name, "one conversation", [{_MESSAGES: values}])
    filled = [(row, value) for row, value in enumerate(values, start=1) if value is not None and value != {}]
    kind = type(filled[0][1]) if filled else str
    for row, value in filled:
        if type(value) is not kind or kind not in (str, dict, list):
            raise PromptError(f"{name}, row {row}: expected texts, objects or lists throughout, found {value!r:.60}")
    if kind is str:
        rows: list[Row] = [{"text": value} if value else {} for value in values]
        return replace(_records(name, "list of texts", rows), has_columns=False)
    if kind is dict:
        return _records(name, "list of objects", [value or {} for value in values])
    if all(is_conversation(value) for _, value in filled):
        return _records(name, "list of conversations", [{_MESSAGES: value} if value else {} for value in values])
    return _records(name, "list of lists under a list of column names", rows_of_lists([v or [] for v in values], name))


def _from_object(value: Mapping[str, Any], name: str) -> Records:
    """Return the records of an object: its keys are labels, columns, ids, or lead to the records."""
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if lists and all(label_word(key) for key in lists):
        return _by_label(lists, name)
    if {"columns", "data"} <= lists.keys() and all(isinstance(row, list) for row in lists["data"]):
        return _records(name, "columns and rows", rows_of_lists([lists["columns"], *lists["data"]], name))
    if _has_prompt(value):
        return _from_columns(value, name)
    conversations = {key: inner for key, inner in lists.items() if is_conversation(inner)}
    if conversations and len(conversations) == len(value):
        return _records(name, "conversations by id", [{"id": key, _MESSAGES: inner} for key, inner in lists.items()])
    if value and all(isinstance(inner, dict) for inner in value.values()):
        return _records(name, "objects by id", [{"id": key} | inner for key, inner in value.items()])
    if value and all(isinstance(inner, str) for inner in value.values()):
        return _records(name, "texts by id", [{"id": key, "text": inner} for key, inner in value.items()])
    if len(lists) == 1:
        ((key, inner),) = lists.items()
        records = _from_list(inner, name)
        skipped = [other for other in value if other != key]
        notes = (f"besides the records there is {', '.join(skipped)[:100]}, which is not read",) if skipped else ()
        shape = f"{records.shape.removeprefix('JSON: ')} under the key {key!r:.40}"
        return replace(records, shape=f"JSON: {shape}", notes=notes)
    keys = ", ".join(f"{key:.40}" for key in list(value)[:10]) or "nothing in it"
    raise PromptError(
        f"{name}: expected one list of prompts, or one per label, found an object with {keys}; give the list with the "
        "prompts alone"
    )


def _by_label(lists: Mapping[str, list[Any]], name: str) -> Records:
    """Return the records of lists whose keys are their labels."""
    rows: list[Row] = []
    places: list[str] = []
    for key, inner in lists.items():
        records = _from_list(inner, name)
        rows += [dict(row) | {"label": key} if row else row for row in records.rows]
        places += [f"{key}, {place}" for place in records.places]
    return Records(name, "JSON: a list of prompts per label", rows, places)


def _from_columns(value: Mapping[str, Any], name: str) -> Records:
    """Return the records of an object whose keys are columns: with lists, by row number, or of one row."""
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and not is_conversation(inner)}
    if len(lists) == len(value):
        lengths = {key: len(inner) for key, inner in lists.items()}
        if len(set(lengths.values())) > 1:
            raise PromptError(
                f"{name}: expected columns of one length, found "
                f"{', '.join(f'{key:.40} with {length}' for key, length in lengths.items())}"
            )
        check_rows(max(lengths.values()), name, len(lists))
        rows = [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
        return _records(name, "columns", rows)
    if all(isinstance(inner, dict) for inner in value.values()):
        numbers = list(dict.fromkeys(number for inner in value.values() for number in inner))
        check_rows(len(numbers), name, len(value))
        return _records(name, "columns", [{key: inner.get(row) for key, inner in value.items()} for row in numbers])
    return _records(name, "one object", [value])


def _records(name: str, shape: str, rows: Sequence[Row]) -> Records:
    return Records(name, f"JSON: {shape}", rows, number_rows(len(rows)))


def _has_prompt(value: Mapping[str, Any]) -> bool:
    return any(map(names_texts, value))


def _check_values(text: str, name: str) -> None:
    """Raise PromptError for more values than are read: a few bytes of brackets take many of memory."""
    if text.count("[") + text.count("{") + text.count(",") > MOST_CELLS:
        raise PromptError(f"{name}: expected at most {MOST_CELLS:,} values; give a part of it")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def _is_value(text: str) -> bool:
    try:
        _parsed(text)
    except ValueError:
        return False
    return True
