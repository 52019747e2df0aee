"""Verbs that write a run for others and read what others made: ``pack``, ``unpack``, ``push``, ``pull``, ``report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from refusal_core.cli.parameters import Cache, Position, RunName
from refusal_core.errors import RenderingError
from refusal_core.runs import store

if TYPE_CHECKING:
    from refusal_core.sharing.archives import UnpackedRun

Archive = Annotated[str, Parameter(help="A zip file.")]
Repository = Annotated[str, Parameter(help="Data set on the Hugging Face hub, as OWNER/NAME.")]


def pack(run: RunName, file: Archive, /, *, cache: Cache = None) -> None:
    """Write a run to one zip file."""
    from refusal_core.sharing.archives import pack_run

    pack_run(run, file, cache)
    print(file)


def unpack(file: Archive, /, *, cache: Cache = None) -> None:
    """Check a packed run and put it into the cache; prints its name."""
    from refusal_core.sharing.archives import unpack_run

    _print_imported(unpack_run(file, cache))


def push(
    run: RunName,
    repository: Repository,
    /,
    *,
    licence: Annotated[str, Parameter(help="Licence of what is put there, as the hub spells it.")] = "unknown",
    public: Annotated[bool, Parameter(negative=(), help="Let everybody see a data set that is new.")] = False,
    cache: Cache = None,
) -> None:
    """Put a run on the Hugging Face hub, as a private data set; prints its address."""
    from refusal_core.sharing.hub_datasets import push_run

    print(push_run(run, repository, cache, licence=licence, public=public))


def pull(
    repository: Repository,
    /,
    *,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit (default: the newest).")] = None,
    cache: Cache = None,
) -> None:
    """Check a run of the Hugging Face hub and put it into the cache; prints its name."""
    from refusal_core.sharing.hub_datasets import pull_run

    _print_imported(pull_run(repository, revision, cache))


def report(
    run: RunName,
    folder: Annotated[str, Parameter(help="Folder for the files.")],
    /,
    *,
    position: Position = "t_post",
    cache: Cache = None,
) -> None:
    """Write a run's report; prints the files."""
    from refusal_core.sharing.export import export_pictures, export_run

    opened = store.open_run(run, cache).at(position)
    print(*export_run(opened, Path(folder)), sep="\n")
    try:
        print(*export_pictures(opened, Path(folder)), sep="\n")
    except RenderingError as error:
        print(f"without the pictures: {error}", file=sys.stderr)


def _print_imported(imported: UnpackedRun) -> None:
    if not imported.new:
        print("this run is here already: nothing was changed")
    print(imported.run_id)
