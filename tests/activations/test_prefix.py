"""Beginnings whose keys and values are known are not run again, and change no number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from plain import TEXTS, passes_of, plain_states, relative_error
from tiny import ARCHITECTURES, tiny_model

from refusal_core.activations import prefix
from refusal_core.activations import reader as reading
from refusal_core.activations.extraction import extract
from refusal_core.activations.packing import common_prefix
from refusal_core.activations.prefix import CachedPrefix
from refusal_core.activations.reader import ResidualReader


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "mistral"])
def test_the_shared_prefix_is_used_and_changes_nothing(architecture, monkeypatch):
    chat_model = tiny_model(architecture)
    shared = extract(chat_model, TEXTS)
    assert shared.prefix_tokens > 5
    monkeypatch.setattr("refusal_core.activations.reader.agrees", lambda *_: False)
    whole = extract(chat_model, TEXTS)
    assert whole.prefix_tokens == 0
    assert relative_error(shared.hidden, whole.hidden) < 1e-4
    np.testing.assert_allclose(shared.refusal_log_odds, whole.refusal_log_odds, atol=1e-4)


def test_a_prefix_that_does_not_reproduce_the_plain_pass_is_not_used(monkeypatch):
    chat_model = tiny_model("qwen2")
    for_rows = CachedPrefix.for_rows

    def spoiled(self, n_rows):
        cache = for_rows(self, n_rows)
        cache.layers[0].values = cache.layers[0].values + 1.0
        return cache

    monkeypatch.setattr(CachedPrefix, "for_rows", spoiled)
    extraction = extract(chat_model, TEXTS)
    assert (extraction.prefix_tokens, extraction.prefix_note) == (0, reading.NOT_REPRODUCED)
    assert relative_error(extraction.hidden[0], plain_states(chat_model, TEXTS[0])) < 1e-4


def test_what_is_shared_is_said_in_words():
    assert extract(tiny_model("llama"), TEXTS).prefix_note == "17 tokens, run once for all prompts"
    assert extract(tiny_model("llama", template=None), TEXTS).prefix_note == reading.NO_SHARED_BEGINNING


TYPED = ["Bake", "Bake a cake", "Bake a cake for my", "Bake a pie for my", "Bake a pie", "Make a pie", "Make a pie"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_being_typed_is_read_as_if_it_had_been_there_at_once(architecture):
    chat_model = tiny_model(architecture)
    typed = ResidualReader(chat_model)
    for text in TYPED:
        found, expected = typed.read_tokens(text), ResidualReader(chat_model).read_tokens(text)
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(found.states, expected.states, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.at_position, expected.at_position, rtol=1e-4, atol=1e-4)
        assert found.first_token == expected.first_token
        assert found.refusal_log_odds == pytest.approx(expected.refusal_log_odds, abs=1e-4)


def test_of_a_text_being_typed_only_what_changed_is_run():
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model)
    with passes_of(chat_model) as passes:
        for text in TYPED:
            reader.read_tokens(text)
    counted = [n_tokens for _, n_tokens in passes]
    ids = [reader.encode(text) for text in TYPED]
    for place, run in enumerate(counted):
        alike = [len(common_prefix(ids[place], before)) for before in ids[:place]]
        assert run == max(1, len(ids[place]) - max(alike, default=reader.prefix_tokens))
    assert counted[-1] == 1  # the same text again: its last token's logits are asked for


def test_in_half_precision_a_score_does_not_depend_on_what_was_typed_before():
    chat_model = dataclasses.replace(tiny_model("qwen2"), dtype="bfloat16")
    chat_model.model.bfloat16()
    typed = ResidualReader(chat_model)
    with passes_of(chat_model) as passes:
        for text in TYPED:
            typed.read_tokens(text)
    assert [n_tokens for _, n_tokens in passes] == [len(typed.encode(text)) - typed.prefix_tokens for text in TYPED]


def test_of_many_texts_the_last_read_are_remembered(monkeypatch):
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model)
    # Room for about three of these.
    keys_and_values = 4 * 2 * 2 * 8 * 4
    monkeypatch.setattr(prefix, "RECENT_BYTES", 3.5 * len(reader.encode(TYPED[0])) * (keys_and_values + 5 * 32 * 4))
    texts = ["Ask", "Bake", "Climb", "Dance", "Eat", "Fly"]
    for text in texts:
        reader.read_tokens(text)
    run = {}
    for text in (texts[-1], texts[0]):
        with passes_of(chat_model) as passes:
            reader.read_tokens(text)
        ((_, run[text]),) = passes
    assert run[texts[-1]] == 1
    assert run[texts[0]] > 1
