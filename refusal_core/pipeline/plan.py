"""What a run that is asked for would be, found out in seconds: its model, its prompts, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refusal_core.errors import ModelError, RefusalError
from refusal_core.models.hub import download_size
from refusal_core.models.known import KNOWN
from refusal_core.models.opening import ModelInfo, as_opened, identify, is_available
from refusal_core.models.templates import borrow_template
from refusal_core.prompts.sets import CONTRAST_SETS, TRANSFER_SETS, load_contrast_set, load_transfer_set, without


@dataclass(frozen=True)
class Request:
    """What a visitor asks for, as typed; paths are those of this machine.

    Attributes:
        model: known name, hub id, folder or GGUF file; ``revision`` for a hub id.
        prompts: bundled name, file, or ``HARMFUL,HARMLESS``.
        thinking: ``on``, ``off``, or ``None`` for what the template does.
        template: whose chat template is borrowed: known name, hub id, folder or .jinja file.
        quantise: bits that the weights are opened in, 8 or 4, or ``None`` for as they are.
    """

    model: str
    prompts: str
    revision: str | None = None
    limit: int | None = None
    system_prompt: str | None = None
    thinking: str | None = None
    template: str | None = None
    quantise: int | None = None
    dtype: str = "auto"
    token_limit: int | None = None
    seed: int = 0
    keep_activations: bool = False
    text_column: str | None = None
    label_column: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line that makes the run; nothing typed can become an option of its own."""
        given = {
            "model": _absolute(self.model),
            "prompts": _absolute_sources(self.prompts),
            "revision": self.revision,
            "limit": self.limit,
            "system-prompt": self.system_prompt,
            "thinking": self.thinking,
            "template": None if self.template is None else _absolute(self.template),
            "quantise": self.quantise,
            "dtype": self.dtype,
            "token-limit": self.token_limit,
            "seed": self.seed,
            "text-column": self.text_column,
            "label-column": self.label_column,
        }
        options = tuple(f"--{name}={value}" for name, value in given.items() if value is not None)
        return ("run", *options, *(("--keep-activations",) if self.keep_activations else ()))


@dataclass(frozen=True)
class Plan:
    """What the run would be.

    Attributes:
        available: whether the model is on this machine, whole.
        download_bytes: what has to be downloaded, ``None`` where that is not known or nothing has to be.
        counts: prompts a label that the direction is fitted on.
        n_transfer: prompts that are scored besides.
    """

    model: ModelInfo
    available: bool
    download_bytes: int | None
    contrast_set: str
    counts: Mapping[str, int]
    n_transfer: int


def check(request: Request) -> Plan:
    """Find the model and read the prompts of a run that is asked for.

    Raises:
        RefusalError: saying in one sentence what is wrong with it.
    """
    if not request.model:
        raise ModelError("say which model: a known name, a hub id, a folder or a GGUF file")
    if request.seed < 0:
        raise RefusalError(f"expected a seed of 0 or more, got {request.seed}")
    contrast = load_contrast_set(request.prompts, request.limit, request.text_column, request.label_column)
    transfer = [without(load_transfer_set(source), contrast)[0] for source in TRANSFER_SETS]
    info = as_opened(identify(request.model, request.revision), request.quantise)
    if request.template is not None:
        borrow_template(request.template)
    available = is_available(request.model, request.revision)
    return Plan(
        model=info,
        available=available,
        download_bytes=None if available else _download_bytes(info),
        contrast_set=contrast.name,
        counts=contrast.counts,
        n_transfer=sum(len(prompts.table) for prompts in transfer),
    )


def _download_bytes(info: ModelInfo) -> int | None:
    return KNOWN[info.name].size if info.source == "fetched" else download_size(info.name, info.revision)


def _absolute(model: str) -> str:
    """A file or folder as it is found from any folder; names and hub ids as they are."""
    path = Path(os.path.expanduser(model))  # unlike pathlib's, silent about a home that nobody has
    try:
        return str(path.absolute()) if model not in KNOWN and path.exists() else model
    except (OSError, ValueError):  # a name that no file can have
        return model


def _absolute_sources(prompts: str) -> str:
    if prompts in CONTRAST_SETS:
        return prompts
    whole = _absolute(prompts)
    return whole if whole != prompts else ",".join(_absolute(part.strip()) for part in prompts.split(","))
