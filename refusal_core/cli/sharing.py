"""Verbs that write a run for others and read what others sent: ``pack``, ``unpack``, ``report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from refusal_core.cli.parameters import Cache, RunName
from refusal_core.errors import RenderingError
from refusal_core.runs import store

Archive = Annotated[str, Parameter(help="A zip file.")]


def pack(run: RunName, file: Archive, /, *, cache: Cache = None) -> None:
    """Write a run to one zip file."""
    from refusal_core.sharing.archives import pack_run

    pack_run(run, file, cache)
    print(file)


def unpack(file: Archive, /, *, cache: Cache = None) -> None:
    """Check a packed run and put it into the cache; prints its name."""
    from refusal_core.sharing.archives import unpack_run

    imported = unpack_run(file, cache)
    if not imported.new:
        print("this run is here already: nothing was changed")
    print(imported.run_id)


def report(
    run: RunName, folder: Annotated[str, Parameter(help="Folder for the files.")], /, *, cache: Cache = None
) -> None:
    """Write a run's report; prints the files."""
    from refusal_core.sharing.export import export_pictures, export_run

    opened = store.open_run(run, cache)
    print(*export_run(opened, Path(folder)), sep="\n")
    try:
        print(*export_pictures(opened, Path(folder)), sep="\n")
    except RenderingError as error:
        print(f"without the pictures: {error}", file=sys.stderr)
