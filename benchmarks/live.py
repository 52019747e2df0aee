"""Scoring a typed prompt beside the bare forward pass of the tokens that changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import Cache

from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations.packing import common_prefix
from refusal_core.activations.reader import ResidualReader
from refusal_core.models.transformers_internals import copy_cache

SECTION = "live"
_MORE = " today"


def rows(bench: Bench) -> list[Row]:
    """Reading every token at every site, over the model called with no more than the tokens that have to be run.

    Of a prompt of which only the template is known, and of one that was just read and gets a word more.
    """
    reader = ResidualReader(bench.chat_model)
    text = sorted(bench.texts, key=len)[len(bench.texts) // 2]
    first, second = reader.encode(text), reader.encode(text + _MORE)
    known = {"first": first[: reader.prefix_tokens], "more": common_prefix(first, second)}
    bare = {"first": _bare_pass(bench, first, known["first"]), "more": _bare_pass(bench, second, known["more"])}

    def read_first() -> None:
        reader.forget_recent()
        reader.read_tokens(text)

    ways: dict[str, Callable[[], object]] = {
        "first": read_first,
        "first, bare": bare["first"],
        "more": lambda: reader.read_tokens(text + _MORE),
        "more, bare": bare["more"],
    }
    for way in ways.values():
        way()
    # Short passes: many of them make a round's figure steady.
    seconds = in_turn(ways, 5 * bench.rounds)
    return [
        _row("a typed prompt over its bare pass", "first", f"{len(first) - len(known['first'])} tokens run", seconds),
        _row("a word more over its bare pass", "more", f"{len(second) - len(known['more'])} tokens run", seconds),
    ]


def _row(name: str, way: str, note: str, seconds: dict[str, list[float]]) -> Row:
    timed = {each: seconds[each] for each in (way, f"{way}, bare")}
    ratio = np.array(timed[way]) / np.array(timed[f"{way}, bare"])
    return Row(SECTION, name, "<= 1.3 x", ratio.tolist(), note=note, seconds=timed)


def _bare_pass(bench: Bench, ids: list[int], known: list[int]) -> Callable[[], None]:
    """The model called with the tokens behind those whose keys and values are known."""
    given = torch.tensor([ids[len(known) :]], device=bench.chat_model.device)
    before = _keys_and_values(bench, known)

    def run() -> None:
        with torch.inference_mode():
            # The pass itself adds to what it is given.
            own = copy_cache(before) if before is not None else None
            bench.chat_model.model(given, past_key_values=own, use_cache=own is not None, logits_to_keep=1).logits.cpu()

    return run


def _keys_and_values(bench: Bench, ids: list[int]) -> Cache | None:
    if not ids:
        return None
    with torch.inference_mode():
        given = torch.tensor([ids], device=bench.chat_model.device)
        cache: Cache = bench.chat_model.model(given, use_cache=True, logits_to_keep=1).past_key_values
    return cache
