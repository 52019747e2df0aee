"""Runs for tests, from options as keywords."""

from __future__ import annotations

from pathlib import Path

from refusal_core.options import RunOptions
from refusal_core.pipeline.run import run
from refusal_core.pipeline.steps import RunResult
from refusal_core.progress import Progress, no_progress


def make_run(
    model: str | Path,
    prompts: str | Path = "pairs",
    *,
    cache: Path | None = None,
    progress: Progress = no_progress,
    **options: object,
) -> RunResult:
    """Make a run, or find it in the cache; options as keywords of :class:`RunOptions`."""
    return run(RunOptions(model=model, prompts=prompts, **options), cache=cache, progress=progress)
