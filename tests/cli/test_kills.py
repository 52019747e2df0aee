"""Work that is killed at moment after moment: what looks whole is whole, and the work goes on to the same result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_core.runs import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows forks no processes"),
]
TESTS = Path(__file__).resolve().parents[1]
NEVER = 10**9


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
    runs = []
    for name, every in (("killed", 25), ("other", NEVER)):
        (tmp_path / name).mkdir()
        options = ("--model", str(tiny_folder), "--prompts", "pairs", "--limit-per-label", "12")
        assert (killed(tmp_path / name, every, "run", *options) > 1) == (name == "killed")
        runs.append(store.open_run(tiny_run.run_id, tmp_path / name))
    assert tables(runs[0]) == tables(runs[1])


def test_a_measurement_killed_at_moment_after_moment_is_the_one_that_nobody_killed(tiny_folder, tiny_run, tmp_path):
    runs = []
    for name, every in (("killed", 8), ("other", NEVER)):
        shutil.copytree(tiny_run.path, tmp_path / name / tiny_run.run_id)
        options = ("behaviour", "--model", str(tiny_folder), tiny_run.run_id)
        assert (killed(tmp_path / name, every, "measure", *options) > 1) == (name == "killed")
        runs.append(store.open_run(tiny_run.run_id, tmp_path / name))
    assert tables(runs[0]) == tables(runs[1])
