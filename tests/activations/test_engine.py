"""Several batches at a time, and fewer prompts where memory is short, give the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from plain import MANY, SAMPLES, TEXTS, passes_of, relative_error
from tiny import tiny_model

from refusal_core.activations import limits
from refusal_core.activations import reader as reading
from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.transfers import to_host
from refusal_core.errors import ModelError


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_cores")
def test_batches_read_at_once_give_the_same_numbers_and_those_finished_are_kept_when_it_is_stopped(
    monkeypatch, tmp_path
):
    chat_model = tiny_model("qwen2")
    monkeypatch.setitem(limits.BATCH_TOKENS, "cpu", 100)
    whole = extract(chat_model, MANY)
    with monkeypatch.context() as patched:
        patched.setattr(limits, "MAX_PARALLEL", 1)
        one_by_one = extract(chat_model, MANY)
    np.testing.assert_allclose(whole.hidden, one_by_one.hidden, atol=1e-5)
    np.testing.assert_allclose(whole.refusal_log_odds, one_by_one.refusal_log_odds, atol=1e-5)
    assert whole.first_token == one_by_one.first_token
    seen = []

    def stop(_: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    for _ in range(2):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            extract(chat_model, MANY, folder=tmp_path, progress=stop)
        kept = seen[-1]
    seen.clear()
    again = extract(chat_model, MANY, folder=tmp_path, progress=lambda _, done, total: seen.append(done))
    assert 0 < kept < len(MANY)
    assert kept in seen
    np.testing.assert_array_equal(again.hidden, whole.hidden)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


@pytest.mark.usefixtures("three_cores")
def test_whoever_stops_does_not_wait_for_batches_under_way(monkeypatch):
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model, packs=True)
    monkeypatch.setattr("refusal_core.activations.extraction.ResidualReader", lambda *_: reader)
    monkeypatch.setitem(limits.BATCH_TOKENS, "cpu", 100)
    begun, ended, is_stopped, first = [], [], threading.Event(), threading.Lock()

    def wait(module, arguments) -> None:
        begun.append(module)
        if not first.acquire(blocking=False):
            is_stopped.wait(10)
            time.sleep(0.3)

    chat_model.blocks[0].register_forward_pre_hook(wait)
    chat_model.blocks[-1].register_forward_hook(lambda module, arguments, output: ended.append(module))

    def stop(_: str, done: int, total: int) -> None:
        if done:
            is_stopped.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(chat_model, MANY, progress=stop)
    assert len(begun) > 1
    assert len(ended) == 1


def test_threads_share_weights_and_nothing_else():
    reader = ResidualReader(tiny_model("qwen2"))
    one, other = reader.chat_model.model, reader.for_another_thread().chat_model.model
    assert [p.data_ptr() for p in one.parameters()] == [p.data_ptr() for p in other.parameters()]
    assert not {b.data_ptr() for b in one.buffers()} & {b.data_ptr() for b in other.buffers()}
    assert not set(map(id, one.modules())) & set(map(id, other.modules()))


@pytest.mark.usefixtures("three_cores")
def test_a_few_prompts_are_divided_among_the_cores_and_many_evenly():
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model, packs=True)
    for texts in (MANY[:12], MANY, MANY * 2 + [f"again {text}" for text in MANY]):
        sequences = [reader.encode(text) for text in texts]
        most = reader.balanced_token_limit(sequences)
        read = list(reader.batches(sequences, most))
        assert len(read) % 3 == 0
        with passes_of(chat_model) as passes:
            for rows in read:
                reader.read_last([sequences[row] for row in rows])
        run = [n_packs * n_tokens for n_packs, n_tokens in passes]
        assert max(run) < 1.4 * min(run)
        assert most <= reader.batch_tokens
        assert sorted(row for rows in read for row in rows) == list(range(len(texts)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for_while_a_batch_is_launched(monkeypatch):
    chat_model = tiny_model("llama")
    chat_model.model.to("cuda")
    reader = ResidualReader(dataclasses.replace(chat_model, device="cuda:0"))
    sequences = [reader.encode(text) for text in TEXTS]
    expected = reader.read_end(sequences, 1)
    launched = []

    def watched(*tensors):
        wait = to_host(*tensors)
        torch.cuda.set_sync_debug_mode("default")
        launched.append(len(tensors))
        return wait

    monkeypatch.setattr("refusal_core.activations.reader.to_host", watched)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = reader.read_end(sequences, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launched
    np.testing.assert_array_equal(found, expected)


def test_of_two_batches_for_a_gpu_one_is_launched_at_a_time(monkeypatch):
    chat_model = tiny_model("qwen2")
    plain = extract(chat_model, MANY)
    monkeypatch.setitem(limits.BATCH_TOKENS, "cuda", 100)
    monkeypatch.setattr(limits, "device_type", lambda chat_model: "cuda")
    running, most, waiting = [], [], threading.Barrier(2)

    def begun(module, arguments, options):
        running.append(threading.current_thread().name)
        time.sleep(0.005)
        most.append(len(running))

    def ended(module, arguments, output):
        running.pop()

    def watched(*tensors):
        fetched = to_host(*tensors)

        def wait():
            if threading.current_thread() is not threading.main_thread():
                with contextlib.suppress(threading.BrokenBarrierError):
                    waiting.wait(10)  # the other batch is launched before this one has come
            return fetched()

        return wait

    chat_model.model.register_forward_pre_hook(begun, with_kwargs=True)
    chat_model.model.register_forward_hook(ended)
    monkeypatch.setattr("refusal_core.activations.reader.to_host", watched)
    found = extract(chat_model, MANY)
    assert not waiting.broken
    assert max(most) == 1
    assert relative_error(np.array(found.hidden), np.array(plain.hidden)) < 1e-5
    assert found.first_token == plain.first_token


def test_a_device_without_memory_for_a_full_pack_still_packs():
    chat_model, tried = tiny_model("llama"), []

    def cramped(module, arguments, options):
        tried.append(arguments[0].shape[1])
        if tried[-1] > 100:
            raise torch.OutOfMemoryError

    handle = chat_model.model.register_forward_pre_hook(cramped, with_kwargs=True)
    found = extract(chat_model, MANY)
    handle.remove()
    assert found.pack_note == reading.PACKED
    assert found.batch_tokens <= 128
    assert max(tried) > 256
    np.testing.assert_allclose(found.hidden, extract(chat_model, MANY).hidden, atol=1e-5)


def test_a_device_without_memory_for_two_prompts_says_so():
    chat_model = tiny_model("llama")
    reader = ResidualReader(chat_model)

    def full(module, arguments):
        raise torch.OutOfMemoryError

    chat_model.model.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        _ = reader.packs


def test_a_device_without_memory_gets_smaller_batches(monkeypatch):
    chat_model = tiny_model("qwen2")
    whole, read_last, sizes = extract(chat_model, MANY), ResidualReader.read_last, []

    def cramped(reader, sequences, last=1):
        if len(sequences) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(sequences))
        return read_last(reader, sequences, last)

    monkeypatch.setattr(ResidualReader, "read_last", cramped)
    found = extract(chat_model, MANY)
    assert found.batch_tokens < whole.batch_tokens
    assert whole.batch_note is None
    assert found.batch_note == f"cpu ran out of memory: {found.batch_tokens} tokens together in place of 512"
    assert sum(sizes[SAMPLES:]) == len(MANY)
    np.testing.assert_allclose(found.hidden, whole.hidden, atol=1e-5)


def test_a_prompt_that_does_not_fit_beside_another_batch_is_read_after_it(monkeypatch):
    chat_model, read_last, reading = tiny_model("qwen2"), ResidualReader.read_last, []
    whole = extract(chat_model, MANY)

    def cramped(reader, sequences, last=1):
        reading.append(len(sequences))
        try:
            time.sleep(0.01)
            if len(reading) > 1:
                raise torch.OutOfMemoryError
            return read_last(reader, sequences, last)
        finally:
            reading.pop()

    monkeypatch.setattr(limits, "n_parallel", lambda chat_model: 2)
    monkeypatch.setattr(ResidualReader, "read_last", cramped)
    found = extract(chat_model, MANY)
    np.testing.assert_allclose(found.hidden, whole.hidden, atol=1e-5)
    assert "ran out of memory" in found.batch_note


def test_a_prompt_that_fits_nowhere_is_named(monkeypatch):
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model, packs=True)
    monkeypatch.setattr("refusal_core.activations.extraction.ResidualReader", lambda *_: reader)

    def full(sequences, last=1):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(reader, "read_last", full)
    with pytest.raises(ModelError, match=r"prompt \d+ alone does not fit"):
        extract(chat_model, MANY)
