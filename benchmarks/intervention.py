"""Interventions, compared with plain hooks on padded batches, one edit after the other, openings by ``generate``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch

from benchmarks.engine import matmul_peak
from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations.hooks import contiguous_head
from refusal_core.activations.packing import distinct_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.refusal_tokens import refusal_log_odds
from refusal_core.analysis.controls import control_names
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.behaviour.replies import end_tokens, reply_text
from refusal_core.intervention.conditions import FOUND, PLAIN, Condition, Tried, doses_and_controls, sweep
from refusal_core.intervention.prompt_groups import group_conditions, group_prompts, try_conditions
from refusal_core.intervention.vectors import Vectors
from refusal_core.models.opening import ChatModel
from refusal_core.options import InterventionOptions
from refusal_core.steering import edited

SECTION = "intervention"
PROMPTS = 32
CONDITIONS = 16
"""How many conditions are timed, evenly out of those of a whole measurement in the order in which it tries them."""


def rows(bench: Bench) -> list[Row]:
    """Time edits and openings against plain hooks, and as a share of the peak."""
    chat_model = bench.chat_model
    reader = ResidualReader(chat_model)
    sequences = [reader.encode(text) for text in bench.texts[:PROMPTS]]
    vectors = _vectors(reader, sequences)
    conditions = timed_conditions(chat_model.n_layers)
    ours, theirs = measured(reader, sequences, conditions, vectors), plain(chat_model, sequences, conditions, vectors)
    pairs = [pair for condition in conditions for pair in zip(ours[condition], theirs[condition], strict=True)]
    apart = max(max(abs(one.refusal_log_odds - other.refusal_log_odds), abs(one.kl - other.kl)) for one, other in pairs)
    opened = [one.opening == other.opening for one, other in pairs if one.opening is not None]
    peaks: list[float] = []
    spent: dict[str, list[float]] = {"measured": [], "plain": []}

    def timed(name: str, way: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            start = time.process_time()
            way()
            spent[name].append(time.process_time() - start)

        return run

    seconds = in_turn(
        {
            "peak": lambda: peaks.append(matmul_peak(bench)),
            "measured": timed("measured", lambda: measured(reader, sequences, conditions, vectors)),
            "plain": timed("plain", lambda: plain(chat_model, sequences, conditions, vectors)),
        },
        bench.rounds,
    )
    wall = {name: seconds[name] for name in ("measured", "plain")}
    ratio, of_cores = (np.array(part["plain"]) / np.array(part["measured"]) for part in (wall, spent))
    note = f"to {apart:.0e} the same numbers, {sum(opened)} of {len(opened)} openings; {len(conditions)} conditions"
    flops = needed_flops(chat_model, sequences, conditions, ours)
    share = 100 * flops / np.array(seconds["measured"]) / np.array(peaks)
    of_peak = f"peak {np.median(peaks) / 1e9:.0f} GFLOP/s; {np.median(seconds['measured']):.1f} s"
    return [
        Row(SECTION, f"plain hooks, a padded batch of {len(sequences)}", ">= 5 x", ratio.tolist(), "x", note, wall),
        Row(SECTION, "the same in processor time", ">= 5 x", of_cores.tolist(), "x", "user and system", spent),
        Row(SECTION, "matmul peak, the share of measuring", ">= 60 %", share.tolist(), "%", of_peak),
    ]


def timed_conditions(n_layers: int) -> list[Condition]:
    """Return some of the conditions of a whole measurement with the last reading position: sweep, doses, controls."""
    options = InterventionOptions()
    layer, names = n_layers // 2, control_names(options.random_directions)
    at = sorted({*options.control_layers, layer} & set(range(n_layers)))
    layers = range(n_layers)
    whole = [*sweep(n_layers, layers, [-1]), *doses_and_controls(n_layers, layers, layer, -1, at, names)]
    edits = [condition for condition in dict.fromkeys(whole) if condition.edit != PLAIN]
    edits.sort(key=lambda condition: (not condition.openings, min(condition.layers)))
    chosen = np.linspace(0, len(edits) - 1, CONDITIONS).round().astype(int)
    return [Condition(PLAIN), *(edits[number] for number in sorted(set(chosen.tolist())))]


def measured(
    reader: ResidualReader, sequences: list[list[int]], conditions: Sequence[Condition], vectors: Vectors
) -> dict[Condition, list[Tried]]:
    """Try conditions on prompts as a measurement does."""
    found: dict[Condition, list[Tried]] = {condition: [cast(Any, None)] * len(sequences) for condition in conditions}
    for places in group_prompts(reader, sequences):
        part = [sequences[place] for place in places.tolist()]
        parts = list(group_conditions(reader, part, conditions))
        for together, tried_together in zip(parts, try_conditions(reader, part, parts, vectors, "all"), strict=True):
            for condition, replies in zip(together, tried_together, strict=True):
                for place, tried in zip(places.tolist(), replies, strict=True):
                    found[condition][place] = tried
    return found


def plain(
    chat_model: ChatModel, sequences: list[list[int]], conditions: Sequence[Condition], vectors: Vectors
) -> dict[Condition, list[Tried]]:
    """Try conditions as a careful person would: hooks, all prompts in one batch that is padded on the left.

    Where openings are wanted, ``generate`` gives the logits of the first token too.
    """
    pad, device = chat_model.tokenizer.pad_token_id, chat_model.device
    longest = max(map(len, sequences))
    n_pad = [longest - len(ids) for ids in sequences]
    ids = torch.tensor([[pad] * before + own for before, own in zip(n_pad, sequences, strict=True)], device=device)
    mask = torch.tensor([[0] * before + [1] * (longest - before) for before in n_pad], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    refusal_ids, ending = ResidualReader(chat_model).refusal_ids, end_tokens(chat_model)
    model = cast(Any, chat_model.model)
    found: dict[Condition, list[Tried]] = {}
    before: torch.Tensor | None = None
    for condition in conditions:
        openings: list[str | None] = [None] * len(sequences)
        under: AbstractContextManager[None] = nullcontext()
        if condition.edit != PLAIN:
            under = edited(chat_model.blocks, vectors.edit(condition, "all"))
        with torch.inference_mode(), contiguous_head(chat_model), under:
            if condition.openings:
                written = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=OPENING_TOKENS,
                    do_sample=False,
                    pad_token_id=pad,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
                logits = written.logits[0].float()
                openings = [_opening(chat_model, own, ending) for own in written.sequences[:, longest:].tolist()]
            else:
                logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1].float()
        after = logits.double().log_softmax(dim=-1)
        before = after if before is None else before
        divergence = (before.exp() * (before - after)).sum(dim=-1).clamp(min=0.0)
        numbers = zip(refusal_log_odds(logits, refusal_ids).tolist(), divergence.tolist(), openings, strict=True)
        found[condition] = [Tried(*own) for own in numbers]
    return found


def needed_flops(
    chat_model: ChatModel,
    sequences: list[list[int]],
    conditions: Sequence[Condition],
    found: dict[Condition, list[Tried]],
) -> float:
    """Count the products of weights with the tokens and blocks that had to be run.

    Prompts from the first edited block up, what several begin with once, and each token of an opening but the last.
    """
    block = sum(weights.numel() for weights in chat_model.blocks[0].parameters() if weights.ndim == 2)
    head = sum(weights.numel() for weights in chat_model.lm_head.parameters() if weights.ndim == 2)
    n_tokens, flops = distinct_tokens(sequences), 0.0
    for condition in conditions:
        n_blocks = chat_model.n_layers - min(condition.layers, default=-1) - 1
        replied = [
            len(chat_model.tokenizer.encode(tried.opening, add_special_tokens=False))
            for tried in found[condition]
            if tried.opening is not None
        ]
        n_after = sum(min(length, OPENING_TOKENS - 1) for length in replied)
        flops += 2.0 * block * (n_tokens * n_blocks + n_after * chat_model.n_layers)
        flops += 2.0 * head * (len(sequences) + n_after)
    return flops


def _vectors(reader: ResidualReader, sequences: list[list[int]]) -> Vectors:
    """Return the direction between every other prompt and those between them, and random ones for controls."""
    layers = reader.chat_model.n_layers
    states = np.concatenate([reader.read_last([ids]).states[:, :layers] for ids in sequences])
    difference = states[::2].mean(axis=0) - states[1::2].mean(axis=0)
    distance = np.linalg.norm(difference, axis=1)
    unit = {(FOUND, -1): difference / np.maximum(distance, 1e-9)[:, None]}
    rng = np.random.default_rng(0)
    for name in control_names(InterventionOptions().random_directions):
        drawn = rng.standard_normal(difference.shape)
        unit[name, -1] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return Vectors({key: values.astype(np.float32) for key, values in unit.items()}, {-1: distance})


def _opening(chat_model: ChatModel, tokens: list[int], ending: set[int]) -> str:
    end = next((place for place, token in enumerate(tokens) if token in ending), len(tokens))
    return reply_text(chat_model, tokens[:end], ending)
