"""Extraction: every prompt of a run at its last tokens, all sites in one pass, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from refusal_core.activations.checks import check_finite
from refusal_core.activations.engine import Batch, Engine, in_process
from refusal_core.activations.passes import FinishedPasses
from refusal_core.activations.reader import ResidualReader
from refusal_core.conversations import Prompt, prefix_of, text_of
from refusal_core.errors import ModelError, PromptError
from refusal_core.models.opening import ChatModel
from refusal_core.options import TOKEN_LIMIT
from refusal_core.progress import Progress, no_progress

EXTRACTING = "extracting (prompts)"


@dataclass(frozen=True, eq=False)
class Extraction:
    """What one pass over the prompts leaves behind.

    Attributes:
        hidden: ``(prompt, site, d_model)`` float32, the residual stream at the last token of the templated prompt; read
            from a file as it is used.
        at_end: ``(token, prompt, site, d_model)`` float32, the same at the prompt's own last token and the template's
            closing tokens behind it, where these were read; else at the last alone, which is ``hidden``.
        n_tokens: ``(prompt,)`` tokens of each templated prompt.
        first_token: the likeliest first token of each reply, as text.
        refusal_log_odds: ``(prompt,)`` float64, see :func:`.refusal_tokens.refusal_log_odds`.
        prefix_tokens: template tokens that were run once for all prompts; 0 when they were not shared.
        prefix_note: the same in words, with the reason where it is 0.
        batch_tokens: most new tokens that were run together.
        batch_note: the same in words, where a device ran out of memory and got less than usual; else None.
        pack_note: whether prompts were read in packs, or why not, in words.
        placement: where the prompts were read, see :attr:`ChatModel.placement`; several where Ray's actors differ.
        seconds: wall time of the forward passes, those of earlier attempts included.
    """

    hidden: np.ndarray
    at_end: np.ndarray
    n_tokens: np.ndarray
    first_token: list[str]
    refusal_log_odds: np.ndarray
    prefix_tokens: int
    prefix_note: str
    batch_tokens: int
    batch_note: str | None
    pack_note: str
    placement: str
    seconds: float


def extract(
    chat_model: ChatModel,
    given: Sequence[Prompt],
    system_prompt: str | None = None,
    thinking: bool | None = None,
    token_limit: int = TOKEN_LIMIT,
    progress: Progress = no_progress,
    origins: Sequence[str] | None = None,
    folder: Path | None = None,
    day: str | None = None,
    engine: Engine = in_process,
    closing: bool = False,
    kind: type[ResidualReader] | None = None,
) -> Extraction:
    """Read every prompt at its last token, all sites in one pass.

    Of a prompt that makes the reply begin in some way, activations are read before that, where the user's last turn
    ends, and the first token and the refusal log-odds after it. A device that runs out of memory gets smaller batches.

    Args:
        chat_model: the model to read.
        given: the prompts as a person would type them, or conversations; the chat template is applied here.
        system_prompt: see :func:`refusal_core.models.templates.render`.
        thinking: see :func:`refusal_core.models.templates.render`.
        token_limit: longest templated prompt that is accepted; nothing is ever cut.
        progress: called with ``(EXTRACTING, prompts done, prompts)``.
        origins: where each prompt comes from, for errors; ``prompt 1`` and so on without.
        folder: where finished batches are kept as they come, so that work that was stopped goes on there; activations
            stay in a file of it, which whoever gave it removes. Without, nothing is kept.
        day: see :func:`refusal_core.models.templates.render`.
        engine: where batches are read.
        closing: read the template's closing tokens too, and the last token of the user's last turn, before them. Where
            the tokenizer merges that with the first closing token, the merged one stands for both.
        kind: of the reader, where the residual stream is to be recorded at more places than its sites.

    Raises:
        PromptError: when a prompt is longer than the limit.
        ModelError: when activations are not finite, with the layer and the first such prompt, or when one prompt alone
            does not fit into the device's memory.
    """
    origins = origins or [f"prompt {row}" for row in range(1, len(given) + 1)]
    prompts = list(zip(origins, given, strict=True))
    reader = (kind or ResidualReader)(chat_model, system_prompt, thinking, day)
    sequences = _encode(reader, prompts, token_limit)
    usual, balanced = reader.batch_tokens, reader.balanced_token_limit(sequences)
    last = reader.template_end + 1 if closing else 1
    with _open_results(reader, sequences, folder, last) as results:
        progress(EXTRACTING, 0, len(prompts))
        waiting = []
        for rows in reader.batches(sequences, balanced):
            if results.has(rows):
                progress(EXTRACTING, results.n_done, len(prompts))
            else:
                waiting.append(rows)
        jobs = (([sequences[row].tolist() for row in rows], [origins[row] for row in rows], last) for rows in waiting)
        started = time.perf_counter()
        for number, batch in engine(reader, jobs):
            rows = waiting[number]
            texts = [(origins[row], text_of(given[row])) for row in rows]
            check_finite(batch.states[:, reader.sites], batch.log_odds, texts, chat_model)
            results.add(rows, batch, time.perf_counter() - started)
            started = time.perf_counter()
            progress(EXTRACTING, results.n_done, len(prompts))
    begun = [row for row, prompt in enumerate(given) if prefix_of(prompt)]
    _read_after_prefix(reader, [prompts[row] for row in begun], begun, token_limit, engine, results)
    at_end = results.hidden.transpose(2, 0, 1, 3)
    for row, ids in enumerate(sequences if closing else ()):
        if (n_closing := reader.n_closing(ids.tolist())) < last - 1:
            at_end[0, row] = at_end[last - 1 - n_closing, row]
    fitting = min([usual, *results.batch_tokens])
    return Extraction(
        hidden=at_end[-1],
        at_end=at_end,
        n_tokens=np.array([len(ids) for ids in sequences]),
        first_token=results.first_token,
        refusal_log_odds=results.log_odds,
        prefix_tokens=reader.prefix_tokens,
        prefix_note=reader.prefix_note,
        batch_tokens=min(balanced, fitting),
        batch_note=None
        if fitting == usual
        else f"{chat_model.device} ran out of memory: {fitting} tokens together in place of {usual}",
        pack_note=reader.pack_note,
        placement="; ".join(sorted(results.placements)) or chat_model.placement,
        seconds=results.seconds,
    )


class _Results:
    """What was read so far: activations in a file, the rest in memory and in the file of finished batches.

    Attributes:
        hidden: ``(prompt, site, token, d_model)`` float32.
        log_odds: ``(prompt,)`` float64.
        first_token: ``(prompt,)`` text.
        n_done: how many prompts were read.
        batch_tokens: what fitted together, in this attempt.
        placements: where prompts were read, in this attempt.
    """

    def __init__(self, hidden: np.ndarray, finished: FinishedPasses) -> None:
        self.hidden = hidden
        self.log_odds = np.empty(len(hidden))
        self.first_token = [""] * len(hidden)
        self.n_done = 0
        self.batch_tokens: list[int] = []
        self.placements: set[str] = set()
        self._finished = finished

    @property
    def seconds(self) -> float:
        """Wall time of all batches, those of earlier attempts included."""
        return self._finished.seconds

    def has(self, rows: np.ndarray) -> bool:
        """Take a batch over from an earlier attempt; False where there is none, or its activations are damaged."""
        prompts = self._finished.get(_batch_name(rows))
        if prompts is None or any(prompt["sha256"] != _digest(self.hidden[prompt["row"]]) for prompt in prompts):
            return False
        self._take(prompts)
        return True

    def add(self, rows: np.ndarray, batch: Batch, seconds: float) -> None:
        """Keep what was read of a batch."""
        states = batch.states.reshape(len(rows), *self.hidden.shape[1:])
        self.hidden[rows] = states
        prompts = [
            {"row": row, "sha256": _digest(of_prompt), "log_odds": log_odds, "first_token": token}
            for row, of_prompt, log_odds, token in zip(
                rows.tolist(), states, batch.log_odds.tolist(), batch.first_token, strict=True
            )
        ]
        self._finished.add(_batch_name(rows), prompts, seconds)
        self.batch_tokens.append(batch.batch_tokens)
        self.placements.add(batch.placement)
        self._take(prompts)

    def _take(self, prompts: list[dict[str, Any]]) -> None:
        for prompt in prompts:
            self.log_odds[prompt["row"]], self.first_token[prompt["row"]] = prompt["log_odds"], prompt["first_token"]
        self.n_done += len(prompts)


def _read_after_prefix(
    reader: ResidualReader,
    prompts: list[tuple[str, Prompt]],
    rows: Sequence[int],
    token_limit: int,
    engine: Engine,
    results: _Results,
) -> None:
    """Replace the reply's first token and refusal log-odds of prompts by those after what the reply begins with."""
    if not prompts:
        return
    sequences = _encode(reader, prompts, token_limit, with_prefix=True)
    batches = list(reader.batches(sequences, reader.balanced_token_limit(sequences)))
    jobs = (
        ([sequences[place].tolist() for place in batch], [prompts[place][0] for place in batch], 1) for batch in batches
    )
    for number, read in engine(reader, jobs):
        texts = [(prompts[place][0], text_of(prompts[place][1])) for place in batches[number]]
        check_finite(read.states[:, reader.sites], read.log_odds, texts, reader.chat_model)
        for place, log_odds, token in zip(batches[number], read.log_odds, read.first_token, strict=True):
            results.log_odds[rows[place]], results.first_token[rows[place]] = log_odds, token


def _encode(
    reader: ResidualReader, prompts: list[tuple[str, Prompt]], token_limit: int, with_prefix: bool = False
) -> list[np.ndarray]:
    """Return the token ids of templated prompts, or raise PromptError for the longest where it is too long."""
    # Arrays: as lists of numbers the tokens of many prompts would take several times as much memory.
    sequences = []
    for origin, prompt in prompts:
        try:
            sequences.append(np.array(reader.encode(prompt, with_prefix), dtype=np.int32))
        except ModelError as error:
            if isinstance(prompt, str):
                raise
            raise ModelError(f"{origin}: {error}") from error
    row = int(np.argmax([len(ids) for ids in sequences]))
    if len(sequences[row]) > token_limit:
        origin, prompt = prompts[row]
        raise PromptError(
            f"{origin} ({text_of(prompt)!r:.60}) is {len(sequences[row])} tokens long with its template, "
            f"expected at most {token_limit}; shorten it or raise the token limit"
        )
    return sequences


@contextmanager
def _open_results(
    reader: ResidualReader, sequences: list[np.ndarray], folder: Path | None, last: int
) -> Iterator[_Results]:
    """Open a folder's results for one request, with the batches that are in it already.

    Without a folder, one is made that does not last.
    """
    if folder is None:
        # Where a file that is still mapped cannot be removed, the system's own cleaning does it.
        temporary = tempfile.TemporaryDirectory(prefix="refusal-", ignore_cleanup_errors=True)
        with temporary as name, _open_results(reader, sequences, Path(name), last) as results:
            yield results
        return
    chat_model = reader.chat_model
    tokens = np.array([len(ids) for ids in sequences]).tobytes() + b"".join(ids.tobytes() for ids in sequences)
    request = {
        "model": chat_model.info.fingerprint,
        "compute": [chat_model.device, chat_model.dtype, reader.prefix_tokens, reader.packs],
        "tokens": hashlib.sha256(tokens).hexdigest(),
        "versions": [version(name) for name in ("torch", "transformers")],
    }
    # Token after token and site after site, as they are read later on.
    shape = (last, reader.sites[-1] + 1, len(sequences), chat_model.d_model)
    with FinishedPasses(folder / "passes.jsonl", request) as finished:
        path = folder / "hidden.f32"
        n_bytes = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        complete = finished.resumed and path.is_file() and path.stat().st_size == n_bytes
        if not complete:
            _reserve(path, n_bytes)
        states = np.memmap(path, np.float32, "r+", shape=shape)
        yield _Results(states.transpose(2, 1, 0, 3), finished)


def _reserve(path: Path, n_bytes: int) -> None:
    """Make a file of a size that is really on the disk: a process that fills a mapped hole on a full one is killed.

    Raises:
        OSError: when there is no room for it.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)


def _batch_name(rows: np.ndarray) -> str:
    """Return the name of a batch among the finished ones."""
    return " ".join(map(str, rows))


def _digest(states: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(states, dtype=np.float32).tobytes()).hexdigest()
