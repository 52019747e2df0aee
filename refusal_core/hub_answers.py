"""What the Hugging Face hub, or a server in its place, answers: names in it are checked before they become paths."""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from refusal_core.errors import RefusalError

_NAMES = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers that the hub's library takes names of files and folders in its cache from."""


@cache
def check_answers() -> None:
    """Have the hub's library refuse every answer with a name that leads out of its cache; called before it is used."""
    from huggingface_hub import set_client_factory

    set_client_factory(_client)


def leads_elsewhere(name: str) -> bool:
    """Return whether a name, joined to a folder, leads out of it."""
    bare = name.removeprefix("W/").strip('"')
    absolute = PurePosixPath(bare).is_absolute() or PureWindowsPath(bare).anchor
    return bool(absolute) or ".." in re.split(r"[\\/]", bare) or "\0" in bare


def _client() -> Any:
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.event_hooks["response"].append(_check)
    return client


def _check(response: Any) -> None:
    for header in _NAMES:
        if leads_elsewhere(name := response.headers.get(header, "")):
            raise RefusalError(
                f"the hub's server answered with {name!r:.80} as the name of a file or commit, which leads out of the "
                "folder for it: nothing of it was saved; check HF_ENDPOINT and the connection"
            )
