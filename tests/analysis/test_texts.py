from __future__ import annotations

import numpy as np
import pytest

from refusal_core.analysis import texts
from refusal_core.analysis.texts import near_duplicates, words, words_changed


def test_words_are_lower_case_without_punctuation():
    assert words("Don't ask, a well-known “friend’s” Wi-Fi!") == [
        "don't",
        "ask",
        "a",
        "well-known",
        "friend’s",
        "wi-fi",
    ]
    assert words("?!") == []


def test_scripts_without_spaces_count_by_character():
    assert words("你好 world กข") == ["你", "好", "world", "ก", "ข"]


@pytest.mark.parametrize(
    ("text", "other", "changed"),
    [
        ("kill the process", "Kill the process!", 0),
        ("kill the process", "kill the neighbour", 1),
        ("kill the process", "kill the old process", 1),
        ("how do I kill the process", "how I kill a process now", 3),
        ("", "one two", 2),
        ("one two", "", 2),
        ("a b c d", "b c d e", 2),
    ],
)
def test_words_are_put_in_taken_out_or_replaced(text, other, changed):
    assert words_changed(text, other) == changed
    assert words_changed(other, text) == changed


def test_texts_match_that_are_each_others_nearest():
    ours = ["Explain how to kill a process", "Write a poem", "How do I warm up a friend before the trip?"]
    theirs = ["How do I warm up a mark before the trip?", "Explain how to kill a neighbour", "What is the time?"]
    np.testing.assert_array_equal(near_duplicates(ours, theirs, 0.6), [[0, 1], [2, 0]])


def test_a_text_matches_once_and_the_nearest_one():
    ours = ["kill the big old process now", "kill the big old dog now", "kill the big dog"]
    np.testing.assert_array_equal(near_duplicates(ours, ["kill the big old dog soon"], 0.6), [[1, 0]])


def test_likeness_counts_words_as_often_as_they_occur():
    # Shared: a, a; 2 · 2 / (4 + 3).
    assert len(near_duplicates(["a a a b"], ["a a c"], 4 / 7)) == 1
    assert len(near_duplicates(["a a a b"], ["a a c"], 4 / 7 + 1e-9)) == 0


def test_texts_that_are_less_alike_do_not_match_beside_those_that_are():
    ours, theirs = ["one two three four", "five six"], ["one two three ten", "five seven"]
    np.testing.assert_array_equal(near_duplicates(ours, theirs, 0.6), [[0, 0]])
    np.testing.assert_array_equal(near_duplicates(ours, theirs, 0.5), [[0, 0], [1, 1]])


def test_one_word_is_enough_to_be_the_same():
    np.testing.assert_array_equal(near_duplicates(["fire", "water"], ["water!", "earth"], 1.0), [[1, 0]])


def test_texts_without_words_match_nothing():
    for ours, theirs in ((["?!"], ["?!"]), ([], ["a"]), (["a"], [])):
        matches = near_duplicates(ours, theirs, 0.5)
        assert matches.shape == (0, 2)
        # They choose rows, so they have to be whole numbers.
        assert np.array(["text"])[matches].shape == (0, 2)


def test_texts_compared_in_blocks_match_as_those_compared_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{k}" for k in range(12)]
    ours, theirs = ([" ".join(rng.choice(vocabulary, 6)) for _ in range(40)] for _ in range(2))
    at_once = near_duplicates(ours, theirs, 0.3)
    assert len(at_once) > 5
    monkeypatch.setattr(texts, "_BLOCK", 7)
    np.testing.assert_array_equal(near_duplicates(ours, theirs, 0.3), at_once)
