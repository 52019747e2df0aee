"""``python killing.py CACHE EVERY COMMAND…``: a command of the command line, killed again and again until it is done.

It is killed before it reports a stage, syncs a file, renames one or removes a folder: at every such moment, or at every
so-manyth. Each attempt goes on from what the one before left, in a process of its own that is forked from this one,
which has imported the libraries. After each death, the cache has no run that is not whole, and each measurement is
whole or missing; a model that can be opened is whole. Prints at how many moments it was killed.

The variable TINY_KNOWN has a model that is known by its name besides, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub

import refusal_core.intervention.experiment
import refusal_core.pipeline.run
import refusal_core.pipeline.subspace  # noqa: F401 - imported before the forks
from refusal_core.cli.main import main
from refusal_core.models import fetching, identity
from refusal_core.models.hub import find_snapshot
from refusal_core.models.known import KNOWN, KnownModel
from refusal_core.progress.file import ProgressFile
from refusal_core.runs import store
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import KINDS

_MOMENTS = ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"), (ProgressFile, "__call__"))
_MOST_ATTEMPTS = 400
# Many moments of a download that is small.
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000


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


def check_model(name: str) -> None:
    """Raise AssertionError for a model that can be opened and has a file that is not whole."""
    if not identity.is_available(name):
        return
    if name in fetching.KNOWN:
        folder = fetching.KNOWN[name].folder
        files = json.loads((folder / "refusal.json").read_text())["files"]
        assert {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files} == {
            file: entry["sha256"] for file, entry in files.items()
        }
        return
    # The hub's library names what it keeps after its digest.
    for path in find_snapshot(name, offline=True).folder.iterdir():
        content = path.read_bytes()
        digests = hashlib.sha256(content), hashlib.sha1(b"blob %d\0" % len(content) + content)
        assert path.resolve().name in {digest.hexdigest() for digest in digests}, path


if __name__ == "__main__":
    if described := os.environ.get("TINY_KNOWN"):
        known = KnownModel(**json.loads(described))
        fetching.KNOWN = identity.KNOWN = MappingProxyType({**KNOWN, known.name: known})
    folder, every, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    killed = 0
    for number in range(_MOST_ATTEMPTS):
        status = attempt(number * every, command)
        check_model(command[1]) if command[0] == "fetch" else check_whole(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed += 1
    else:
        sys.exit("it never ended")
    print(killed)
