"""The labels of a table's rows, and what they were taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refusal_core.prompts.columns import (
    LABEL_COLUMNS,
    OPPOSITE_COLUMNS,
    find_column,
    first_column,
    is_missing,
    listed,
    plain_name,
    shown,
)
from refusal_core.prompts.labels import GREY, HARMFUL, HARMLESS, LABELS, SKIPPED, Choice, label_flag, label_word
from refusal_core.prompts.records import Records


@dataclass(frozen=True)
class Meaning:
    """What one value of the label column is taken for, ``None`` where nobody said, and how many rows have it."""

    value: str
    label: str | None
    n_rows: int


@dataclass(frozen=True)
class Labelling:
    """The labels of a table.

    Attributes:
        column: where they are.
        labels: of every row; ``None`` where it has none, ``skip`` where the row is to be left out.
        meanings: what each value was taken for, in the order of the table.
        problem: why the table cannot be used as a labelled one, in words; empty where it can.
        in_words: whether the labels say by themselves what they mean, as *unsafe* does and *1* does not.
    """

    column: str | None
    labels: tuple[str | None, ...]
    meanings: tuple[Meaning, ...] = ()
    problem: str = ""
    in_words: bool = False


def find_labels(records: Records, choice: Choice) -> Labelling:
    """Return the labels of a table, found by a column's name and its values or as chosen.

    Raises:
        PromptError: when the column that was chosen is not there.
    """
    columns = records.columns
    if choice.label_column is not None and records.has_columns:
        return _labelling(records, find_column(columns, choice.label_column, (), records.file, "label"), choice)
    named = [column for name in LABEL_COLUMNS if (column := first_column(columns, (name,))) is not None]
    candidates = [_labelling(records, column, choice) for column in named]
    usable = [candidate for candidate in candidates if not candidate.problem]
    if usable:
        first = usable[0]
        return next(
            (_contradicting(records, first, other) for other in usable[1:] if other.labels != first.labels), first
        )
    if candidates and plain_name(named[0]) in LABEL_COLUMNS[:2]:
        return candidates[0]
    return _without_labels(records, _no_labels(records, candidates))


def _labelling(records: Records, column: str, choice: Choice) -> Labelling:
    yes, no = (HARMLESS, HARMFUL) if plain_name(column) in OPPOSITE_COLUMNS else (HARMFUL, HARMLESS)
    labels: list[str | None] = []
    meanings: dict[str, Meaning] = {}
    problem, in_words = "", plain_name(column) not in LABEL_COLUMNS[:2]
    for place, row in zip(records.places, records.rows, strict=True):
        value = row.get(column)
        label, flag = choice.meaning(value) or label_word(value), label_flag(value)
        if label is not None:
            in_words = True
        elif flag is not None:
            label = yes if flag else no
        elif not problem:
            problem = (
                f"{records.file}, {place}: expected a label such as harmful or harmless in column {column!r}, found "
                f"{'none' if is_missing(value) else shown(value)}; say what it means: {', '.join((*LABELS, GREY))}, or "
                f"{SKIPPED} to leave its rows out"
            )
        spelt = "" if is_missing(value) else str(value).strip()[:60]
        n_before = meanings[spelt].n_rows if spelt in meanings else 0
        meanings[spelt] = Meaning(spelt, label, n_before + 1)
        labels.append(label)
    return Labelling(column, tuple(labels), tuple(meanings.values()), problem, in_words)


def _contradicting(records: Records, first: Labelling, other: Labelling) -> Labelling:
    row = next(row for row, (ours, theirs) in enumerate(zip(first.labels, other.labels, strict=True)) if ours != theirs)
    problem = (
        f"{records.file}, {records.places[row]}: the columns {first.column!r:.60} and {other.column!r:.60} say "
        "different things; choose which is the label column"
    )
    return _without_labels(records, problem)


def _without_labels(records: Records, problem: str) -> Labelling:
    return Labelling(None, (None,) * len(records.rows), problem=problem)


def _no_labels(records: Records, candidates: Sequence[Labelling]) -> str:
    arrived, cure = f"the columns {listed(records.columns)}", "choose the label column, or "
    of_words = [column for column in records.columns if _holds_label_words(records, column)]
    if not records.has_columns:
        arrived, cure = records.shape, ""
    elif of_words:
        cure = f"choose {of_words[0]!r:.60} as the label column, or "
    elif candidates:
        column, value = candidates[0].column, next(m.value for m in candidates[0].meanings if m.label is None)
        arrived = f"{value!r} in the column {column!r:.60}"
        cure = f"choose {column!r:.60} as the label column and say what its values mean, or "
    return (
        f"{records.file}: expected a label, harmful or harmless, for every prompt, in a column called label, found "
        f"{arrived}; {cure}give two files, one of harmful and one of harmless prompts, as HARMFUL,HARMLESS"
    )


def _holds_label_words(records: Records, column: str) -> bool:
    cells = [cell for row in records.rows if not is_missing(cell := row.get(column))]
    return bool(cells) and all(label_word(cell) for cell in cells)
