"""Marks that people give to single prompts, *mislabelled*, *ambiguous* or *fine*, with a note; outside any run.

Marks belong to prompts, so every run on the same prompts shows them. A mark has an author, who may be nobody, and two
people's marks on one prompt both stay. All are lines of one file that only ever grows, and the last line of a prompt
and author counts: two people who mark at the same time lose none of their marks, and a line that was being written when
a process was killed counts as never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from filelock import FileLock

from refusal_core.annotations.csv_files import read_annotation_file
from refusal_core.errors import MarkError
from refusal_core.prompts.columns import listed
from refusal_core.prompts.sets import PROMPT_ID
from refusal_core.runs.store import cache_folder, writable_cache

KINDS = {
    "mislabelled": "its label is wrong",
    "ambiguous": "either label could be defended",
    "fine": "its label is right, it only looks odd here",
}
"""The kinds of marks, and what they mean."""
COLUMNS = ("prompt_id", "text", "mark", "note", "marked_at", "author")
LONGEST_NOTE = 500
LONGEST_AUTHOR = 60
NOBODY = ""
"""The author of marks without one, as all were in earlier versions."""
_FOLDER, _FILE = ".marks", "marks.jsonl"


@dataclass(frozen=True)
class Mark:
    """One person's mark on one prompt. ``mark`` is one of :data:`KINDS`, or empty where a mark was removed."""

    prompt_id: str
    text: str
    mark: str
    note: str = ""
    marked_at: str = ""
    author: str = NOBODY

    @property
    def key(self) -> tuple[str, str]:
        """What a later mark has in common with the one that it replaces."""
        return self.prompt_id, self.author


def save_marks(marks: Iterable[Mark], cache: str | Path | None = None) -> None:
    """Save marks, replacing their authors' earlier ones of the same prompts; they are on disk when this returns.

    Raises:
        RefusalError: when a mark or note is not valid, or they cannot be saved.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = []
    for mark in marks:
        if mark.mark and mark.mark not in KINDS:
            raise MarkError(f"expected one of {', '.join(KINDS)} as mark, found {mark.mark!r:.60}")
        if len(mark.note) > LONGEST_NOTE:
            raise MarkError(f"expected a note of at most {LONGEST_NOTE} characters, found {len(mark.note)}; shorten it")
        _check_author(mark.author)
        record = dict(zip(COLUMNS, astuple(mark), strict=True)) | {"marked_at": mark.marked_at or now}
        # ASCII, so that neither a line separator nor half a surrogate in a prompt can break a line.
        lines.append(json.dumps(record).encode() + b"\n")
    path = marks_path(writable_cache(cache))
    try:
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")), path.open("ab+") as file:
            # An unfinished line is closed off, so that it spoils no other.
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MarkError(f"marks cannot be saved in {path.parent} ({error.strerror})") from error


def load_marks(cache: str | Path | None = None) -> pd.DataFrame:
    """Return the marks in force: one row per marked prompt and author with :data:`COLUMNS`, indexed by ``prompt_id``.

    The mark that was given first comes first.

    Raises:
        MarkError: when they cannot be read.
    """
    path = marks_path(cache_folder(cache))
    latest: dict[tuple[str, str], Mark] = {}
    try:
        for mark in _read_lines(path):
            latest.pop(mark.key, None)
            if mark.mark:
                latest[mark.key] = mark
    except OSError as error:
        raise MarkError(f"the marks in {path.parent} cannot be read ({error.strerror}); mend or remove them") from error
    return marks_table(latest.values())


def marks_path(folder: Path) -> Path:
    """Return the path of a cache's marks.

    Raises:
        MarkError: when there is a link.
    """
    path = folder / _FOLDER / _FILE
    if path.parent.is_symlink() or path.is_symlink():
        raise MarkError(f"{_FILE} or its folder in {folder} is a link, and links are not followed; remove it")
    return path


def read_marks(source: str | Path | BinaryIO, default: str | None = None) -> list[Mark]:
    """Read a csv of marks, as :func:`to_csv` writes it: a ``mark`` column and a ``prompt_id`` or text column.

    A row without a mark is left out; of several marks of a prompt by one author the last counts.

    Args:
        source: a file's path or an open file.
        default: the mark of every row of a file without a mark column.

    Raises:
        RefusalError: when it cannot be read, naming the row.
    """
    file = read_annotation_file(source)
    rows = file.rows()
    mark_column, note_column, author_column = (file.column(name) for name in ("mark", "note", "author"))
    if mark_column is None and default is None:
        raise MarkError(f"{file.name}: expected a column called mark, found {listed(file.columns)}")
    marks: dict[tuple[str, str], Mark] = {}
    for row in rows:
        mark = row.cells[mark_column].strip().lower() if mark_column else str(default)
        if not mark:
            continue
        if mark not in KINDS:
            raise MarkError(f"{row.where}: expected one of {', '.join(KINDS)} as mark, found {mark!r:.60}")
        note = row.cells[note_column] if note_column else ""
        if len(note) > LONGEST_NOTE:
            raise MarkError(f"{row.where}: expected a note of at most {LONGEST_NOTE} characters, found {len(note)}")
        author = row.cells[author_column].strip() if author_column else NOBODY
        try:
            _check_author(author)
        except MarkError as error:
            raise MarkError(f"{row.where}: {error}") from error
        read = Mark(row.prompt_id, row.text, mark, note, author=author)
        marks[read.key] = read
    return list(marks.values())


def to_csv(marks: pd.DataFrame) -> bytes:
    """Return marks as a csv that :func:`read_marks` reads."""
    return bytes(marks.to_csv(index=False, columns=list(COLUMNS)).encode("utf-8", "replace"))


def marks_table(marks: Iterable[Mark]) -> pd.DataFrame:
    """Return marks, at most one per prompt and author, as :func:`load_marks` does."""
    table = pd.DataFrame([astuple(mark) for mark in marks], columns=list(COLUMNS), dtype=object)
    return table.set_index("prompt_id", drop=False).rename_axis(None)


def marks_by(marks: pd.DataFrame, author: str) -> pd.DataFrame:
    """Return one author's marks, of which there is at most one per prompt."""
    return marks[marks["author"].eq(author)]


def kinds_by_prompt(marks: pd.DataFrame) -> pd.DataFrame:
    """Return what was said of each prompt: its kinds in ``mark``, with commas, and ``note``, by ``prompt_id``.

    Where several people marked a prompt, or one who said their name, notes say whose they are.
    """
    said: dict[str, list[Mark]] = {}
    for row in marks[list(COLUMNS)].itertuples(index=False, name=None):
        said.setdefault(row[0], []).append(Mark(*row))
    rows = [
        (", ".join(kind for kind in KINDS if any(mark.mark == kind for mark in given)), _notes(given))
        for given in said.values()
    ]
    return pd.DataFrame(rows, index=pd.Index(list(said), dtype=object), columns=["mark", "note"], dtype=object)


def _notes(given: Sequence[Mark]) -> str:
    if len(given) == 1 and given[0].author == NOBODY:
        return given[0].note
    return "; ".join(
        f"{mark.author or 'somebody'}: {mark.mark}{f', {mark.note}' if mark.note else ''}" for mark in given
    )


def marked_prompt_ids(marks: pd.DataFrame, kinds: Collection[str]) -> list[str]:
    """Return the prompt_ids that anyone marked as one of these kinds, each once.

    Raises:
        MarkError: for an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise MarkError(f"expected marks among {', '.join(KINDS)}, found {unknown[0]!r:.60}")
    return list(dict.fromkeys(marks.loc[marks["mark"].isin(list(kinds)), "prompt_id"].tolist()))


def _read_lines(path: Path) -> Iterator[Mark]:
    """Yield the marks of the file's valid lines, in order."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = {"author": NOBODY} | json.loads(line)
                mark = Mark(*(record[name] for name in COLUMNS))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            is_text = all(isinstance(value, str) for value in astuple(mark))
            if is_text and PROMPT_ID.fullmatch(mark.prompt_id) and mark.mark in ("", *KINDS):
                yield mark


def _check_author(author: str) -> None:
    if len(author) > LONGEST_AUTHOR or not author.isprintable():
        raise MarkError(f"expected an author of at most {LONGEST_AUTHOR} printable characters, found {author!r:.90}")


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
