"""A run that is asked for: its options with everything they name found, and the run's name that follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_core.conversations import COLUMN as CONVERSATION
from refusal_core.errors import PromptError, RefusalError, RunError
from refusal_core.models.identity import ModelInfo, as_opened, identify
from refusal_core.models.templates import borrow_template
from refusal_core.options import DEFAULT_ESTIMATOR, DTYPES, RunOptions
from refusal_core.prompts.bundled import transfer_of
from refusal_core.prompts.labels import Choice, parse_labels
from refusal_core.prompts.reading import EXTRA
from refusal_core.prompts.sets import (
    PromptSet,
    check_choice,
    load_contrast_set,
    load_transfer_set,
    prompt_pairs,
    slug,
    without,
)
from refusal_core.runs import store
from refusal_core.runs.evidence_tables import CONTRAST
from refusal_core.runs.run import LEFT_OUT, Run


@dataclass(frozen=True, eq=False)
class TransferSet:
    """A transfer set, and how many of its prompts were left out because the contrast set has them."""

    prompts: PromptSet
    left_out: int


@dataclass(frozen=True, eq=False)
class Request:
    """A run that is asked for.

    Attributes:
        options: as they were given.
        model: the model, identified once.
        contrast: the prompts that directions are fitted on.
        transfer: the bundled transfer set and those of the options.
        chat_template: the text of the borrowed chat template.
    """

    options: RunOptions
    model: ModelInfo
    contrast: PromptSet
    transfer: tuple[TransferSet, ...]
    chat_template: str | None

    def run_id(self, dtype: str) -> str:
        """Return the name of the run in a dtype: the same request has the same name."""
        identity = self.options.identity(
            model=self.model.fingerprint,
            prompts=self.contrast.sha256,
            transfer=[(chosen.prompts.name, chosen.prompts.sha256) for chosen in self.transfer],
            chat_template=None if self.chat_template is None else _sha256(self.chat_template),
        )
        return run_id(self.model.name, self.contrast.name, self.contrast.counts, identity, dtype)

    def find_cached(self, cache: str | Path | None = None) -> Run | None:
        """Return the run in the cache that this request asks for, of any dtype where ``auto`` is asked for.

        Raises:
            RunError: when it is there without the activations that are to be kept.
        """
        options = self.options
        for dtype in DTYPES if options.dtype == "auto" else (options.dtype,):
            name = self.run_id(dtype)
            if (store.cache_folder(cache) / name).exists():
                run = store.open_run(name, cache)
                if options.keep_activations and not run.keeps_activations:
                    raise RunError(
                        f"the run {name} is in the cache without its activations: delete it first, or use another "
                        "cache, to compute and keep them"
                    )
                return run
        return None

    def prompt_table(self) -> pd.DataFrame:
        """Return all prompts, fitted ones first, as the run's table begins.

        Raises:
            RefusalError: when a prompt is in two transfer sets.
        """
        parts = [self.contrast.table.assign(fitted=True)]
        parts += [chosen.prompts.table.assign(fitted=False) for chosen in self.transfer]
        table = pd.concat(parts, ignore_index=True)
        # Columns that came later, and that most runs have nothing in.
        table = table.drop(columns=[column for column in (CONVERSATION, EXTRA) if table[column].isna().all()])
        repeated = table["prompt_id"].duplicated()
        if repeated.any():
            row = table[repeated].iloc[0]
            raise RefusalError(
                f"the prompt {row['text']!r:.60} is in two transfer sets, of which one is {row['source']} "
                f"({row['origin']}); keep it in one"
            )
        return table


def prepare(options: RunOptions) -> Request:
    """Read the prompts, identify the model and find the chat template that a run is asked for with.

    Raises:
        RefusalError: of the kind that fits, for what cannot be found or used.
    """
    choice = Choice(options.text_column, options.label_column, parse_labels(options.label))
    check_choice([options.prompts, *options.transfer], choice)
    contrast = load_contrast_set(options.prompts, options.limit_per_label, choice)
    transfer = tuple(
        TransferSet(*without(load_transfer_set(source, choice), contrast))
        for source in dict.fromkeys((transfer_of(contrast.name), *options.transfer))
    )
    _check_names(contrast, [chosen.prompts for chosen in transfer])
    check_estimator(options.estimator, contrast.table)
    model = identify(options.model, options.revision)
    as_opened(model, options.load_in)  # raises where it cannot be opened so
    return Request(
        options=options,
        chat_template=None if options.chat_template is None else borrow_template(options.chat_template),
        model=model,
        contrast=contrast,
        transfer=transfer,
    )


def check_estimator(estimator: str, table: pd.DataFrame) -> None:
    """Raise PromptError unless there is something to fit an estimator on.

    Args:
        estimator: a key of :data:`refusal_core.options.ESTIMATORS`.
        table: of the prompts that it is fitted on.
    """
    if estimator == DEFAULT_ESTIMATOR:
        return
    # Of estimators that are asked for alone: what fits them takes long to import.
    from refusal_core.analysis.refitting import why_not

    reason = why_not(estimator, table["label"].eq("harmful").to_numpy(), prompt_pairs(table))
    if reason is not None:
        raise PromptError(reason)


def run_id(model: str, contrast: str, counts: Mapping[str, int], identity: dict[str, Any], dtype: str) -> str:
    """Return a run's name, which can be read and ends in a digest of its identity and its dtype.

    Args:
        model: name of the model.
        contrast: name of the contrast set.
        counts: fitted prompts per label.
        identity: what tells the run from others.
        dtype: what its model is computed in.
    """
    digest = _sha256(json.dumps(identity, sort_keys=True))[:8]
    sizes = f"{counts['harmful']}x{counts['harmless']}"
    return f"{slug(Path(model).name)}--{slug(contrast)}--{sizes}--{digest}--{dtype}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_names(contrast: PromptSet, transfer: list[PromptSet]) -> None:
    """Raise RefusalError when two sets of a run have one name, by which their numbers are told apart."""
    taken = {
        contrast.name: "the contrast set",
        CONTRAST: "the contrast set in the tables of evidence",
        LEFT_OUT: "the prompts that a refit leaves out",
    }
    for chosen in transfer:
        if chosen.name in taken:
            raise RefusalError(
                f"the transfer set {chosen.name!r} has the name of {taken[chosen.name]}: rename its file, "
                "so that their numbers can be told apart"
            )
        taken[chosen.name] = "another transfer set"
