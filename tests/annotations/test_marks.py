"""Marks on prompts outlast whatever happens to the process, and to whoever else is marking."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from synthetic import HOSTILE

from refusal_core.annotations import marks
from refusal_core.annotations.marks import Mark
from refusal_core.errors import MarkError, RefusalError
from refusal_core.prompts.sets import prompt_id

ROOT = Path(__file__).resolve().parents[2]


def of(text: str, mark: str = "mislabelled", note: str = "") -> Mark:
    return Mark(prompt_id(text), text, mark, note)


def log(cache: Path) -> Path:
    return marks.marks_path(cache)


def test_a_prompt_s_last_mark_counts_and_can_be_taken_back(tmp_path):
    marks.save_marks([of("a"), of("b", "ambiguous", "why")], tmp_path)
    marks.save_marks([of("a", "fine", "on second thoughts")], tmp_path)
    found = marks.load_marks(tmp_path)
    assert found["mark"].to_dict() == {prompt_id("a"): "fine", prompt_id("b"): "ambiguous"}
    assert found["note"].to_dict() == {prompt_id("a"): "on second thoughts", prompt_id("b"): "why"}
    marks.save_marks([of("a", "")], tmp_path)
    assert marks.load_marks(tmp_path)["text"].tolist() == ["b"]
    assert marks.marked_prompt_ids(marks.load_marks(tmp_path), ["ambiguous"]) == [prompt_id("b")]


def test_nothing_marked_is_an_empty_table(tmp_path):
    found = marks.load_marks(tmp_path / "nowhere")
    assert found.empty
    assert list(found.columns) == list(marks.COLUMNS)
    assert not (tmp_path / "nowhere").exists()


def test_an_unfinished_line_counts_as_never_written_and_spoils_nothing(tmp_path):
    marks.save_marks([of("a"), of("b")], tmp_path)
    whole = log(tmp_path).read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second, len(whole) - 1):
        log(tmp_path).write_bytes(whole[:end])
        assert marks.load_marks(tmp_path)["text"].tolist() == ["a"]
        marks.save_marks([of("c", "fine")], tmp_path)
        assert marks.load_marks(tmp_path)["text"].tolist() == ["a", "c"]


def test_a_line_that_is_nested_too_deeply_spoils_nothing(tmp_path):
    marks.save_marks([of("a")], tmp_path)
    with log(tmp_path).open("ab") as file:
        file.write(b"[" * 100_000 + b"\n")
    assert marks.load_marks(tmp_path)["text"].tolist() == ["a"]


def test_what_was_kept_before_a_kill_is_there(tmp_path):
    program = (
        "import sys, itertools\nfrom refusal_core.annotations import marks\n"
        "from refusal_core.prompts.sets import prompt_id\n"
        "for i in itertools.count():\n"
        "    marks.save_marks([marks.Mark(prompt_id(str(i)), str(i), 'fine')], sys.argv[1])\n"
        "    print(i, flush=True)\n"
    )
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        said = [process.stdout.readline() for _ in range(20)]
        time.sleep(0.003)
        process.kill()
        said += process.stdout.readlines()
        process.communicate()
        told = [line.strip() for line in said if line.endswith("\n")]
        assert set(told) <= set(marks.load_marks(tmp_path)["text"])
    marks.save_marks([of("after")], tmp_path)
    assert marks.load_marks(tmp_path)["text"].iloc[-1] == "after"


def test_people_who_mark_at_once_lose_nothing_of_each_other_s(tmp_path):
    def person(name: int) -> None:
        for place in range(25):
            marks.save_marks([of(f"{name} {place}", note="x" * 300)], tmp_path)

    with ThreadPoolExecutor(6) as people:
        list(people.map(person, range(6)))
    assert len(marks.load_marks(tmp_path)) == 150


@pytest.mark.parametrize("text", [*HOSTILE, "a\u2028b\x85c\r\nd", "half a \ud800 surrogate"])
def test_any_text_is_kept_letter_by_letter(tmp_path, text):
    marks.save_marks([of(text, note=text[:100])], tmp_path)
    found = marks.load_marks(tmp_path).iloc[0]
    assert (found["text"], found["note"]) == (text, text[:100])
    back = marks.read_marks(io.BytesIO(marks.to_csv(marks.load_marks(tmp_path))))
    assert [(each.prompt_id, each.mark) for each in back] == [(prompt_id(text), "mislabelled")]


def test_a_csv_goes_round_and_a_text_is_as_good_as_an_id(tmp_path):
    marks.save_marks([of("a", "fine", "a, note"), of("b")], tmp_path)
    back = marks.read_marks(io.BytesIO(marks.to_csv(marks.load_marks(tmp_path))))
    marks.save_marks(back, tmp_path / "other")
    columns = ["prompt_id", "text", "mark", "note"]
    assert marks.load_marks(tmp_path / "other")[columns].equals(marks.load_marks(tmp_path)[columns])
    by_text = marks.read_marks(io.BytesIO(b"Prompt,Mark\n a ,Ambiguous\nb,\na,fine\n"))
    assert [(each.prompt_id, each.mark) for each in by_text] == [(prompt_id("a"), "fine")]
    assert [each.mark for each in marks.read_marks(io.BytesIO(b"text\na\nb\n"), "mislabelled")] == ["mislabelled"] * 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text,mark\na,wrong\n", "row 1: expected one of mislabelled, ambiguous, fine as mark, found 'wrong'"),
        (b"text\na\n", "a column called mark"),
        (b"mark\nfine\n", "a prompt_id or a text column"),
        (b"prompt_id,mark\nxyz,fine\n", "row 1: expected a prompt_id of twelve"),
        (b"text,mark,note\na,fine," + b"x" * 501, "row 1: expected a note of at most 500"),
        (b"text,mark\n\xff,fine\n", "expected UTF-8"),
        (b"text,mark\n" + b"a,fine\n" * 800_000, "at most 5 MB"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_sentence(content, says):
    with pytest.raises(RefusalError, match=says) as caught:
        marks.read_marks(io.BytesIO(content))
    assert "\n" not in str(caught.value)


def test_what_is_no_mark_is_refused(tmp_path):
    for wrong in (of("a", "Fine"), of("a", note="x" * 501)):
        with pytest.raises(RefusalError, match="expected"):
            marks.save_marks([of("b"), wrong], tmp_path)
    assert marks.load_marks(tmp_path).empty
    with pytest.raises(RefusalError, match="found 'odd'"):
        marks.marked_prompt_ids(marks.load_marks(tmp_path), ["odd"])


def test_links_and_strange_lines_are_not_followed(tmp_path):
    marks.save_marks([of("a")], tmp_path)
    good = log(tmp_path).read_bytes()
    strange = b'[]\n{"prompt_id": 1}\nnull\n' + good.replace(b"mislabelled", b"owned") + b"\xff\xfe\n"
    log(tmp_path).write_bytes(strange + good)
    assert marks.load_marks(tmp_path)["text"].tolist() == ["a"]
    elsewhere = tmp_path / "elsewhere"
    log(tmp_path).rename(elsewhere)
    log(tmp_path).symlink_to(elsewhere)
    with pytest.raises(RefusalError, match="links are not followed"):
        marks.load_marks(tmp_path)
    with pytest.raises(RefusalError, match="links are not followed"):
        marks.save_marks([of("b")], tmp_path)


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / ".marks").write_text("a file")
    with pytest.raises(RefusalError, match="cannot be saved"):
        marks.save_marks([of("a")], tmp_path)


def test_two_people_who_mark_one_prompt_both_stay(tmp_path):
    one, other = prompt_id("a"), prompt_id("b")
    given = [
        Mark(one, "a", "mislabelled", "wrong", author="Ana"),
        Mark(one, "a", "fine", author="Ben"),
        Mark(other, "b", "ambiguous", "hm"),
    ]
    for mark in given:
        marks.save_marks([mark], tmp_path)
    found = marks.load_marks(tmp_path)
    assert list(zip(found["prompt_id"], found["author"], found["mark"], strict=True)) == [
        (one, "Ana", "mislabelled"),
        (one, "Ben", "fine"),
        (other, "", "ambiguous"),
    ]
    assert marks.marks_by(found, "Ben")["mark"].to_dict() == {one: "fine"}
    assert marks.marked_prompt_ids(found, ["mislabelled", "fine"]) == [one]
    assert marks.kinds_by_prompt(found).to_dict("index") == {
        one: {"mark": "mislabelled, fine", "note": "Ana: mislabelled, wrong; Ben: fine"},
        other: {"mark": "ambiguous", "note": "hm"},
    }
    assert marks.kinds_by_prompt(marks.marks_table([])).empty
    # One who changes their mind changes no one else's.
    marks.save_marks([Mark(one, "a", "", author="Ana")], tmp_path)
    assert marks.load_marks(tmp_path)["author"].tolist() == ["Ben", ""]
    back = marks.read_marks(io.BytesIO(marks.to_csv(found)))
    assert [(mark.key, mark.mark) for mark in back] == [(mark.key, mark.mark) for mark in given]


def test_marks_of_before_there_were_authors_are_nobodys(tmp_path):
    path = marks.marks_path(tmp_path)
    path.parent.mkdir()
    line = {"prompt_id": prompt_id("a"), "text": "a", "mark": "fine", "note": "n", "marked_at": "2026-01-01"}
    path.write_text(json.dumps(line) + "\n")
    assert marks.load_marks(tmp_path)[["mark", "author"]].to_numpy().tolist() == [["fine", ""]]
    marks.save_marks([of("a", "ambiguous")], tmp_path)
    assert marks.load_marks(tmp_path)["mark"].tolist() == ["ambiguous"]


@pytest.mark.parametrize("author", ["x" * 61, "a\nb", "\u202e"])
def test_an_author_is_a_name(tmp_path, author):
    with pytest.raises(MarkError, match="expected an author of at most 60 printable characters"):
        marks.save_marks([Mark(prompt_id("a"), "a", "fine", author=author)], tmp_path)
    with pytest.raises(MarkError, match=r"row 1: expected an author"):
        marks.read_marks(io.BytesIO(f'text,mark,author\na,fine,"{author}"\n'.encode()))
