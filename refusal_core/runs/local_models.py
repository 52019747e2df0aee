"""Where the models of runs lay that came from a folder or a GGUF file of the user's own.

A manifest says nothing of this machine, since runs travel; what is remembered here never leaves the cache. It is keyed
by the model's fingerprint, and whoever opens the model compares it with the run's.
"""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock

from refusal_core.files import write_atomically
from refusal_core.runs.run import Run

_FILE = ".models.json"


def remember_model(run: Run, path: str | Path | None) -> None:
    """Remember, in the run's cache, where the run's model is; ``None`` forgets it.

    A cache that cannot be written to remembers nothing: the path can be given again.
    """
    file = run.path.parent / _FILE
    fingerprint = run.manifest.model.fingerprint
    try:
        with FileLock(file.with_suffix(".lock")):
            places = _places(file)
            known = places.pop(fingerprint, None)
            if path is not None:
                places[fingerprint] = str(Path(path).resolve())
            if places.get(fingerprint) != known:
                write_atomically(file, json.dumps(places, indent=2) + "\n")
    except OSError:
        return


def remembered_model(run: Run) -> Path | None:
    """Return where the run's model was last used from, or ``None`` where that is not known or nothing is there now."""
    place = _places(run.path.parent / _FILE).get(run.manifest.model.fingerprint)
    return Path(place) if place and Path(place).exists() else None


def _places(file: Path) -> dict[str, str]:
    """Return the paths by fingerprint; none from a file that cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(fingerprint): str(path) for fingerprint, path in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}
