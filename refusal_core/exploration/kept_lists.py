"""Labelled lists that were scored live and kept with a run, under names: transfer sets on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from filelock import FileLock

from refusal_core.conversations import COLUMN as CONVERSATION
from refusal_core.conversations import prompts_of
from refusal_core.errors import PromptError, RunError
from refusal_core.runs.additions import read_addition, remove_addition, save_addition
from refusal_core.runs.manifest import ListsManifest
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import Column, check_table
from refusal_core.runs.store import printable

MOST_LISTS = 20
MOST_PROMPTS = 1000
"""The most prompts of a list."""
LONGEST_NAME = 60
_PROMPTS = ("text", CONVERSATION, "label", "pair_id")


@dataclass(frozen=True, eq=False)
class KeptList:
    """A labelled list and where its prompts project.

    Attributes:
        name: under which it was kept.
        prompts: ``text``, ``conversation``, ``label`` and ``pair_id`` per prompt.
        projections: ``(prompt, site)`` in activation units.
    """

    name: str
    prompts: pd.DataFrame
    projections: np.ndarray

    def at(self, site: int) -> pd.DataFrame:
        """Return the prompts with their projection at a site, as :func:`.separation.separation` takes them."""
        return self.prompts.assign(
            projection=self.projections[:, site],
            fitted=False,
            source=self.name,
            prompt_id=[str(place) for place in range(len(self.prompts))],
        )


def load_lists(run: Run) -> list[KeptList]:
    """Return the lists that are kept with a run, in the order in which they were kept.

    Raises:
        RunError: when they are damaged, or more than can be kept.
    """
    stored = read_addition(run, ListsManifest)
    if stored is None:
        return []
    table, _ = stored
    columns = [f"projection_{site}" for site in range(run.n_sites)]
    try:
        check_table("lists.parquet", table, dict.fromkeys(columns, Column("number")), run.n_sites)
        prompts_of(table)  # raises for a conversation that is none
        for name in table["list"].unique():
            _check_name(name)
    except (ValueError, PromptError, RunError) as error:
        raise RunError(f"run {run.run_id!r}: lists cannot be read ({error}); remove lists.json beside it") from error
    counts = table["list"].value_counts()
    if len(counts) > MOST_LISTS or (counts > MOST_PROMPTS).any():
        raise RunError(
            f"run {run.run_id!r}: expected at most {MOST_LISTS} lists of {MOST_PROMPTS} prompts, lists.parquet has more"
        )
    return [
        KeptList(str(name), of.reindex(columns=list(_PROMPTS)).reset_index(drop=True), of[columns].to_numpy(np.float64))
        for name, of in table.groupby("list", sort=False)
    ]


def keep_list(run: Run, name: str, prompts: pd.DataFrame, projections: np.ndarray) -> str:
    """Keep a labelled list with a run, and return the name under which it is kept.

    Args:
        run: the prompts were scored on.
        name: of the list, which no other list of the run may have.
        prompts: ``text``, ``label`` and, where there are such, ``conversation`` and ``pair_id`` per prompt.
        projections: ``(prompt, site)`` in activation units.

    Raises:
        RunError: when it has no name of its own or too many prompts, or cannot be kept.
    """
    name = _check_name(printable(name, LONGEST_NAME))
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise RunError(f"expected 1 to {MOST_PROMPTS} labelled prompts to keep, got {len(prompts)}")
    with _locked(run):
        kept = load_lists(run)
        if name in [other.name for other in kept]:
            raise RunError(f"a list called {name!r} is kept with this run; choose another name, or remove that one")
        if len(kept) >= MOST_LISTS:
            raise RunError(f"{MOST_LISTS} lists are kept with this run, which is the most; remove one first")
        new = KeptList(name, prompts.reindex(columns=list(_PROMPTS)).reset_index(drop=True), projections)
        _save(run, [*kept, new])
    return name


def remove_list(run: Run, name: str) -> None:
    """Remove a list that was kept with a run, if there is one of that name.

    Raises:
        RunError: when the lists are damaged or cannot be written.
    """
    with _locked(run):
        _save(run, [kept for kept in load_lists(run) if kept.name != name])


def table_of_lists(lists: list[KeptList]) -> pd.DataFrame:
    """Return the prompts of lists with the name of their ``list`` and a column ``projection_SITE`` per site."""
    parts = [
        pd.concat([kept.prompts, pd.DataFrame(kept.projections).add_prefix("projection_")], axis=1).assign(
            list=kept.name
        )
        for kept in lists
    ]
    table = pd.concat(parts, ignore_index=True)
    for column in _PROMPTS:
        # No file can hold the lone surrogates that a prompt may have, and a column without values would have no kind.
        texts = [text.encode("utf-8", "replace").decode() if isinstance(text, str) else None for text in table[column]]
        table[column] = pd.array(texts, dtype="str")
    return table


def _save(run: Run, lists: list[KeptList]) -> None:
    if not lists:
        remove_addition(run, ListsManifest)
        return
    save_addition(run, table_of_lists(lists), ListsManifest(created=datetime.now(UTC).isoformat(timespec="seconds")))


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """Keep others from changing the lists meanwhile.

    Raises:
        RunError: when that is not possible.
    """
    try:
        with FileLock(run.path.with_name(".kept-lists.lock")):
            yield
    except OSError as error:
        raise RunError(f"the lists kept with this run cannot be changed in its cache ({error.strerror})") from error


def _check_name(name: object) -> str:
    if not name or printable(name, LONGEST_NAME) != name:
        raise RunError(f"expected a name of 1 to {LONGEST_NAME} characters for the list")
    return str(name)
