"""The dashboard in a process of its own, to be measured by whoever visits it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from refusal_core.access.settings import TOKEN, Access
from refusal_core.models.known import models_folder

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def served(*runs: Path) -> Iterator[tuple[int, psutil.Process, Access]]:
    """Serve the dashboard over copies of run folders; yields its port, its process and its access."""
    access = Access(secrets.token_urlsafe(32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in runs:
            shutil.copytree(run, folder / "cache" / run.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        named = {"REFUSAL_CACHE": str(folder / "cache"), "REFUSAL_MODELS": str(models_folder().absolute())}
        log = folder / "log"
        with log.open("wb") as written:
            server = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)],
                cwd=ROOT,
                env=os.environ | named | {TOKEN: access.token},
                stdout=written,
                stderr=written,
            )
        try:
            _wait_until_served(port, server, log)
            yield port, psutil.Process(server.pid), access
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_served(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(720):
        if server.poll() is not None:
            raise RuntimeError(f"the dashboard was not served: {log.read_text()}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(f"not served within three minutes: {log.read_text()}")
