"""Starting the dashboard's server, from a checkout or from an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import refusal_core
from refusal_core.errors import RefusalError

_PACKAGE = Path(refusal_core.__file__).resolve().parent


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
