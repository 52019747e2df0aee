"""Extraction: every prompt of a run at its last token, all sites in one pass, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from refusal_core.activations.passes import FinishedPasses
from refusal_core.activations.reader import LastReading, ResidualReader, check_finite
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
        n_tokens: ``(prompt,)`` tokens of each templated prompt.
        first_token: the likeliest first token of each reply, as text.
        refusal_log_odds: ``(prompt,)`` float64, see :func:`refusal_log_odds`.
        prefix_tokens: template tokens that were run once for all prompts; 0 when they were not shared.
        prefix_note: the same in words, with the reason where it is 0.
        seconds: wall time of the forward passes, those of earlier attempts included.
        batch_tokens: most new tokens that were run together.
        batch_note: the same in words, where a device ran out of memory and got less than usual; else None.
        pack_note: whether prompts were read in packs, or why not, in words.
        placement: where the prompts were read, see :attr:`ChatModel.placement`; of Ray's actors each its own.
    """

    hidden: np.ndarray
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


@dataclass(frozen=True, eq=False)
class Batch:
    """What one batch of prompts was found to be.

    Attributes:
        states: ``(prompt, site, d_model)`` float32.
        log_odds: ``(prompt,)`` float64.
        first_token: ``(prompt,)`` text.
        batch_tokens: most new tokens that fit together.
        placement: where it was read, see :attr:`ChatModel.placement`.
    """

    states: np.ndarray
    log_odds: np.ndarray
    first_token: list[str]
    batch_tokens: int
    placement: str


Job = tuple[list[list[int]], list[str]]
"""A batch to read: each prompt's token ids, and where it comes from."""
Engine = Callable[[ResidualReader, Iterable[Job]], Iterator[tuple[int, Batch]]]
"""What reads batches: takes them in order, gives them with their places in it, in any order."""


class DoesNotFitError(ModelError):
    """One prompt alone does not fit into the memory that its device has left."""


class BatchReader:
    """Reads batches on one device, fewer prompts at a time from when it runs out of memory on."""

    def __init__(self, reader: ResidualReader) -> None:
        self._reader = reader
        self._batch_tokens = reader.batch_tokens

    def read(self, job: Job) -> Batch:
        """Read a batch, in parts where it does not fit.

        Raises:
            DoesNotFitError: when one prompt alone does not.
        """
        sequences, places = job
        parts: list[LastReading] = []
        done = 0
        while done < len(sequences):
            # In their own order, since what is read together stands in the order of batches.
            part = sequences[done : done + len(next(self._reader.batches(sequences[done:], self._batch_tokens)))]
            try:
                parts.append(self._reader.read_last(part))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise DoesNotFitError(
                        f"{places[done]} alone does not fit into the memory of {self._reader.chat_model.device} beside "
                        "the model; choose a smaller model or another device"
                    ) from error
                new = sum(map(len, part)) - len(part) * self._reader.prefix_tokens
                self._batch_tokens = min(new, self._batch_tokens) // 2
                continue
            done += len(part)
        return Batch(
            parts[0].states if len(parts) == 1 else np.concatenate([part.states for part in parts]),
            np.concatenate([part.refusal_log_odds for part in parts]),
            [token for part in parts for token in part.first_token],
            self._batch_tokens,
            self._reader.chat_model.placement,
        )


def in_process(reader: ResidualReader, jobs: Iterable[Job]) -> Iterator[tuple[int, Batch]]:
    """The :data:`Engine` that reads here: ahead of whoever takes what was read, and several batches at once.

    Cores that share one product wait at its end for the slowest of them; here each, or each few of them, has batches of
    its own. For a GPU a batch is made ready while it computes another.
    """
    cores, at_once, stopped = torch.get_num_threads(), reader.at_once, threading.Event()
    readers = [reader] if at_once == 1 else [reader.for_another_thread() for _ in range(at_once)]
    blocks = [block for each in readers for block in each.chat_model.blocks]
    hooks = [block.register_forward_pre_hook(partial(_give_up, stopped)) for block in blocks]
    free: SimpleQueue[BatchReader] = SimpleQueue()
    for each in readers:
        free.put(BatchReader(each))

    def read(job: Job) -> Batch:
        mine = free.get()
        try:
            return mine.read(job)
        finally:
            free.put(mine)

    pool = ThreadPoolExecutor(at_once, "batch", torch.set_num_threads, (max(1, cores // at_once),))
    under_way: dict[Future[Batch], tuple[int, Job]] = {}

    def next_of() -> Iterator[tuple[int, Batch]]:
        """A batch that is read: the first in order, so that one that failed does not hide those before it."""
        wait(under_way, return_when=FIRST_COMPLETED)
        done = next(each for each in under_way if each.done())
        number, job = under_way.pop(done)
        if at_once > 1 and isinstance(done.exception(), DoesNotFitError):
            del done  # and with it what it had computed
            # The others had some of the memory: once more when they are done.
            while under_way:
                yield from next_of()
            done = pool.submit(read, job)
        yield number, done.result()

    try:
        for number, job in enumerate(jobs):
            under_way[pool.submit(read, job)] = number, job
            # As many again wait, so that nothing that can read does.
            if len(under_way) == 2 * at_once:
                yield from next_of()
        while under_way:
            yield from next_of()
    finally:
        # Whoever stopped is not kept waiting for batches that nobody takes.
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
        for hook in hooks:
            hook.remove()


def _give_up(stopped: threading.Event, *_: object) -> None:
    """Hook of a block: end a pass that nobody waits for."""
    if stopped.is_set():
        raise CancelledError


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
    engine: Engine = in_process,
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
        day: see :func:`refusal_core.models.templates.render`.
        engine: where batches are read.

    Raises:
        PromptError: when a prompt is longer than the limit.
        ModelError: when activations are not finite, with the layer and the first such prompt, or when one prompt alone
            does not fit into the device's memory.
    """
    places = places or [f"prompt {row}" for row in range(1, len(texts) + 1)]
    reader = ResidualReader(chat_model, system_prompt, thinking, day)
    # Arrays: as lists of numbers the tokens of many prompts would take several times as much memory.
    sequences = [np.array(reader.encode(text), dtype=np.int32) for text in texts]
    n_tokens = np.array([len(ids) for ids in sequences])
    if n_tokens.max() > token_limit:
        row = int(n_tokens.argmax())
        raise PromptError(
            f"{places[row]} ({texts[row]!r:.60}) is {n_tokens[row]} tokens long with its template, "
            f"expected at most {token_limit}; shorten it or raise --token-limit"
        )
    request = {
        "model": chat_model.info.fingerprint,
        "compute": [chat_model.device, chat_model.dtype, reader.prefix_tokens, reader.packs],
        "tokens": hashlib.sha256(n_tokens.tobytes() + b"".join(ids.tobytes() for ids in sequences)).hexdigest(),
        "versions": [version(name) for name in ("torch", "transformers")],
    }
    shape = (len(texts), chat_model.n_layers + 1, chat_model.d_model)
    usual = fitting = reader.batch_tokens
    together = reader.even_tokens(sequences)
    placements: set[str] = set()
    log_odds, first_token = np.empty(len(texts)), [""] * len(texts)
    with _kept(folder, shape, request) as (hidden, finished):
        waiting: list[np.ndarray] = []
        done = 0
        progress(EXTRACTING, 0, len(texts))

        def take(found: list[dict]) -> None:
            nonlocal done
            for prompt in found:
                log_odds[prompt["row"]], first_token[prompt["row"]] = prompt["log_odds"], prompt["first_token"]
            done += len(found)
            progress(EXTRACTING, done, len(texts))

        for rows in reader.batches(sequences, together):
            known = finished.get(_name(rows))
            if known is not None and _intact(known, hidden):
                take(known)
            else:
                waiting.append(rows)
        jobs = (([sequences[row].tolist() for row in rows], [places[row] for row in rows]) for rows in waiting)
        started = time.perf_counter()
        for number, batch in engine(reader, jobs):
            rows = waiting[number]
            check_finite(batch.states, batch.log_odds, [(places[row], texts[row]) for row in rows], chat_model)
            hidden[rows] = batch.states
            found = [
                {"row": row, "sha256": _digest(state), "log_odds": odd, "first_token": token}
                for row, state, odd, token in zip(
                    rows.tolist(), batch.states, batch.log_odds.tolist(), batch.first_token, strict=True
                )
            ]
            finished.add(_name(rows), found, time.perf_counter() - started)
            started = time.perf_counter()
            fitting = min(fitting, batch.batch_tokens)
            placements.add(batch.placement)
            take(found)
    return Extraction(
        hidden=hidden,
        n_tokens=n_tokens,
        first_token=first_token,
        refusal_log_odds=log_odds,
        prefix_tokens=reader.prefix_tokens,
        prefix_note=reader.prefix_note,
        batch_tokens=min(together, fitting),
        batch_note=None
        if fitting == usual
        else f"{chat_model.device} ran out of memory: {fitting} tokens together in place of {usual}",
        pack_note=reader.pack_note,
        placement="; ".join(sorted(placements)) or chat_model.placement,
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
        prompts, sites, width = shape
        # Site after site, as they are read later on.
        states = np.memmap(path, np.float32, "r+" if whole else "w+", shape=(sites, prompts, width))
        yield states.transpose(1, 0, 2), finished


def _name(rows: np.ndarray) -> str:
    """What a batch is called among the finished ones."""
    return " ".join(map(str, rows))


def _intact(found: list[dict], hidden: np.ndarray) -> bool:
    """Whether the activations of a finished batch are those that were written."""
    return all(prompt["sha256"] == _digest(hidden[prompt["row"]]) for prompt in found)


def _digest(states: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(states, dtype=np.float32).tobytes()).hexdigest()
