"""Measures which parts of the model add to a run's directions, and which tokens these would write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from refusal_core.analysis import groups
from refusal_core.analysis.attribution import attribute, held_out_directions, unit
from refusal_core.analysis.controls import covariance_weights, permuted_weights
from refusal_core.analysis.estimators import Training
from refusal_core.analysis.groups import assign_folds, bootstrap_counts, fewest_groups, find_twins, sample_groups
from refusal_core.analysis.inference import LEVEL, corrected_p
from refusal_core.analysis.projections import contrast_weights
from refusal_core.analysis.refitting import coordinates, held_out_unit_directions
from refusal_core.conversations import prompts_of
from refusal_core.models.opening import ChatModel
from refusal_core.options import FOLDS
from refusal_core.pipeline.scoring import check_model
from refusal_core.pipeline.steps import origins
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import AttributionManifest, BehaviourCompute, Parts
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import ADDED, DIFFERENCE, EMBEDDING, LOWERED, LOWERED_MEAN, RAISED, RAISED_MEAN
from refusal_core.runs.store import unfinished_work, writable_cache

if TYPE_CHECKING:
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.lens import Lens

ATTRIBUTING, LENS = "attributing (sites)", "reading the vocabulary (sites)"
DRAWS = 999
CONTROLS = 199
FEWEST_GROUPS = 32
"""Prompts, or pairs, of either label from which on parts have numbers."""
REDRAWN = 99
"""Directions of redrawn prompts whose tokens are held against those of the direction."""
TOKENS = 10
COLUMNS = (
    *("site", "measure", "part", "block", "rank", "token"),
    *("number", "number_low", "number_high", "again", "chance_low", "chance_high", "p"),
)


@dataclass(frozen=True, eq=False)
class _Design:
    """What all sites have in common.

    Attributes:
        is_harmful: ``(prompt,)`` bool.
        fold: ``(prompt,)`` int; empty where there are fewer than :data:`FEWEST_GROUPS`.
        counts: ``(1 + draw, prompt)`` multiplicities, every prompt once in the first row.
        groups: ``(prompt,)`` what is never split.
        pairs: ``(prompt,)`` the matched pair, or the prompt by itself.
        n_groups: how many prompts, or pairs, there are of the rarer label.
        controls: ``(control, prompt)`` weights of control directions, the same at all sites.
    """

    is_harmful: np.ndarray
    fold: np.ndarray
    counts: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    n_groups: int
    controls: np.ndarray


def record(
    run: Run,
    chat_model: ChatModel,
    progress: Progress = no_progress,
    draws: int = DRAWS,
    controls: int = CONTROLS,
) -> pd.DataFrame:
    """Attribute a run's directions to the parts that add to them, read which tokens they would write, store both.

    Args:
        run: the run.
        chat_model: its model.
        progress: called as prompts are read and sites done.
        draws: of the bootstrap.
        controls: control directions per site, at most: of few pairs there are fewer permutations.

    Returns:
        One row per number: ``site, measure, part, block, rank, token, number, number_low, number_high, again,
        chance_low, chance_high, p``. Rows of ``added`` have what a part adds to the held-out difference of the labels
        at a layer, see :func:`.analysis.attribution.attribute`, rows of ``difference`` what all add. Rows of ``raised``
        and ``lowered`` have the tokens that the run's direction at a site raises and lowers most, see
        :func:`.activations.lens.read_lens`, and how often each is among as many of a direction of redrawn prompts; rows
        of ``raised_mean`` and ``lowered_mean`` the mean of these logits, where 95 % of control directions lie, and the
        share of them that reach it, corrected over the sites and both ends.

    Raises:
        RefusalError: when the model is not the run's, or the result cannot be stored.
    """
    from refusal_core.activations.extraction import extract
    from refusal_core.activations.reader import ResidualReader
    from refusal_core.activations.writes import NotAddedError, WritesReader

    # Not after minutes of work.
    run.check_own_position(AttributionManifest.kind)
    writable_cache(run.path.parent)
    check_model(run, chat_model)
    template, seed = run.manifest.template, run.manifest.compute.seed
    table = run.prompts[run.prompts["fitted"]]
    prompt_group = prompt_groups(table)
    sample = sample_groups(
        table["label"].eq("harmful").to_numpy(), prompt_group, groups.MOST_REDRAWN, np.random.default_rng(seed)
    )
    table = table.iloc[sample]
    design = _plan(table, prompt_group[sample], seed, draws, controls, run.directions.are_of_means)
    given = chat_model, template.system_prompt, template.thinking, template.day
    reason: str | None = None
    parts: tuple[Parts, ...] = ()
    reader: ResidualReader
    try:
        reader = of_parts = WritesReader(*given)
        parts = tuple(of_parts.parts)
    except NotAddedError as error:
        reason, reader = str(error), ResidualReader(*given)
    under_way = unfinished_work(
        run.path / f".{AttributionManifest.kind}", f"attributing the directions of {run.run_id}"
    )
    with under_way as folder:
        extraction = extract(
            chat_model,
            prompts_of(table),
            template.system_prompt,
            template.thinking,
            template.token_limit,
            progress,
            origins(table),
            folder,
            template.day,
            kind=type(reader),
        )
        began = time.monotonic()
        stream = extraction.hidden
        rows = [] if reason else list(_added(run, stream, parts, design, progress))
        rows += _written(run, chat_model, stream, reader.sites, design, progress)
        measured = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"block": "Int64", "rank": "Int64"})
        for name in ("part", "token"):
            # A column of texts that are all missing would be stored as one of numbers.
            measured[name] = measured[name].astype(object).where(measured[name].notna(), None)
        manifest = AttributionManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            compute=BehaviourCompute(device=chat_model.device, dtype=chat_model.dtype),
            seed=seed,
            draws=draws,
            controls=len(design.controls),
            prompts=len(table),
            parts=parts,
            recurrent=chat_model.is_recurrent,
            reason=reason
            or (None if len(design.fold) else f"it takes {FEWEST_GROUPS} prompts, or pairs, of either label"),
            versions={name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
            timings={"seconds": round(extraction.seconds + time.monotonic() - began, 3)},
        )
        save_addition(run, measured, manifest)
    return measured


def _plan(
    table: pd.DataFrame, prompt_group: np.ndarray, seed: int, draws: int, controls: int, of_means: bool
) -> _Design:
    is_harmful = table["label"].eq("harmful").to_numpy()
    n_groups = fewest_groups(is_harmful, prompt_group)
    folds = assign_folds(is_harmful, prompt_group, FOLDS, 1, np.random.default_rng(seed))
    counts = bootstrap_counts(is_harmful, prompt_group, draws, np.random.default_rng([seed, 4]))
    # Of fewer, intervals that are meant to hold for all parts at once fail more often than they may.
    fold = folds[0] if n_groups >= FEWEST_GROUPS else np.empty(0, dtype=int)
    rng = np.random.default_rng([seed, 5])
    pairs = prompt_pairs(table)
    if of_means:
        twins = find_twins(is_harmful, pairs)
        weights = permuted_weights(is_harmful, prompt_group, twins, controls, rng)
    else:
        weights = covariance_weights(is_harmful, controls, rng)
    return _Design(is_harmful, fold, np.vstack([np.ones(len(table)), counts]), prompt_group, pairs, n_groups, weights)


def _added(
    run: Run, stream: np.ndarray, parts: tuple[Parts, ...], design: _Design, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Yield what every part adds at every layer; after the final norm nothing adds up.

    Args:
        run: whose directions are attributed.
        stream: ``(prompt, place, d_model)`` residual stream before the first block and after every part.
        parts: of every block.
        design: folds and draws.
        progress: called once per layer.
    """
    names: list[tuple[str, int | None]] = [(EMBEDDING, None)]
    for layer, own in enumerate(parts):
        progress(ATTRIBUTING, layer, len(parts))
        names += [(part, layer) for part in own]
        if not len(design.fold):
            continue
        at_site = np.ascontiguousarray(stream[:, len(names) - 1])
        if run.directions.imported:
            # Fitted on none of these prompts.
            directions = run.directions.unit_direction[layer][None].astype(np.float64)
        elif run.directions.are_of_means:
            directions = held_out_directions(at_site, design.is_harmful, design.fold)
        else:
            directions = _held_out_estimates(run.directions.estimator, at_site, design)
        if not directions.any(axis=1).all():
            continue
        found = attribute(
            lambda place: stream[:, place],
            len(names),
            directions,
            design.is_harmful,
            design.fold,
            design.counts,
            design.n_groups,
        )
        for (part, block), *numbers in zip(names, found.number, found.low, found.high, strict=True):
            ends = dict(zip(("number", "number_low", "number_high"), numbers, strict=True))
            yield {"site": layer, "measure": ADDED, "part": part, "block": block, **ends}
        yield {
            "site": layer,
            "measure": DIFFERENCE,
            "number": found.total,
            "number_low": found.total_low,
            "number_high": found.total_high,
        }
    progress(ATTRIBUTING, len(parts), len(parts))


def _held_out_estimates(estimator: str, at_site: np.ndarray, design: _Design) -> np.ndarray:
    """Return ``(fold, d_model)`` the direction that an estimator fits without each fold; zeros where there is none."""
    own, basis = coordinates(at_site, np.ones(len(at_site), dtype=bool))
    training = Training(own, design.is_harmful, design.groups, design.pairs, at_site.shape[1])
    directions = held_out_unit_directions(estimator, training, design.fold)
    return directions if basis is None else directions @ basis.T


def _written(
    run: Run,
    chat_model: ChatModel,
    stream: np.ndarray,
    places: np.ndarray,
    design: _Design,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return which tokens the directions raise and lower, and how far, beside control directions.

    Args:
        run: whose directions they are.
        chat_model: whose vocabulary is read.
        stream: ``(prompt, place, d_model)``.
        places: ``(site,)``, which of them are the sites.
        design: labels, draws and controls.
        progress: called once per site.
    """
    from refusal_core.activations.lens import read_lens

    rows: list[dict[str, Any]] = []
    means: dict[int, np.ndarray] = {}
    controls = len(design.controls)
    for site in range(run.n_sites):
        progress(LENS, site, run.n_sites)
        direction, at_site = run.directions.unit_direction[site], np.ascontiguousarray(stream[:, places[site]])
        if not direction.any():
            continue
        weights = [design.controls]
        if run.directions.are_of_means:
            counts = design.counts[1 : 1 + REDRAWN]
            weights.append(contrast_weights(counts * design.is_harmful, counts * ~design.is_harmful))
        others = unit(np.vstack(weights) @ at_site.astype(np.float64))
        directions = np.vstack([direction[None], others]).astype(np.float32)
        lens = read_lens(chat_model, directions, site == run.n_layers, TOKENS)
        rows += _tokens(chat_model, lens, 1 + controls, site)
        # (2, 1 + control): of raised and lowered tokens.
        means[site] = np.stack([by[: 1 + controls].mean(axis=1) for by in (lens.raised_by, lens.lowered_by)])
    progress(LENS, run.n_sites, run.n_sites)
    if means:
        of_all = np.stack(list(means.values()))
        p = corrected_p(of_all[:, :, 0].ravel(), of_all[:, :, 1:].reshape(-1, controls).T)
        for (site, own), of_site in zip(means.items(), p.reshape(-1, 2), strict=True):
            # The opposite of a control direction is as likely as the control: both ends have one distribution.
            low, high = np.quantile(own[:, 1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            for measure, mean, reached in zip((RAISED_MEAN, LOWERED_MEAN), own[:, 0], of_site, strict=True):
                chance = {"chance_low": low, "chance_high": high, "p": reached}
                rows.append({"site": site, "measure": measure, "number": mean, **chance})
    return rows


def _tokens(chat_model: ChatModel, lens: Lens, first_redrawn: int, site: int) -> Iterator[dict[str, Any]]:
    """Yield the tokens of the first direction, and how often each is among those of directions of redrawn prompts."""
    for measure, ids, by in ((RAISED, lens.raised, lens.raised_by), (LOWERED, lens.lowered, lens.lowered_by)):
        redrawn = ids[first_redrawn:]
        for place, token_id in enumerate(ids[0].tolist()):
            again = float((redrawn == token_id).any(axis=1).mean()) if len(redrawn) else np.nan
            yield {
                "site": site,
                "measure": measure,
                "rank": place + 1,
                "token": str(chat_model.tokenizer.decode([token_id])),
                "number": float(by[0, place]),
                "again": again,
            }
