from __future__ import annotations

import pandas as pd
import pytest

from refusal_core.prompts.labels import Choice
from refusal_core.prompts.reading import read_prompts
from refusal_core.prompts.report import LeftOut, describe
from refusal_core.prompts.sets import inspect_source


def test_everything_that_was_made_out_is_said():
    content = "id;prompt;is_safe;Category\n1;Wie geht es dir?;1;a\n2;Как дела?;0;b\n3;;0;b\n4;你好吗;yes;\n;;;\n"
    report = read_prompts(content.encode(), "mine.csv").report
    assert report.facts() == [
        ("Source", "mine.csv"),
        ("Shape", "table with semicolons between the fields"),
        ("Text", "prompt"),
        ("Label", "is_safe"),
        ("Label values", "1 = harmless (1), 0 = harmful (1), yes = harmless (1)"),
        ("Prompts", "3: 1 harmful, 2 harmless"),
        ("Length", "3 to 16 characters, median 9"),
        ("Script", "Latin (1), Cyrillic (1), Chinese characters (1)"),
        ("Other columns", "id, Category"),
        ("Left out", "1 row empty at the end: row 5"),
        ("Left out", "1 row without a text: row 3"),
    ]
    assert report.first_rows == (("harmless", "Wie geht es dir?"), ("harmful", "Как дела?"), ("harmless", "你好吗"))


def test_a_value_that_nobody_gave_a_meaning_is_a_question():
    report = read_prompts(b"text,label\na,harmful\nb,odd\n", "a.csv").report
    assert dict(report.facts())["Label values"] == "harmful = harmful (1), odd = ? (1)"


def test_many_places_are_counted():
    places = tuple(f"row {row}" for row in range(1, 9))
    assert (
        str(LeftOut("without a text", places)) == "8 rows without a text: row 1, row 2, row 3, row 4, row 5 and 3 more"
    )


def test_texts_without_letters_have_no_script():
    table = pd.DataFrame({"text": ["123", "?!"], "label": None, "pair_id": None})
    assert describe(table, "a", "list").scripts == {"no letters": 2}


@pytest.mark.parametrize("source", ["pairs", "everyday", "quartets", "probe-pairs", "borderline"])
def test_bundled_sets_are_described_too(source):
    inspection = inspect_source(source)
    report = inspection.reports[0]
    assert (report.source, report.shape) == (source, "bundled set")
    assert report.n_prompts == sum(report.counts.values())
    assert bool(inspection.problem) == (source in ("probe-pairs", "borderline"))
    assert inspection.outcome.startswith(
        "Not a contrast set: a transfer set" if inspection.problem else "A contrast set: "
    )


def test_an_inspection_tells_what_two_files_make_together(tmp_path):
    for name, verb in (("bad", "break"), ("good", "paint")):
        lines = [f"Tell me how to {verb} the door of house number {row}" for row in range(9)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    inspection = inspect_source(f"{tmp_path}/bad.txt,{tmp_path}/good.txt", Choice())
    assert [report.source for report in inspection.reports] == ["bad.txt", "good.txt"]
    assert inspection.outcome == (
        "A contrast set: 9 harmful + 9 harmless prompts; 9 pairs found by their texts and kept together"
    )
