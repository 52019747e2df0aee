"""The glossary: names and meanings of quantities and terms."""

from __future__ import annotations

import pytest

from refusal_core.glossary import glossary, meaning_of, name_of


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
    assert name_of("probe_d_before") == "d on matched pairs, before"
    assert meaning_of("change_band_high") == "Upper end of the band in which 95 % of control directions fall."
    assert name_of("some_other_column") == "some other column"
    assert meaning_of("some_other_column") is None
