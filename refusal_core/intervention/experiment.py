"""Interventions on a run's model: the direction ablated or added, layer by layer, beside control directions.

Every condition is measured prompt by prompt; what that says is :mod:`.effects`. Finished passes are kept in
the run's folder as they come, so that work that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from refusal_core.activations.passes import FinishedPasses
from refusal_core.analysis.controls import control_names
from refusal_core.behaviour.chosen import chosen_prompts
from refusal_core.behaviour.openings import OPENING_TOKENS, OpeningRules, read_rules
from refusal_core.conversations import prompts_of
from refusal_core.errors import RefusalError, RunError
from refusal_core.intervention.conditions import (
    ABLATE,
    ADD,
    COLUMNS,
    FOUND,
    OWN,
    PLAIN,
    Condition,
    Tried,
    at_its_own_layer,
    doses_and_controls,
    sweep,
)
from refusal_core.intervention.effects import published_choice
from refusal_core.intervention.vectors import Vectors, all_vectors, own_vectors
from refusal_core.options import PRESETS, InterventionOptions
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.additions import read_addition, save_addition
from refusal_core.runs.manifest import (
    ControlsRecord,
    InterventionCompute,
    InterventionManifest,
    InterventionPrompts,
    InterventionRules,
)
from refusal_core.runs.run import Run
from refusal_core.runs.store import unfinished_work, writable_cache

if TYPE_CHECKING:
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.reader import ResidualReader
    from refusal_core.intervention.prompt_groups import TokenSets
    from refusal_core.models.opening import ChatModel
    from refusal_core.pipeline.scoring import Scorer

INTERVENTION = InterventionManifest.kind
DEFAULTS = InterventionOptions()
SWEEPING = "sweeping layers (passes)"
CONTROLLING = "controls and doses (passes)"

_MEASURED = ["prompt_id", "refusal_log_odds", "kl", "opening", "opening_label"]


def record(
    run: Run, chat_model: ChatModel, options: InterventionOptions = DEFAULTS, progress: Progress = no_progress
) -> pd.DataFrame:
    """Intervene on a run's model and store what happened in the run's folder; goes on where it was stopped.

    Args:
        run: the run.
        chat_model: its model.
        options: which prompts, edits and controls. Of the control layers in :data:`PRESETS`, those that the model has.
        progress: called as passes are computed.

    Returns:
        One row per condition and prompt: the columns of :class:`.Condition`, then ``prompt_id,
        refusal_log_odds, kl, opening, opening_label``. ``kl`` is the Kullback–Leibler divergence, in nats, of the first
        reply token's distribution under the edit from the one without.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    from refusal_core.pipeline.scoring import reader_for

    _check_layers(run, options)
    layers = layers_with_direction(run)
    rules, span, tokens = read_rules(), options.layer_range, options.tokens
    # Not after minutes of work.
    run.check_own_position(INTERVENTION)
    writable_cache(run.path.parent)
    rows = chosen_prompts(run, options.limit_per_label, options.source)
    reader = reader_for(run, chat_model)
    require_reply(reader)
    request = {
        "model": chat_model.info.fingerprint,
        "compute": [chat_model.device, chat_model.dtype],
        "prompt_ids": run.prompts["prompt_id"].iloc[rows].tolist(),
        "random_directions": options.random_directions,
        "tokens": tokens,
        "seed": options.seed,
        "opening_tokens": OPENING_TOKENS,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    names = control_names(options.random_directions)
    under_way = unfinished_work(run.path / f".{INTERVENTION}", f"intervening on {run.run_id}")
    with under_way as folder, FinishedPasses(folder / "passes.jsonl", request) as finished:
        digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        path = folder / "vectors.safetensors"
        vectors = all_vectors(run, reader, options.random_directions, options.seed, path, digest, progress)
        considered = sorted(vectors.distance)[-(options.positions or len(vectors.distance)) :]
        swept = sweep(run.n_layers, layers, considered, span)
        table = _measure(run, reader, vectors, rules, rows, swept, tokens, finished, SWEEPING, progress)
        chosen = published_choice(run, table)
        layer, position = (run.best_site(), -1) if chosen is None else (chosen["read_at"], chosen["position"])
        at = sorted({*options.control_layers, int(layer)} & set(layers))
        later = doses_and_controls(run.n_layers, layers, int(layer), int(position), at, names, span)
        later = [condition for condition in later if condition not in set(swept)]
        controls = _measure(run, reader, vectors, rules, rows, later, tokens, finished, CONTROLLING, progress)
        # What was swept without openings was measured once more, with them, where doses were tried.
        table = pd.concat([table, controls]).drop_duplicates([*COLUMNS, "prompt_id"], keep="last", ignore_index=True)
        manifest = InterventionManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            compute=InterventionCompute(device=chat_model.device, dtype=chat_model.dtype, seed=options.seed),
            prompts=InterventionPrompts(
                source=str(run.prompts["source"].iloc[rows[0]]), limit_per_label=options.limit_per_label
            ),
            tokens=tokens,
            positions=tuple(considered),
            dose_layer=int(layer),
            dose_position=int(position),
            controls=ControlsRecord(layers=tuple(at), names=tuple(names)),
            opening_tokens=OPENING_TOKENS,
            rules=InterventionRules(sha256=rules.sha256),
            versions=request["versions"],
            timings={"seconds": round(finished.seconds, 1)},
        )
        save_addition(run, table, manifest)
    return table


def layers_with_direction(run: Run) -> list[int]:
    """Return the layers that have a direction, which not all have where it was imported.

    Raises:
        RefusalError: when none has one.
    """
    layers = np.flatnonzero(run.directions.unit_direction[: run.n_layers].any(axis=1)).tolist()
    if not layers:
        raise RefusalError(
            f"no layer of {run.run_id} has a direction, and nothing can be edited at the final norm: expected a run "
            "with the vector of at least one layer"
        )
    return layers


def _check_layers(run: Run, options: InterventionOptions) -> None:
    """Raise RefusalError for a layer that the run's model does not have."""
    span, last = options.layer_range, run.n_layers - 1
    if span is not None and not 0 <= min(span) <= max(span) <= last:
        raise RefusalError(f"expected a range of layers from 0 to {last}, got {span[0]} to {span[1]}")
    for layer in set(options.control_layers) - set(PRESETS):
        if not 0 <= layer <= last:
            raise RefusalError(f"expected control layers from 0 to {last}, got {layer}")


class TriedPrompt:
    """One prompt under edits of the run's own directions; what does not depend on the edit is computed once."""

    def __init__(self, scorer: Scorer, text: str) -> None:
        """Read the prompt without an edit.

        Raises:
            PromptError: see :meth:`refusal_core.pipeline.scoring.Scorer.encode`.
            RefusalError: for a model that thinks before it replies.
        """
        from refusal_core.intervention.prompt_groups import PromptGroup

        require_reply(scorer.reader)
        self._vectors = own_vectors(scorer.run)
        self._prompt = PromptGroup(scorer.reader, [scorer.encode(text)])

    def under(self, condition: Condition, tokens: str = "all") -> Tried:
        """What the model does under a condition; :data:`~refusal_core.intervention.conditions.PLAIN` for no edit."""
        return self._prompt.tried([condition], self._vectors, tokens)[0][0]


def load_interventions(run: Run) -> tuple[pd.DataFrame, InterventionManifest] | None:
    """Return the interventions that were measured on a run and their manifest, or ``None`` when there are none.

    Raises:
        RunError: when they are damaged or of other prompts.
    """
    stored = read_addition(run, InterventionManifest)
    if stored is None:
        return None
    table, manifest = stored
    fault = _fault(run, table, manifest.dose_layer)
    if fault:
        raise RunError(f"run {run.run_id!r}: {INTERVENTION}.parquet {fault}; measure it again")
    return stored


def _fault(run: Run, table: pd.DataFrame, dose_layer: int) -> str | None:
    """What a table that has all its columns does not fit in the run, or ``None``; it may be a stranger's."""
    known = run.prompts.set_index("prompt_id")["label"]
    if not table["prompt_id"].isin(known.index).all() or set(known[table["prompt_id"]]) != set(LABELS):
        return "is of other prompts"
    edited = {layer for layers in set(table["layers"]) for layer in layers}
    if not all(isinstance(layer, int) and 0 <= layer < run.n_layers for layer in edited):
        return "is of other layers"
    if not 0 <= dose_layer < run.n_layers or not table["read_at"].between(OWN, run.n_layers - 1).all():
        return "is of other layers"
    if not table["edit"].isin([PLAIN, ABLATE, ADD]).all():
        return "has edits of other kinds"
    # Every condition on every prompt, once.
    counts = table.groupby(COLUMNS, sort=False).size()
    if table.duplicated([*COLUMNS, "prompt_id"]).any() or set(counts) != {table["prompt_id"].nunique()}:
        return "lacks rows, or has them twice"
    found = table[table["direction"].eq(FOUND)]
    swept = found[found["position"].eq(-1) & at_its_own_layer(found)]
    if table["edit"].eq(PLAIN).sum() != table["prompt_id"].nunique() or set(swept["edit"]) != {ABLATE, ADD}:
        return "lacks conditions"
    return None


def _measure(
    run: Run,
    reader: ResidualReader,
    vectors: Vectors,
    rules: OpeningRules,
    rows: np.ndarray,
    conditions: list[Condition],
    tokens: str,
    finished: FinishedPasses,
    stage: str,
    progress: Progress,
) -> pd.DataFrame:
    """Every condition on every prompt, as one table."""
    prompts, prompt_ids = prompts_of(run.prompts), run.prompts["prompt_id"]
    encoded = {row: reader.encode(prompts[row], with_prefix=True) for row in rows.tolist()}
    parts = []
    for some, measured in try_all(reader, encoded, conditions, vectors, tokens, finished, stage, progress):
        for condition in conditions:
            part = pd.DataFrame([tried | condition.columns for tried in measured[condition]])
            parts.append(part.assign(prompt_id=prompt_ids.iloc[some].to_numpy()))
    table = pd.concat(parts, ignore_index=True)
    texts = run.prompts.set_index("prompt_id")["text"]
    table["opening_label"] = [
        None if opening is None else rules.label(opening, texts[prompt_id])
        for opening, prompt_id in zip(table["opening"], table["prompt_id"], strict=True)
    ]
    return table[[*COLUMNS, *_MEASURED]]


def try_all(
    reader: ResidualReader,
    encoded: Mapping[int, list[int]],
    conditions: Sequence[Condition],
    vectors: Vectors,
    tokens: str,
    finished: FinishedPasses,
    stage: str,
    progress: Progress,
    others: TokenSets = (),
) -> Iterator[tuple[list[int], dict[Condition, list[dict[str, Any]]]]]:
    """Try every condition on every prompt, some prompts and conditions at a time, what is finished taken from disk.

    Args:
        reader: reads prompts with the model.
        encoded: token ids of each prompt, by a number that tells it from the request's others.
        conditions: what is tried.
        vectors: directions that conditions name.
        tokens: see :class:`refusal_core.steering.Edit`.
        finished: where passes are kept.
        stage: what the progress is called.
        progress: called as passes are computed.
        others: see :class:`.prompt_groups.PromptGroup`.

    Yields:
        The numbers of the prompts that were read together, and what :class:`Tried` has of each under every condition.
    """
    from refusal_core.intervention.prompt_groups import group_conditions, group_prompts, try_conditions

    numbers, given = list(encoded), list(encoded.values())
    groups = list(group_prompts(reader, given))
    done, total = 0, len(groups) * len(conditions)
    progress(stage, 0, total)
    for places in groups:
        together, sequences = [numbers[place] for place in places.tolist()], [given[place] for place in places.tolist()]
        measured: dict[Condition, list[dict[str, Any]]] = {}
        # What is run together is kept together, so that work that goes on gives the numbers of work in one go.
        named = {f"{part} on {together}": part for part in group_conditions(reader, sequences, conditions)}
        waiting = [part for name, part in named.items() if finished.get(name) is None]
        started = time.perf_counter()
        with closing(try_conditions(reader, sequences, waiting, vectors, tokens, others)) as new:
            for name, part in named.items():
                found = finished.get(name)
                if found is None:
                    found = [asdict(tried) for replies in next(new) for tried in replies]
                    finished.add(name, found, round(time.perf_counter() - started, 3))
                    started = time.perf_counter()
                for number, condition in enumerate(part):
                    measured[condition] = found[number * len(together) : (number + 1) * len(together)]
                done += len(part)
                progress(stage, done, total)
        yield together, measured


def require_reply(reader: ResidualReader) -> None:
    """Raise RefusalError for a model that thinks before it replies."""
    from refusal_core.models.templates import reply_thinks

    if reply_thinks(reader.chat_model.tokenizer, reader.thinking):
        raise RefusalError(
            "interventions are read where the reply begins, and this run's model thinks first: make a run with "
            "thinking off, or of a model that does not think"
        )
