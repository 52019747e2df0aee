"""Tables in binary files: parquet, Arrow and feather, and xlsx workbooks, measured before they are expanded.

Texts that repeat are stored once, so that two kilobytes can stand for gigabytes: they are counted before they are read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refusal_core.errors import PromptError
from refusal_core.parquet import column_chunks, expanded_bytes, read_encoded
from refusal_core.prompts.records import (
    MOST_CELLS,
    Records,
    Row,
    check_rows,
    check_size,
    first_line,
    number_rows,
)

_BLOCKS_OF_ARROW = re.compile(rb"\x04\x22\x4d\x18|\x28\xb5\x2f\xfd")
"""What a compressed block of an Arrow file begins with (LZ4 or Zstandard); before it are its bytes when expanded."""
_MOST_COLUMNS = 256


def read_parquet(content: bytes, name: str) -> Records:
    """Read a parquet file.

    Raises:
        PromptError: when it is none, or stands for more than is read.
    """
    try:
        buffer = pa.py_buffer(content)
        metadata = pq.read_metadata(pa.BufferReader(buffer))
        check_rows(metadata.num_rows, name, metadata.num_columns)
        chunks = column_chunks(metadata)
        check_size(sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks), name)
        if sum(chunk.num_values for chunk in chunks) > MOST_CELLS:
            raise PromptError(f"{name}: expected at most {MOST_CELLS:,} values; leave columns out")
        table = read_encoded(buffer, chunks)
        return _records(table, name, "parquet table")
    except PromptError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PromptError(
            f"{name}: not a readable parquet table ({first_line(error)}); download it again or save it anew"
        ) from error


def read_arrow(content: bytes, name: str) -> Records:
    """Read an Arrow file, which is what feather is today.

    Raises:
        PromptError: when it is none, or stands for more than is read.
    """
    check_size(
        sum(
            abs(int.from_bytes(content[block.start() - 8 : block.start()], "little", signed=True))
            for block in _BLOCKS_OF_ARROW.finditer(content)
        ),
        name,
    )
    try:
        opened = _open_arrow(content)
        batches = []
        n_rows = 0
        for batch in opened:
            n_rows += batch.num_rows
            check_rows(n_rows, name, batch.num_columns)
            batch.validate(full=True)
            batches.append(batch)
        if not batches:
            return Records(name, "Arrow table", (), ())
        return _records(pa.Table.from_batches(batches), name, "Arrow table (feather)")
    except PromptError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PromptError(
            f"{name}: not a readable Arrow or feather table ({first_line(error)}); download it again or save it anew"
        ) from error


def read_workbook(content: bytes, name: str) -> Records:
    """Read the one sheet of an xlsx workbook that has anything in it; its first row names the columns.

    Raises:
        PromptError: when it is none, has several such sheets, or stands for more than is read.
    """
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_size(sum(entry.file_size for entry in archive.infolist()), name)
        workbook = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {sheet.title: _filled_rows(sheet, name) for sheet in workbook.worksheets}
    except PromptError:
        raise
    except Exception as error:  # the library raises dozens of kinds for a damaged workbook
        raise PromptError(
            f"{name}: not a readable xlsx workbook ({type(error).__name__}: {first_line(error)}); save it again, or as "
            "csv"
        ) from error
    filled = {title: rows for title, rows in sheets.items() if rows}
    if len(filled) > 1:
        raise PromptError(
            f"{name}: expected one sheet with prompts, found {', '.join(filled)[:200]}; save the one with the prompts "
            "by itself"
        )
    rows = next(iter(filled.values()), [])
    if not rows:
        return Records(name, "xlsx sheet", (), ())
    header = [
        f"(column {place})" if cell is None or not str(cell).strip() else str(cell)
        for place, cell in enumerate(rows[0], start=1)
    ]
    repeated = {column for column in header if header.count(column) > 1}
    if repeated:
        raise PromptError(
            f"{name}: expected every column once, found {sorted(repeated)[0]!r:.60} more than once; rename one of them"
        )
    records: list[Row] = [dict(zip(header, row, strict=False)) for row in rows[1:]]
    return Records(name, "xlsx sheet", records, number_rows(len(records)))


def _open_arrow(content: bytes) -> Iterable[pa.RecordBatch]:
    if content.startswith(b"ARROW1"):
        opened = pa.ipc.open_file(pa.BufferReader(content))
        return (opened.get_batch(place) for place in range(opened.num_record_batches))
    stream: Iterable[pa.RecordBatch] = pa.ipc.open_stream(pa.BufferReader(content))
    return stream


def _records(table: pa.Table, name: str, shape: str) -> Records:
    try:
        size = sum(expanded_bytes(chunk) for column in table.columns for chunk in column.chunks)
    except ValueError as error:
        raise PromptError(str(error)) from None
    check_size(size, name)
    names = [str(column) for column in table.column_names]
    if len(set(names)) < len(names):
        raise PromptError(f"{name}: expected every column once, found {', '.join(names)[:200]}; rename one of them")
    # An index that pandas stored is no column of prompts.
    own = [place for place, column in enumerate(names) if not re.fullmatch(r"__index_level_\d+__", column)]
    columns = {names[place]: table.column(place).to_pylist() for place in own}
    rows: list[Row] = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return Records(name, shape, rows, number_rows(len(rows)))


def _filled_rows(sheet: Any, name: str) -> list[Sequence[object]]:
    """Return the rows of a sheet up to the last that has anything in it."""
    rows: list[Sequence[object]] = []
    last = 0
    for row in sheet.iter_rows(values_only=True, max_col=_MOST_COLUMNS + 1):
        filled = [place for place, cell in enumerate(row) if cell is not None and str(cell).strip()]
        if filled and filled[-1] >= _MOST_COLUMNS:
            raise PromptError(f"{name}: expected at most {_MOST_COLUMNS} columns, found more; leave columns out")
        rows.append(row[: filled[-1] + 1] if filled else ())
        check_rows(len(rows), name, len(rows[0]))
        last = len(rows) if filled else last
    start = next((place for place, row in enumerate(rows) if row), 0)
    return rows[start:last]
