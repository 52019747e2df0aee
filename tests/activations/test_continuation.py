"""What follows prompts is what plain transformers say, however many are continued together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain import MANY, TEXTS, passes_of
from tiny import ARCHITECTURES, tiny_model

from refusal_core.activations import limits
from refusal_core.activations.continuation import Continuations, continue_prompts
from refusal_core.activations.engine import DoesNotFitError
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.token_tree import TokenTree

PHRASES = [[40, 41, 42], [40, 43], [50]]
N_TOKENS = 9


def never(tokens: list[int]) -> bool:
    return False


def joined(parts: list[Continuations], count: int) -> tuple[np.ndarray, list[list[int]]]:
    """Log-odds and tokens in the prompts' order."""
    log_odds, tokens = np.full(count, np.nan), [[] for _ in range(count)]
    for part in parts:
        log_odds[part.rows] = part.log_odds
        for row, own in zip(part.rows.tolist(), part.tokens, strict=True):
            tokens[row] = own
    return log_odds, tokens


def continued(reader, texts=TEXTS, phrases=PHRASES, ends=never) -> tuple[np.ndarray, list[list[int]]]:
    sequences = [reader.encode(text) for text in texts]
    return joined(list(continue_prompts(reader, sequences, TokenTree(phrases), N_TOKENS, ends)), len(texts))


def plain(chat_model, ids: list[int], phrases=PHRASES) -> tuple[float, list[int]]:
    """The same, a whole pass per token and phrase."""

    def log_p(given: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return chat_model.model(torch.tensor([given]), use_cache=False).logits[0].double().log_softmax(-1)

    total = np.logaddexp.reduce(
        [
            sum(float(log_p([*ids, *phrase])[len(ids) - 1 + step, token]) for step, token in enumerate(phrase))
            for phrase in phrases
        ]
    )
    tokens: list[int] = []
    while len(tokens) < N_TOKENS:
        tokens.append(int(log_p([*ids, *tokens])[-1].argmax()))
    return total - np.log1p(-np.exp(total)), tokens


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_continuations_are_those_of_plain_transformers(architecture):
    chat_model = tiny_model(architecture, sliding_window=96)
    reader = ResidualReader(chat_model)
    log_odds, tokens = continued(reader)
    for row, text in enumerate(TEXTS):
        expected = plain(chat_model, reader.encode(text))
        assert log_odds[row] == pytest.approx(expected[0], abs=1e-4)
        assert tokens[row] == expected[1]


def test_a_likely_phrase_is_continued_from_where_the_tree_has_run_it():
    chat_model = tiny_model("llama")
    reader = ResidualReader(chat_model)
    _, tokens = continued(reader)
    phrases = [tokens[0][:4], [*tokens[0][:2], 380], [381]]
    log_odds, again = continued(reader, phrases=phrases)
    assert again == tokens
    for row, text in enumerate(TEXTS):
        assert log_odds[row] == pytest.approx(plain(chat_model, reader.encode(text), phrases)[0], abs=1e-4)
    with passes_of(chat_model) as passes:
        continued(reader, texts=TEXTS[:1], phrases=phrases)
    # The first four tokens are known from the tree.
    assert [count for _, count in passes[1:]] == [1] * (N_TOKENS - 4)


def test_prompts_whose_continuation_is_complete_are_not_run_on():
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model)
    _, whole = continued(reader, texts=MANY)
    last = [own[number % N_TOKENS] for number, own in enumerate(whole)]
    ends = {tuple(own[: own.index(token) + 1]) for own, token in zip(whole, last, strict=True)}
    assert reader.packs
    with passes_of(chat_model) as passes:
        _, tokens = continued(reader, texts=MANY, ends=lambda own: tuple(own) in ends)
    for own, full in zip(tokens, whole, strict=True):
        assert own == full[: len(own)]
        assert len(own) == N_TOKENS or tuple(own) in ends
    rows = [count for count, n_tokens in passes if n_tokens == 1]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < len(MANY) / 3


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3", "gpt2"])
def test_what_is_continued_beside_a_prompt_changes_nothing(architecture, monkeypatch):
    reader = ResidualReader(tiny_model(architecture, sliding_window=96))
    log_odds, tokens = continued(reader, texts=MANY)
    monkeypatch.setitem(limits.HELD_BYTES, "cpu", 3e5)
    sequences = [reader.encode(text) for text in MANY]
    parts = list(continue_prompts(reader, sequences, TokenTree(PHRASES), N_TOKENS, never))
    assert len(parts) > 2
    again = joined(parts, len(MANY))
    np.testing.assert_allclose(again[0], log_odds, atol=1e-5)
    assert again[1] == tokens


@pytest.mark.parametrize("architecture", ["qwen2", "bloom"])
def test_a_device_without_memory_gets_smaller_batches(architecture):
    chat_model = tiny_model(architecture)
    reader = ResidualReader(chat_model)
    log_odds, tokens = continued(reader)
    tried = []

    def cramped(module, arguments, options):
        tried.append(arguments[0].shape)
        if arguments[0].shape[1] == 1 and len(arguments[0]) > 1:
            raise torch.OutOfMemoryError

    handle = chat_model.model.register_forward_pre_hook(cramped, with_kwargs=True)
    texts = TEXTS if architecture == "qwen2" else [TEXTS[0]] * 4
    found = continued(reader, texts=texts)
    handle.remove()
    assert any(len(shape) and shape[0] > 1 and shape[1] == 1 for shape in tried)
    expected = [TEXTS.index(text) for text in texts]
    np.testing.assert_allclose(found[0], log_odds[expected], atol=1e-5)
    assert found[1] == [tokens[row] for row in expected]


def test_a_prompt_that_does_not_fit_says_so():
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model)
    assert reader.packs

    def full(module, arguments):
        raise torch.OutOfMemoryError

    chat_model.model.register_forward_pre_hook(full)
    with pytest.raises(DoesNotFitError, match=r"a prompt of \d+ tokens and its reply do not fit"):
        continued(reader)
