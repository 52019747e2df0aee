"""Suggested contrasts are short, complete, and none of the prompts that directions are fitted or tested on."""

from __future__ import annotations

from refusal_core.prompts.bundled import TRANSFER_SETS
from refusal_core.prompts.sets import load_contrast_set, load_transfer_set
from refusal_core.prompts.suggestions import contrasts


def test_each_contrast_is_two_short_prompts_and_a_line():
    texts = [text for each in contrasts() for text in (each.one, each.other)]
    assert len(set(texts)) == len(texts) >= 12
    assert all(text.strip() == text and 0 < len(text) <= 80 for text in texts)
    assert all("\n" not in each.tests and each.tests.endswith(".") for each in contrasts())


def test_no_suggestion_is_a_prompt_of_a_bundled_set():
    sets = [load_contrast_set("pairs"), load_contrast_set("everyday"), *map(load_transfer_set, TRANSFER_SETS)]
    bundled = {text for each in sets for text in each.table["text"]}
    assert not bundled & {text for each in contrasts() for text in (each.one, each.other)}
