"""Which prompts of a run are measured where all of them would take too long."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.errors import RunError
from refusal_core.evidence.claims import ASKED_FIRST
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs.run import Run


def chosen_prompts(run: Run, limit: int, source: str | None = None) -> np.ndarray:
    """Return rows of some of a run's prompts: whole quartets and pairs, always the same ones.

    Of more than are asked for, those whose ids, which are hashes, come first.

    Args:
        run: the run.
        limit: prompts per label, at most.
        source: the name of the contrast set or a transfer set; by default the bundled set that is asked about harm,
            which the direction was never fitted on, or the contrast set where a run has none.

    Raises:
        RunError: for a set the run does not have, or one without prompts of both labels.
    """
    sets = [run.contrast_name, *run.transfer_sources]
    source = source or next((name for name in ASKED_FIRST if name in sets), run.contrast_name)
    if source not in sets:
        raise RunError(f"expected a set of this run, one of {', '.join(sets)}, got {source!r}")
    table = run.prompts[run.rows(source=None if source == run.contrast_name else source)]
    table = table[table["label"].isin(LABELS)]
    if set(table["label"]) != set(LABELS):
        raise RunError(f"the set {source!r} has no prompts of both labels; choose another")
    # Fewer than a quartet's two prompts per label can still be a pair, and fewer than a large group's single prompts.
    for groups in (prompt_groups(table), prompt_pairs(table), table["prompt_id"].to_numpy(str)):
        rows = _whole_groups(table, groups, limit)
        if set(table.loc[rows, "label"]) == set(LABELS):
            break
    return rows


def _whole_groups(table: pd.DataFrame, groups: np.ndarray, limit: int) -> np.ndarray:
    """Return rows of as many whole groups as fit into a number of prompts per label."""
    sizes = table.groupby([groups, "label"]).size().unstack(fill_value=0)
    lacking = pd.Series(limit, index=sizes.columns)
    chosen = []
    for group in table.groupby(groups)["prompt_id"].min().sort_values().index:
        if (sizes.loc[group] <= lacking).all():
            chosen.append(group)
            lacking -= sizes.loc[group]
    return np.sort(table.index[np.isin(groups, chosen)].to_numpy())
