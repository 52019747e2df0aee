"""What people find of single prompts: *mislabelled*, *ambiguous* or *fine*, with a note; outside any run.

Marks are kept by prompt, so every run on the same prompts shows them. All are lines of one file that only ever grows,
and a prompt's last line counts: two people at once lose nothing of each other's, and a line that was being written when
a process was killed counts as never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from filelock import FileLock

from refusal_core.annotations.answers import identify_prompt, read_answers
from refusal_core.errors import MarkError
from refusal_core.prompts.columns import TEXT_COLUMNS
from refusal_core.prompts.delimited import decode, read_csv
from refusal_core.prompts.sets import PROMPT_ID
from refusal_core.runs.store import cache_folder, writable_cache

KINDS = {
    "mislabelled": "its label is wrong",
    "ambiguous": "either label could be defended",
    "fine": "its label is right, it only looks odd here",
}
"""The marks, and what each means."""
COLUMNS = ("prompt_id", "text", "mark", "note", "marked_at")
LONGEST_NOTE = 500
_FOLDER, _FILE = ".marks", "marks.jsonl"


@dataclass(frozen=True)
class Mark:
    """What was found of one prompt. ``mark`` is one of :data:`KINDS`, or empty where a mark was taken back."""

    prompt_id: str
    text: str
    mark: str
    note: str = ""
    marked_at: str = ""


def keep(marks: Iterable[Mark], cache: str | Path | None = None) -> None:
    """Keep marks, each in place of its prompt's earlier one; they are on disk when this returns.

    Raises:
        RefusalError: when a mark or note is not one, or they cannot be kept.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = []
    for each in marks:
        if each.mark and each.mark not in KINDS:
            raise MarkError(f"expected one of {', '.join(KINDS)} as mark, found {each.mark!r:.60}")
        if len(each.note) > LONGEST_NOTE:
            raise MarkError(f"expected a note of at most {LONGEST_NOTE} characters, found {len(each.note)}; shorten it")
        record = dict(zip(COLUMNS, astuple(each), strict=True)) | {"marked_at": each.marked_at or now}
        # ASCII, so that neither a line separator nor half a surrogate in a prompt can break a line.
        lines.append(json.dumps(record).encode() + b"\n")
    path = marks_file(writable_cache(cache))
    try:
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")), path.open("ab+") as file:
            # A line that was not finished stays by itself.
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MarkError(f"marks cannot be kept in {path.parent} ({error.strerror})") from error


def kept(cache: str | Path | None = None) -> pd.DataFrame:
    """The marks in force: one row a marked prompt with :data:`COLUMNS`, indexed by ``prompt_id``, oldest first.

    Raises:
        MarkError: when they cannot be read.
    """
    path = marks_file(cache_folder(cache))
    latest: dict[str, Mark] = {}
    try:
        for each in _lines(path):
            latest.pop(each.prompt_id, None)
            if each.mark:
                latest[each.prompt_id] = each
    except OSError as error:
        raise MarkError(f"the marks in {path.parent} cannot be read ({error.strerror}); mend or remove them") from error
    return table_of(latest.values())


def marks_file(folder: Path) -> Path:
    """Where the marks of a cache are.

    Raises:
        MarkError: when something else is there.
    """
    path = folder / _FOLDER / _FILE
    if path.parent.is_symlink() or path.is_symlink():
        raise MarkError(f"{_FILE} or its folder in {folder} is a link, and links are not followed; remove it")
    return path


def read_marks(source: str | Path | BinaryIO, usual: str | None = None) -> list[Mark]:
    """Read a csv of marks, as :func:`to_csv` writes it: a ``mark`` column and a ``prompt_id`` or text column.

    A row without a mark is left out; of several marks of a prompt the last counts.

    Args:
        source: a file's path or an open file.
        usual: the mark of every row of a file without a mark column.

    Raises:
        RefusalError: when it cannot be read, naming the row.
    """
    content, name = read_answers(source)
    frame = read_csv(decode(content, name), name)
    by_name = {str(column).strip().lower(): str(column) for column in frame.columns}
    mark_name, id_name = by_name.get("mark"), by_name.get("prompt_id")
    text_name = next((by_name[each] for each in TEXT_COLUMNS if each in by_name), None)
    if id_name is None and text_name is None:
        raise MarkError(f"{name}: expected a prompt_id or a text column to join by, found {', '.join(by_name)}")
    if mark_name is None and usual is None:
        raise MarkError(f"{name}: expected a column called mark, found {', '.join(by_name)}")
    found: dict[str, Mark] = {}
    for place, record in enumerate(frame.to_dict("records"), start=1):
        where, mark = f"{name}, row {place}", record[mark_name].strip().lower() if mark_name else str(usual)
        if not mark:
            continue
        if mark not in KINDS:
            raise MarkError(f"{where}: expected one of {', '.join(KINDS)} as mark, found {mark!r:.60}")
        text = record[text_name] if text_name else ""
        note = str(record.get(by_name.get("note", ""), ""))
        if len(note) > LONGEST_NOTE:
            raise MarkError(f"{where}: expected a note of at most {LONGEST_NOTE} characters, found {len(note)}")
        prompt_id = identify_prompt(record[id_name] if id_name else "", text, where)
        found[prompt_id] = Mark(prompt_id, text, mark, note)
    return list(found.values())


def to_csv(marks: pd.DataFrame) -> bytes:
    """Marks as a csv that :func:`read_marks` reads."""
    return bytes(marks.to_csv(index=False, columns=list(COLUMNS)).encode("utf-8", "replace"))


def table_of(marks: Iterable[Mark]) -> pd.DataFrame:
    """Marks, one a prompt, in the form of :func:`kept`."""
    table = pd.DataFrame([astuple(each) for each in marks], columns=list(COLUMNS), dtype=object)
    return table.set_index("prompt_id", drop=False).rename_axis(None)


def prompts_marked(marks: pd.DataFrame, kinds: Collection[str]) -> list[str]:
    """The prompt_ids that have a mark of one of these kinds.

    Raises:
        MarkError: for a kind that there is not.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise MarkError(f"expected marks among {', '.join(KINDS)}, found {unknown[0]!r:.60}")
    return list(marks.loc[marks["mark"].isin(list(kinds)), "prompt_id"].tolist())


def _lines(path: Path) -> Iterator[Mark]:
    """The whole lines of the file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                mark = Mark(*(record[name] for name in COLUMNS))
            except (ValueError, KeyError, TypeError):
                continue
            written = all(isinstance(value, str) for value in astuple(mark))
            if written and PROMPT_ID.fullmatch(mark.prompt_id) and mark.mark in ("", *KINDS):
                yield mark


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
