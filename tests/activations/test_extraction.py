"""An extraction that was stopped reads nothing twice and gives the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from plain import MANY, SAMPLES, TEXTS
from tiny import tiny_model

from refusal_core.activations import limits
from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import PromptError


def stopped(chat_model, texts: list[str], folder, monkeypatch, after: int) -> int:
    """Extract until a few batches are read, one at a time, then stop; returns how many prompts were read."""
    read, read_last = [], ResidualReader.read_last

    def interrupted(reader, sequences, last=1):
        if len(read) == after:
            raise KeyboardInterrupt
        # Samples are read on construction, to see whether the template's beginning may be shared and prompts packed.
        read.append(len(sequences))
        return read_last(reader, sequences, last)

    with monkeypatch.context() as patched:
        patched.setattr(ResidualReader, "read_last", interrupted)
        patched.setattr(limits, "MAX_PARALLEL", 1)
        with contextlib.suppress(KeyboardInterrupt):
            extract(chat_model, texts, folder=folder)
    return sum(read[SAMPLES:])


def test_an_extraction_stopped_three_times_reads_nothing_twice_and_changes_no_number(monkeypatch, tmp_path):
    chat_model = tiny_model("qwen2")
    monkeypatch.setitem(limits.BATCH_TOKENS, "cpu", 100)
    monkeypatch.setattr(limits, "MAX_PARALLEL", 1)
    whole = extract(chat_model, MANY)
    batches_before = (2, 1, 3, 10**9)
    read = [stopped(chat_model, MANY, tmp_path, monkeypatch, SAMPLES + count) for count in batches_before]
    assert all(read)
    assert sum(read) == len(MANY)
    again = extract(chat_model, MANY, folder=tmp_path)
    np.testing.assert_array_equal(again.hidden, whole.hidden)
    np.testing.assert_array_equal(again.refusal_log_odds, whole.refusal_log_odds)
    assert again.first_token == whole.first_token
    assert again.seconds > 0


def test_damaged_activations_are_read_again(monkeypatch, tmp_path):
    chat_model = tiny_model("qwen2")
    monkeypatch.setattr(limits, "MAX_PARALLEL", 1)
    whole = np.array(extract(chat_model, MANY, folder=tmp_path).hidden)
    with (tmp_path / "hidden.f32").open("r+b") as file:
        file.seek(5 * whole[0].nbytes)
        file.write(b"\0" * 64)
    with (tmp_path / "passes.jsonl").open("a") as file:
        file.write('{"pass": "0 1", "prom')
    assert 0 < stopped(chat_model, MANY, tmp_path, monkeypatch, 10**9) < len(MANY)
    np.testing.assert_array_equal(extract(chat_model, MANY, folder=tmp_path).hidden, whole)
    (tmp_path / "hidden.f32").write_bytes(b"")
    assert stopped(chat_model, MANY, tmp_path, monkeypatch, 10**9) == len(MANY)


def test_batches_of_another_model_are_not_taken(monkeypatch, tmp_path):
    extract(tiny_model("qwen2"), MANY, folder=tmp_path)
    other = tiny_model("qwen2", rms_norm_eps=1e-3)
    other = dataclasses.replace(other, info=dataclasses.replace(other.info, sha256="1" * 64))
    assert stopped(other, MANY, tmp_path, monkeypatch, 10**9) == len(MANY)


def test_order_and_batching_change_nothing(monkeypatch):
    chat_model = tiny_model("llama")
    texts = TEXTS + [text + " please" for text in TEXTS]
    together = extract(chat_model, texts)
    monkeypatch.setitem(limits.BATCH_TOKENS, "cpu", 1)
    alone = extract(chat_model, texts[::-1])
    np.testing.assert_allclose(together.hidden, alone.hidden[::-1], atol=1e-4)
    assert together.first_token == alone.first_token[::-1]


def test_a_prompt_over_the_limit_is_refused_and_named():
    with pytest.raises(PromptError, match=r"prompt 2 .* tokens long .* at most 40"):
        extract(tiny_model("llama"), ["short", "long " * 80], token_limit=40)
