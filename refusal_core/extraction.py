"""Extraction: every prompt of a run at its last token, all sites in one pass, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from refusal_core.activations import BATCH_TOKENS, ResidualReader, batches, check_finite, refusal_log_odds
from refusal_core.errors import ModelError, PromptError
from refusal_core.models import ChatModel
from refusal_core.passes import FinishedPasses
from refusal_core.progress import Progress, no_progress
from refusal_core.prompts import TOKEN_LIMIT

EXTRACTING = "extracting (prompts)"


@dataclass(frozen=True, eq=False)
class Extraction:
    """What one pass over the prompts leaves behind.

    Attributes:
        hidden: ``(prompt, site, d_model)`` float32, the residual stream at the last token of the templated prompt; read
            from a file as it is used.
        n_tokens: ``(prompt,)`` tokens of each templated prompt.
        first_token: the likeliest first token of each reply, as text.
        refusal_log_odds: ``(prompt,)`` float64, see :func:`refusal_log_odds`.
        prefix_tokens: template tokens that were run once for all prompts; 0 when they were not shared.
        prefix_note: the same in words, with the reason where it is 0.
        seconds: wall time of the forward passes, those of earlier attempts included.
        batch_tokens: most new tokens that were run together; less than usual where a device ran out of memory.
    """

    hidden: np.ndarray
    n_tokens: np.ndarray
    first_token: list[str]
    refusal_log_odds: np.ndarray
    prefix_tokens: int
    prefix_note: str
    batch_tokens: int
    seconds: float


def extract(
    chat_model: ChatModel,
    texts: list[str],
    system_prompt: str | None = None,
    thinking: bool | None = None,
    token_limit: int = TOKEN_LIMIT,
    progress: Progress = no_progress,
    places: Sequence[str] | None = None,
    folder: Path | None = None,
    day: str | None = None,
) -> Extraction:
    """Read every prompt at its last token, all sites in one pass.

    A device that runs out of memory gets smaller batches.

    Args:
        texts: the prompts as a person would type them; the chat template is applied here.
        token_limit: longest templated prompt that is accepted; nothing is ever cut.
        progress: called with ``(EXTRACTING, prompts done, prompts)``.
        places: where each prompt comes from, for errors; ``prompt 1`` and so on without.
        folder: where finished batches are kept as they come, so that work that was stopped goes on there; activations
            stay in a file of it, which whoever gave it removes. Without, nothing is kept.

        day: see :func:`refusal_core.templates.render`.

    Raises:
        PromptError: when a prompt is longer than the limit.
        ModelError: when activations are not finite, with the layer and the first such prompt, or when one prompt alone
            does not fit into the device's memory.
    """
    places = places or [f"prompt {row}" for row in range(1, len(texts) + 1)]
    reader = ResidualReader(chat_model, system_prompt, thinking, day)
    sequences = [reader.encode(text) for text in texts]
    n_tokens = np.array([len(ids) for ids in sequences])
    if n_tokens.max() > token_limit:
        row = int(n_tokens.argmax())
        raise PromptError(
            f"{places[row]} ({texts[row]!r:.60}) is {n_tokens[row]} tokens long with its template, "
            f"expected at most {token_limit}; shorten it or raise --token-limit"
        )
    request = {
        "model": chat_model.info.fingerprint,
        "compute": [chat_model.device, chat_model.dtype, reader.prefix_tokens, reader.pads],
        "tokens": hashlib.sha256(json.dumps(sequences).encode()).hexdigest(),
        "versions": [version(name) for name in ("torch", "transformers")],
    }
    shape = (len(texts), chat_model.n_layers + 1, chat_model.d_model)
    batch_tokens = 1 if chat_model.reads_alone else BATCH_TOKENS[torch.device(chat_model.device).type]
    log_odds, first_token = np.empty(len(texts)), [""] * len(texts)
    with _kept(folder, shape, request) as (hidden, finished):
        waiting = deque(batches(n_tokens, reader.prefix_tokens, batch_tokens, reader.pads))
        done = 0
        progress(EXTRACTING, 0, len(texts))
        while waiting:
            rows = waiting.popleft()
            length = int(n_tokens[rows[0]]) - reader.prefix_tokens
            fitting = max(1, batch_tokens // max(1, length))
            if len(rows) > fitting:
                waiting.extendleft([rows[fitting:], rows[:fitting]])
                continue
            name = " ".join(map(str, rows))
            found = finished.get(name)
            if found is None or not _intact(found, hidden):
                started = time.perf_counter()
                try:
                    states, logits = reader.read_last([sequences[row] for row in rows])
                    odds = refusal_log_odds(logits, reader.refusal_ids)
                except torch.OutOfMemoryError as error:
                    if len(rows) == 1:
                        raise ModelError(
                            f"{places[rows[0]]} alone does not fit into the memory of {chat_model.device} beside the "
                            "model; choose a smaller model or another device"
                        ) from error
                    batch_tokens = len(rows) // 2 * length
                    waiting.appendleft(rows)
                    continue
                check_finite(states, odds, [(places[row], texts[row]) for row in rows], chat_model)
                hidden[rows] = states
                found = [
                    {"row": row, "sha256": _digest(state), "log_odds": odd, "first_token": token}
                    for row, state, odd, token in zip(
                        rows.tolist(), states, odds.tolist(), reader.first_tokens(logits), strict=True
                    )
                ]
                finished.add(name, found, time.perf_counter() - started)
            for prompt in found:
                log_odds[prompt["row"]], first_token[prompt["row"]] = prompt["log_odds"], prompt["first_token"]
            done += len(rows)
            progress(EXTRACTING, done, len(texts))
    return Extraction(
        hidden=hidden,
        n_tokens=n_tokens,
        first_token=first_token,
        refusal_log_odds=log_odds,
        prefix_tokens=reader.prefix_tokens,
        prefix_note=reader.prefix_note,
        batch_tokens=batch_tokens,
        seconds=finished.seconds,
    )


@contextmanager
def _kept(folder: Path | None, shape: tuple[int, ...], request: dict) -> Iterator[tuple[np.ndarray, FinishedPasses]]:
    """A file for activations and the batches that are in it already; without a folder, in one that does not last."""
    if folder is None:
        # Where a file that is still mapped cannot be removed, the system's own cleaning does it.
        passing = tempfile.TemporaryDirectory(prefix="refusal-", ignore_cleanup_errors=True)
        with passing as name, _kept(Path(name), shape, request) as kept:
            yield kept
        return
    with FinishedPasses(folder / "passes.jsonl", request) as finished:
        path = folder / "hidden.f32"
        size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        whole = finished.resumed and path.is_file() and path.stat().st_size == size
        yield np.memmap(path, np.float32, "r+" if whole else "w+", shape=shape), finished


def _intact(found: list[dict], hidden: np.ndarray) -> bool:
    """Whether the activations of a finished batch are those that were written."""
    return all(prompt["sha256"] == _digest(hidden[prompt["row"]]) for prompt in found)


def _digest(states: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(states, dtype=np.float32).tobytes()).hexdigest()
