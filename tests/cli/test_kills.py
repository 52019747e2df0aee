"""Work that is killed at moment after moment: what looks whole is whole, and the work goes on to the same result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny import write_tiny_gguf

from refusal_core.models.known import KNOWN
from refusal_core.runs import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows forks no processes"),
]
TESTS = Path(__file__).resolve().parents[1]
NEVER = 10**9


def killed(cache: Path, every: int, *command: str, **environment: str) -> int:
    """At how many moments a command was killed before it was done."""
    options: tuple[str, ...] = ("--progress-file", str(cache / "p.json"))
    if command[0] != "fetch":
        options += ("--device", "cpu", "--dtype", "float32", "--cache", str(cache))
    ended = subprocess.run(
        [sys.executable, str(TESTS / "killing.py"), str(cache), str(every), *command, *options],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"} | environment,
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


@pytest.mark.parametrize(("name", "every"), [("some/model", 4), ("tiny", 40)])
def test_a_fetch_killed_at_moment_after_moment_brings_the_model_that_the_hub_has(name, every, tiny_folder, tmp_path):
    server = HubServer()
    server.add("some/model", tiny_folder)
    gguf = tmp_path / "tiny.gguf"
    write_tiny_gguf(gguf)
    content = gguf.read_bytes()
    server.add("some/tiny-GGUF", {"tiny-q4.gguf": content})
    known = replace(
        KNOWN["gemma-3-270m"],
        name="tiny",
        wheels=(),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        converted_size=len(content),
        architecture="Qwen2ForCausalLM",
        n_layers=4,
        d_model=32,
        hub_repo="some/tiny-GGUF",
        hub_file="tiny-q4.gguf",
    )
    fetched = []
    with server.running():
        for folder, kills in ((tmp_path / "killed", every), (tmp_path / "other", NEVER)):
            folder.mkdir()
            environment = server.environment(folder / "hf") | {
                "REFUSAL_MODELS": str(folder / "models"),
                "TINY_KNOWN": json.dumps(asdict(known)),
            }
            assert (killed(folder, kills, "fetch", name, **environment) > 1) == (kills == every)
            files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
            fetched.append({path.name: path.read_bytes() for path in files})
    assert fetched[0] == fetched[1]
    assert fetched[0]
