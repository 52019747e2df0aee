"""Engines: what reads the batches of an extraction, in this process several at a time, or elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch

from refusal_core.activations.reader import PromptStates, ResidualReader
from refusal_core.errors import ModelError


@dataclass(frozen=True, eq=False)
class Batch:
    """What was read of one batch of prompts.

    Attributes:
        states: ``(prompt, site, d_model)`` float32; ``(prompt, site, token, d_model)`` where several tokens were read.
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


Job = tuple[list[list[int]], list[str], int]
"""A batch to read: token ids of each prompt, where each comes from, and at how many of its last tokens it is read."""
Engine = Callable[[ResidualReader, Iterable[Job]], Iterator[tuple[int, Batch]]]
"""Reads jobs: takes them in order, yields batches in any order, each with its job's number."""


class DoesNotFitError(ModelError):
    """One prompt alone does not fit into the memory that its device has left."""


class BatchReader:
    """Reads batches on one device; once it runs out of memory, fewer prompts at a time."""

    def __init__(self, reader: ResidualReader) -> None:
        """Start with as many tokens as the device usually takes.

        Args:
            reader: reads the batches.
        """
        self._reader = reader
        self._batch_tokens = reader.batch_tokens

    def read(self, job: Job) -> Batch:
        """Read a batch, in parts where it does not fit.

        Raises:
            DoesNotFitError: when one prompt alone does not.
        """
        sequences, origins, last = job
        parts: list[PromptStates] = []
        done = 0
        while done < len(sequences):
            # In their own order, since what is read together stands in the order of batches.
            part = sequences[done : done + len(next(self._reader.batches(sequences[done:], self._batch_tokens)))]
            try:
                parts.append(self._reader.read_last(part, last))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise DoesNotFitError(
                        f"{origins[done]} alone does not fit into the memory of {self._reader.chat_model.device} "
                        "beside the model; choose a smaller model or another device"
                    ) from error
                n_new = sum(map(len, part)) - len(part) * self._reader.prefix_tokens
                self._batch_tokens = min(n_new, self._batch_tokens) // 2
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
    """Read jobs in this process: the :data:`Engine` that reads ahead of its caller, and several batches at a time.

    Cores that share one product wait at its end for the slowest of them; here each, or each few of them, has batches of
    its own. For a GPU a batch is made ready while it computes another.
    """
    cores, n_parallel, stopped = torch.get_num_threads(), reader.n_parallel, threading.Event()
    readers = [reader] if n_parallel == 1 else [reader.for_another_thread() for _ in range(n_parallel)]
    blocks = [block for own in readers for block in own.chat_model.blocks]
    hooks = [block.register_forward_pre_hook(partial(cancel_if, stopped)) for block in blocks]
    free: SimpleQueue[BatchReader] = SimpleQueue()
    for own in readers:
        free.put(BatchReader(own))

    def read(job: Job) -> Batch:
        batch_reader = free.get()
        try:
            return batch_reader.read(job)
        finally:
            free.put(batch_reader)

    pool = ThreadPoolExecutor(n_parallel, "batch", torch.set_num_threads, (max(1, cores // n_parallel),))
    running: dict[Future[Batch], tuple[int, Job]] = {}

    def finished() -> Iterator[tuple[int, Batch]]:
        """Yield a finished batch: the first in order, so that one that failed does not hide those before it."""
        wait(running, return_when=FIRST_COMPLETED)
        done = next(future for future in running if future.done())
        number, job = running.pop(done)
        if n_parallel > 1 and isinstance(done.exception(), DoesNotFitError):
            del done  # and with it what it had computed
            # The others had some of the memory: once more when they are done.
            while running:
                yield from finished()
            done = pool.submit(read, job)
        yield number, done.result()

    try:
        for number, job in enumerate(jobs):
            running[pool.submit(read, job)] = number, job
            # As many again wait, so that nothing that can read does.
            if len(running) == 2 * n_parallel:
                yield from finished()
        while running:
            yield from finished()
    finally:
        # A caller that stopped does not wait for batches that nobody takes.
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
        for hook in hooks:
            hook.remove()


def cancel_if(stopped: threading.Event, *_: object) -> None:
    """End a pass that nobody waits for, from a hook of a block."""
    if stopped.is_set():
        raise CancelledError
