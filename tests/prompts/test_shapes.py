"""One table of prompts, written in every shape that is read, comes back as it was."""

from __future__ import annotations

import csv
import gzip
import io
import json

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusal_core.errors import PromptError
from refusal_core.prompts.labels import Choice
from refusal_core.prompts.reading import read_prompts

ODD_TEXTS = [
    'Say "open the door", please; now',
    "two\nlines\n\nand a third",
    "a\ttab and a, comma; and a semicolon",
    "über naïve 你好 مرحبا 😀",
    "=SUM(A1:A3) is no formula here",
    "[1, 2] and {'a': 1}",
    "harmful",
    "<|im_end|><|im_start|>assistant",
    "back\\slash and \\n that is none",
    "Human nature: what is it?",
]
LABELS = ["harmful", "harmless"] * 10


def random_text(rng: np.random.Generator) -> str:
    letters = list("abcdefghij KLMNOP.,;:'\"?!\\/|<>[]{}()#*-_=+%&$€ßéжשक中🎈")
    return "x" + "".join(rng.choice(letters, rng.integers(1, 60))) + "y"


@pytest.fixture(params=range(3))
def texts(request) -> list[str]:
    rng = np.random.default_rng(request.param)
    return [*ODD_TEXTS, *(random_text(rng) for _ in range(10))]


def delimited(delimiter: str, header: tuple[str, str] = ("text", "label"), start: str = "", **options):
    def render(texts: list[str]) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, **options)
        writer.writerows([header, *zip(texts, LABELS, strict=True)])
        return (start + out.getvalue()).encode()

    return render


def as_json(value, **options) -> bytes:
    return json.dumps(value, **options).encode()


def records(texts: list[str], text: str = "text", label: str = "label") -> list[dict[str, str]]:
    return [{text: prompt, label: kind} for prompt, kind in zip(texts, LABELS, strict=True)]


def frame(texts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"prompt": texts, "label": LABELS})


def json_lines(rows) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def messages(texts: list[str]) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "No."}], "label": label}
        for text, label in zip(texts, LABELS, strict=True)
    ]


def in_buffer(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def workbook(texts: list[str]) -> bytes:
    book = openpyxl.Workbook()
    book.create_sheet("empty")
    for row in [("text", "label"), *zip(texts, LABELS, strict=True)]:
        book.active.append([f"'{cell}" if cell.startswith("=") else cell for cell in row])
    return in_buffer(book.save)


def arrow_stream(texts: list[str]) -> bytes:
    table = pa.Table.from_pandas(frame(texts))
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


SHAPES = {
    "commas": ("a.csv", delimited(",")),
    "semicolons": ("a.csv", delimited(";")),
    "tabs in csv": ("a.csv", delimited("\t")),
    "tsv": ("a.tsv", delimited("\t")),
    "label first": ("a.csv", lambda texts: frame(texts)[["label", "prompt"]].to_csv(index=False).encode()),
    "all quoted": ("a.csv", delimited(",", quoting=csv.QUOTE_ALL)),
    "byte order mark": ("a.csv", delimited(",", start="\ufeff")),
    "delimiter said": ("a.csv", delimited("|", start="sep=|\n")),
    "gzip": ("a.csv.gz", lambda texts: gzip.compress(delimited(",")(texts))),
    "gzip of two members": ("a.csv.gz", lambda texts: b"".join(map(gzip.compress, halves(delimited(",")(texts))))),
    "list of objects": ("a.json", lambda texts: as_json(records(texts))),
    "pretty list of objects": ("a.json", lambda texts: as_json(records(texts), indent=2, ensure_ascii=False)),
    "objects per line in json": ("a.json", lambda texts: json_lines(records(texts))),
    "objects per line": ("a.jsonl", lambda texts: json_lines(records(texts, "instruction", "label"))),
    "list in jsonl": ("a.jsonl", lambda texts: as_json(records(texts), indent=1)),
    "commas after lines": ("a.jsonl", lambda texts: json_lines(records(texts)).replace(b"}\n", b"},\n")),
    "ndjson.gz": ("a.ndjson.gz", lambda texts: gzip.compress(json_lines(records(texts)))),
    "columns": ("a.json", lambda texts: as_json({"text": texts, "label": LABELS})),
    "columns by row": ("a.json", lambda texts: frame(texts).to_json().encode()),
    "split": ("a.json", lambda texts: frame(texts).to_json(orient="split").encode()),
    "table": ("a.json", lambda texts: frame(texts).to_json(orient="table").encode()),
    "under a key": ("a.json", lambda texts: as_json({"version": 1, "rows": records(texts)})),
    "by id": ("a.json", lambda texts: as_json({f"p{row}": record for row, record in enumerate(records(texts))})),
    "lists": (
        "a.json",
        lambda texts: as_json([["label", "goal"], *([k, t] for t, k in zip(texts, LABELS, strict=True))]),
    ),
    "parquet": ("a.parquet", lambda texts: in_buffer(frame(texts).to_parquet)),
    "parquet with an index": ("a.parquet", lambda texts: in_buffer(frame(texts).set_axis(LABELS).to_parquet)),
    "categories": ("a.parquet", lambda texts: in_buffer(frame(texts).astype("category").to_parquet)),
    "feather": ("a.feather", lambda texts: in_buffer(frame(texts).to_feather)),
    "feather, zstd": ("a.feather", lambda texts: in_buffer(lambda b: frame(texts).to_feather(b, compression="zstd"))),
    "arrow stream": ("a.arrow", arrow_stream),
    "messages": ("a.jsonl", lambda texts: json_lines(messages(texts))),
    "messages in parquet": ("a.parquet", lambda texts: in_buffer(pd.DataFrame(messages(texts)).to_parquet)),
    "messages in csv": (
        "a.csv",
        lambda texts: (
            pd.DataFrame(messages(texts)).assign(messages=lambda f: f["messages"].map(json.dumps)).to_csv().encode()
        ),
    ),
    "parts of messages": (
        "a.jsonl",
        lambda texts: json_lines(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": row["text"]}]}], "label": row["label"]}
            for row in records(texts)
        ),
    ),
    "sharegpt": (
        "a.json",
        lambda texts: as_json(
            [
                {"conversations": [{"from": "human", "value": row["text"]}], "label": row["label"]}
                for row in records(texts)
            ]
        ),
    ),
    "turns": ("a.jsonl", lambda texts: json_lines({"turns": [r["text"]], "label": r["label"]} for r in records(texts))),
    "yes and no": ("a.csv", lambda texts: flags(texts, "is_harmful", {"harmful": "yes", "harmless": "no"})),
    "safe or not": ("a.csv", lambda texts: flags(texts, "is_safe", {"harmful": "false", "harmless": "true"})),
    "floats": ("a.csv", lambda texts: flags(texts, "toxicity", {"harmful": "1.0", "harmless": "0.0"})),
    "words": ("a.csv", lambda texts: flags(texts, "Prompt Label", {"harmful": "Unsafe", "harmless": "SAFE"})),
}


def halves(content: bytes) -> tuple[bytes, bytes]:
    return content[: len(content) // 2], content[len(content) // 2 :]


def flags(texts: list[str], column: str, values: dict[str, str]) -> bytes:
    return frame(texts).rename(columns={"label": column}).replace({column: values}).to_csv(index=False).encode()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_holds_the_same_prompts(shape, texts):
    name, render = SHAPES[shape]
    if shape == "sharegpt" or name.endswith(".xlsx"):
        texts = [text.strip() for text in texts]
    prompts = read_prompts(render(texts), name)
    assert prompts.table["text"].tolist() == texts
    assert prompts.table["label"].tolist() == LABELS
    assert prompts.labelling.problem == ""
    assert prompts.report.left_out == ()


def test_a_workbook_holds_the_same_prompts(texts):
    found = read_prompts(workbook(texts), "a.xlsx").table
    assert [text.removeprefix("'") for text in found["text"]] == texts
    assert found["label"].tolist() == LABELS


BY_LABEL = {
    "objects": lambda harmful, harmless: {"harmful": [{"text": t} for t in harmful], "harmless": harmless},
    "lists": lambda harmful, harmless: {"unsafe": harmful, "safe": harmless, "version": "2"},
}


@pytest.mark.parametrize("shape", BY_LABEL)
def test_a_list_per_label(shape, texts):
    prompts = read_prompts(as_json(BY_LABEL[shape](texts[:10], texts[10:])), "a.json")
    assert prompts.table["text"].tolist() == texts
    assert prompts.table["label"].tolist() == ["harmful"] * 10 + ["harmless"] * 10
    assert prompts.table["origin"][12] in ("a.json, harmless, row 3", "a.json, safe, row 3")


@pytest.mark.parametrize(
    "columns",
    [("harmful", "harmless"), ("Unsafe prompt", "Safe prompt"), ("malicious_instruction", "benign_instruction")],
)
def test_a_column_per_label_is_pairs(columns, texts):
    table = pd.DataFrame(dict(zip(columns, (texts[:10], texts[10:]), strict=True)) | {"topic": "t"})
    prompts = read_prompts(in_buffer(table.to_parquet), "a.parquet")
    assert prompts.table["text"].tolist() == [
        text for pair in zip(texts[:10], texts[10:], strict=True) for text in pair
    ]
    assert prompts.report.n_pairs == 10
    assert prompts.report.text_columns == columns


LISTS = {
    "texts": ("a.json", as_json),
    "texts per line": ("a.jsonl", json_lines),
    "texts by id": ("a.json", lambda texts: as_json({f"p{row}": text for row, text in enumerate(texts)})),
    "conversations": ("a.json", lambda texts: as_json([[{"role": "user", "content": text}] for text in texts])),
    "conversations by id": (
        "a.json",
        lambda texts: as_json({f"p{row}": [{"role": "user", "content": text}] for row, text in enumerate(texts)}),
    ),
}


@pytest.mark.parametrize("shape", LISTS)
def test_every_shape_of_a_list_holds_the_same_texts(shape, texts):
    name, render = LISTS[shape]
    prompts = read_prompts(render(texts), name)
    assert prompts.table["text"].tolist() == texts
    assert "as HARMFUL,HARMLESS" in prompts.labelling.problem


LINES = [f"prompt number {row}" for row in range(20)]


@pytest.mark.parametrize("header", ["", "label\ttext\n"])
@pytest.mark.parametrize("words", [("harmful", "harmless"), ("1", "0"), ("Unsafe", "Safe")])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_lines_with_a_label_are_never_read_with_it(header, words, last, end):
    labels = [words[label == "harmless"] for label in LABELS]
    lines = [f"{text}\t{label}" if last else f"{label}\t{text}" for text, label in zip(LINES, labels, strict=True)]
    if last and header:
        header = "text\tlabel\n"
    prompts = read_prompts((header + "\n".join(lines) + end).encode(), "a.txt")
    assert prompts.table["text"].tolist() == LINES
    assert prompts.table["label"].tolist() == LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("harmful\tone\nharmless\ttwo\nthree\n", r"row 3: expected a label, a tab and a prompt per line.*'three'"),
        ("one\ntwo\nharmful\tthree\n", r"row 3: expected a prompt as on other lines, found a label and a prompt"),
        ("jailbreak\tone\nnormal\ttwo\n", r"row 1: expected a prompt, or a label, a tab .* say what the labels mean"),
        ("1\tone\n2\ttwo\n3\tthree\n4\tfour\n5\tfive", r"row 1: expected a prompt, or a label, a tab and a prompt"),
        ("text\tlabel\none\tharmful\ntwo\n", r"row 2: expected 2 fields as in the header, found 1"),
    ],
)
def test_lines_that_may_have_labels_are_refused(text, message):
    with pytest.raises(PromptError, match=message):
        read_prompts(text.encode(), "a.txt")


def test_lines_with_labels_of_ones_own_are_read_when_they_are_given_a_meaning():
    choice = Choice(labels={"jailbreak": "harmful", "normal": "harmless"})
    prompts = read_prompts(b"jailbreak\tone\nnormal\ttwo\n", "a.txt", choice)
    assert prompts.table["text"].tolist() == ["one", "two"]
    assert prompts.table["label"].tolist() == ["harmful", "harmless"]


def test_a_label_that_is_none_stays_out_of_the_prompt():
    prompts = read_prompts(b"harmful\tone\nharmless\ttwo\nodd\tthree", "a.txt")
    assert prompts.table["text"].tolist() == ["one", "two", "three"]
    assert "row 3: expected a label" in prompts.labelling.problem


def test_tabs_within_prompts_are_kept_and_said():
    prompts = read_prompts(b"one\n\tif x:\n\t\treturn y\nfour", "a.txt")
    assert prompts.table["text"].tolist() == ["one", "\tif x:", "\t\treturn y", "four"]
    assert "tabs within lines" in prompts.report.notes[0]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0c", "\x85", "\x1e"])
def test_only_a_line_feed_ends_a_line(separator):
    text = f"one{separator}prompt"
    assert read_prompts(f"{text}\r\nanother\n".encode(), "a.txt").table["text"].tolist() == [text, "another"]
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    assert read_prompts(line.encode(), "a.jsonl").table["text"].tolist() == [text]


def test_rows_count_as_on_screen():
    prompts = read_prompts(b"text,label\none,harmful\n\n,harmful\nfour,harmless\n", "a.csv")
    assert prompts.table["origin"].tolist() == ["a.csv, row 1", "a.csv, row 4"]
    assert prompts.report.left_out[0].places == ("row 2", "row 3")
    lines = read_prompts(b"one\n\nthree\n", "a.txt")
    assert lines.table["origin"].tolist() == ["a.txt, row 1", "a.txt, row 3"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page.*Raw"),
        (b"<HTML>", "a web page"),
    ],
)
def test_what_was_saved_in_the_place_of_a_file_is_said(name, content, message):
    with pytest.raises(PromptError, match=f"^{name}: it is {message}"):
        read_prompts(content, name)


def test_columns_that_a_spreadsheet_left_empty_are_no_columns():
    prompts = read_prompts(b"text,label,,\none,harmful,,\ntwo,harmless,,\n", "a.csv")
    assert prompts.report.other_columns == ()
    kept = read_prompts(b",text,label\n7,one,harmful\n8,two,harmless\n", "a.csv")
    assert kept.report.other_columns == ("(column 1)",)
    assert kept.list["(column 1)"].tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{", "not valid JSON"),
        ("a.json", b"[1, 2]", "row 1: expected texts, objects or lists throughout, found 1"),
        ("a.json", b'["one", {"text": "two"}]', "row 2: expected texts, objects or lists throughout"),
        ("a.json", b'"text"', "expected a list or an object"),
        ("a.json", b"[]", "at least one prompt, found none"),
        ("a.json", b'{"text": ["a"], "label": []}', "columns of one length, found text with 1, label with 0"),
        (
            "a.json",
            b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
            "expected one list of prompts, .*train, test",
        ),
        ("a.json", b'[["a", "b"], ["c", "d"]]', "names of the columns in the first list"),
        ("a.json", b'[["text"], ["c", "d"]]', "row 1: expected 1 values as in the header, found 2"),
        ("a.json", b"[" * 100_000, "not valid JSON|nested too deeply"),
        ("a.jsonl", b'{"text": "x"}\n{', "row 2: not valid JSON"),
        ("a.parquet", b"not parquet", "not a readable parquet table"),
        ("a.feather", b"ARROW1 not", "not a readable Arrow or feather table"),
        ("a.xlsx", b"PK", "not a readable xlsx workbook"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "not a complete gzip file"),
        ("a.csv.gz", b"text", "not a complete gzip file"),
        ("a.csv", "text\nx".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.csv", "text\nabc\n".encode("utf-16-le"), "UTF-16; save it as UTF-8"),
        ("a.csv", b"text,text,label\na,b,harmful\n", "expected every column once, found 'text'"),
        ("a.csv", b'text,label\n"open,harmful\n', "row 1: not a readable csv table"),
        ("a.csv", b"title,body\nx,y\n", "expected a text column called text, prompt, .* found title, body; choose"),
        ("a.pkl", b"", "a pickle is a program and is never opened"),
        ("a", b"", "got no ending"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_the_file(name, content, message):
    with pytest.raises(PromptError, match=message) as caught:
        read_prompts(content, name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_a_workbook_with_two_filled_sheets_is_not_guessed_at():
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.create_sheet("more").append(["text"])
    with pytest.raises(PromptError, match=r"one sheet with prompts, found Sheet, more"):
        read_prompts(in_buffer(book.save), "a.xlsx")


def test_numbers_in_parquet_are_no_prompts():
    table = pa.table({"text": [1, 2], "label": ["harmful", "harmless"]})
    with pytest.raises(PromptError, match=r"row 1: expected a prompt in column 'text', found 1"):
        read_prompts(in_buffer(lambda buffer: pq.write_table(table, buffer)), "a.parquet")
