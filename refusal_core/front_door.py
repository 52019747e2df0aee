"""What ``import refusal_core`` offers beyond the rooms: a run, scores and a run's card, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.conversations import Prompt
from refusal_core.errors import RefusalError
from refusal_core.options import RunOptions
from refusal_core.progress import Progress
from refusal_core.progress.bars import ProgressBars
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run

if TYPE_CHECKING:
    # Scoring imports torch.
    from refusal_core.models.opening import ChatModel
    from refusal_core.pipeline.scoring import Score


def run(
    model: str | Path | RunOptions,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Measure a model's refusal directions on a contrast set, or open that run where it is in the cache.

    Args:
        model: known name, hub id, folder of safetensors or GGUF file; or all options in one object.
        cache: folder of runs; by default ``REFUSAL_CACHE``, else ``./cache`` where there is one, else the user's.
        progress: called with stage, units done and units in all; by default bars on stderr.
        options: fields of :class:`~refusal_core.options.RunOptions`, such as ``prompts="everyday"``.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    from refusal_core.pipeline import run as pipeline

    if isinstance(model, RunOptions):
        if options:
            raise RefusalError(f"expected either one RunOptions or single options, got both: {', '.join(options)}")
        chosen = model
    else:
        chosen = RunOptions(model=str(model), **options)
    if progress is not None:
        return pipeline.run(chosen, cache=cache, progress=progress).run
    with ProgressBars() as bars:
        return pipeline.run(chosen, cache=cache, progress=bars).run


def score(
    run: Run | str,
    texts: Sequence[Prompt],
    *,
    model: ChatModel | str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Project prompts on a run's direction at every site, with the run's own model.

    Args:
        run: a run, or its name in the cache; ``run.at("t_inst")`` to score at another read position.
        texts: prompts, without a template; one may be a :class:`~refusal_core.conversations.Conversation`.
        model: the run's model, opened, so that it is opened once for many calls; or where it is, for one that came from
            a folder or a GGUF file. By default it is opened here.
        device: where it is opened: ``auto``, ``cpu``, ``cuda``, ``mps`` or ``spread``.
        dtype: what it is opened in: ``float32``, ``bfloat16`` or ``float16``; ``auto`` takes the run's.
        cache: folder of runs, where ``run`` is a name.
        progress: called with stage, units done and units in all; by default bars on stderr.

    Returns:
        One :class:`~refusal_core.pipeline.scoring.Score` per text: ``projection`` is ``(site,)`` in activation units.
        Of a single text, ``token_projection`` has those of each of its tokens; several are read where the
        run is read alone.

    Raises:
        RefusalError: for another model than the run's, an empty text, or one over the run's token limit; for a device
            or dtype with a model that is open already.
    """
    from refusal_core.pipeline import scoring

    if isinstance(texts, str):
        raise RefusalError("expected a list of prompts, got one text: put it into brackets")
    opened = open_run(run, cache) if isinstance(run, str) else run
    if progress is None:
        with ProgressBars() as bars:
            return score(opened, texts, model=model, device=device, dtype=dtype, progress=bars)
    if model is None or isinstance(model, str | Path):
        model = opened.load_model(model, device=device, dtype=dtype, progress=progress)
    elif (device, dtype) != ("auto", "auto"):
        raise RefusalError(
            f"the model is open already, on {model.device} in {model.dtype}: expected no device and dtype with it, got "
            f"{device} and {dtype}"
        )
    return scoring.score(model, opened, list(texts), progress)
