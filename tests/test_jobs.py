from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from refusal_core.errors import ModelError
from refusal_core.progress_file import ProgressFile
from refusal_core.ui import jobs


@pytest.fixture(autouse=True)
def _models(monkeypatch, tmp_path):
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path))


def write(name: str, **record: object) -> None:
    path = jobs._progress_path(name, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"stage": "s", "done": 1, "total": 2, "message": "", **record}))


def test_a_progress_file_is_whole_at_every_moment_and_says_how_it_ended(tmp_path):
    path = tmp_path / "p.json"
    with ProgressFile(path) as progress:
        progress("downloading (bytes)", 3, 9)
        assert json.loads(path.read_text())["done"] == 3
    assert json.loads(path.read_text())["state"] == "done"
    with pytest.raises(ModelError), ProgressFile(path):
        raise ModelError("no such model")
    ended = json.loads(path.read_text())
    assert (ended["state"], ended["message"]) == ("failed", "no such model")
    assert os.listdir(tmp_path) == ["p.json"]


def test_no_job_is_none():
    assert jobs.fetch_status("x") is None


def test_a_process_that_died_without_a_word_has_failed():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 10
    while not os.path.exists(f"/proc/{process.pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    write("x", state="running", pid=process.pid)
    while jobs.fetch_status("x").state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    status = jobs.fetch_status("x")
    assert status.state == "failed"
    assert "start again" in status.message


def test_two_clicks_start_one_job(monkeypatch):
    started = []

    class Process:
        pid = os.getpid()

        def __init__(self, command, **options):
            started.append(command)

    monkeypatch.setattr(jobs.subprocess, "Popen", Process)
    jobs.start_fetch("qwen")
    jobs.start_fetch("qwen")
    assert len(started) == 1
    assert started[0][1:5] == ["-m", "refusal_core", "fetch", "qwen"]
    assert jobs.fetch_status("qwen").state == "running"


def test_a_failed_job_can_be_started_again(monkeypatch):
    started = []
    monkeypatch.setattr(
        jobs.subprocess,
        "Popen",
        lambda command, **options: started.append(command) or type("P", (), {"pid": os.getpid()}),
    )
    write("qwen", state="failed", pid=1, message="no network")
    jobs.start_fetch("qwen")
    assert len(started) == 1


def test_an_unreadable_record_is_a_failure_not_a_crash():
    path = jobs._progress_path("x", None)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert jobs.fetch_status("x").state == "failed"
