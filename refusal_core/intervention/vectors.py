"""The vectors that interventions use: a run's directions, those at other tokens of the template, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refusal_core.analysis.controls import control_direction, control_names
from refusal_core.analysis.directions import directions_of_means
from refusal_core.conversations import prompts_of
from refusal_core.intervention.conditions import ADD, FOUND, OWN, Condition
from refusal_core.progress import Progress
from refusal_core.runs.run import Run

if TYPE_CHECKING:
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.reader import ResidualReader
    from refusal_core.steering import Edit

PREPARING = "reading the template's tokens (prompts)"


@dataclass(frozen=True, eq=False)
class Vectors:
    """Directions by name and by the token position at which they were read.

    Attributes:
        unit: ``(layer, d_model)`` float32 each.
        distance: position → ``(layer,)`` distance between the labels' means, in activation units.
    """

    unit: Mapping[tuple[str, int], np.ndarray]
    distance: Mapping[int, np.ndarray]

    def edit(self, condition: Condition, tokens: str) -> Edit:
        """The edit that a condition stands for; controls are added at the found direction's length."""
        from refusal_core.steering import Edit

        # Controls are drawn at the last token, and take the length of the direction they are held against.
        read = condition.position if condition.direction == FOUND else -1
        unit, distance = self.unit[condition.direction, read], self.distance[condition.position]
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


def all_vectors(
    run: Run, reader: ResidualReader, random_directions: int, seed: int, path: Path, request: str, progress: Progress
) -> Vectors:
    """The run's directions, those at the template's other closing tokens, and the controls.

    Args:
        run: the run.
        reader: reads prompts with the run's model.
        random_directions: how many of them are drawn.
        seed: of everything random.
        path: where they are kept while interventions are under way, and read again when those are resumed.
        request: what is asked for, in a string; vectors kept for another request are not taken.
        progress: called with stage, units done and units in all.
    """
    own = own_vectors(run)
    # What a direction that is no difference of means is at other tokens is not known.
    positions = range(-1 if not run.directions.are_of_means else -max(reader.template_end, 1), 0)
    names = control_names(random_directions)
    kept = read_kept(path, request)
    if kept is None:
        unit, distance = read_vectors(run, reader, positions, names, seed, progress)
        kept = {"{} {}".format(*key): values for key, values in unit.items()}
        kept |= {f"distance {position}": values for position, values in distance.items()}
        keep(kept, path, request)
    wanted = {*((FOUND, position) for position in positions), *((name, -1) for name in names)}
    return Vectors(
        {key: kept["{} {}".format(*key)] for key in wanted} | dict(own.unit),
        {position: kept[f"distance {position}"] for position in positions} | dict(own.distance),
    )


def keep(arrays: Mapping[str, np.ndarray], path: Path, request: str) -> None:
    """Keep arrays while a measurement is under way."""
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path, {"request": request})


def read_kept(path: Path, request: str) -> dict[str, np.ndarray] | None:
    """Return what :func:`keep` wrote for this request, ``None`` where there is nothing of it."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("request") != request:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def read_vectors(
    run: Run, reader: ResidualReader, positions: range, names: list[str], seed: int, progress: Progress
) -> tuple[dict[tuple[str, int], np.ndarray], dict[int, np.ndarray]]:
    """Directions at the template's closing tokens, and controls at its last one, from the prompts that were fitted on.

    All are needed as activations, which a run seldom keeps.
    """
    prompts = run.prompts[run.rows()]
    is_harmful = prompts["label"].eq("harmful").to_numpy()
    sequences = [reader.encode(prompt) for prompt in prompts_of(prompts)]
    width = run.directions.unit_direction.shape[1]
    sums = np.zeros((2, len(positions), run.n_layers, width))
    hidden = np.empty((len(prompts), run.n_layers, width), dtype=np.float32)
    done = 0
    progress(PREPARING, 0, len(prompts))
    for rows in reader.batches(sequences, reader.batch_tokens):
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
