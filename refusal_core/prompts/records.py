"""From a file's bytes to raw records: which shape the file has, and what each of its rows holds, nothing interpreted.

Every shape ends in the same thing, a list of records with the place of each, so that what is read out of them
(:mod:`refusal_core.prompts.reading`) knows nothing of files. All of it is bounded: a few bytes can stand for gigabytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from refusal_core.errors import PromptError

Row = Mapping[str, object]

MOST_BYTES = 64_000_000
"""Most bytes of a file, and of what it stands for once it is expanded."""
MOST_ROWS = 250_000
MOST_CELLS = 5_000_000

TEXT_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
TABLE_ENDINGS = (".parquet", ".feather", ".arrow", ".xlsx")
READABLE = (*TEXT_ENDINGS, *TABLE_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS))
"""Endings of the files that are read."""

_CHUNK = 1 << 20
_CURES = {
    ".yaml": "save its content as json",
    ".yml": "save its content as json",
    ".xls": "save the sheet as xlsx or csv",
    ".ods": "save the sheet as xlsx or csv",
    ".zip": "unpack it and give the file with the prompts",
    ".pkl": "save the table as parquet: a pickle is a program and is never opened",
    ".pickle": "save the table as parquet: a pickle is a program and is never opened",
}


@dataclass(frozen=True)
class Records:
    """The rows of a file as they are.

    Attributes:
        file: what errors call it.
        shape: the shape that was recognised, in words.
        rows: by column name; a row of a text file or of a list of texts has the one column ``text``.
        places: where each row is, such as ``row 3``; the first row of data is row 1.
        notes: what was skipped or made out on the way, in words.
        has_columns: whether the columns have names that were in the file.
    """

    file: str
    shape: str
    rows: Sequence[Row]
    places: Sequence[str]
    notes: tuple[str, ...] = ()
    has_columns: bool = True

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case, with what it is compressed by: ``.csv`` or ``.csv.gz``."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def stem(name: str) -> str:
    """Return a file's name without its ending."""
    return PurePath(name).name[: -len(ending(name)) or None] or PurePath(name).name


def check_ending(name: str) -> str:
    """Return the ending of a file that can be read.

    Raises:
        PromptError: for any other, with what to do.
    """
    suffix = ending(name)
    if suffix in READABLE:
        return suffix
    cure = f"; {_CURES[suffix]}" if suffix in _CURES else ""
    raise PromptError(
        f"{name:.80}: expected a file ending in {', '.join((*TEXT_ENDINGS, *TABLE_ENDINGS))}, or one of the first "
        f"{len(TEXT_ENDINGS)} with .gz, got {suffix or 'no ending'}{cure}"
    )


def check_size(n_bytes: int, name: str) -> None:
    """Raise PromptError when a file is, or stands for, more bytes than are read."""
    if n_bytes > MOST_BYTES:
        raise PromptError(
            f"{name}: expected at most {MOST_BYTES / 1e6:.0f} MB of prompts, found {n_bytes / 1e6:,.0f} MB; "
            "give a part of it"
        )


def check_rows(n_rows: int, name: str, n_columns: int = 1) -> None:
    """Raise PromptError when a file has more rows or cells than are read."""
    if n_rows > MOST_ROWS:
        raise PromptError(f"{name}: expected at most {MOST_ROWS:,} rows, found {n_rows:,} or more; give a part of it")
    if n_rows * n_columns > MOST_CELLS:
        raise PromptError(
            f"{name}: expected at most {MOST_CELLS:,} cells, found {n_rows:,} rows of {n_columns:,}; leave columns out"
        )


def number_rows(n_rows: int) -> list[str]:
    """Return the places of rows that are counted from 1."""
    return [f"row {row}" for row in range(1, n_rows + 1)]


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message."""
    return (str(error).splitlines() or [""])[0][:200]


def expand(content: bytes, name: str) -> bytes:
    """Return what a gzip file holds, once its size is known: it is expanded piece by piece and counted first.

    Raises:
        PromptError: when it is damaged, or holds more than is read.
    """
    try:
        n_bytes = 0
        for piece in _pieces(content):
            n_bytes += len(piece)
            check_size(n_bytes, name)
        return b"".join(_pieces(content))
    except (zlib.error, EOFError) as error:
        raise PromptError(
            f"{name}: not a complete gzip file ({first_line(error)}); copy or download it again"
        ) from error


def _pieces(content: bytes) -> Iterator[bytes]:
    """Yield what a gzip file holds, all its members one after the other."""
    while content:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(content, _CHUNK)
            content = member.unused_data if member.eof else member.unconsumed_tail
            if not piece and not content and not member.eof:
                raise EOFError("it ends too early")
            yield piece
