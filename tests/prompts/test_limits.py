"""Small files that stand for more than memory holds are refused in one sentence, and little memory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import zipfile

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_core.errors import PromptError
from refusal_core.prompts import records
from refusal_core.prompts.reading import read_prompt_file, read_prompts

LONG = "A" * 4_000_000


def in_buffer(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def repeated_messages() -> bytes:
    """One conversation that has the same long text in many turns: stored once."""
    turns = [{"role": "user", "content": LONG}] * 100
    table = pa.table({"messages": [turns], "label": ["harmful"]})
    return in_buffer(lambda buffer: pq.write_table(table, buffer, compression="zstd"))


def repeated_in_arrow() -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([LONG]))
    table = pa.table({"text": column})
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(buffer, table.schema, options=options) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def workbook() -> bytes:
    """A sheet of few bytes that is large when it is unpacked."""
    book = openpyxl.Workbook()
    book.active.append(["text"])
    small, large = io.BytesIO(in_buffer(book.save)), io.BytesIO()
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(large, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
        archive.writestr("xl/extra.xml", b" " * 100_000_000)
    return large.getvalue()


BOMBS = {
    "repeated.parquet": lambda: in_buffer(
        lambda buffer: pd.DataFrame({"text": [LONG] * 100}).to_parquet(buffer, compression="zstd")
    ),
    "messages.parquet": repeated_messages,
    "repeated.feather": repeated_in_arrow,
    "zeros.feather": lambda: in_buffer(
        lambda buffer: pd.DataFrame({"text": [LONG] * 25}).to_feather(buffer, compression="zstd")
    ),
    "zeros.csv.gz": lambda: gzip.compress(b"text\n" + b"A" * 200_000_000, 1),
    "brackets.json.gz": lambda: gzip.compress(b"[" + b"[]," * 8_000_000 + b"[]]"),
    "sheet.xlsx": workbook,
}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told there")
@pytest.mark.parametrize("name", BOMBS)
def test_what_stands_for_too_much_is_refused_within_200_megabytes(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    assert (tmp_path / name).stat().st_size < 3_000_000
    program = (
        "import sys\n"
        "from refusal_core.errors import PromptError\n"
        "from refusal_core.prompts.reading import read_prompt_file\n"
        "try:\n"
        "    read_prompt_file(sys.argv[1])\n"
        "except PromptError as error:\n"
        "    print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0], error)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / name)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    peak, message = done.stdout.split(maxsplit=1)
    assert message.startswith(f"{name}: expected at most ")
    assert int(peak) < 200_000


def test_a_file_is_measured_before_it_is_read(tmp_path):
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(records.MOST_BYTES + 1)
    with pytest.raises(PromptError, match=r"large\.csv: expected at most 64 MB"):
        read_prompt_file(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text\n" + b"x\n" * 30),
        ("a.txt", b"x\n" * 30),
        ("a.jsonl", b'"x"\n' * 30),
        ("a.json", b"[" + b'"x",' * 29 + b'"x"]'),
        ("a.parquet", in_buffer(lambda buffer: pd.DataFrame({"text": ["x"] * 30}).to_parquet(buffer))),
        ("a.feather", in_buffer(lambda buffer: pd.DataFrame({"text": ["x"] * 30}).to_feather(buffer))),
    ],
)
def test_rows_are_counted_while_they_are_read(monkeypatch, name, content):
    monkeypatch.setattr(records, "MOST_ROWS", 29)
    with pytest.raises(PromptError, match=rf"^{name}: expected at most 29 rows"):
        read_prompts(content, name)
    monkeypatch.setattr(records, "MOST_ROWS", 30)
    assert len(read_prompts(content, name).table) == 30


@pytest.mark.parametrize("path", ["nothing.csv", "x" * 300 + ".csv", "a\0b.csv"])
def test_a_file_that_is_not_there_is_no_traceback(tmp_path, path):
    with pytest.raises(PromptError, match="cannot read"):
        read_prompt_file(f"{tmp_path}/{path}")


def test_pipes_and_devices_are_no_prompt_files(tmp_path):
    pipe = tmp_path / "prompts.csv"
    os.mkfifo(pipe)
    device = tmp_path / "zero.csv"
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(PromptError, match="ordinary file"):
            read_prompt_file(path)
