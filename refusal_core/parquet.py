"""Parquet files from strangers: what they stand for in memory is counted before it is there.

A value that repeats is stored once, and how often it does as a number: two kilobytes can stand for gigabytes.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BUDGET = 2 * 2**30
"""Bytes that a table may take in memory."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 16}
_WIDEST = 64
"""Bytes of a value of any other physical type: fixed-size ones say how many they have, in a place of their own."""


def read_table(source: Path | pa.Buffer, name: str, budget: int) -> pa.Table:
    """Read a parquet file, unless it stands for more than a budget of memory.

    Args:
        source: the file, or its content.
        name: of the file, in errors.
        budget: bytes that the table may take in memory.

    Raises:
        ValueError: when it would take more.
        pyarrow.ArrowException, OSError: when it is malformed.
    """
    metadata = pq.read_metadata(source)
    chunks = column_chunks(metadata)
    _check(sum(chunk.num_values * _WIDTHS.get(chunk.physical_type, _WIDEST) for chunk in chunks), name, budget)
    _check(metadata.num_rows * metadata.num_columns, name, budget)
    _check(sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks), name, budget)
    table = read_encoded(source, chunks)
    _check(sum(expanded_bytes(chunk) for column in table.columns for chunk in column.chunks), name, budget)
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field.with_type(field.type.value_type), plain)
    return table


def column_chunks(metadata: pq.FileMetaData) -> list[pq.ColumnChunkMetaData]:
    """Return what a file says of each of its columns in each group of rows."""
    return [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]


def read_encoded(source: Path | pa.Buffer, chunks: list[pq.ColumnChunkMetaData]) -> pa.Table:
    """Read a table with its texts as dictionaries, so that a text that repeats is in memory once.

    Args:
        source: the file, or its content.
        chunks: of :func:`column_chunks`.
    """
    texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        return file.read(use_threads=False)


def expanded_bytes(array: pa.Array) -> int:
    """Return the bytes of an array once every value stands for itself.

    Raises:
        ValueError: for a kind of values that tables here have no use for.
    """
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return expanded_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return 0
        return int(pc.sum(pc.take(_value_bytes(array.dictionary), array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(expanded_bytes(field) for field in array.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return expanded_bytes(array.flatten())
    return int(pc.sum(_value_bytes(array)).as_py() or 0)


def _check(size: int, name: str, budget: int) -> None:
    if size > budget:
        raise ValueError(
            f"{name} stands for {size / 1e9:.1f} GB in memory, expected at most {budget / 1e9:.1f} GB; leave rows or "
            "columns out"
        )


def _value_bytes(array: pa.Array) -> pa.Array:
    """Return the bytes of each value, ``(value,)`` int."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pc.binary_length(array.cast(pa.large_string()) if pa.types.is_string_view(kind) else array)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(array)
    if pa.types.is_primitive(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return pa.array([8] * len(array), pa.int64())
    if pa.types.is_dictionary(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([kind.byte_width or 8] * len(array), pa.int64())
    raise ValueError(f"expected columns of texts and numbers, found one of {kind}; leave it out")
