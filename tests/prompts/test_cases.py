"""Files in the shapes that people really have, each read as a labelled file and as a list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refusal_core.errors import PromptError
from refusal_core.prompts.reading import read_prompt_file
from refusal_core.prompts.sets import inspect_source, load_contrast_set, read_source

CASES = Path(__file__).parent / "cases"

TEN_AND_TEN = [
    "PROMPTS.CSV",
    "alpaca_labelled.json",
    "array_in_jsonl.jsonl",
    "beavertails.jsonl",
    "bom.csv",
    "bom.jsonl",
    "categorical.parquet",
    "chinese.csv",
    "combining.csv",
    "crlf.csv",
    "data_key.json",
    "dict_by_id.json",
    "dup_case.csv",
    "emoji_rtl.csv",
    "index_column.csv",
    "int.parquet",
    "is_harmful_column.csv",
    "json_nan.jsonl",
    "jsonl_trailing_comma.jsonl",
    "label_01.csv",
    "label_01float.csv",
    "label_TrueFalse.csv",
    "label_benign.csv",
    "label_bool.jsonl",
    "label_capital.csv",
    "label_int.jsonl",
    "label_malicious.csv",
    "label_safe_unsafe.csv",
    "label_tab_text.txt",
    "label_tab_text_header.txt",
    "label_toxic.csv",
    "label_yes_no.csv",
    "leading_space.csv",
    "list_column.parquet",
    "messages.parquet",
    "multiline.csv",
    "nan_category.parquet",
    "no_header.csv",
    "nul.csv",
    "openai_messages.jsonl",
    "openai_messages_system.jsonl",
    "paired_columns.csv",
    "plain.parquet",
    "rows.feather",
    "rows.jsonl.gz",
    "semicolon.csv",
    "sharegpt.json",
    "space_in_header.csv",
    "special_tokens.csv",
    "tab_in_csv.csv",
    "text_is_messages.jsonl",
    "text_tab_label.txt",
    "trailing_newline.csv",
    "twins_with_pair_id.csv",
    "twins_without_pair_id.csv",
    "xstest.csv",
    "blank_rows.csv",
]
ROW_5_LEFT_OUT = ["none_text.csv", "empty_text.csv"]
TWENTY_AS_LIST = ["dup_exact.csv", "dup_spaces.csv"]
UNLABELLED = [
    "alpaca.json",
    "alpaca_with_input.json",
    "dup_second.csv",
    "harmful.txt",
    "harmless.txt",
    "hh_rlhf.jsonl",
    "jbb_behaviors.csv",
    "jsonl_of_strings.jsonl",
    "list_of_strings.json",
    "list_of_strings_b.json",
    "openai_harmful.jsonl",
    "or_bench.csv",
]
NOT_READ = {
    "only_header.csv": r"expected at least one prompt, found none",
    "empty.csv": r"it is empty",
    "latin1.csv": r"line 2: .*UTF-8.*Windows-1252.*save it as UTF-8",
    "unquoted_commas.csv": r"row 1: expected 2 fields .*found 3; a text with a comma in it needs quotes",
    "backslash_quotes.csv": r"row 1: .*write a quote within it twice, not with a backslash",
    "surrogate.jsonl": r"row 1: .*half of a character.*take it out",
    "prompts.yaml": r"expected a file ending in .csv, .*save its content as json",
    "big.parquet": r"at most 64 MB of prompts, found 3,355 MB",
}
NO_CONTRAST = {
    "third_label.csv": r"row 21: expected a label such as .*found 'controversial'; say what it means",
    "one_label.csv": r"none labelled harmless; add some, or give a second file",
    "unbalanced.csv": r"at least 8 harmless prompts, found 3; add 5",
    "dup_exact.csv": r"row 4: the text of row 3 again",
    "dup_spaces.csv": r"row 4: the text of row 3 again",
}


def texts_of(name: str) -> list[str]:
    return read_prompt_file(CASES / name).table["text"].tolist()


def test_every_case_is_here():
    named = {*TEN_AND_TEN, *ROW_5_LEFT_OUT, *TWENTY_AS_LIST, *UNLABELLED, *NOT_READ, *NO_CONTRAST}
    assert {path.name for path in CASES.iterdir() if path.is_file()} == named


@pytest.mark.parametrize("name", TEN_AND_TEN)
def test_ten_harmful_and_ten_harmless_prompts(name):
    prompts = load_contrast_set(str(CASES / name))
    assert prompts.counts == {"harmful": 10, "harmless": 10}
    for text, label in zip(prompts.table["text"], prompts.table["label"], strict=True):
        if name.startswith("twins"):
            continue
        assert ("lock" in text or "锁" in text or "LOCK" in text) == (label == "harmful")
        assert "harmful" not in text
        assert "\t" not in text
    assert len(texts_of(name)) == 20


@pytest.mark.parametrize("name", ROW_5_LEFT_OUT)
def test_a_row_without_a_text_is_left_out_and_named(name):
    prompts = load_contrast_set(str(CASES / name))
    assert prompts.counts == {"harmful": 9, "harmless": 10}
    assert [str(left_out) for left_out in prompts.reports[0].left_out] == ["1 row without a text: row 5"]
    assert "row 6" in prompts.table["origin"][4]
    assert len(texts_of(name)) == 19


def test_empty_rows_at_the_end_are_said():
    (left_out,) = read_prompt_file(CASES / "blank_rows.csv").report.left_out
    assert str(left_out) == "2 rows empty at the end: row 21, row 22"


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_list_has_no_labels_and_says_what_to_do(name):
    message = rf"{name}: expected a label.* give two files, one of harmful and one of harmless"
    with pytest.raises(PromptError, match=message):
        load_contrast_set(str(CASES / name))
    assert len(texts_of(name)) == 10
    if name != "dup_second.csv":
        assert len(set(texts_of(name))) == 10


@pytest.mark.parametrize("name", NOT_READ)
def test_what_cannot_be_read_without_a_guess_ends_in_a_sentence(name):
    for read in (load_contrast_set, read_source):
        with pytest.raises(PromptError, match=rf"(?s)^{name}.*{NOT_READ[name]}"):
            read(str(CASES / name))


@pytest.mark.parametrize("name", NO_CONTRAST)
def test_what_is_no_contrast_set_says_what_where_and_the_cure(name):
    with pytest.raises(PromptError, match=f"^{name}.*{NO_CONTRAST[name]}"):
        load_contrast_set(str(CASES / name))
    inspection = inspect_source(str(CASES / name))
    assert name in inspection.problem


@pytest.mark.parametrize("name", TWENTY_AS_LIST)
def test_a_list_keeps_what_comes_twice(name):
    assert len(texts_of(name)) == 20


@pytest.mark.parametrize(
    ("name", "column", "meanings"),
    [
        ("label_01.csv", "label", {"1": "harmful", "0": "harmless"}),
        ("label_01float.csv", "label", {"1.0": "harmful", "0.0": "harmless"}),
        ("label_bool.jsonl", "label", {"True": "harmful", "False": "harmless"}),
        ("label_toxic.csv", "label", {"toxic": "harmful", "non-toxic": "harmless"}),
        ("label_yes_no.csv", "label", {"yes": "harmful", "no": "harmless"}),
        ("is_harmful_column.csv", "is_harmful", {"1": "harmful", "0": "harmless"}),
        ("beavertails.jsonl", "is_safe", {"False": "harmful", "True": "harmless"}),
        ("xstest.csv", "label", {"unsafe": "harmful", "safe": "harmless"}),
        ("paired_columns.csv", None, {"harmful": "harmful", "harmless": "harmless"}),
    ],
)
def test_what_labels_were_taken_for_is_said(name, column, meanings):
    report = read_prompt_file(CASES / name).report
    assert report.label_column == column
    assert {meaning.value: meaning.label for meaning in report.meanings} == meanings
    said = dict(report.facts())["Label values"]
    assert all(f"{value} = {label} (10)" in said for value, label in meanings.items())


def test_a_column_per_label_is_matched_pairs():
    prompts = load_contrast_set(str(CASES / "paired_columns.csv"))
    assert prompts.reports[0].n_pairs == 10
    for _, pair in prompts.table.groupby("pair_id"):
        assert [text.split("number ")[1][0] for text in pair["text"]] == [
            pair["text"].iloc[0].split("number ")[1][0]
        ] * 2


def test_twins_are_the_same_pairs_with_and_without_names():
    named, found = (load_contrast_set(str(CASES / f"twins_{kind}_pair_id.csv")) for kind in ("with", "without"))
    assert found.n_detected_pairs == 10
    pairs = [{frozenset(texts) for _, texts in s.table.groupby("pair_id")["text"]} for s in (named, found)]
    assert pairs[0] == pairs[1]


def test_instruction_and_input_are_one_prompt():
    assert texts_of("alpaca_with_input.json")[3] == "Rewrite the sentence.\n\nThe cat number 3 sat."
    assert texts_of("alpaca.json")[3] == "Explain how to bake cake number 3 for a friend's party"


def test_replies_after_the_users_turn_are_left_out_and_said():
    report = read_prompt_file(CASES / "openai_messages.jsonl").report
    assert "replies after the user's turn are left out, in 20 conversations" in report.notes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("harmful.txt,dup_second.csv", r"^dup_second.csv, row 10: the text of row 3 again"),
        ("harmful.txt,harmful.txt", r"^harmful.txt, row 1: the text of row 1 again, under the other label"),
        (
            "harmful.txt,plain.parquet",
            r"^plain.parquet, row 1: expected harmless prompts alone, found .* labelled harmful",
        ),
        ("label_tab_text.txt,harmless.txt", r"^label_tab_text.txt, row 11: expected harmful prompts alone"),
    ],
)
def test_two_files_name_the_file_and_its_row(source, message):
    with pytest.raises(PromptError, match=message):
        load_contrast_set(",".join(str(CASES / name) for name in source.split(",")))


@pytest.mark.parametrize(
    "harmful", ["harmful.txt", "openai_harmful.jsonl", "list_of_strings.json", "jbb_behaviors.csv"]
)
def test_two_lists_are_a_contrast_set(harmful):
    prompts = load_contrast_set(f"{CASES / harmful},{CASES / 'harmless.txt'}")
    assert prompts.counts == {"harmful": 10, "harmless": 10}


def test_a_label_can_be_given_a_meaning_or_its_rows_left_out():
    from refusal_core.prompts.labels import Choice

    source = str(CASES / "third_label.csv")
    skipped = load_contrast_set(source, choice=Choice(labels={"controversial": "skip"}))
    assert skipped.counts == {"harmful": 10, "harmless": 10}
    assert str(skipped.reports[0].left_out[0]) == "1 row with a label to skip: row 21"
    assert load_contrast_set(source, choice=Choice(labels={"Controversial": "harmful"})).counts["harmful"] == 11


def test_a_folder_is_reached_by_naming_configuration_and_split():
    folder = CASES / "jbb_folder"
    with pytest.raises(PromptError, match=r"several: behaviors, judge_comparison; name it, as .*:behaviors"):
        load_contrast_set(str(folder))
    with pytest.raises(PromptError, match=r"jbb_folder:behaviors: .*several: harmful, benign; name it"):
        load_contrast_set(f"{folder}:behaviors")
    assert len(read_source(f"{folder}:behaviors:benign").table) == 10
    assert load_contrast_set(f"{folder}:judge_comparison").counts == {"harmful": 10, "harmless": 10}
    with pytest.raises(PromptError, match=r"jbb_folder:nothing.*expected a folder, or a set"):
        load_contrast_set(f"{folder}:nothing")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told there")
def test_two_kilobytes_that_stand_for_gigabytes_are_refused_within_200_megabytes():
    program = (
        "from refusal_core.errors import PromptError\n"
        "from refusal_core.prompts.reading import read_prompt_file\n"
        "try:\n"
        f"    read_prompt_file({str(CASES / 'big.parquet')!r})\n"
        "except PromptError:\n"
        "    print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 200_000
