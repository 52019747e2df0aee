"""Reads a run's prompts at the last token of the instruction and at the template's closing tokens, and tests them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pandas as pd

from refusal_core.conversations import prompts_of
from refusal_core.errors import RunError
from refusal_core.evidence.positions import DRAWS, position_table
from refusal_core.models.opening import ChatModel
from refusal_core.options import PositionOptions
from refusal_core.progress import Progress, no_progress
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import BehaviourCompute, PositionsManifest
from refusal_core.runs.run import Run
from refusal_core.runs.store import unfinished_work, writable_cache

DEFAULTS = PositionOptions()


def record(
    run: Run,
    chat_model: ChatModel,
    options: PositionOptions = DEFAULTS,
    progress: Progress = no_progress,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Read a run's prompts at all read positions in one pass, test the direction at each, and store the result.

    Reading continues where it was stopped.

    Args:
        run: the run.
        chat_model: its model.
        options: what is kept.
        progress: called as prompts are read and sites tested.
        draws: of the bootstrap.

    Returns:
        One row per number, see :func:`.evidence.positions.position_table`.

    Raises:
        RefusalError: when the model is not the run's, nothing lies between instruction and reply, or the result cannot
            be stored.
    """
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.extraction import extract
    from refusal_core.pipeline.scoring import check_model, reader_for
    from refusal_core.pipeline.steps import origins

    # Not after minutes of work.
    writable_cache(run.path.parent)
    check_model(run, chat_model)
    closing_tokens = reader_for(run, chat_model).closing_texts
    if not closing_tokens:
        raise RunError(
            f"the prompts of {run.run_id} end where the reply begins, without closing tokens of a chat template: there "
            "is one read position, which the run has"
        )
    template, seed = run.manifest.template, run.manifest.compute.seed
    under_way = unfinished_work(run.path / f".{PositionsManifest.kind}", f"reading the positions of {run.run_id}")
    with under_way as folder:
        extraction = extract(
            chat_model,
            prompts_of(run.prompts),
            template.system_prompt,
            template.thinking,
            template.token_limit,
            progress,
            origins(run.prompts),
            folder,
            template.day,
            closing=True,
        )
        began = time.monotonic()
        table = position_table(extraction.at_end, run.prompts, seed, progress, draws)
        manifest = PositionsManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            compute=BehaviourCompute(device=chat_model.device, dtype=chat_model.dtype),
            seed=seed,
            draws=draws,
            closing_tokens=tuple(closing_tokens),
            versions={name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
            timings={"seconds": round(extraction.seconds + time.monotonic() - began, 3)},
        )
        save_addition(run, table, manifest, _ends(extraction.at_end) if options.keep_activations else None)
    return table


def _ends(at_end: np.ndarray) -> np.ndarray:
    """Return ``(prompt, 2, site, d_model)`` of the first and the last read position, without a copy."""
    ends: np.ndarray = at_end[:: len(at_end) - 1].transpose(1, 0, 2, 3)
    return ends
