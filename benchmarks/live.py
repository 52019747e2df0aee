"""Scoring a typed prompt beside the bare forward pass of the tokens that changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations import ResidualReader, layerwise_copy

SECTION = "live"


def rows(bench: Bench) -> list[Row]:
    """A typed prompt's reading, every token at every site, over the model called with its own tokens alone."""
    reader = ResidualReader(bench.chat_model)
    text = sorted(bench.texts, key=len)[len(bench.texts) // 2]
    ids = reader.encode(text)
    prefix = ids[: reader.prefix_tokens]
    bare = partial(_bare_pass, bench, ids[len(prefix) :], _keys_and_values(bench, prefix))
    ways: dict[str, Callable[[], object]] = {"reading": partial(reader.read_tokens, text), "bare": bare}
    for way in ways.values():
        way()
    # Short passes: many of them make a round's figure steady.
    seconds = in_turn(ways, 5 * bench.rounds)
    ratio = np.array(seconds["reading"]) / np.array(seconds["bare"])
    note = f"{len(ids) - len(prefix)} tokens after the template's {len(prefix)}"
    return [Row(SECTION, "one typed prompt over its bare pass", "<= 1.3 x", ratio.tolist(), note=note, seconds=seconds)]


def _keys_and_values(bench: Bench, prefix: list[int]):
    if not prefix:
        return None
    with torch.inference_mode():
        given = torch.tensor([prefix], device=bench.chat_model.device)
        return bench.chat_model.model(given, use_cache=True, logits_to_keep=1).past_key_values


def _bare_pass(bench: Bench, ids: list[int], cache) -> None:
    with torch.inference_mode():
        given = torch.tensor([ids], device=bench.chat_model.device)
        # The pass itself adds to what it is given.
        own = layerwise_copy(cache) if cache is not None else None
        bench.chat_model.model(given, past_key_values=own, use_cache=own is not None, logits_to_keep=1).logits.cpu()
