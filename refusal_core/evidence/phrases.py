"""Words and numbers that the verdict and the answers share."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.evidence.claims import cue_side, of_quartets, separated
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT, Evidence
from refusal_core.sites import site_label

NO_DIFFERENCE = "not distinguishable from chance"
NO_REASON = "the numbers it needs do not exist"
ORIGIN_UNKNOWN = "whether it was made from these prompts is not known here"
"""Of an imported direction."""


def place(evidence: Evidence, site: int) -> str:
    """Name a site in a sentence."""
    label = site_label(site, evidence.n_sites - 1)
    return f"the {label}" if label == "final norm" else label


def p_value(value: float) -> str:
    """Write a permutation test's p-value, which cannot be below one over the number of permutations plus one."""
    return "p ≤ 0.001" if value <= 0.001 else f"p = {value:.2g}"


def new_prompts_d(evidence: Evidence) -> str:
    """Name the d of prompts that the direction was not fitted with."""
    return "d of the imported direction" if evidence.imported else "cross-fitted d"


def with_interval(row: pd.Series, number: str) -> str:
    """Write a number of a table's row and its interval."""
    return f"{row[number]:.2f} ({row[f'{number}_low']:.2f} to {row[f'{number}_high']:.2f})"


def missing(evidence: Evidence, site: int, table: str, number: str, source: str = CONTRAST) -> str:
    """Say why a number of a site is missing."""
    reason = evidence.reason(table, number, site, source) or NO_REASON
    return f"At {place(evidence, site)} there is no answer: {reason}."


def contrary(evidence: Evidence, site: int, source: str) -> list[str]:
    """Return a sentence for every other transfer set on which the direction points the other way at a site."""
    table = evidence.transfer[evidence.transfer["site"].eq(site) & evidence.transfer["source"].ne(source)]
    return [
        f"On {row['source']} it points the other way, d {with_interval(row, 'd')}."
        for _, row in table.iterrows()
        if separated(evidence, row["source"]).get(site, 0) < 0
    ]


def intent_and_cue(evidence: Evidence, site: int, source: str) -> list[str]:
    """Return sentences on what intent and an alarming cue do to the projection; none where there are no quartets.

    The alarming harmful and the calm harmless prompt share the other words of the slot, so that the interaction of
    intent and cue is what those words do by themselves.
    """
    quartets = of_quartets(evidence, source)
    if site not in quartets.index or not np.isfinite(quartets.loc[site, "intent"]):
        return []
    row = quartets.loc[site]
    intent, cue = separated(evidence, source)[site], cue_side(evidence, source)[site]
    if not intent and not cue:
        meaning = "neither can be told from chance"
    elif row["intent_lead_low"] > 0 and intent > 0:
        meaning = "it follows what is asked more than how alarming it sounds"
    elif row["intent_lead_high"] < 0 and cue:
        meaning = "it follows how alarming a prompt sounds more than what is asked"
    else:
        meaning = "which of the two it follows more is not settled"
    sentence = (
        f"In {row['n_quartets']:.0f} quartets at {place(evidence, site)} harmful intent moves the projection by "
        f"{with_interval(row, 'intent')} standard deviations, an alarming wording by {with_interval(row, 'cue')}: "
        f"{meaning}"
    )
    rest = (
        f"The other words of the slot move it by {with_interval(row, 'interaction')}, which is the interaction of both."
    )
    return [f"{sentence}.", rest] if row["interaction_low"] > 0 or row["interaction_high"] < 0 else [f"{sentence}."]


def text_auroc(evidence: Evidence, source: str, prompts: str = EVERY_PROMPT) -> float:
    """Return the highest AUROC that a model of the wording reaches on a set."""
    table = evidence.wording[evidence.wording["source"].eq(source) & evidence.wording["prompts"].eq(prompts)]
    return float(table["text_auroc"].max())


def style(evidence: Evidence) -> str:
    """Say what a direction may be about that holds on its own kind of prompts alone."""
    if evidence.imported:
        return "what separates one set need not carry over to others"
    settings = evidence.settings.iloc[0]
    if 2 * settings["n_pairs"] == settings["n_harmful"] + settings["n_harmless"]:
        return "what holds on pairs of its own kind need not carry over to others"
    return "what holds on new prompts of its own kind may be how the two sets were written"


def what_would_have_been_seen(evidence: Evidence, site: int, source: str) -> str:
    """Say how large an effect on a transfer set would have been found at a site, had there been one."""
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    d = table.loc[site, "d_detectable"]
    if not np.isfinite(d):
        return f"With so few prompts of {source} or permutations no effect could have been found."
    return f"An effect of d = {d:.2f} on {source} would have been found at {place(evidence, site)} four times in five."
