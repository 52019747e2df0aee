"""Long work in the background: the command line in a process of its own, watched through its progress file.

A job is named after what is asked for, so two clicks, two visitors and two servers on one cache start it once. It
survives a closed tab and a restarted server: its record, progress and log lie in ``cache/.jobs/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from refusal_core.children import end_first_without_memory
from refusal_core.errors import RefusalError
from refusal_core.files import write_atomically
from refusal_core.models.known import models_folder
from refusal_core.runs.store import cache_folder, writable_cache
from refusal_core.ui.server import require_owner

State = Literal["running", "done", "failed", "cancelled"]

_PROGRAM = (sys.executable, "-m", "refusal_core")
_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = ".jobs"
_NAME = re.compile(r"[a-z-]+-[0-9a-f]{12}")
_KEPT = 20
MOST_AT_ONCE = 8
"""The most jobs of all visitors that run or wait for their turn."""
_SECONDS_TO_END, _SECONDS_TO_START = 5.0, 20.0
_LOG_BYTES = 16_384
_OOM_SCORE = 500
_KILLED = (
    "it was killed, as the system does where memory runs out or the machine is restarted; start it again, and it goes "
    "on from what it had finished"
)


@dataclass(frozen=True)
class Command:
    """A command of the command line that reports progress, to run in the background.

    Attributes:
        title: what it does, in words.
        verb: ``run``, or of two words ``measure behaviour``.
        arguments: what follows the verb. A value that someone typed goes in as ``--option=value`` or after a ``--``, so
            that it is never taken for an option; see :meth:`refusal_core.options.Options.arguments`.
    """

    title: str
    verb: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The job's name, the same whenever the same is asked for."""
        digest = hashlib.sha256(json.dumps([self.verb, *self.arguments]).encode()).hexdigest()[:12]
        return f"{self.verb.replace(' ', '-')}-{digest}"


@dataclass(frozen=True)
class Job:
    """Where a job is.

    Attributes:
        stage: named with its unit, as in ``downloading (bytes)``; ``total`` 0 means unknown.
        message: one line that says why it failed, else empty.
        began: Unix seconds.
        seconds: since it began, or that it took.
        seconds_left: of the stage, by the rate of the last half minute; ``None`` where nothing can be said.
    """

    command: Command
    state: State
    stage: str
    done: int
    total: int
    message: str
    began: float
    seconds: float
    seconds_left: float | None

    @property
    def name(self) -> str:
        """The job's name: that of its command."""
        return self.command.name


def start(command: Command) -> None:
    """Begin a command, unless it is under way.

    Raises:
        RefusalError: when no process or no record of it can be made, or the visitor may not begin any.
    """
    require_owner()
    folder = writable_cache() / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with _lock():
            job = status(command.name)
            if job is not None and job.state == "running":
                return
            if sum(other.state == "running" for other in all_jobs()) >= MOST_AT_ONCE:
                raise RefusalError(f"{MOST_AT_ONCE} jobs are under way already: wait until one ends, or cancel one")
            _begin(command)
    except OSError as error:
        raise RefusalError(f"{command.title}: the job cannot be started ({error.strerror})") from error
    finished = [job for job in all_jobs() if job.state != "running"]
    for job in finished[_KEPT:]:
        forget(job.name)


def status(name: str) -> Job | None:
    """Where a job is, or ``None`` when none of that name was begun."""
    record = _record(name)
    if record is None:
        return None
    # The process first: one that ends between the two has written how before it ended.
    alive = _process(name) is not None
    progress = _read(_path(name, ".progress")) or {}
    try:
        command = Command(str(record["title"]), str(record["verb"]), tuple(map(str, record["arguments"])))
        began, cancelled = float(record["began"]), bool(record["cancelled"])
        stage, done, total = str(progress.get("stage", "")), int(progress.get("done", 0)), int(progress.get("total", 0))
        said, message = progress.get("state", "running"), str(progress.get("message", ""))
        begun, rate = _clock(record, "began"), progress.get("rate")
        updated = _clock(progress, "updated") if progress else begun
        left = (total - done) / float(rate) if rate else None
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return None
    if not all(map(math.isfinite, (began, begun, updated, left or 0.0))):
        return None
    now = time.monotonic()
    starting = record.get("pid") is None and not progress and 0 <= now - begun < _SECONDS_TO_START
    state: State
    if said in ("done", "failed"):
        state = said
    elif alive or starting:
        state = "running"
    elif cancelled or said == "cancelled":
        state = "cancelled"
    else:
        state, message = "failed", _last_words(name)
    return Job(
        command=command,
        state=state,
        stage=stage,
        done=done,
        total=total,
        message=message,
        began=began,
        seconds=max((now if state == "running" else updated) - begun, 0.0),
        seconds_left=max(left - (now - updated), 0.0) if state == "running" and total and left is not None else None,
    )


def all_jobs() -> list[Job]:
    """The jobs that run and the last of those that ended, newest first."""
    names = [path.stem for path in (cache_folder() / _FOLDER).glob("*.json")]
    jobs = [job for job in map(status, filter(_NAME.fullmatch, names)) if job is not None]
    return sorted(jobs, key=lambda job: job.began, reverse=True)


def cancel(name: str) -> None:
    """End a job and what it started: asked first, and killed when it has not ended within seconds.

    What the command keeps of its work stays, so that an extraction that is begun again goes on where it was.

    Raises:
        RefusalError: when the visitor may not.
    """
    require_owner()
    if not _path(name, ".json").is_file():
        return
    with _lock():
        process, record = _process(name), _record(name)
        if process is None or record is None:
            return
        _write(_path(name, ".json"), record | {"cancelled": True})
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        _end(family, psutil.Process.terminate)
        _end(family, psutil.Process.kill)


def forget(name: str) -> None:
    """Remove what is kept of a job that has ended.

    Raises:
        RefusalError: when the visitor may not.
    """
    require_owner()
    if not _path(name, ".json").is_file():
        return
    with _lock():
        job = status(name)
        if job is None or job.state != "running":
            for ending in (".json", ".progress", ".log"):
                _path(name, ending).unlink(missing_ok=True)


def log(name: str, lines: int = 20) -> str:
    """The last lines a job printed."""
    try:
        with _path(name, ".log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def _begin(command: Command) -> None:
    record = _path(command.name, ".json")
    _path(command.name, ".progress").unlink(missing_ok=True)
    begun = {
        "title": command.title,
        "verb": command.verb,
        "arguments": command.arguments,
        "pid": None,
        "began": time.time(),
        "clock": time.monotonic(),
        "cancelled": False,
    }
    # First, so that no job runs that nobody knows of, whatever happens to this server or to the disk.
    _write(record, begun)
    try:
        process = _popen(command)
    except OSError:
        record.unlink()
        raise
    end_first_without_memory(process.pid, _OOM_SCORE)
    # It may outlive this server; one that ends before is waited for, so that nothing of it stays behind.
    threading.Thread(target=process.wait, daemon=True).start()
    # For a moment a new process has no command line, which is what it is known by.
    with contextlib.suppress(psutil.Error):
        while not psutil.Process(process.pid).cmdline():
            time.sleep(0.001)
    # Without it the job is known by the pid in its progress.
    with contextlib.suppress(OSError):
        _write(record, begun | {"pid": process.pid})


def _popen(command: Command) -> subprocess.Popen[bytes]:
    # The job works in the program's folder, so what is relative to the server's has to be made absolute.
    folders = {"REFUSAL_CACHE": str(cache_folder().absolute()), "REFUSAL_MODELS": str(models_folder().absolute())}
    with _path(command.name, ".log").open("wb") as written:
        return subprocess.Popen(
            [*_PROGRAM, *command.verb.split(), _watched(command.name), *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if name != "REFUSAL_TOKEN"} | folders,
        )


def _end(family: list[psutil.Process], end: Callable[[psutil.Process], None]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            end(process)
    psutil.wait_procs(family, timeout=_SECONDS_TO_END)


def _process(name: str) -> psutil.Process | None:
    """The job's process while it runs: the recorded one, if that is still the one that was started.

    A pid may have gone to another process meanwhile; only the job's own was told to write the job's progress file. Of
    one whose server was killed before it knew the pid, the job's own progress tells it.
    """
    record, progress = _record(name) or {}, _read(_path(name, ".progress")) or {}
    try:
        process = psutil.Process(int(record.get("pid") or progress["pid"]))
        return process if _watched(name) in process.cmdline() else None
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return None


def _watched(name: str) -> str:
    return f"--progress-file={_path(name, '.progress').absolute()}"


def _last_words(name: str) -> str:
    """What a process that left no state printed last, if that was an error."""
    *_, last = ["", *log(name).split("\n")]
    _, error, words = last.partition("error: ")
    return words if error else _KILLED


def _clock(written: dict[str, Any], unix: str) -> float:
    """Return the seconds of the monotonic clock at which something was, from Unix seconds where they alone are known.

    A job may have been started by a version of this program that wrote no other.
    """
    return float(written["clock"]) if "clock" in written else time.monotonic() - (time.time() - float(written[unix]))


def _path(name: str, ending: str) -> Path:
    if not _NAME.fullmatch(name):
        raise RefusalError(f"{name!r:.80} is no job")
    return cache_folder() / _FOLDER / f"{name}{ending}"


def _lock() -> FileLock:
    return FileLock(cache_folder() / _FOLDER / "lock")


def _record(name: str) -> dict[str, Any] | None:
    return _read(_path(name, ".json"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content))
