"""``python killing.py CACHE EVERY COMMAND…``: a command of the command line, killed again and again until it is done.

It is killed before it reports a stage, syncs a file, renames one or removes a folder: at every such moment, or at every
so-manyth. Each attempt goes on from what the one before left, in a process of its own that is forked from this one,
which has imported the libraries. After each death, the cache has no run that is not whole, and each measurement is
whole or missing. Prints at how many moments it was killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import refusal_core.intervention.experiment
import refusal_core.pipeline.run
import refusal_core.pipeline.subspace  # noqa: F401 - imported before the forks
from refusal_core.cli.main import main
from refusal_core.progress.file import ProgressFile
from refusal_core.runs import store
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import KINDS

_MOMENTS = ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"), (ProgressFile, "__call__"))
_MOST_ATTEMPTS = 400


def die_at(moment: int) -> None:
    """Have this process kill itself at the so-manyth moment from now."""
    left = moment

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        return call_or_die

    for holder, name in _MOMENTS:
        setattr(holder, name, wrapped(getattr(holder, name)))


def attempt(moment: int, command: list[str]) -> int:
    """Run a command in a fork that dies at a moment; returns the fork's exit status, negative for a signal."""
    child = os.fork()
    if not child:
        die_at(moment)
        os._exit(main(command))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_whole(cache: Path) -> None:
    """Raise AssertionError for a folder that looks like a run and is none, RefusalError for half a measurement."""
    runs, broken = store.list_runs(cache)
    assert not broken, broken
    for summary in runs:
        opened = store.open_run(summary.run_id, cache, everything=True)
        for kind in KINDS:
            read_addition(opened, kind)


if __name__ == "__main__":
    folder, every, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    killed = 0
    for number in range(_MOST_ATTEMPTS):
        status = attempt(number * every, command)
        check_whole(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed += 1
    else:
        sys.exit("it never ended")
    print(killed)
