"""Extraction by two of Ray's actors on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import replace
from importlib.util import find_spec
from time import sleep
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from making import make_run
from tiny import LLAMA_LIKE

from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.cli.main import main
from refusal_core.errors import ModelError, RefusalError
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.runs import store

MISSING = "Ray is not installed: it comes with the extra `ray`"
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason=MISSING)
# As many lengths as there are to be shards.
TEXTS = [f"Tell me {'more ' * (place % 6)}about number {place:02}" for place in range(30)]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    """An actor that is made here sets their number for this process, and prompts are divided among them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chat_model(tiny_folder) -> ChatModel:
    return load_model(tiny_folder, dtype="float32", device="cpu")


def actors() -> list[psutil.Process]:
    """The processes of Ray's actors that this process has started."""
    return [each for each in psutil.Process().children(recursive=True) if _title(each).startswith("ray::Map")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _connections(process: psutil.Process) -> list:
    """None of a process that has ended since it was listed."""
    try:
        return process.net_connections("inet")
    except psutil.Error:
        return []


@needs_ray
@pytest.mark.slow
def test_two_actors_read_what_one_process_reads_and_a_killed_one_costs_its_shard(chat_model, tmp_path):
    from refusal_core.activations.ray_engine import on_actors

    whole = extract(chat_model, TEXTS)
    killed, addresses, counts = [], set(), []

    def kill_one(stage: str, done: int, total: int) -> None:
        counts.append(done)
        own = actors()
        addresses.update(
            connection.laddr.ip
            for each in psutil.Process().children(recursive=True)
            for connection in _connections(each)
            if connection.status == psutil.CONN_LISTEN
        )
        if done and not killed:
            killed.append(own[0].pid)
            os.kill(own[0].pid, signal.SIGKILL)

    found = extract(chat_model, TEXTS, engine=on_actors(chat_model.info, actors=2), progress=kill_one, folder=tmp_path)
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert counts == sorted(counts)
    assert counts[-1] == len(TEXTS)
    np.testing.assert_array_equal(found.hidden, whole.hidden)
    np.testing.assert_array_equal(found.refusal_log_odds, whole.refusal_log_odds)
    assert found.first_token == whole.first_token
    assert found.batch_tokens == whole.batch_tokens
    assert not actors()
    # All is kept: another process reads nothing again.
    again = extract(chat_model, TEXTS, folder=tmp_path, engine=lambda reader, jobs: iter(list(jobs)))
    np.testing.assert_array_equal(again.hidden, whole.hidden)


@needs_ray
@pytest.mark.slow
def test_what_goes_wrong_on_an_actor_is_said_here_and_ray_stays_down_however_slow_its_threads(
    chat_model, tmp_path, monkeypatch
):
    """A cluster that a thread of Ray's starts takes this process with it a minute later."""
    import ray
    import ray.data

    from refusal_core.activations.ray_engine import on_actors

    wait, slow = ray.wait, threading.Event()

    def wait_slowly(*arguments, **options):
        if threading.current_thread().name == "Prefetcher":
            slow.set()
            sleep(5)
        return wait(*arguments, **options)

    monkeypatch.setattr(ray, "wait", wait_slowly)
    nowhere = replace(chat_model.info, path=str(tmp_path / "no-such-model"))
    with pytest.raises(ModelError, match="no-such-model"):
        extract(chat_model, TEXTS[:4], engine=on_actors(nowhere, actors=1))
    if slow.is_set():
        sleep(10)
    assert not ray.is_initialized()


@needs_ray
@pytest.mark.slow
def test_the_command_line_runs_with_ray_and_a_borrowed_template(tiny_folder, tmp_path):
    (tmp_path / "borrowed.jinja").write_text(LLAMA_LIKE)
    command = ["run", "--model", str(tiny_folder), "--limit-per-label", "8", "--device", "cpu", "--dtype", "float32"]
    command += ["--chat-template", str(tmp_path / "borrowed.jinja")]
    assert main([*command, "--cache", str(tmp_path / "a")]) == 0
    assert main([*command, "--cache", str(tmp_path / "b"), "--engine", "ray", "--actors", "2"]) == 0
    (first,), (second,) = (
        [store.open_run(summary.run_id, tmp_path / cache) for summary in store.list_runs(tmp_path / cache)[0]]
        for cache in "ab"
    )
    assert first.run_id == second.run_id
    assert first.manifest.compute.engine == "process"
    assert second.manifest.compute.engine == "ray"
    np.testing.assert_array_equal(first.projections, second.projections)


@needs_ray
@pytest.mark.parametrize(
    ("device", "driver_has_one", "in_cluster", "expected"),
    [
        ("cpu", False, 3, 3),  # a head node without
        ("cpu", True, 3, 0),  # asked to compute without
        ("cuda:0", True, 3, 3),
        ("cpu", False, 0, 0),
    ],
)
def test_the_gpus_of_the_cluster_are_counted_not_those_of_its_head(
    device, driver_has_one, in_cluster, expected, monkeypatch
):
    from refusal_core.activations.ray_engine import _gpus

    monkeypatch.setattr("torch.cuda.is_available", lambda: driver_has_one)
    monkeypatch.setattr(
        "ray.cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": float(in_cluster)} if in_cluster else {})
    )
    assert _gpus(SimpleNamespace(device=device)) == expected


def test_an_actor_reads_as_the_driver_does_on_a_gpu_of_its_own(chat_model):
    from refusal_core.activations.ray_engine import _Actor, _arguments

    opening = {"model": chat_model.info, "template": None, "load_in": None}
    for packs in (True, False):
        reader = ResidualReader(chat_model, packs=packs)
        actor = _Actor(**_arguments(reader, opening, gpus=0))
        assert actor._reader._reader.packs is packs
    assert _arguments(reader, opening, gpus=0)["opening"]["device"] == "cpu"
    assert _arguments(reader, opening, gpus=2)["opening"] == opening | {"device": "cuda:0", "dtype": "float32"}


def test_the_model_comes_back_to_its_gpu_whatever_becomes_of_the_actors(monkeypatch):
    from refusal_core.activations.ray_engine import _left_to_actors

    moved = []
    model = SimpleNamespace(cpu=lambda: moved.append("cpu"), to=lambda device: moved.append(str(device)))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    with contextlib.suppress(ModelError), _left_to_actors(SimpleNamespace(device="cuda:1", model=model)):
        assert moved == ["cpu"]
        raise ModelError("an actor failed")
    assert moved == ["cpu", "cuda:1"]
    with _left_to_actors(SimpleNamespace(device="cpu", model=model)):
        pass
    assert len(moved) == 2


def test_without_ray_a_sentence_says_how_to_have_it(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("refusal_core.activations.ray_engine.find_spec", lambda name: None)
    command = [
        "run",
        "--model",
        str(tiny_folder),
        "--limit-per-label",
        "8",
        "--engine",
        "ray",
        "--cache",
        str(tmp_path),
    ]
    assert main(command) == 1
    assert "extra `ray`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "warp"}, "expected process or ray for engine"),
        ({"actors": 2}, "with the engine ray only"),
        ({"engine": "ray", "actors": 0}, "1 or more"),
        ({"engine": "ray", "device": "spread"}, "one device"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_folder, tmp_path, options, says):
    with pytest.raises(RefusalError, match=says):
        make_run(tiny_folder, "pairs", limit_per_label=8, cache=tmp_path, **options)
