"""Measuring behaviour, compared with plain ``generate`` on padded batches, which gives the replies alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from benchmarks.engine import matmul_peak
from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations.hooks import contiguous_head
from refusal_core.activations.packing import distinct_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.token_tree import TokenTree
from refusal_core.behaviour.openings import OPENING_TOKENS, read_rules
from refusal_core.behaviour.replies import Replies, read_replies
from refusal_core.models.opening import ChatModel

SECTION = "behaviour"
BATCH = 16


def rows(bench: Bench) -> list[Row]:
    """Time replies and phrase probabilities against replies by plain transformers, and as a share of the peak."""
    reader = ResidualReader(bench.chat_model)
    sequences = [reader.encode(text) for text in bench.texts]
    phrases = read_rules().phrases
    measured = read_replies(reader, bench.texts, phrases)
    plain = generated(bench.chat_model, sequences)
    n_same = sum(ours == theirs for ours, theirs in zip(measured.opening, plain, strict=True))
    peaks: list[float] = []
    ways: dict[str, Callable[[], object]] = {
        "peak": lambda: peaks.append(matmul_peak(bench)),
        "behaviour": lambda: read_replies(reader, bench.texts, phrases),
        "generate": lambda: generated(bench.chat_model, sequences),
    }
    seconds = in_turn(ways, bench.rounds)
    ours, theirs = np.array(seconds["behaviour"]), np.array(seconds["generate"])
    timed = {name: seconds[name] for name in ("behaviour", "generate")}
    note = f"{n_same} of {len(plain)} replies the same; theirs without phrases"
    share = 100 * _needed_flops(reader, sequences, phrases, measured) / ours / np.array(peaks)
    of_peak = f"peak {np.median(peaks) / 1e9:.0f} GFLOP/s; {np.median(ours):.1f} s"
    return [
        Row(SECTION, f"generate, padded batches of {BATCH}", ">= 2 x", (theirs / ours).tolist(), "x", note, timed),
        Row(SECTION, "matmul peak, the share of measuring", ">= 60 %", share.tolist(), "%", of_peak),
    ]


def generated(chat_model: ChatModel, sequences: list[list[int]]) -> list[str]:
    """Reply as a careful person would have plain transformers do: sorted by length, padded on the left."""
    pad = chat_model.tokenizer.pad_token_id
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    replies = [""] * len(sequences)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(sequences[row]) for row in part)
        padding = [longest - len(sequences[row]) for row in part]
        ids = [[pad] * n_pad + sequences[row] for row, n_pad in zip(part, padding, strict=True)]
        mask = [[0] * n_pad + [1] * (longest - n_pad) for n_pad in padding]
        # A strided last state would be multiplied by the vocabulary once per prompt.
        with torch.inference_mode(), contiguous_head(chat_model):
            written = cast(Any, chat_model.model).generate(
                torch.tensor(ids, device=chat_model.device),
                attention_mask=torch.tensor(mask, device=chat_model.device),
                max_new_tokens=OPENING_TOKENS,
                do_sample=False,
                pad_token_id=pad,
            )
        for row, tokens in zip(part, written[:, longest:].tolist(), strict=True):
            replies[row] = str(chat_model.tokenizer.decode(tokens, skip_special_tokens=True))
    return replies


def _needed_flops(
    reader: ResidualReader, sequences: list[list[int]], phrases: tuple[str, ...], measured: Replies
) -> float:
    """Count the products of weights with the tokens that had to be run: prompts, the tree of phrases, replies."""
    chat_model = reader.chat_model
    encode = chat_model.tokenizer.encode
    tree = TokenTree([encode(phrase, add_special_tokens=False) for phrase in phrases])
    n_nodes = len(tree.nodes) - 1
    # The last token of a reply is not run.
    n_replied = sum(max(0, len(encode(opening, add_special_tokens=False)) - 1) for opening in measured.opening)
    blocks = sum(weights.numel() for weights in chat_model.blocks.parameters() if weights.ndim == 2)
    head = sum(weights.numel() for weights in chat_model.lm_head.parameters() if weights.ndim == 2)
    n_behind = n_nodes * len(sequences) + n_replied
    return 2.0 * (blocks * (distinct_tokens(sequences) + n_behind) + head * (len(sequences) + n_behind))
