"""The steps that a run and a refit share: load the model, extract activations, record what was done, save."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from refusal_core import __version__
from refusal_core.conversations import prompts_of, words_of
from refusal_core.models.identity import ModelInfo
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.options import LoadIn, ReasoningEffort
from refusal_core.pipeline.analysis import Analysis
from refusal_core.progress import Progress
from refusal_core.prompts.sets import PromptSet
from refusal_core.runs import store
from refusal_core.runs.manifest import Manifest, TimingsRecord
from refusal_core.runs.run import Run

if TYPE_CHECKING:
    # The engine imports torch, which a cached run does not need.
    from refusal_core.activations.engine import Engine
    from refusal_core.activations.extraction import Extraction

LOADING = "loading (model)"
SAVING = "saving (run)"


@dataclass(frozen=True)
class RunResult:
    """A run, and whether it was already in the cache."""

    run: Run
    cached: bool


@dataclass(frozen=True)
class Reading:
    """How a model reads prompts.

    Attributes:
        system_prompt: as for :func:`refusal_core.models.templates.render`.
        thinking: likewise.
        day: likewise.
        token_limit: longest templated prompt that is accepted.
    """

    system_prompt: str | None
    thinking: bool | None
    day: str | None
    token_limit: int


def load(
    model: ModelInfo,
    device: str,
    dtype: str,
    *,
    chat_template: str | None,
    reasoning_effort: ReasoningEffort | None,
    load_in: LoadIn | None,
    progress: Progress,
) -> ChatModel:
    """Open the model that was identified.

    Args:
        model: as it was identified; another one under its name is refused.
        device: where to open it.
        dtype: what to compute in.
        chat_template: the text of a borrowed one.
        reasoning_effort: what the chat template asks for, or ``None`` for its own.
        load_in: its precision, or ``None`` for its own.
        progress: called before and after.

    Raises:
        ModelError: when it cannot be opened, or is another one by now.
    """
    progress(LOADING, 0, 1)
    chat_model = load_model(
        model, device=device, dtype=dtype, template=chat_template, reasoning_effort=reasoning_effort, load_in=load_in
    )
    progress(LOADING, 1, 1)
    return chat_model


def extract_prompts(
    chat_model: ChatModel,
    table: pd.DataFrame,
    reading: Reading,
    folder: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> Extraction:
    """Read every prompt of a table, and add to the table what was read besides activations.

    Args:
        chat_model: the run's model.
        table: all prompts; gets the columns ``n_tokens, first_token, refusal_log_odds``, and loses ``origin``, which
            prompts have that come from their files.
        reading: how they are read.
        folder: where finished batches are kept, so that work that was stopped goes on there.
        progress: called with ``(EXTRACTING, prompts done, prompts)``.
        engine: where batches are read; in this process without.

    Raises:
        RefusalError: see :func:`refusal_core.activations.extraction.extract`.
    """
    from refusal_core.activations.engine import in_process
    from refusal_core.activations.extraction import extract

    extraction = extract(
        chat_model,
        prompts_of(table),
        reading.system_prompt,
        reading.thinking,
        reading.token_limit,
        progress,
        origins=table.pop("origin").tolist() if "origin" in table else origins(table),
        folder=folder,
        day=reading.day,
        engine=engine or in_process,
    )
    table["n_tokens"] = extraction.n_tokens
    table["first_token"] = extraction.first_token
    table["refusal_log_odds"] = extraction.refusal_log_odds
    return extraction


def embed_prompts(chat_model: ChatModel, table: pd.DataFrame) -> np.ndarray:
    """Return ``(prompt, width)`` what the prompts' words are to the model before its first block.

    Args:
        chat_model: the run's model.
        table: all prompts.
    """
    from refusal_core.activations.embeddings import mean_input_embeddings

    return mean_input_embeddings(chat_model, [words_of(prompt) for prompt in prompts_of(table)])


def save(
    manifest: Manifest,
    table: pd.DataFrame,
    analysis: Analysis,
    activations: np.ndarray | None,
    cache: str | Path | None,
    progress: Progress,
) -> Run:
    """Save a run and open it; see :func:`refusal_core.runs.store.save_run`."""
    progress(SAVING, 0, 1)
    saved = store.save_run(manifest, analysis.tables(table), analysis.evidence.to_tables(), activations, cache)
    progress(SAVING, 1, 1)
    return saved


def described_extraction(chat_model: ChatModel, extraction: Extraction) -> dict[str, Any]:
    """Return what a manifest's ``compute`` says of an extraction."""
    return {
        "device": extraction.placement,
        "weights": chat_model.weights_in_words,
        "batch_tokens": extraction.batch_tokens,
        "batch_note": extraction.batch_note,
        "pack_note": extraction.pack_note,
        "prefix_tokens": extraction.prefix_tokens,
        "prefix_note": extraction.prefix_note,
    }


def described_set(prompts: PromptSet) -> dict[str, Any]:
    """Return what a manifest says of a set of prompts."""
    return {
        "name": prompts.name,
        "revision": prompts.revision,
        "sha256": prompts.sha256,
        "counts": prompts.counts,
    }


def library_versions() -> dict[str, str]:
    """Return the versions of this program, Python and the libraries that numbers depend on."""
    return {
        "refusal_core": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
    }


def timings(chat_model: ChatModel, extraction: Extraction) -> TimingsRecord:
    """Return what a manifest says of how long loading and extraction took."""
    return TimingsRecord(
        load_seconds=round(chat_model.load_seconds, 3),
        extract_seconds=round(extraction.seconds, 3),
        prompts_per_second=round(len(extraction.n_tokens) / extraction.seconds, 3),
    )


def origins(table: pd.DataFrame) -> list[str]:
    """Return where each prompt comes from, as errors say it: ``borderline, row 3``."""
    rows = table.groupby("source", sort=False).cumcount() + 1
    return [f"{source}, row {row}" for source, row in zip(table["source"], rows, strict=True)]
