"""Reads a run's prompts where their instruction ends and at the closing tokens, and compares harm and refusal there."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pandas as pd

from refusal_core.behaviour.measurement import load_behaviour, refusals_by_measure
from refusal_core.conversations import prompts_of
from refusal_core.errors import RunError
from refusal_core.evidence.apart import COLUMNS, apart_table
from refusal_core.evidence.positions import plan_positions, position_table
from refusal_core.evidence.text_answers import score_texts
from refusal_core.exploration.positions import load_positions
from refusal_core.models.opening import ChatModel
from refusal_core.options import PositionOptions
from refusal_core.pipeline.analysis import DRAWS, Analysis, analyse
from refusal_core.progress import Progress, no_progress
from refusal_core.runs.additions import load_position_activations, save_addition
from refusal_core.runs.manifest import BehaviourCompute, PositionsManifest, RepliesRecord
from refusal_core.runs.positions import positions_of
from refusal_core.runs.run import LAST_TOKEN, Run
from refusal_core.runs.schemas import READ_AT_POSITIONS
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

    At each the run has its directions, projections, statistics and evidence, unless its own directions were imported.
    Where the run's behaviour was measured, harm and refusal are compared at the first and the last. Reading continues
    where it was stopped.

    Args:
        run: the run.
        chat_model: its model.
        options: what is kept.
        progress: called as prompts are read and sites tested.
        draws: of bootstrap and permutations.

    Returns:
        One row per number, see :func:`.evidence.positions.position_table` and :func:`.evidence.apart.apart_table`.

    Raises:
        RefusalError: when the model is not the run's, nothing lies between instruction and reply, the run's behaviour
            is damaged, or the result cannot be stored.
    """
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.extraction import extract
    from refusal_core.pipeline.scoring import reader_for
    from refusal_core.pipeline.steps import embed_prompts, origins

    # Not after minutes of work.
    run.check_own_position(PositionsManifest.kind)
    writable_cache(run.path.parent)
    load_behaviour(run)
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
        manifest = PositionsManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            compute=BehaviourCompute(device=chat_model.device, dtype=chat_model.dtype),
            seed=seed,
            draws=draws,
            closing_tokens=tuple(closing_tokens),
            versions={name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
        )
        embeddings = embed_prompts(chat_model, run.prompts)
        estimator = run.manifest.estimator
        analyses = _analyses(extraction.at_end, run.prompts, seed, embeddings, estimator, progress, draws)
        table = position_table({position: analysis.evidence for position, analysis in analyses.items()})
        read_at = {
            position: (analysis.tables(run.prompts), analysis.evidence)
            for position, analysis in analyses.items()
            if position != LAST_TOKEN and not run.directions.imported
        }
        # The first and the last, without a copy.
        ends = extraction.at_end[:: len(closing_tokens)].transpose(1, 0, 2, 3)
        table, manifest = _with_replies(run, table, manifest, ends, progress)
        seconds = round(extraction.seconds + time.monotonic() - began, 3)
        manifest = manifest.model_copy(update={"timings": {"seconds": seconds}})
        save_addition(run, table, manifest, ends if options.keep_activations else None, read_at)
    return table


def _analyses(
    at_end: np.ndarray,
    prompts: pd.DataFrame,
    seed: int,
    embeddings: np.ndarray,
    estimator: str,
    progress: Progress,
    draws: int,
) -> dict[int, Analysis]:
    """Fit and test at every read position of ``(token, prompt, site, d_model)`` activations, as at a run's own."""
    n_positions = len(at_end)
    # The same at every position, and they take longer than a site does.
    baselines = score_texts(plan_positions(prompts, seed, draws=1), embeddings)

    def at_each(place: int) -> Analysis:
        def of_all(stage: str, done: int, total: int) -> None:
            progress(stage, place * total + done, n_positions * total)

        return analyse(
            at_end[place],
            prompts,
            seed=seed,
            baselines=baselines,
            estimator=estimator,
            draws=draws,
            progress=of_all,
        )

    return {place - n_positions: at_each(place) for place in range(n_positions)}


def compare_with_new_replies(run: Run, progress: Progress = no_progress) -> pd.DataFrame | None:
    """Compare harm and refusal by replies that were measured since, from the stored activations, and store the result.

    Args:
        run: the run.
        progress: called as sites are compared.

    Returns:
        The table of :func:`record`, or ``None``, where nothing changes: the read positions were not measured, or their
        activations not kept.

    Raises:
        RunError: when what is stored is damaged, or the result cannot be stored.
    """
    stored = load_positions(run)
    activations = None if stored is None else load_position_activations(run, stored[1])
    if stored is None or activations is None:
        return None
    table, manifest = stored
    # What is read is in the place of what is written.
    activations = np.array(activations)
    table = table[table["measure"].isin(READ_AT_POSITIONS)]
    table, manifest = _with_replies(run, table, manifest, activations, progress)
    save_addition(run, table, manifest, activations)
    return table


def has_new_replies(run: Run, manifest: PositionsManifest) -> bool:
    """Return whether the run's behaviour was measured since, or measured again.

    Raises:
        RunError: when it is damaged.
    """
    behaviour = load_behaviour(run)
    return behaviour is not None and (manifest.replies is None or manifest.replies.sha256 != behaviour[1].sha256)


def _with_replies(
    run: Run, table: pd.DataFrame, manifest: PositionsManifest, ends: np.ndarray, progress: Progress
) -> tuple[pd.DataFrame, PositionsManifest]:
    """Return the table with the comparison of harm and refusal, where the run's behaviour was measured."""
    behaviour = load_behaviour(run)
    if behaviour is None:
        return table.reindex(columns=list(COLUMNS)), manifest
    replies, described = behaviour
    refused = refusals_by_measure(run, replies)["opening rules"].to_numpy()
    positions = (positions_of(manifest)[0], -1)
    compared, planned = apart_table(ends, positions, run.prompts, refused, manifest.seed, progress, manifest.draws)
    record = RepliesRecord(sha256=described.sha256, counts=planned.counts, reason=planned.why_none)
    table = pd.concat([table.reindex(columns=list(COLUMNS)).astype(compared.dtypes), compared], ignore_index=True)
    return table, manifest.model_copy(update={"replies": record})
