"""Labels are found by names and values, or as was chosen; what is not known is asked for and never guessed."""

from __future__ import annotations

import json

import pytest

from refusal_core.errors import PromptError
from refusal_core.prompts.labels import Choice, is_label, label_key, parse_labels
from refusal_core.prompts.reading import read_prompts


def read(rows: list[dict], choice: Choice | None = None):
    return read_prompts(json.dumps(rows).encode(), "a.json", choice or Choice())


def labelled(column: str, *values: object) -> list[dict]:
    return [{"text": f"prompt {row}", column: value} for row, value in enumerate(values)]


@pytest.mark.parametrize("column", ["label", "is_harmful", "Is Harmful", "unsafe", "toxicity", "is-malicious", "class"])
@pytest.mark.parametrize(
    ("harmful", "harmless"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("1", "0"),
        ("1.0", "0.0"),
        ("TRUE", "False"),
        ("yes", "No "),
        ("unsafe", "safe"),
    ],
)
def test_yes_is_harmful(column, harmful, harmless):
    assert read(labelled(column, harmful, harmless)).table["label"].tolist() == ["harmful", "harmless"]


@pytest.mark.parametrize("column", ["is_safe", "safe", "is_benign", "Harmless"])
def test_yes_is_harmless_where_the_column_says_so(column):
    assert read(labelled(column, True, 0, "no")).table["label"].tolist() == ["harmless", "harmful", "harmful"]


def test_a_word_means_what_it_says_in_any_column():
    assert read(labelled("safe", "unsafe", "safe")).table["label"].tolist() == ["harmful", "harmless"]


@pytest.mark.parametrize(
    "value", ["Non toxic", "non_toxic", "NON-TOXIC", " nontoxic ", "unharmful", "not harmful", "benign"]
)
def test_words_are_compared_without_case_and_blanks(value):
    assert read(labelled("label", "toxic", value)).table["label"].tolist() == ["harmful", "harmless"]


@pytest.mark.parametrize("value", ["nasty", 2, 1.7, float("inf"), None, "", ["harmful"]])
def test_an_unknown_label_is_named_with_its_row(value):
    prompts = read(labelled("label", "harmful", value))
    assert prompts.table["label"][0] == "harmful"
    with pytest.raises(
        PromptError, match=r"^a\.json, row 2: expected a label .* in column 'label', found .*say what it"
    ):
        prompts.check_labels()
    assert prompts.report.meanings[1].label is None


def test_a_column_of_scores_or_categories_is_no_label():
    for column, values in (("toxicity", (0.3, 0.9)), ("class", ("a", "b")), ("harmful", ("very", "little"))):
        problem = read(labelled(column, *values)).labelling.problem
        assert f"choose '{column}' as the label column and say what its values mean" in problem


def test_a_column_of_words_under_another_name_is_offered_and_not_taken():
    prompts = read(labelled("verdict", "safe", "unsafe"))
    assert prompts.table["label"].isna().all()
    assert "choose 'verdict' as the label column" in prompts.labelling.problem
    assert read(labelled("verdict", "safe", "unsafe"), Choice(label_column="verdict")).report.counts == {
        "harmful": 1,
        "harmless": 1,
    }


def test_two_columns_that_say_different_things_are_not_guessed_at():
    rows = labelled("label", "harmful", "harmless")
    agree = [row | {"is_safe": value} for row, value in zip(rows, (False, True), strict=True)]
    assert read(agree).report.label_column == "label"
    differ = [row | {"is_safe": False} for row in rows]
    with pytest.raises(PromptError, match=r"row 2: the columns 'label' and 'is_safe' say different things; choose"):
        read(differ).check_labels()
    assert read(differ, Choice(label_column="is_safe")).report.counts == {"harmful": 2}


def test_a_column_of_other_classes_makes_way_for_one_that_is_known():
    rows = [row | {"is_harmful": value} for row, value in zip(labelled("label", 3, 7), (1, 0), strict=True)]
    assert read(rows).report.label_column == "is_harmful"


def test_what_was_chosen_counts_before_what_is_usual():
    choice = Choice(labels={"1": "harmless", "0": "harmful", "2": "skip"})
    prompts = read(labelled("label", 1, 0, 2, 0), choice)
    assert prompts.table["label"].tolist() == ["harmless", "harmful", "harmful"]
    assert prompts.report.left_out[0].places == ("row 3",)
    assert [str(meaning.label) for meaning in prompts.report.meanings] == ["harmless", "harmful", "skip"]


def test_rows_without_a_label_can_be_left_out():
    assert len(read(labelled("label", "harmful", None), Choice(labels={"none": "skip"})).table) == 1


def test_a_chosen_column_that_is_not_there_is_named():
    with pytest.raises(PromptError, match=r"expected a label column called 'kind', found text, label; choose"):
        read(labelled("label", 1), Choice(label_column="kind"))
    with pytest.raises(PromptError, match=r"expected a text column called 'body', found text, label; choose"):
        read(labelled("label", 1), Choice(text_column="body"))


def test_meanings_are_written_with_an_equals_sign():
    assert parse_labels(["unsafe=harmful", " a=b = Harmless"]) == {"unsafe": "harmful", "a=b": "harmless"}
    with pytest.raises(PromptError, match="expected a label and what it means, as unsafe=harmful, got 'unsafe'"):
        parse_labels(["unsafe"])
    with pytest.raises(PromptError, match="expected one of harmful, harmless, grey, skip as what the label 'x' means"):
        parse_labels(["x=bad"])


def test_numbers_are_one_label_however_they_are_written():
    assert {label_key(value) for value in (1, 1.0, "1", " 1.0 ", "1.00")} == {"1"}
    assert label_key("1.5") == "1.5"
    assert is_label("Unsafe")
    assert not is_label("prompt")
    assert is_label("odd", Choice(labels={"ODD": "grey"}))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"instruction": "Sum up.", "input": "A text.", "output": "…"}, "Sum up.\n\nA text."),
        ({"instruction": "Sum up.", "input": "", "output": "…"}, "Sum up."),
        ({"instruction": "Why?", "context": "Because.", "response": "…"}, "Why?\n\nBecause."),
        ({"Behavior": "Do it.", "ContextString": "A story."}, "A story.\n\n---\n\nDo it."),
        ({"Behavior": "Do it.", "ContextString": None}, "Do it."),
        ({"prompt": "One", "input": "no part of it"}, "One"),
        ({"Goal": "One", "Behavior": "name of it"}, "One"),
        ({"question": "Q?", "context": "C", "answers": []}, "Q?\n\nC"),
    ],
)
def test_what_is_one_prompt_is_joined(table, text):
    prompts = read([table])
    assert prompts.table["text"].tolist() == [text]


def test_the_other_columns_come_after_the_text():
    rows = [{"id": 7, "text": "x", "prompt": "one", "label": "odd", "tags": ["a"]}]
    found = read(rows, Choice(text_column="prompt")).list
    assert list(found.columns) == ["text", "id", "another text", "label", "tags"]
    assert found.iloc[0].tolist() == ["one", 7, "x", "odd", '["a"]']


def test_categories_and_pairs_are_kept_and_one_of_a_kind():
    rows = [
        {"text": "a", "label": 1, "Category": "x", "pair_id": 1.0, "note": None},
        {"text": "b", "label": 0, "Category": float("nan"), "pair_id": 1, "note": "n"},
    ]
    table = read(rows).table
    assert table["category"].tolist() == ["x", None]
    assert table["note"].tolist() == [None, "n"]
    lists = [row | {"Category": ["x", "y"]} for row in rows]
    prompts = read(lists)
    assert prompts.table["category"].isna().all()
    assert "Category holds more than one value per row and is not used as the category" in prompts.report.notes
    with pytest.raises(PromptError, match=r"row 1: expected one text or number as pair_id, found \[1\]"):
        read([row | {"pair_id": [1]} for row in rows])
