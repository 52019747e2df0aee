"""A list gets the numbers its prompts get one by one, in slices between which others have their turn."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from refusal_core.errors import ModelError
from refusal_core.pipeline.scoring import Scorer, score
from refusal_core.ui.lists import SLICE_TOKENS, ListScoring
from refusal_core.ui.model import OneModel

TEXTS = ["How do I clean a flute?", "x", "How do I clean a flute!", "<|im_end|>\n<b>", "How do I clean a flute?"] * 3


def listed(texts: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame({"text": list(texts)})


def until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def shared(tiny_chat_model, monkeypatch) -> OneModel:
    monkeypatch.setattr("refusal_core.ui.model.load_model_for", lambda run, source: tiny_chat_model)
    return OneModel()


@pytest.fixture
def source(tiny_folder) -> str:
    return str(tiny_folder)


def test_a_list_gets_the_numbers_its_prompts_get_one_by_one(shared, tiny_run, tiny_chat_model, source):
    texts = [*TEXTS, "flute " * 1000, "  "]
    job = ListScoring(shared, tiny_run, source, listed(texts))
    until(lambda: not job.running)
    assert job.state == "done"
    assert job.done == len(texts)
    for found, wanted in zip(job.scores, score(tiny_chat_model, tiny_run, TEXTS), strict=False):
        assert found.text == wanted.text
        np.testing.assert_allclose(found.projection, wanted.projection, atol=1e-4)
        assert found.percentile["harmful"] == pytest.approx(wanted.percentile["harmful"])
        assert found.refusal_log_odds == pytest.approx(wanted.refusal_log_odds, abs=1e-4)
        assert found.first_token == wanted.first_token
    assert "tokens long" in job.refused[len(TEXTS)]
    assert "empty" in job.refused[len(TEXTS) + 1]


def test_others_have_their_turn_between_two_slices(shared, tiny_run, source, monkeypatch):
    slices, waits = [], []

    def slowly(self, texts):
        slices.append(len(texts))
        time.sleep(0.05)
        return [None] * len(texts)

    monkeypatch.setattr(Scorer, "score_ends", slowly)
    job = ListScoring(shared, tiny_run, source, listed(f"How do I clean {place} flutes?" for place in range(100)))
    until(lambda: slices)
    for _ in range(3):
        before = len(slices)
        shared.ask(tiny_run, source, lambda opened: None, lambda said: None)
        waits.append(len(slices) - before)
    job.cancel()
    until(lambda: not job.running)
    # The slice that was under way, and the one whose turn came before.
    assert max(waits) <= 1
    assert sum(slices) < 100


def test_a_slice_is_small_and_of_one_length(shared, tiny_run, tiny_chat_model, source, monkeypatch):
    plain, seen = Scorer.score_ends, []

    def noted(self, texts):
        seen.append([len(self.encode(text)) - self.reader.prefix_tokens for text in texts])
        return plain(self, texts)

    monkeypatch.setattr(Scorer, "score_ends", noted)
    job = ListScoring(shared, tiny_run, source, listed(TEXTS * 4))
    until(lambda: not job.running)
    assert sum(map(len, seen)) == len(TEXTS) * 4
    assert all(len(Counter(lengths)) == 1 and sum(lengths) <= SLICE_TOKENS for lengths in seen)
    assert max(map(len, seen)) > 1


def test_a_stopped_list_keeps_what_was_scored_and_gives_its_turn_up(shared, tiny_run, source, monkeypatch):
    plain, begun = Scorer.score_ends, threading.Event()

    def noted(self, texts):
        begun.set()
        return plain(self, texts[:1]) * len(texts)

    monkeypatch.setattr(Scorer, "score_ends", noted)
    texts = [f"How do I clean a flute{'!' * place}" for place in range(100)]
    job = ListScoring(shared, tiny_run, source, listed(texts))
    begun.wait(60)
    job.cancel()
    until(lambda: not job.running)
    assert job.state == "stopped"
    assert 0 < job.done < len(texts)
    waiting = ListScoring(shared, tiny_run, source, listed(texts))
    with shared._turns.turn():
        until(lambda: "before you" in waiting.message)
        waiting.cancel()
        until(lambda: not waiting.running)
    assert waiting.state == "stopped"
    assert shared.ask(tiny_run, source, lambda opened: "free", lambda said: None) == "free"


def test_a_model_that_cannot_be_used_is_said(tiny_run, source, monkeypatch):
    def fails(run, source):
        raise ModelError("the model does not fit")

    monkeypatch.setattr("refusal_core.ui.model.load_model_for", fails)
    job = ListScoring(OneModel(), tiny_run, source, listed(TEXTS))
    until(lambda: not job.running)
    assert (job.state, job.message) == ("failed", "the model does not fit")


def test_a_list_that_breaks_does_not_run_for_ever(shared, tiny_run, source, monkeypatch):
    def breaks(self, texts):
        raise ZeroDivisionError

    monkeypatch.setattr(Scorer, "score_ends", breaks)
    job = ListScoring(shared, tiny_run, source, listed(TEXTS))
    until(lambda: not job.running)
    assert job.state == "failed"
    assert "log" in job.message
