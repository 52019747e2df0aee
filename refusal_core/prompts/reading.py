"""From a file's bytes to prompts, with a report of what they were taken for: nothing is guessed or dropped silently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from refusal_core.children import Table
from refusal_core.conversations import COLUMN, SYSTEM, Conversation, Turn
from refusal_core.errors import PromptError
from refusal_core.prompts import delimited, json_files, tables
from refusal_core.prompts.columns import (
    CONVERSATION_COLUMNS,
    PREFIX_COLUMNS,
    SYSTEM_COLUMNS,
    TEXT_COLUMNS,
    find_column,
    first_column,
    is_missing,
    join,
    joined_column,
    paired_columns,
    shown,
)
from refusal_core.prompts.conversations import (
    NotAConversationError,
    is_transcript,
    looks_like_messages,
    parse_conversation,
)
from refusal_core.prompts.labelling import Labelling, Meaning, find_labels
from refusal_core.prompts.labels import HARMFUL, HARMLESS, LABELS, NOTHING_CHOSEN, SKIPPED, Choice
from refusal_core.prompts.records import Records, Row, check_ending, check_size, expand
from refusal_core.prompts.report import LeftOut, PromptReport, describe

OPTIONAL_COLUMNS = ("category", "pair_id", "note")
EXTRA = "extra"
_LONGEST_EXTRA = 200
"""Most characters of a cell that is kept to filter and colour by."""
_WITHOUT_TEXT = "without a text"
_WEB_PAGE = "it is a web page, not the file that the page is about; download the file itself (on GitHub: Raw)"
_NOT_THE_FILE = {
    b"version https://git-lfs.github.com": "it is a Git LFS pointer, not the file that it stands for; get that with "
    "`git lfs pull`, or download it",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
}
"""How what is often saved in the place of a file begins."""


@dataclass(frozen=True, eq=False)
class PromptFile:
    """The prompts of one file.

    Attributes:
        table: one row per prompt with the columns ``text, conversation, label, category, pair_id, note, extra,
            origin``; all but the text and where it is from may be missing (None). ``conversation`` is
            :meth:`.Conversation.to_json` where there is more to a prompt than its text, and ``extra`` a JSON object of
            the columns that mean nothing here, as texts.
        others: the columns of the file besides the text, row for row.
        labelling: where the labels are from, or why there are none.
        report: what the file was taken for.
    """

    table: pd.DataFrame
    others: pd.DataFrame
    labelling: Labelling
    report: PromptReport

    @property
    def list(self) -> pd.DataFrame:
        """The columns ``text``, ``conversation`` where there are any, and the file's columns besides the prompts."""
        prompts = ["text", COLUMN] if self.table[COLUMN].notna().any() else ["text"]
        return pd.concat([self.table[prompts], self.others], axis=1)

    def without_repeated(self) -> PromptFile:
        """Return the file without prompts that came before in it, for those that nobody here can mend."""
        repeated = self.table.duplicated(["text", COLUMN])
        if not repeated.any():
            return self
        places = [origin.rpartition(", ")[2] for origin in self.table["origin"][repeated]]
        table, others = (part[~repeated].reset_index(drop=True) for part in (self.table, self.others))
        labels = tuple(label for label, again in zip(self.labelling.labels, repeated, strict=True) if not again)
        counts = table["label"].value_counts()
        report = replace(
            self.report,
            n_prompts=len(table),
            counts={label: int(counts[label]) for label in self.report.counts if label in counts},
            left_out=(*self.report.left_out, LeftOut("with a prompt that came before", tuple(places))),
        )
        return PromptFile(table, others, replace(self.labelling, labels=labels), report)

    def check_labels(self) -> None:
        """Raise PromptError when the file cannot be used as a labelled one."""
        if self.labelling.problem:
            raise PromptError(self.labelling.problem)

    def check_label(self, label: str) -> None:
        """Raise PromptError when the file says of some of its prompts that they have another label than this one.

        Numbers, and yes or no, in a column that is just called label may be about something else.
        """
        others = self.table["label"].notna() & self.table["label"].ne(label)
        if self.labelling.in_words and others.any():
            other = self.table[others].iloc[0]
            raise PromptError(
                f"{other['origin']}: expected {label} prompts alone, found one that is labelled {other['label']}; give "
                "the file by itself, it has labels of its own"
            )


@dataclass(frozen=True)
class _Prompt:
    """A prompt with the place and the row that it is from; ``text`` is None where there is none."""

    place: str
    row: Row
    text: str | None
    label: str | None = None
    pair_id: str | None = None
    before: tuple[Turn, ...] = ()
    prefix: str = ""

    @property
    def conversation(self) -> str | None:
        """The conversation as JSON; None where the text is all of it."""
        conversation = Conversation(str(self.text), self.before, self.prefix)
        return None if conversation.is_single else conversation.to_json()


@dataclass
class _Found:
    """What was made out on the way to the prompts."""

    prompts: list[_Prompt]
    text_columns: tuple[str, ...]
    shape: str = ""
    pairs_from: str = ""
    notes: list[str] = field(default_factory=list)


def read_prompts(content: bytes, name: str, choice: Choice = NOTHING_CHOSEN) -> PromptFile:
    """Read the prompts of a file.

    Args:
        content: the whole file.
        name: its name; the ending says what kind of file it is, and errors call it so.
        choice: columns and labels, where they are not to be found by their names and values.

    Raises:
        PromptError: when it cannot be read, naming the row where there is one. A file without labels can be read; see
            :meth:`PromptFile.check_labels`.
    """
    return interpret(read_records(content, name, choice), choice)


def read_prompt_file(path: str | Path, choice: Choice = NOTHING_CHOSEN) -> PromptFile:
    """Read the prompts of a file on this machine; see :func:`read_prompts`.

    Raises:
        PromptError: when it cannot be read.
    """
    path = Path(path)
    return read_prompts(_content_of(path), path.name, choice)


def column_names(path: str | Path) -> list[str]:
    """Return the names of a file's columns; none where they have no names.

    Raises:
        PromptError: when it cannot be read.
    """
    path = Path(path)
    records = read_records(_content_of(path), path.name)
    return records.columns if records.has_columns else []


@dataclass(frozen=True, eq=False)
class ListInspection:
    """A list of prompts, which may be too long to be scored.

    Attributes:
        columns: of the file; empty where they have no names.
        report: what the file was taken for; ``None`` where that failed.
        prompts: the first prompts, as :attr:`PromptFile.list` has them.
        labelled: their ``label`` and ``pair_id``, missing where the file says none.
        problem: why no prompts were made out, in words.
    """

    columns: tuple[str, ...]
    report: PromptReport | None
    prompts: Table
    labelled: Table
    problem: str = ""


def inspect_list(file: BinaryIO, choice: Choice, most: int) -> ListInspection:
    """Read a list of prompts, whatever their labels.

    Args:
        file: open, with a name.
        choice: columns, where they are not to be found by their names.
        most: prompts that are wanted.

    Raises:
        PromptError: when it is of no readable kind or shape.
    """
    records = read_records(file.read(), file.name)
    columns = tuple(records.columns) if records.has_columns else ()
    try:
        read = interpret(records, choice)
    except PromptError as error:
        return ListInspection(columns, None, pd.DataFrame(), pd.DataFrame(), str(error))
    labelled = read.table[["label", "pair_id"]]
    return ListInspection(columns, read.report, read.list.head(most), labelled.head(most))


def _content_of(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            # A pipe or a device may have no end.
            raise PromptError(f"cannot read {path.name!r:.120}: expected an ordinary file")
        check_size(path.stat().st_size, path.name)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise PromptError(f"cannot read {path.name!r:.120}: {why}") from error


def read_records(content: bytes, name: str, choice: Choice = NOTHING_CHOSEN) -> Records:
    """Read the rows of a file as they are.

    Args:
        content: the whole file.
        name: its name; the ending says what kind of file it is, and errors call it so.
        choice: names and labels by which a table's header and labels are told from prompts.

    Raises:
        PromptError: when it is of no readable kind or shape, or too large, naming the row where there is one.
    """
    kind = check_ending(name)
    check_size(len(content), name)
    for start, what in _NOT_THE_FILE.items():
        if content[:100].lstrip().lower().startswith(start):
            raise PromptError(f"{name}: {what}")
    if kind.endswith(".gz"):
        content, kind = expand(content, name), kind.removesuffix(".gz")
    binary: dict[str, Callable[[bytes, str], Records]] = {
        ".parquet": tables.read_parquet,
        ".feather": tables.read_arrow,
        ".arrow": tables.read_arrow,
        ".xlsx": tables.read_workbook,
    }
    if kind in binary:
        return binary[kind](content, name)
    text = delimited.decode(content, name)
    if kind in (".csv", ".tsv"):
        return delimited.read_delimited(text, name, choice)
    if kind == ".txt":
        return delimited.read_lines(text, name, choice)
    return json_files.read_json(text, name) if kind == ".json" else json_files.read_json_lines(text, name)


def interpret(records: Records, choice: Choice = NOTHING_CHOSEN) -> PromptFile:
    """Make prompts of a table's rows.

    Raises:
        PromptError: when there is no column of texts, a cell of it is no text, or no row has one.
    """
    records, left_out = _without_empty_end(records)
    if not records.rows:
        raise PromptError(f"{records.file}: expected at least one prompt, found none ({records.shape})")
    found = _find_prompts(records, choice)
    prompts = [prompt for prompt in found.prompts if prompt.text is not None]
    _add(left_out, _WITHOUT_TEXT, [prompt.place for prompt in found.prompts if prompt.text is None])
    labelling = _labelling(records, found, prompts, choice)
    skipped = [label == SKIPPED for label in labelling.labels]
    _add(left_out, "with a label to skip", [p.place for p, skip in zip(prompts, skipped, strict=True) if skip])
    kept = [place for place, skip in enumerate(skipped) if not skip]
    if not kept:
        why = "".join(f"; left out: {LeftOut(reason, tuple(places))}" for reason, places in left_out.items())
        raise PromptError(f"{records.file}: expected at least one prompt, found none ({records.shape}){why}")
    prompts = [prompts[place] for place in kept]
    labelling = replace(labelling, labels=tuple(labelling.labels[place] for place in kept))
    _check_unicode(records.file, prompts)
    used = {*found.text_columns, labelling.column}
    optional = {name: first_column(records.columns, (name,)) for name in OPTIONAL_COLUMNS}
    others = [column for column in records.columns if column not in used]
    columns = {name: _optional(prompts, column, name, records.file, found) for name, column in optional.items()}
    if any(prompt.pair_id for prompt in prompts):
        columns["pair_id"] = [prompt.pair_id for prompt in prompts]
    elif any(columns["pair_id"]):
        found.pairs_from = f"by the column {optional['pair_id']}"
    table = pd.DataFrame(
        {
            "text": [prompt.text for prompt in prompts],
            COLUMN: pd.Series([prompt.conversation for prompt in prompts], dtype=object),
            "label": pd.Series(labelling.labels, dtype=object),
            **{name: pd.Series(values, dtype=object) for name, values in columns.items()},
            EXTRA: pd.Series([_extra(prompt.row, others, optional.values()) for prompt in prompts], dtype=object),
            "origin": [f"{records.file}, {prompt.place}" for prompt in prompts],
        }
    )
    report = describe(
        table,
        records.file,
        "; ".join(part for part in (records.shape, found.shape) if part),
        found.pairs_from,
        text_columns=found.text_columns if records.has_columns else (),
        label_column=labelling.column if records.has_columns else None,
        meanings=labelling.meanings,
        other_columns=tuple(others),
        left_out=tuple(LeftOut(reason, tuple(places)) for reason, places in left_out.items()),
        notes=(*records.notes, *found.notes, *_context_notes(prompts)),
    )
    return PromptFile(table, _others(prompts, found.text_columns, records.columns), labelling, report)


def _find_prompts(records: Records, choice: Choice) -> _Found:
    """Return what each row has to say to a model."""
    columns = records.columns
    if not records.has_columns:
        return _from_texts(records, "text")
    if choice.text_column is None:
        if first_column(columns, TEXT_COLUMNS) is None:
            pair = paired_columns(records)
            if pair is not None:
                return _from_pairs(records, *pair)
            conversations = first_column(columns, CONVERSATION_COLUMNS)
            if conversations is not None:
                return _from_conversations(records, conversations)
        column = find_column(columns, None, TEXT_COLUMNS, records.file, "text")
    else:
        column = find_column(columns, choice.text_column, (), records.file, "text")
    cells = [cell for row in records.rows if not is_missing(cell := row.get(column))]
    if any(isinstance(cell, list) for cell in cells) or all(_is_written_conversation(cell) for cell in cells):
        return _from_conversations(records, column)
    return _from_texts(records, column)


def _from_texts(records: Records, column: str) -> _Found:
    joined = joined_column(records.columns, column) if records.has_columns else None
    around = _Around.find(records, column)
    found = _Found([], tuple(name for name in (column, joined, *around.columns) if name is not None))
    if joined is not None:
        found.notes.append(f"{joined} is a part of the prompt and joined to {column} where it is not empty")
    for place, row in zip(records.places, records.rows, strict=True):
        text = _text(row.get(column), column, records.file, place)
        if text is not None and joined is not None:
            rest = _text(row.get(joined), joined, records.file, place)
            text = text if rest is None else join(text, rest, joined)
        before, prefix = around.before(row, place), around.prefix(row, place)
        found.prompts.append(_Prompt(place, row, text, before=before, prefix=prefix))
    return found


def _from_pairs(records: Records, harmful: str, harmless: str) -> _Found:
    """Return two prompts per row, which are a matched pair where both are there."""
    around = _Around.find(records, harmful)
    found = _Found([], (harmful, harmless, *around.columns), "a column per label", "one per row")
    for number, (place, row) in enumerate(zip(records.places, records.rows, strict=True), start=1):
        texts = {
            label: _text(row.get(column), column, records.file, place)
            for label, column in ((HARMFUL, harmful), (HARMLESS, harmless))
        }
        pair = str(number) if all(texts.values()) else None
        rest = {name: value for name, value in row.items() if name not in (harmful, harmless)}
        before, prefix = around.before(row, place), around.prefix(row, place)
        found.prompts += [
            _Prompt(f"{place} ({label})", rest, text, label, pair, before, prefix) for label, text in texts.items()
        ]
    return found


def _from_conversations(records: Records, column: str) -> _Found:
    around = _Around.find(records, column)
    found = _Found([], (column, *around.columns), "conversations")
    with_replies = 0
    for place, row in zip(records.places, records.rows, strict=True):
        if is_missing(row.get(column)) or row.get(column) == []:
            found.prompts.append(_Prompt(place, row, None))
            continue
        try:
            conversation, n_after = parse_conversation(row[column])
        except NotAConversationError as error:
            raise PromptError(f"{records.file}, {place}: {error}") from error
        with_replies += n_after > 0
        found.prompts.append(
            _Prompt(
                place,
                row,
                _text(conversation.text, column, records.file, place),
                before=(*around.before(row, place), *conversation.before),
                prefix=around.prefix(row, place) or conversation.prefix,
            )
        )
    if with_replies:
        found.notes.append(f"replies after the user's turn are left out, in {with_replies} conversations")
    return found


@dataclass(frozen=True)
class _Around:
    """The columns of a table that have a prompt's system message and the beginning of its reply."""

    file: str
    system_column: str | None
    prefix_column: str | None

    @classmethod
    def find(cls, records: Records, text_column: str) -> _Around:
        others = [
            column
            for column in records.columns
            if records.has_columns
            and column != text_column
            and all(isinstance(cell, str) or is_missing(cell) for cell in (row.get(column) for row in records.rows))
        ]
        return cls(records.file, first_column(others, SYSTEM_COLUMNS), first_column(others, PREFIX_COLUMNS))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column in (self.system_column, self.prefix_column) if column is not None)

    def before(self, row: Row, place: str) -> tuple[Turn, ...]:
        system = self._cell(row, self.system_column, place)
        return (Turn(SYSTEM, system),) if system else ()

    def prefix(self, row: Row, place: str) -> str:
        return self._cell(row, self.prefix_column, place) or ""

    def _cell(self, row: Row, column: str | None, place: str) -> str | None:
        return None if column is None else _text(row.get(column), column, self.file, place)


def _context_notes(prompts: Sequence[_Prompt]) -> list[str]:
    """Return in how many prompts there is more than the user's turn, in words."""
    counts = {
        "a system message": sum(any(turn.role == SYSTEM for turn in prompt.before) for prompt in prompts),
        "turns before the user's last one": sum(any(turn.role != SYSTEM for turn in p.before) for p in prompts),
        "the beginning of the reply": sum(bool(prompt.prefix) for prompt in prompts),
    }
    return [f"prompts with {what}: {n}" for what, n in counts.items() if n]


def _labelling(records: Records, found: _Found, prompts: Sequence[_Prompt], choice: Choice) -> Labelling:
    """Return the labels of the prompts, which a row that has none takes no part in."""
    if any(prompt.label for prompt in prompts):
        labels = tuple(prompt.label for prompt in prompts)
        meanings = tuple(
            Meaning(column, label, labels.count(label))
            for column, label in zip(found.text_columns[:2], LABELS, strict=True)
        )
        return Labelling(None, labels, meanings, in_words=True)
    rows, places = [prompt.row for prompt in prompts], [prompt.place for prompt in prompts]
    return find_labels(replace(records, rows=rows, places=places), choice)


def _optional(prompts: Sequence[_Prompt], column: str | None, name: str, file: str, found: _Found) -> list[str | None]:
    """Return the values of a column that prompts may have, as texts."""
    if column is None:
        return [None] * len(prompts)
    values = [prompt.row.get(column) for prompt in prompts]
    for prompt, value in zip(prompts, values, strict=True):
        if isinstance(value, (list, dict)):
            if name == "pair_id":
                raise PromptError(
                    f"{file}, {prompt.place}: expected one text or number as {name}, found {shown(value)}"
                )
            found.notes.append(f"{column} holds more than one value per row and is not used as the {name}")
            return [None] * len(prompts)
    return [None if is_missing(value) else str(value) for value in values]


def _extra(row: Row, columns: Sequence[str], known: Iterable[str | None]) -> str | None:
    """Return the cells of a row that mean nothing here, as a JSON object of texts; None where there are none."""
    meant = set(known)
    cells = {column: _plain(row.get(column)) for column in columns if column not in meant}
    texts = {column: str(cell)[:_LONGEST_EXTRA] for column, cell in cells.items() if not is_missing(cell)}
    return json.dumps(texts, ensure_ascii=True) if texts else None


def _others(prompts: Sequence[_Prompt], text_columns: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return the columns besides the text, in the file's order; one that is called as a column of ours is renamed."""
    kept = [column for column in columns if column not in text_columns]
    values = {column: [_plain(prompt.row.get(column)) for prompt in prompts] for column in kept}
    # As they are: a file may hold lone surrogates, which a column of texts cannot.
    index = range(len(prompts))
    return pd.DataFrame(values, columns=kept, index=index, dtype=object).rename(
        columns={name: f"another {name}" for name in ("text", COLUMN)}
    )


def _plain(value: object) -> object:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


def _text(value: object, column: str, file: str, place: str) -> str | None:
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise PromptError(f"{file}, {place}: expected a prompt in column {column!r:.60}, found {shown(value)}")
    if looks_like_messages(value):
        raise PromptError(
            f"{file}, {place}: expected a prompt, or messages in JSON, found {shown(value)}; export the column as JSON"
        )
    return value


def _is_written_conversation(cell: object) -> bool:
    return isinstance(cell, str) and (is_transcript(cell) or looks_like_messages(cell))


def _without_empty_end(records: Records) -> tuple[Records, dict[str, list[str]]]:
    """Return the records without the empty rows at the end, and the places of those."""
    n_rows = len(records.rows)
    while n_rows and all(is_missing(cell) for cell in records.rows[n_rows - 1].values()):
        n_rows -= 1
    left_out: dict[str, list[str]] = {}
    _add(left_out, "empty at the end", records.places[n_rows:])
    return replace(records, rows=records.rows[:n_rows], places=records.places[:n_rows]), left_out


def _add(reasons: dict[str, list[str]], reason: str, places: Iterable[str]) -> None:
    found = list(places)
    if found:
        reasons.setdefault(reason, []).extend(found)


def _check_unicode(file: str, prompts: Sequence[_Prompt]) -> None:
    """Raise PromptError for half a character: no model can be given it."""

    def said(prompt: _Prompt) -> str:
        return Conversation(str(prompt.text), prompt.before, prompt.prefix).words

    broken = [prompt for prompt in prompts if any("\ud800" <= letter <= "\udfff" for letter in said(prompt))]
    if broken:
        raise PromptError(
            f"{file}, {broken[0].place}: expected text in UTF-8, found half of a character, as where an emoji was cut "
            f"in two, in {len(broken)} {'row' if len(broken) == 1 else 'rows'} ({broken[0].text!r:.60}); take it out"
        )
