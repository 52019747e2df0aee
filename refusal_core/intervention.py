"""Interventions on a run's model: the direction ablated or added, layer by layer, beside control directions.

Every condition is measured prompt by prompt; what that says is :mod:`refusal_core.effects`. Finished passes are kept in
the run's folder as they come, so that work that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from refusal_core.conditions import (
    ADD,
    COLUMNS,
    FOUND,
    OWN,
    PLAIN,
    PRESETS,
    Condition,
    doses_and_controls,
    sweep,
)
from refusal_core.controls import control_direction, control_names
from refusal_core.directions import directions_of_means
from refusal_core.effects import published_choice, strongest_layer
from refusal_core.errors import RefusalError, RunError
from refusal_core.openings import OPENING_TOKENS, OpeningRules
from refusal_core.passes import FinishedPasses
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts import LABELS
from refusal_core.runs import Run, read_addition, save_addition, writable_cache

if TYPE_CHECKING:
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations import ResidualReader
    from refusal_core.edits import Edit, PromptBatch
    from refusal_core.models import ChatModel
    from refusal_core.scoring import Scorer

INTERVENTION = "intervention"
PREPARING = "reading the template's tokens (prompts)"
SWEEPING = "sweeping layers (passes)"
CONTROLLING = "controls and doses (passes)"

_MEASURED = ["prompt_id", "refusal_log_odds", "kl", "opening", "opening_label"]
_PASSES, _VECTORS = f".{INTERVENTION}.jsonl", f".{INTERVENTION}.safetensors"


@dataclass(frozen=True, eq=False)
class Vectors:
    """Directions by name and by the token position at which they were read.

    Attributes:
        unit: ``(layer, d_model)`` float32 each.
        distance: position → ``(layer,)`` distance between the labels' means, in activation units.
    """

    unit: Mapping[tuple[str, int], np.ndarray]
    distance: Mapping[int, np.ndarray]

    def edit(self, condition: Condition, tokens: str = "all") -> Edit:
        """The edit that a condition stands for; controls are added at the found direction's length."""
        from refusal_core.edits import Edit

        unit, distance = self.unit[condition.direction, condition.position], self.distance[condition.position]
        vectors = {}
        for layer in condition.layers:
            source = layer if condition.read_at == OWN else condition.read_at
            length = condition.alpha * distance[source] if condition.edit == ADD else 1.0
            vectors[layer] = (length * unit[source]).astype(np.float32)
        return Edit(condition.edit, vectors, tokens)


def own_vectors(run: Run) -> Vectors:
    """The run's own directions, without controls and other positions."""
    unit, distance = run.directions.unit_direction, run.directions.magnitude
    return Vectors({(FOUND, -1): unit[: run.n_layers]}, {-1: distance[: run.n_layers]})


def chosen_prompts(run: Run, limit: int, source: str | None = None) -> np.ndarray:
    """Rows of ``limit`` prompts a label, of as few token lengths as possible, since those are read together.

    Args:
        source: the name of the contrast set or a transfer set; by default the probe pairs, which the direction was
            never fitted on, or the contrast set where a run has none.

    Raises:
        RunError: for a set the run does not have, or one without prompts of both labels.
    """
    sets = [run.contrast_name, *run.transfer_sources]
    source = source or ("probe-pairs" if "probe-pairs" in sets else run.contrast_name)
    if source not in sets:
        raise RunError(f"expected a set of this run, one of {', '.join(sets)}, got {source!r}")
    table = run.prompts[run.rows(source=None if source == run.contrast_name else source)]
    counts = table.groupby(["n_tokens", "label"]).size().unstack(fill_value=0)
    if not set(LABELS) <= set(counts.columns):
        raise RunError(f"the set {source!r} has no prompts of both labels; choose another with --source")
    lacking = dict.fromkeys(LABELS, limit)
    rows: list[int] = []
    while any(lacking.values()) and len(counts):
        length = sum(counts[label].clip(upper=lacking[label]) for label in LABELS).idxmax()
        for label in LABELS:
            alike = table.index[table["n_tokens"].eq(length) & table["label"].eq(label)][: lacking[label]]
            rows += alike.tolist()
            lacking[label] -= len(alike)
        counts = counts.drop(index=length)
    return np.array(sorted(rows))


def record(
    run: Run,
    chat_model: ChatModel,
    rules: OpeningRules,
    *,
    limit: int = 16,
    source: str | None = None,
    random_directions: int = 20,
    control_layers: Sequence[int] = PRESETS,
    span: tuple[int, int] | None = None,
    positions: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Intervene on a run's model and keep what happened beside the run; goes on where it was stopped.

    Args:
        limit: prompts a label.
        source: see :func:`chosen_prompts`.
        random_directions: random control directions a layer; the permuted and the orthogonal one come on top.
        control_layers: where controls are measured, besides the layer of the published choice; those that the model
            does not have are left out.
        span: first and last layer of a range to ablate together, each layer its own direction.
        positions: how many of the template's closing tokens the published rule may choose from, the last ones; all by
            default, as published.

    Returns:
        One row a condition and prompt: the columns of :class:`~refusal_core.conditions.Condition`, then ``prompt_id,
        refusal_log_odds, kl, opening, opening_label``. ``kl`` is the Kullback–Leibler divergence, in nats, of the first
        reply token's distribution under the edit from the one without.

    Raises:
        RefusalError: of the kind that fits, for anything the caller can mend.
    """
    from refusal_core.scoring import reader_for
    from refusal_core.templates import reply_thinks

    if span is not None and not 0 <= min(span) <= max(span) < run.n_layers:
        raise RefusalError(f"expected a range of layers from 0 to {run.n_layers - 1}, got {span[0]} to {span[1]}")
    if min(limit, positions or 1) < 1 or random_directions < 2:
        raise RefusalError(
            "expected at least 1 prompt a label, 1 token position and 2 random directions, got "
            f"{limit}, {positions} and {random_directions}"
        )
    # Not after minutes of work.
    writable_cache(run.path.parent)
    rows = chosen_prompts(run, limit, source)
    reader = reader_for(run, chat_model)
    if reply_thinks(chat_model.tokenizer, reader.thinking):
        raise RefusalError(
            "interventions are read where the reply begins, and this run's model thinks first: make a run with "
            "--thinking off, or of a model that does not think"
        )
    request = {
        "dtype": chat_model.dtype,
        "prompt_ids": run.prompts["prompt_id"].iloc[rows].tolist(),
        "random_directions": random_directions,
        "seed": seed,
        "opening_tokens": OPENING_TOKENS,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    with FinishedPasses(run.path / _PASSES, request) as finished:
        vectors = _vectors(run, reader, random_directions, seed, finished.resumed, progress)
        swept = sweep(run.n_layers, sorted(vectors.distance)[-(positions or len(vectors.distance)) :], span)
        table = _measure(run, reader, vectors, rules, rows, swept, finished, SWEEPING, progress)
        chosen = published_choice(run, table)
        layer = strongest_layer(run) if chosen is None else int(chosen["read_at"])
        at = sorted({*control_layers, layer} & set(range(run.n_layers)))
        later = doses_and_controls(run.n_layers, layer, at, control_names(random_directions), span)
        later = [condition for condition in later if condition not in set(swept)]
        controls = _measure(run, reader, vectors, rules, rows, later, finished, CONTROLLING, progress)
        # The chosen candidate was measured once more, with its openings.
        table = pd.concat([table, controls]).drop_duplicates([*COLUMNS, "prompt_id"], keep="last", ignore_index=True)
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "compute": {"device": chat_model.device, "dtype": chat_model.dtype, "seed": seed},
            "prompts": {"source": str(run.prompts["source"].iloc[rows[0]]), "limit": limit},
            "tokens": "all",
            "dose_layer": layer,
            "controls": {"layers": at, "names": control_names(random_directions)},
            "opening_tokens": OPENING_TOKENS,
            "rules": {"sha256": rules.sha256},
            "versions": request["versions"],
            "timings": {"seconds": round(finished.seconds, 1)},
        }
        save_addition(run, INTERVENTION, table, manifest)
        finished.remove()
        (run.path / _VECTORS).unlink(missing_ok=True)
    return table


@dataclass(frozen=True)
class Tried:
    """How the reply to one prompt begins under an edit, or without one."""

    refusal_log_odds: float
    kl: float
    opening: str


class TriedPrompt:
    """One prompt under edits of the run's own directions; what does not depend on the edit is computed once."""

    def __init__(self, scorer: Scorer, text: str) -> None:
        """Read the prompt without an edit. Raises what :meth:`refusal_core.scoring.Scorer.encode` raises."""
        from refusal_core.edits import PromptBatch

        self._reader = scorer.reader
        self._vectors = own_vectors(scorer.run)
        self._batch = PromptBatch(scorer.reader, [scorer.encode(text)])

    def under(self, condition: Condition) -> Tried:
        """What the model does under a condition; :data:`~refusal_core.conditions.PLAIN` for no edit."""
        log_odds, kl, openings = _replied(self._reader, self._batch, self._vectors, condition)
        return Tried(float(log_odds[0]), float(kl[0]), str(openings[0]))


def recorded(run: Run) -> tuple[pd.DataFrame, dict] | None:
    """The interventions kept beside a run and their manifest, or ``None`` when there are none.

    Raises:
        RunError: when they are damaged or of other prompts.
    """
    found = read_addition(run, INTERVENTION)
    if found is None:
        return None
    table, manifest = found
    layer = manifest.get("dose_layer")
    if not set(table.columns) >= {*COLUMNS, *_MEASURED} or not isinstance(layer, int) or not 0 <= layer < run.n_layers:
        raise RunError(f"run {run.run_id!r}: {INTERVENTION} lacks columns or its dose layer; measure it again")
    if not table["prompt_id"].isin(run.prompts["prompt_id"]).all():
        raise RunError(f"run {run.run_id!r}: {INTERVENTION}.parquet is of other prompts; measure it again")
    return found


def _vectors(
    run: Run, reader: ResidualReader, random_directions: int, seed: int, resumed: bool, progress: Progress
) -> Vectors:
    """The run's directions, those at the template's other closing tokens, and the controls; read again when resumed."""
    path = run.path / _VECTORS
    own = own_vectors(run)
    positions = range(-max(reader.template_end, 1), 0)
    names = control_names(random_directions)
    wanted = {*((FOUND, position) for position in positions), *((name, -1) for name in names)}
    if resumed and path.is_file() and not path.is_symlink():
        try:
            arrays = load_file(path)
            unit = {key: arrays["{} {}".format(*key)] for key in wanted}
            distance = {position: arrays[f"distance {position}"] for position in positions}
            if all(values.shape == own.unit[FOUND, -1].shape for values in unit.values()):
                return Vectors(unit, distance)
        except (OSError, KeyError, SafetensorError):
            pass
    unit, distance = _read_vectors(run, reader, positions, names, seed, progress)
    unit |= own.unit
    distance |= own.distance
    arrays = {"{} {}".format(*key): values for key, values in unit.items()}
    arrays |= {f"distance {position}": values for position, values in distance.items()}
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    return Vectors(unit, distance)


def _read_vectors(
    run: Run, reader: ResidualReader, positions: range, names: list[str], seed: int, progress: Progress
) -> tuple[dict[tuple[str, int], np.ndarray], dict[int, np.ndarray]]:
    """Directions at the template's closing tokens, and controls at its last one, from the prompts that were fitted on.

    All are needed as activations, which a run seldom keeps.
    """
    import torch

    from refusal_core.activations import BATCH_TOKENS, batches

    prompts = run.prompts[run.rows()]
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    sequences = [reader.encode(text) for text in prompts["text"]]
    lengths = np.array([len(ids) for ids in sequences])
    width = run.directions.unit_direction.shape[1]
    sums = np.zeros((2, len(positions), run.n_layers, width))
    hidden = np.empty((len(prompts), run.n_layers, width), dtype=np.float32)
    done = 0
    progress(PREPARING, 0, len(prompts))
    for rows in batches(lengths, reader.prefix_tokens, BATCH_TOKENS[torch.device(reader.chat_model.device).type]):
        states = reader.read_end([sequences[row] for row in rows], len(positions))[:, : run.n_layers]
        hidden[rows] = states[:, :, -1]
        for place in range(len(positions)):
            for label in (0, 1):
                sums[label, place] += states[is_harmful[rows] == label, :, place].sum(axis=0, dtype=np.float64)
        done += len(rows)
        progress(PREPARING, done, len(prompts))
    harmless, harmful = sums[0] / (~is_harmful).sum(), sums[1] / is_harmful.sum()
    unit, distance = {}, {}
    for place, position in enumerate(positions):
        directions = directions_of_means(harmful[place], harmless[place])
        unit[FOUND, position], distance[position] = directions.unit_direction, directions.magnitude
    for number, name in enumerate(names):
        drawn = [
            control_direction(
                name,
                hidden[:, layer],
                is_harmful,
                run.directions.unit_direction[layer],
                np.random.default_rng([seed, number, layer]),
            )
            for layer in range(run.n_layers)
        ]
        unit[name, -1] = np.stack(drawn)
    return unit, distance


def _measure(
    run: Run,
    reader: ResidualReader,
    vectors: Vectors,
    rules: OpeningRules,
    rows: np.ndarray,
    conditions: list[Condition],
    finished: FinishedPasses,
    stage: str,
    progress: Progress,
) -> pd.DataFrame:
    """Every condition on every prompt, one batch of prompts after the other, what is finished taken from disk."""
    import torch

    from refusal_core.activations import BATCH_TOKENS, batches
    from refusal_core.edits import PromptBatch

    sequences = {row: reader.encode(run.prompts["text"].iloc[row]) for row in rows.tolist()}
    lengths = np.array([len(sequences[row]) for row in rows.tolist()])
    size = BATCH_TOKENS[torch.device(reader.chat_model.device).type]
    parts, done, total = [], 0, 0
    groups = [rows[group].tolist() for group in batches(lengths, reader.prefix_tokens, size)]
    total = len(groups) * len(conditions)
    progress(stage, 0, total)
    for group in groups:
        batch: PromptBatch | None = None
        for condition in conditions:
            name = f"{condition} on {group}"
            found = finished.get(name)
            if found is None:
                started = time.perf_counter()
                batch = batch or PromptBatch(reader, [sequences[row] for row in group])
                log_odds, kl, openings = _replied(reader, batch, vectors, condition)
                found = [
                    {
                        "prompt_id": run.prompts["prompt_id"].iloc[row],
                        "refusal_log_odds": float(log_odds[place]),
                        "kl": float(kl[place]),
                        "opening": openings[place],
                    }
                    for place, row in enumerate(group)
                ]
                finished.add(name, found, round(time.perf_counter() - started, 3))
            parts.append(pd.DataFrame(found).assign(**condition.columns))
            done += 1
            progress(stage, done, total)
    table = pd.concat(parts, ignore_index=True)
    table["opening_label"] = [None if opening is None else rules.label(opening) for opening in table["opening"]]
    return table[[*COLUMNS, *_MEASURED]]


def _replied(
    reader: ResidualReader, batch: PromptBatch, vectors: Vectors, condition: Condition
) -> tuple[np.ndarray, np.ndarray, Sequence[str | None]]:
    """Refusal log-odds and divergence from the plain reply, ``(prompt,)`` each, and openings of a batch."""
    from refusal_core.activations import refusal_log_odds

    reply = batch.plain if condition.edit == PLAIN else batch.reply(vectors.edit(condition), condition.openings)
    plain, under = batch.plain.logits.double().log_softmax(dim=-1), reply.logits.double().log_softmax(dim=-1)
    divergence = (plain.exp() * (plain - under)).sum(dim=-1).clamp(min=0.0).cpu().numpy()
    openings: Sequence[str | None] = reply.openings or [None] * len(divergence)
    return refusal_log_odds(reply.logits, reader.refusal_ids), divergence, openings
