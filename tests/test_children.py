"""What a stranger sends is read in a process of its own, and what that takes does not reach the one that asked."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_core import children
from refusal_core.annotations.marks import read_marks
from refusal_core.annotations.ratings import read_ratings
from refusal_core.behaviour.verdicts import read_verdicts
from refusal_core.children import in_child
from refusal_core.errors import MarkError, PromptError, RatingError, RefusalError
from refusal_core.options import RunOptions
from refusal_core.pipeline.plan import settle_dtype, survey
from refusal_core.prompts.labels import NOTHING_CHOSEN, Choice
from refusal_core.prompts.reading import inspect_list
from refusal_core.prompts.sets import inspect_source

CASES = Path(__file__).parent / "prompts" / "cases"
GREEDY = """
import os, time
from typing import BinaryIO
from refusal_core.errors import ModelError

class Own(ModelError):
    pass

def fill(file: BinaryIO) -> int:
    return len(b"x" * 10**12)

def spin(file: BinaryIO) -> int:
    while True:
        pass

def sleep(file: BinaryIO) -> int:
    time.sleep(60)
    return 1

def fail(file: BinaryIO) -> int:
    raise KeyError("secret of a file")

def refuse(file: BinaryIO) -> int:
    raise Own("a sentence")

def vanish(file: BinaryIO) -> int:
    print("half an ans")
    os._exit(0)

def talk(file: BinaryIO, more: int) -> str:
    print("a library's remark")
    return file.name + file.read().decode() + str(more) + str("REFUSAL_TOKEN" in os.environ)
"""


@pytest.fixture
def greedy(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("greedy")
    sys.modules.pop("greedy")


def test_a_process_is_given_the_file_the_arguments_and_not_the_token(greedy, monkeypatch):
    monkeypatch.setenv("REFUSAL_TOKEN", "x" * 20)
    assert in_child(greedy.talk, 7, sent=("a.csv", b"content")) == "a.csvcontent7False"


@pytest.mark.parametrize(
    ("function", "limits", "says"),
    [
        ("fill", {}, "took more memory or time than it may"),
        ("spin", {"cpu_seconds": 1}, "took more memory or time than it may"),
        ("sleep", {"seconds": 2}, "took too long"),
        ("vanish", {}, "took more memory or time than it may"),
        ("refuse", {}, "^a sentence$"),
        ("fail", {}, r"^this failed in a way that was not foreseen \(KeyError\) \(reference [0-9a-f]{8}\)$"),
    ],
)
def test_a_reader_that_takes_too_much_or_fails_is_a_sentence(greedy, tmp_path, function, limits, says):
    with pytest.raises(RefusalError, match=says) as refused:
        in_child(getattr(greedy, function), sent=("a.csv", b""), limits=replace(children.READING, **limits))
    assert type(refused.value).__name__ == ("ModelError" if function == "refuse" else "RefusalError")
    if function == "fail":
        (log,) = (tmp_path / "state").rglob("errors.log")
        assert "secret of a file" in log.read_text()


@pytest.mark.slow
def test_what_is_read_is_the_same_as_without_a_process(tmp_path, tiny_folder):
    content = b"prompt,kind,n\nfirst,\xc3\xa4,1\nsecond,b,\n"
    for choice in (NOTHING_CHOSEN, Choice(text_column="kind")):
        file = io.BytesIO(content)
        file.name = "a.csv"
        here, there = inspect_list(file, choice, 1), in_child(inspect_list, choice, 1, sent=("a.csv", content))
        assert (there.report, there.columns, there.problem) == (here.report, ("prompt", "kind", "n"), "")
        pd.testing.assert_frame_equal(there.prompts, here.prompts)
        assert len(there.prompts) == 1
    rated = b"text,rating,rater\na,1.5,x\nb,2,x\n"
    file = io.BytesIO(rated)
    file.name = "r.csv"
    there = in_child(read_ratings, None, None, sent=("r.csv", rated))
    pd.testing.assert_frame_equal(there.table, read_ratings(file).table)
    assert there.table["rating"].dtype == np.float64
    path = tmp_path / "set.csv"
    path.write_text("".join(["text,label\n", *(f"T {n},{n % 2}\n" for n in range(20))]))
    assert in_child(inspect_source, str(path), NOTHING_CHOSEN) == inspect_source(str(path))
    options = RunOptions(model=str(tiny_folder), prompts=str(path), dtype="float32")
    there = in_child(survey, options, limits=children.LARGE)
    assert there == survey(options)
    assert settle_dtype(there).options.dtype == "float32"


@pytest.mark.parametrize(
    ("function", "content", "kind", "says"),
    [
        (inspect_list, b"\xff", PromptError, "expected UTF-8"),
        (read_marks, b"text,mark\na,odd\n", MarkError, "sent.csv, row 1: expected one of"),
        (read_ratings, b"text,rating\na,odd\n", RatingError, "expected a number as rating"),
        (read_verdicts, b"text,verdict\na,odd\n", PromptError, "expected a verdict such as"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_as_without_a_process(function, content, kind, says):
    arguments = {inspect_list: (NOTHING_CHOSEN, 9), read_marks: (None,), read_ratings: (None, None)}.get(function, ())
    with pytest.raises(kind, match=says):
        in_child(function, *arguments, sent=("sent.csv", content))


def test_half_a_character_in_a_column_is_a_question_mark():
    content = b'[{"text": "a", "other": "\\ud800"}]'
    assert in_child(inspect_list, NOTHING_CHOSEN, 9, sent=("a.json", content)).prompts["other"].tolist() == ["?"]


def bombs() -> dict[str, bytes]:
    """Small files that stand for more than a server has, or that take a reader deep."""
    long, runs, sheet = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"text": ["A" * 4_000_000] * 200}), long, compression="zstd")
    numbers = pa.array(np.zeros(50_000_000, dtype=np.int8))
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(numbers, pa.array(["a"]))}), runs)
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.save(sheet)
    with zipfile.ZipFile(sheet, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/more.xml", "w") as entry:
        for _ in range(200):
            entry.write(bytes(1_000_000))
    return {
        "long.parquet": long.getvalue(),
        "runs.parquet": runs.getvalue(),
        "sheet.xlsx": sheet.getvalue(),
        "zeros.txt.gz": gzip.compress(bytes(500_000_000), 1),
        "nested.json": b"[" * 2_000_000 + b"]" * 2_000_000,
        "nested.jsonl": b'{"a":' * 500_000,
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told there")
def test_a_file_that_stands_for_too_much_is_a_sentence_and_the_server_does_not_grow(tmp_path):
    sent = bombs()
    for name, content in sent.items():
        assert len(content) < 5_000_000
        (tmp_path / name).write_bytes(content)
    program = """
import re, sys
from pathlib import Path
from refusal_core.children import in_child
from refusal_core.errors import RefusalError
from refusal_core.prompts.labels import NOTHING_CHOSEN
from refusal_core.prompts.reading import inspect_list
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        in_child(inspect_list, NOTHING_CHOSEN, 1000, sent=(path.name, path.read_bytes()))
        print(f"{path.name} was read")
    except RefusalError as error:
        print(error)
print(peak() - before)
"""
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    *said, grown = subprocess.run(
        arguments, capture_output=True, text=True, check=True, cwd=os.getcwd()
    ).stdout.splitlines()
    assert len(said) == len(sent), said
    for name, sentence in zip(sorted(sent), said, strict=True):
        assert sentence.startswith(name), sentence
        assert "not foreseen" not in sentence
    assert int(grown) < 30_000


@pytest.fixture
def same_process(monkeypatch):
    """What a process is asked, answered in this one: what goes over to it and back is what is tested."""

    def ask(request: bytes, seconds: int, at_once: threading.BoundedSemaphore) -> dict:
        head, _, content = request.partition(b"\n")
        answer = children._answer(json.loads(head), io.BytesIO(content))
        return json.loads(json.dumps(answer, ensure_ascii=False, default=str).encode("utf-8", "replace"))

    monkeypatch.setattr(children, "_ask", ask)


def outcome(read):
    try:
        return read()
    except RefusalError as error:
        return type(error), str(error).encode("utf-8", "replace")


@pytest.mark.parametrize(
    "path", [path for path in sorted(CASES.iterdir()) if path.is_file()], ids=lambda path: path.name
)
def test_of_every_case_the_same_is_read(path, same_process):
    here, there = (
        outcome(lambda read=read: read(inspect_source, str(path), NOTHING_CHOSEN))
        for read in (lambda function, *given: function(*given), in_child)
    )
    assert isinstance(here, tuple) == isinstance(there, tuple)
    if isinstance(here, tuple):
        assert here == there
    else:
        assert (here.outcome, here.problem) == (there.outcome, there.problem)
        assert [report.facts() for report in here.reports] == [report.facts() for report in there.reports]
    content = path.read_bytes()
    here = outcome(lambda: inspect_list(children._SentFile(path.name, content), NOTHING_CHOSEN, 1000))
    there = outcome(lambda: in_child(inspect_list, NOTHING_CHOSEN, 1000, sent=(path.name, content)))
    assert isinstance(here, tuple) == isinstance(there, tuple)
    if isinstance(here, tuple):
        assert here == there
        return
    assert (here.columns, here.problem) == (there.columns, there.problem)
    assert (here.report is None) == (there.report is None)
    for name in ("prompts", "labelled") if here.report is not None else ():
        pd.testing.assert_frame_equal(
            getattr(here, name), getattr(there, name), check_dtype=False, check_index_type=False
        )


LIMITED = """
import resource
from refusal_core.children import _limit

resource.setrlimit(resource.RLIMIT_CPU, (50, 50))
_limit(2**40, 100)
print(*resource.getrlimit(resource.RLIMIT_CPU), *resource.getrlimit(resource.RLIMIT_AS))

def refuse(*given):
    raise ValueError("current limit exceeds maximum limit")

resource.setrlimit = refuse
_limit(2**40, 10)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_a_limit_that_is_lower_already_stays_and_one_that_the_system_refuses_is_left_out():
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.split()[:2] == ["50", "50"]


def test_files_wait_for_neither_downloads_nor_whole_runs_and_whoever_waits_long_is_told(greedy, monkeypatch):
    monkeypatch.setattr(children, "_SECONDS_TO_WAIT", 0.01)
    monkeypatch.setattr(children, "_ONLINE_AT_ONCE", threading.BoundedSemaphore(1))
    with children._ONLINE_AT_ONCE:
        assert in_child(greedy.talk, 7, sent=("a.csv", b"")) == "a.csv7False"
        with pytest.raises(children.BusyError, match="try again in a minute"):
            in_child(greedy.talk, 7, sent=("a.csv", b""), online=True)
    assert in_child(greedy.talk, 7, sent=("a.csv", b""), online=True) == "a.csv7False"
    with children._LARGE_AT_ONCE:
        assert in_child(greedy.talk, 7, sent=("a.csv", b"")) == "a.csv7False"
        with pytest.raises(children.BusyError, match="try again in a minute"):
            in_child(greedy.talk, 7, sent=("a.csv", b""), limits=children.LARGE)
