"""Measure, test and look into refusal directions in chat models.

    import refusal_core as rc

    run = rc.run("qwen2.5-coder-0.5b-instruct", prompts="pairs")
    with run.directions[18].ablate(model):
        ...

Each name below is imported when it is first used, so that looking at a run loads no model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from refusal_core.analysis.directions import Direction, Directions, fit_directions
    from refusal_core.conversations import Conversation, Turn
    from refusal_core.errors import RefusalError
    from refusal_core.front_door import run, score
    from refusal_core.models.opening import ChatModel, load_model
    from refusal_core.options import RunOptions
    from refusal_core.pipeline.scoring import Score
    from refusal_core.runs.run import Run
    from refusal_core.runs.store import list_runs, open_run

_HOMES = {
    "ChatModel": "models.opening",
    "Conversation": "conversations",
    "Direction": "analysis.directions",
    "Directions": "analysis.directions",
    "RefusalError": "errors",
    "Run": "runs.run",
    "RunOptions": "options",
    "Score": "pipeline.scoring",
    "Turn": "conversations",
    "card_html": "sharing.card",
    "fit_directions": "analysis.directions",
    "list_runs": "runs.store",
    "load_model": "models.opening",
    "load_model_for": "pipeline.scoring",
    "open_run": "runs.store",
    "run": "front_door",
    "score": "front_door",
}

__all__ = [
    "ChatModel",
    "Conversation",
    "Direction",
    "Directions",
    "RefusalError",
    "Run",
    "RunOptions",
    "Score",
    "Turn",
    "fit_directions",
    "list_runs",
    "load_model",
    "open_run",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a name of the front door when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the front door."""
    return [*__all__, "__version__"]
