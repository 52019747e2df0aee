"""What strangers send is read by a process of its own, with limits: what it takes there, the server does not lose."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from refusal_core.errors import RefusalError, RunError
from refusal_core.files import PARTIAL
from refusal_core.runs.store import writable_cache
from refusal_core.sharing.archives import UnpackedRun

MOST_MEMORY = 12 * 2**30
"""Bytes of addresses that such a process may have; what its libraries reserve counts."""
MOST_SECONDS = 600
_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
if sys.platform != "win32":
    import resource
    for limit, value in ((resource.RLIMIT_AS, int(sys.argv[1])), (resource.RLIMIT_CPU, int(sys.argv[2]))):
        resource.setrlimit(limit, (value, value))
from refusal_core.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


def import_in_child(sent: BinaryIO) -> UnpackedRun:
    """Put the run of an archive that someone sent into the cache; see :func:`.archives.unpack_run`.

    Raises:
        RefusalError: saying in one sentence what is wrong with the archive, or that it takes too much to be read.
    """
    cache = writable_cache().absolute()
    try:
        with tempfile.NamedTemporaryFile(dir=cache, prefix=PARTIAL, suffix=".zip") as file:
            sent.seek(0)
            copyfileobj(sent, file)
            file.flush()
            lines = _run("unpack", f"--cache={cache}", "--", file.name).splitlines()
    except OSError as error:
        raise RunError(f"the file cannot be kept for reading ({error.strerror})") from error
    return UnpackedRun(lines[-1], new=len(lines) == 1)


def _run(*arguments: str) -> str:
    """Run a verb of the command line with limits and return what it printed."""
    command = [sys.executable, "-c", _PROGRAM, str(MOST_MEMORY), str(MOST_SECONDS), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "REFUSAL_TOKEN"}
    try:
        ended = subprocess.run(
            command,
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RefusalError("reading this file took too long; nothing was changed") from None
    if ended.returncode == 0:
        return ended.stdout.strip()
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    if ended.returncode == 1 and last.startswith("error: "):
        raise RefusalError(last.removeprefix("error: "))
    raise RefusalError("reading this file took more memory or time than it may; nothing was changed")
