"""The glossary: names and meanings, and links to them."""

from __future__ import annotations

import re

import pytest

from refusal_core.ui.glossary import glossary, link_terms, meaning_of, name_of
from refusal_core.ui.layout import sentences


@pytest.mark.parametrize("key", glossary())
def test_a_term_has_a_name_and_a_meaning_that_fits_a_tooltip(key):
    term = glossary()[key]
    assert term.name
    assert term.meaning.endswith(".")
    assert len(term.meaning) <= 200


def test_no_two_terms_share_a_spelling_and_no_two_columns_of_a_table_a_name():
    spellings = [spelling.casefold() for term in glossary().values() for spelling in term.terms]
    assert len(spellings) == len(set(spellings))


def test_the_ends_of_an_interval_are_named_after_its_number():
    assert name_of("crossfit_d_low") == "cross-fitted d, from"
    assert name_of("change_band_high") == "change, controls to"
    assert meaning_of("change_band_high") == "Upper end of the band in which 95 % of control directions fall."
    assert name_of("some_other_column") == "some other column"
    assert meaning_of("some_other_column") is None


def test_the_first_mention_of_a_term_is_a_link_that_shows_its_meaning():
    linked = link_terms("Cross-fitted d, and cross-fitted d again; detectable from layer 3.")
    assert linked.count("](Glossary ") == 2
    assert linked.startswith("[Cross-fitted d](Glossary \"Cohen's d of held-out prompts")
    assert "and cross-fitted d again" in linked


def test_a_term_is_found_as_a_word_and_the_longest_one_first():
    assert "Glossary" not in link_terms("bandage, undetectable from here, in-sample-like")
    assert link_terms("d on matched pairs").startswith("[d on matched pairs](Glossary")


def test_a_sentence_keeps_its_characters_and_has_links():
    linked = sentences("d -1.14 with 95 % intervals on <b>x</b> [y](z)")
    text = re.sub(r"\\(.)", r"\1", re.sub(r'\[([^]]*)]\(Glossary "[^"]*"\)', r"\1", linked))
    assert text == "d \u22121.14 with 95\u00a0% intervals on <b>x</b> [y](z)"
    assert linked.count("](Glossary ") == 1
