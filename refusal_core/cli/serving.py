"""The verb ``dashboard``: the server, from a checkout or from an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

import refusal_core
from refusal_core.access.folders import FOLDERS
from refusal_core.access.settings import OPEN, OWNERS, READ_ONLY, VIEWERS
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
    address: Annotated[
        str | None, Parameter(help="Address to listen on (default: 127.0.0.1, which this machine alone reaches).")
    ] = None,
    host: Annotated[
        tuple[str, ...],
        Parameter(
            name="--host",
            help="Host name that visitors ask for, as refusal.example.org; may be repeated (default: this machine's "
            "names for itself, and the address).",
        ),
    ] = (),
    folder: Annotated[
        tuple[str, ...],
        Parameter(help="Folder in which visitors may name models and prompt files; may be repeated (default: none)."),
    ] = (),
    read_only: Annotated[bool, Parameter(negative=(), help="Let everyone look and score, and nobody change.")] = False,
    no_token: Annotated[
        bool, Parameter(negative=(), help="Ask nobody for a token; beyond this machine only together with read-only.")
    ] = False,
    owner: Annotated[
        tuple[str, ...],
        Parameter(
            help="E-mail address of somebody who logs in and may change runs; may be repeated. People log in with the "
            "provider in Streamlit's secrets, and no token is asked for."
        ),
    ] = (),
    viewer: Annotated[
        tuple[str, ...],
        Parameter(
            help="E-mail address of somebody who logs in and may look, or @example.org for all of a domain's; may be "
            "repeated."
        ),
    ] = (),
    cache: Cache = None,
) -> None:
    """Serve the dashboard until it is interrupted; it prints the addresses that open it.

    The token is made anew at every start, or taken from REFUSAL_TOKEN. Where people log in there is none.
    """
    settings = {name: "1" for name, chosen in ((READ_ONLY, read_only), (OPEN, no_token)) if chosen}
    if folder:
        settings[FOLDERS] = os.pathsep.join(str(Path(name).expanduser().resolve()) for name in folder)
    settings |= {name: " ".join(people) for name, people in ((OWNERS, owner), (VIEWERS, viewer)) if people}
    options = [("server.port", port), ("server.address", address), *(("server.allowedHosts", name) for name in host)]
    status = serve(
        store.cache_folder(cache).resolve(),
        [f"--{name}={value}" for name, value in options if value is not None],
        settings,
    )
    if status:
        sys.exit(status)


def app_script() -> Path:
    """Return the script that Streamlit runs; its pages and its configuration are in the same folder.

    A wheel carries them in the package, a checkout has them at its top.

    Raises:
        RefusalError: when neither is there.
    """
    for folder in (_PACKAGE / "dashboard", _PACKAGE.parent):
        if (folder / "app.py").is_file() and (folder / "pages").is_dir():
            return folder / "app.py"
    raise RefusalError(f"the dashboard's pages are missing from {_PACKAGE}: install the package again")


def serve(cache: Path, options: Sequence[str], settings: dict[str, str]) -> int:
    """Serve the dashboard until it is interrupted.

    Args:
        cache: the folder of runs that it shows.
        options: Streamlit's, such as ``--server.port=8600``; others are as its configuration has them.
        settings: environment variables; see :mod:`refusal_core.access.settings`.

    Returns:
        The server's exit status.

    Raises:
        RefusalError: when Streamlit is not installed or the pages are missing.
    """
    if find_spec("streamlit") is None:
        raise RefusalError("the dashboard needs Streamlit: install refusal-directions with its extra named dashboard")
    script = app_script()
    command = [sys.executable, "-m", "streamlit", "run", str(script), *options]
    environment = os.environ | {"REFUSAL_CACHE": str(cache)} | settings
    return subprocess.run(command, env=environment, check=False).returncode
