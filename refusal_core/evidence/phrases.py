"""Words and numbers that the verdict and the answers share."""

from __future__ import annotations

import pandas as pd

from refusal_core.analysis.baselines import TFIDF
from refusal_core.evidence.evaluation import CONTRAST
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.sites import site_label

NO_DIFFERENCE = "not distinguishable from chance"
BORDERLINE = "borderline"
NO_REASON = "the numbers it needs do not exist"
SIGNIFICANT = 0.05


def place(evidence: Evidence, site: int) -> str:
    """Name a site in a sentence."""
    label = site_label(site, evidence.n_sites - 1)
    return f"the {label}" if label == "final norm" else label


def p_value(value: float) -> str:
    """Write a permutation test's p-value, which cannot be below one over the number of permutations plus one."""
    return "p ≤ 0.001" if value <= 0.001 else f"p = {value:.2g}"


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
        f"On {row['source']} it points the other way, d {with_interval(row, 'd')}"
        + (": where words and intent disagree, it follows the words." if row["source"] == BORDERLINE else ".")
        for _, row in table[table["d_high"] < 0].iterrows()
    ]


def words_auroc(evidence: Evidence, source: str) -> float:
    """Return the AUROC that the words of a set reach without the model."""
    row = evidence.baselines[evidence.baselines["source"].eq(source) & evidence.baselines["baseline"].eq(TFIDF)]
    return float(row["auroc"].iloc[0])


def style(evidence: Evidence) -> str:
    """Say what a direction is about that holds on its own kind of prompts alone."""
    settings = evidence.settings.iloc[0]
    if 2 * settings["n_pairs"] == settings["n_harmful"] + settings["n_harmless"]:
        return "what holds on pairs of its own kind does not carry over to others"
    return "what holds on new prompts of its own kind is how the two sets were written, not harm"
