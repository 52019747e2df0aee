"""Extraction by Ray's actors: each opens the model once and reads shards of the prompts, one batch per shard.

An actor that dies is started anew and its shard read again; what the others have read is kept. Batches are those that
one process would read, and everything random is elsewhere, so the numbers are the same. Without a cluster
(``RAY_ADDRESS``) a local one is started for the run, that listens on 127.0.0.1 alone and reports nothing to anyone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch

from refusal_core.activations.engine import Batch, BatchReader, Engine, Job
from refusal_core.activations.reader import ResidualReader
from refusal_core.errors import ModelError, RefusalError
from refusal_core.models.identity import ModelInfo
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.options import LoadIn, ReasoningEffort

_START_SECONDS = "300"
"""What Ray's own processes may take to start; its thirty seconds are too few on a busy machine."""


def on_actors(
    model: ModelInfo,
    actors: int | None = None,
    *,
    template: str | None = None,
    reasoning_effort: ReasoningEffort | None = None,
    load_in: LoadIn | None = None,
) -> Engine:
    """Return an engine that reads batches on Ray's actors.

    The model that this process has opened only says how prompts are written and read; it leaves a GPU to the actors
    until they are done.

    Args:
        model: see :func:`refusal_core.models.opening.load_model`; every machine of the cluster has to find it.
        actors: how many; by default one per GPU of the cluster, or two where it has none.
        template: see :func:`refusal_core.models.opening.load_model`.
        reasoning_effort: see :func:`refusal_core.models.opening.load_model`.
        load_in: see :func:`refusal_core.models.opening.load_model`.

    Raises:
        RefusalError: when Ray is not installed.
    """
    if find_spec("ray") is None:
        raise RefusalError(
            "the engine ray needs Ray, which is not installed: install the extra `ray`, or use the engine process"
        )

    opening = {
        "model": model,
        "template": template,
        "reasoning_effort": reasoning_effort,
        "load_in": load_in,
    }

    def read(reader: ResidualReader, jobs: Iterable[Job]) -> Iterator[tuple[int, Batch]]:
        shards = [{"number": number, "job": json.dumps(job)} for number, job in enumerate(jobs)]
        if shards:
            yield from _read(shards, reader, opening, actors)

    return read


def _read(
    shards: list[dict[str, Any]], reader: ResidualReader, opening: dict[str, Any], actors: int | None
) -> Iterator[tuple[int, Batch]]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", _START_SECONDS)
    if not os.environ.get("RAY_ADDRESS"):
        # On any system this makes Ray's own servers listen on the loopback address alone, where it would put the
        # machine's address in place of a loopback one that it is given.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # A thread that Ray left behind would start a cluster, which ends with the thread, and Ray this process with it.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        _connect(actors)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        gpus = _gpus(reader.chat_model)
        read = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
            cast(Any, _Actor),  # its type says functions, though it takes classes
            fn_constructor_kwargs=_arguments(reader, opening, gpus),
            compute=ray.data.ActorPoolStrategy(size=min(actors or gpus or 2, len(shards))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        # Nothing is fetched ahead, so no thread still fetches when Ray is shut down.
        tables = iter(read.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with (
            _left_to_actors(reader.chat_model) if opening["load_in"] is None else nullcontext(),
            closing(cast(Any, tables)),
        ):
            for row in (row for table in tables for row in cast(Any, table).to_pylist()):
                if row["failure"]:
                    raise ModelError(row["failure"])
                yield (
                    int(row["number"]),
                    Batch(
                        np.frombuffer(row["states"], np.float32).reshape(row["shape"]),
                        np.array(row["log_odds"]),
                        list(row["first_token"]),
                        int(row["batch_tokens"]),
                        row["placement"],
                    ),
                )
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"Ray gave up ({lines[-1] if lines else type(error).__name__}); what was read is kept: run again to go on, "
            "or with fewer actors"
        ) from error
    finally:
        if own:
            ray.shutdown()


def _connect(actors: int | None) -> None:
    import ray

    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                # One for each actor, whatever the machine has, and one for Ray itself.
                num_cpus=max(os.cpu_count() or 1, actors or 2) + 1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"Ray cannot be reached or started ({error}); check RAY_ADDRESS") from error


def _gpus(chat_model: ChatModel) -> int:
    """Return how many GPUs there are for actors; none where the driver has one and was told to compute without."""
    import ray

    if torch.cuda.is_available() and not chat_model.device.startswith("cuda"):
        return 0
    resources: dict[str, float] = cast(Any, ray).cluster_resources()
    return int(resources.get("GPU", 0))


def _arguments(reader: ResidualReader, opening: dict[str, Any], gpus: int) -> dict[str, Any]:
    """Return what an actor is made with: it reads as this process would, on a GPU of its own where there are any."""
    chat_model = reader.chat_model
    return {
        # Ray shows an actor only the GPU that is its own.
        "opening": opening | {"device": "cuda:0" if gpus else chat_model.device, "dtype": chat_model.dtype},
        "reader": {
            "system_prompt": reader.system_prompt,
            "thinking": reader.thinking,
            "day": reader.day,
            "packs": reader.packs,
        },
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _left_to_actors(chat_model: ChatModel) -> Iterator[None]:
    """Keep a model off its GPU for a while."""
    if not chat_model.device.startswith("cuda"):
        yield
        return
    chat_model.model.cpu()
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        chat_model.model.to(torch.device(chat_model.device))  # type: ignore[arg-type]


class _Actor:
    """One model, opened once, and the shards that it is given."""

    def __init__(self, opening: dict[str, Any], reader: dict[str, Any], threads: int) -> None:
        # Ray gives a worker one thread; another number of them gives other last bits.
        torch.set_num_threads(threads)
        self._failure = ""
        try:
            chat_model = load_model(**opening)
            own_reader = ResidualReader(chat_model, **reader)
            torch.set_num_threads(threads // own_reader.n_parallel)
            self._reader = BatchReader(own_reader)
        except RefusalError as error:
            self._failure = str(error)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        empty = {
            "states": b"",
            "shape": [0],
            "log_odds": [0.0],
            "first_token": [""],
            "batch_tokens": 0,
            "placement": "",
        }
        answer = {"number": shard["number"], "failure": self._failure} | empty
        if self._failure:
            return answer
        try:
            batch = self._reader.read(json.loads(shard["job"]))
        except RefusalError as error:
            return answer | {"failure": str(error)}
        return answer | {
            "states": batch.states.tobytes(),
            "shape": list(batch.states.shape),
            "log_odds": batch.log_odds.tolist(),
            "first_token": batch.first_token,
            "batch_tokens": batch.batch_tokens,
            "placement": batch.placement,
        }
