"""Links from sentences to the glossary."""

from __future__ import annotations

import re

from refusal_core.ui.glossary import link_terms
from refusal_core.ui.layout import sentences


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
