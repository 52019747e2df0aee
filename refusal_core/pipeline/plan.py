"""The plan of a run, made in seconds: its model, its prompts, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_core.models.devices import choose_device, choose_dtype
from refusal_core.models.hub import download_size
from refusal_core.models.identity import ModelInfo, as_opened, is_available
from refusal_core.models.known import KNOWN
from refusal_core.options import RunOptions
from refusal_core.pipeline.request import Request, prepare
from refusal_core.prompts.bundled import CONTRAST_SETS
from refusal_core.runs.run import Run


@dataclass(frozen=True)
class Plan:
    """A run before it is made.

    Attributes:
        options: the options that make it at any time and from any folder: paths are absolute, dtype and revision are
            fixed, so that interrupted work continues as the same run.
        model: the model as it will be opened.
        available: whether the model is on this machine, complete.
        download_bytes: what has to be downloaded, ``None`` where that is not known or nothing has to be.
        contrast_set: its name.
        counts: prompts per label that the direction is fitted on.
        n_transfer: number of prompts that are scored but not fitted on.
        cached: the name of the run, where it is in the cache already.
    """

    options: RunOptions
    model: ModelInfo
    available: bool
    download_bytes: int | None
    contrast_set: str
    counts: Mapping[str, int]
    n_transfer: int
    cached: str | None


def check(options: RunOptions) -> Plan:
    """Find the model and read the prompts of a requested run, and settle its dtype.

    Raises:
        RefusalError: when it cannot be made.
    """
    return settle_dtype(survey(options))


def settle_dtype(plan: Plan) -> Plan:
    """Return a plan with the dtype that this machine computes it in; a run in the cache has its own."""
    if plan.cached is not None:
        return plan
    dtype = choose_dtype(choose_device(plan.options.device), plan.options.dtype)
    return replace(plan, options=plan.options.model_copy(update={"dtype": dtype}))


def survey(options: RunOptions) -> Plan:
    """Find the model and read the prompts of a requested run; no device is looked for.

    Raises:
        RefusalError: when it cannot be made.
    """
    request = prepare(options)
    cached_run = request.find_cached()
    available = is_available(request.model)
    return Plan(
        options=_settle(request, cached_run),
        model=as_opened(request.model, options.load_in),
        available=available,
        download_bytes=None if available else _download_bytes(request.model),
        contrast_set=request.contrast.name,
        counts=request.contrast.counts,
        n_transfer=sum(len(chosen.prompts.table) for chosen in request.transfer),
        cached=None if cached_run is None else cached_run.run_id,
    )


def _settle(request: Request, cached_run: Run | None) -> RunOptions:
    """Return the options of a request with absolute paths, and the dtype of a run that is in the cache."""
    options = request.options
    dtype = options.dtype if cached_run is None else cached_run.manifest.compute.dtype
    template = options.chat_template
    return options.model_copy(
        update={
            "model": _absolute(options.model),
            "revision": request.model.revision,
            "prompts": _absolute_sources(options.prompts),
            "transfer": tuple(map(_absolute, options.transfer)),
            "chat_template": None if template is None else _absolute(template),
            "dtype": dtype,
        }
    )


def _download_bytes(info: ModelInfo) -> int | None:
    return KNOWN[info.name].size if info.source == "fetched" else download_size(info.name, info.revision)


def _absolute(source: str) -> str:
    """Return the absolute path of a file or folder; names and hub ids as they are."""
    path = Path(os.path.expanduser(source))  # unlike pathlib's, silent about a home that nobody has
    try:
        return str(path.absolute()) if source not in KNOWN and path.exists() else source
    except (OSError, ValueError):  # a name that no file can have
        return source


def _absolute_sources(prompts: str) -> str:
    if prompts in CONTRAST_SETS:
        return prompts
    single = _absolute(prompts)
    return single if single != prompts else ",".join(_absolute(part.strip()) for part in prompts.split(","))
