"""Work that is killed at moment after moment: what looks whole is whole, and the work goes on to the same result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_core.behaviour import measurement
from refusal_core.models.opening import ChatModel
from refusal_core.runs import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows forks no processes"),
]
TESTS = Path(__file__).resolve().parents[1]


def killed(cache: Path, every: int, *command: str) -> int:
    """At how many moments a command was killed before it was done."""
    options = ("--device", "cpu", "--dtype", "float32", "--cache", str(cache), "--progress-file", str(cache / "p.json"))
    ended = subprocess.run(
        [sys.executable, str(TESTS / "killing.py"), str(cache), str(every), *command, *options],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.split()[-1])


def tables(run: store.Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix in (".parquet", ".safetensors")}


def test_a_run_killed_at_moment_after_moment_is_the_run_that_nobody_killed(tiny_folder, tiny_run, tmp_path):
    n = killed(tmp_path, 25, "run", "--model", str(tiny_folder), "--prompts", "pairs", "--limit-per-label", "12")
    assert n > 1
    assert tables(store.open_run(tiny_run.run_id, tmp_path)) == tables(tiny_run)


def test_a_measurement_killed_at_moment_after_moment_is_the_one_that_nobody_killed(
    tiny_folder, tiny_run, tiny_chat_model: ChatModel, tmp_path
):
    runs = []
    for name in ("killed", "other"):
        shutil.copytree(tiny_run.path, tmp_path / name / tiny_run.run_id)
        runs.append(store.open_run(tiny_run.run_id, tmp_path / name))
    n = killed(tmp_path / "killed", 8, "measure", "behaviour", "--model", str(tiny_folder), tiny_run.run_id)
    assert n > 1
    measurement.record(runs[1], tiny_chat_model)
    assert tables(runs[0]) == tables(runs[1])
