"""Long work in the background: the command line in a process of its own, watched through its progress file.

The process survives a closed tab and a restarted server; asking for the same work twice starts it once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from refusal_core.known_models import models_folder


@dataclass(frozen=True)
class JobStatus:
    """Where a job is: ``state`` is ``running``, ``done`` or ``failed``; ``total`` 0 means unknown."""

    state: str
    stage: str
    done: int
    total: int
    message: str


def start_fetch(name: str, revision: str | None = None) -> None:
    """Begin to fetch a model, unless that is under way."""
    path = _progress_path(name, revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = ["--revision", revision] if revision else []
    with FileLock(path.with_suffix(".lock")):
        status = fetch_status(name, revision)
        if status is not None and status.state == "running":
            return
        with path.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "refusal_core", "fetch", name, *chosen, "--progress-file", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[2],
            )
        begun = {"stage": "starting", "done": 0, "total": 0, "state": "running", "message": "", "pid": process.pid}
        path.write_text(json.dumps(begun), encoding="utf-8")


def fetch_status(name: str, revision: str | None = None) -> JobStatus | None:
    """Where the fetch of a model is, or ``None`` when none was begun."""
    try:
        record = json.loads(_progress_path(name, revision).read_text(encoding="utf-8"))
        status = JobStatus(*(record[field] for field in ("state", "stage", "done", "total", "message")))
        pid = int(record["pid"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return JobStatus("failed", "", 0, 0, "the record of the last attempt cannot be read; start again")
    if status.state == "running" and not _alive(pid):
        return JobStatus("failed", status.stage, status.done, status.total, "it ended without a word; start again")
    return status


def _progress_path(name: str, revision: str | None) -> Path:
    named = "--".join([*name.split("/"), *filter(None, [revision])])
    return models_folder() / ".jobs" / f"{named.replace('/', '-')}.json"


def _alive(pid: int) -> bool:
    try:
        # A child of this server that has ended stays a zombie, which still answers, until it is waited for.
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
