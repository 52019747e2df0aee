"""The questions at every read position: the direction is fitted and tested there as it is at the template's last token.

A position counts from the end of the templated prompt: -1 is the last token of the template (``t_post``), where a run
reads its prompts; before it lie the template's other closing tokens, and before these the last token of the user's
instruction (``t_inst``). What a prompt asks is said to be read at ``t_inst``, and whether it is refused at ``t_post``
(Zhao et al. 2025, "LLMs encode harmfulness and refusal separately").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from refusal_core.evidence.design import Design, plan_design
from refusal_core.options import FOLDS, REPEATS
from refusal_core.runs.evidence_tables import BOTH, CONTRAST, Evidence
from refusal_core.runs.schemas import HARM, READ_AT_POSITIONS

DRAWS = 1000
"""Of the bootstrap, as in a run, whose numbers are those of the last position."""
COLUMNS = ("position", "site", "subject", "measure", "number", "number_low", "number_high")


def plan_positions(prompts: pd.DataFrame, seed: int, draws: int) -> Design:
    """Deal folds and draws as a run does, without what its read positions are not asked."""
    return plan_design(
        prompts,
        seed=seed,
        folds=FOLDS,
        repeats=REPEATS,
        permutations=1,
        draws=draws,
        random_directions=1,
        learning_draws=1,
    )


def position_table(evidence: Mapping[int, Evidence]) -> pd.DataFrame:
    """Return the numbers of every read position and site.

    Args:
        evidence: of the same prompts at every position.

    Returns:
        One row per position, site and measure, ``position, site, subject, measure, number, number_low, number_high``,
        of the direction of harm: the in-sample and cross-fitted d and the cross-fitted AUROC of the contrast set, the
        effects of intent and cue on quartets where the run has them, and the rank correlation with the refusal log-odds
        within the labels.
    """
    return pd.concat([_numbers(position, answers) for position, answers in evidence.items()], ignore_index=True)


def _numbers(position: int, evidence: Evidence) -> pd.DataFrame:
    """Return the rows of one position, site by site."""
    quartets, refusal = evidence.quartets, evidence.refusal
    tables = (
        evidence.sites,
        quartets[quartets["source"].eq(quartets["source"].iloc[0])] if len(quartets) else quartets,
        refusal[refusal["source"].eq(CONTRAST) & refusal["label"].eq(BOTH)],
    )
    rows: list[dict[str, Any]] = []
    for site in evidence.sites["site"]:
        numbers: dict[str, float] = {}
        for table in tables:
            for row in table[table["site"].eq(site)].to_dict("records"):
                numbers |= row
        for measure in READ_AT_POSITIONS:
            if measure in numbers:
                ends = {f"number{end}": numbers.get(f"{measure}{end}", np.nan) for end in ("", "_low", "_high")}
                rows.append({"position": position, "site": site, "subject": HARM, "measure": measure, **ends})
    return pd.DataFrame(rows, columns=list(COLUMNS))
