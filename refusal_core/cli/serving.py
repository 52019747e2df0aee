"""The verb ``dashboard``: the server, from a checkout or from an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

import refusal_core
from refusal_core.cli.parameters import Cache
from refusal_core.errors import RefusalError
from refusal_core.runs import store

_PACKAGE = Path(refusal_core.__file__).resolve().parent


def dashboard(
    *,
    port: Annotated[
        int | None,
        Parameter(help="Port on this machine (default: 8501).", validator=Number(gte=1, lte=65535)),
    ] = None,
    cache: Cache = None,
) -> None:
    """Serve the dashboard on this machine until it is interrupted."""
    status = serve(store.cache_folder(cache).resolve(), port)
    if status:
        sys.exit(status)


def app_script() -> Path:
    """Return the script that Streamlit runs; its pages and its configuration lie beside it.

    A wheel carries them in the package, a checkout has them at its top.

    Raises:
        RefusalError: when neither is there.
    """
    for folder in (_PACKAGE / "dashboard", _PACKAGE.parent):
        if (folder / "app.py").is_file() and (folder / "pages").is_dir():
            return folder / "app.py"
    raise RefusalError(f"the dashboard's pages are missing from {_PACKAGE}: install the package again")


def serve(cache: Path, port: int | None = None) -> int:
    """Serve the dashboard until it is interrupted.

    Args:
        cache: the folder of runs that it shows.
        port: the port on this machine; by default the one that the configuration names.

    Returns:
        The server's exit status.

    Raises:
        RefusalError: when Streamlit is not installed or the pages are missing.
    """
    if find_spec("streamlit") is None:
        raise RefusalError("the dashboard needs Streamlit: install refusal-directions with its extra named dashboard")
    command = [sys.executable, "-m", "streamlit", "run", str(app_script())]
    if port is not None:
        command.append(f"--server.port={port}")
    return subprocess.run(command, env=os.environ | {"REFUSAL_CACHE": str(cache)}, check=False).returncode
