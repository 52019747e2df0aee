"""Whether the first token tells that a reply refuses: the model's own refusals, by the token that they begin with.

The set of first tokens is one of English refusals (Arditi et al. 2024). How much of a model's refusing it covers, and
how often other replies begin so, is counted on the replies of the run, whatever language they are in.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.analysis.inference import share_interval
from refusal_core.runs.run import Run

LEAST_REFUSALS = 8
"""Of fewer refused prompts nothing is said about the tokens that refusals begin with."""
_MOST_NAMED = 5
_UNFIT_SHARE = 0.5


def first_tokens(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Count the likeliest first tokens of the replies that refuse by the opening rules, and of the others.

    Args:
        run: the run.
        table: its recorded behaviour; prompts without a reply are left out.

    Returns:
        ``token, refuses, others, counted``: how many prompts, and whether the token is one that the refusal log-odds
        counts; the tokens of most refusals first.
    """
    measured = table["opening_label"].notna().to_numpy()
    tokens = run.prompts["first_token"][measured].str.strip()
    refuses = table["opening_label"][measured].eq("refuses").to_numpy()
    counts = pd.DataFrame({"token": tokens, "refuses": refuses, "others": ~refuses}).groupby("token").sum()
    counts = counts.sort_values(["refuses", "others"], ascending=False, kind="stable").reset_index()
    return counts.assign(counted=counts["token"].isin(_openings(run)))


def describe_first_tokens(run: Run, table: pd.DataFrame) -> str:
    """Say how many replies that refuse, and how many others, begin with a token that the refusal log-odds counts."""
    if not _openings(run):
        return "Which first tokens the refusal log-odds counts was not stored with this run."
    counts = first_tokens(run, table)
    refuses, others = (int(counts[name].sum()) for name in ("refuses", "others"))
    counted = counts[counts["counted"]]
    openings = " or ".join(f"“{opening}”" for opening in _openings(run))
    if refuses < LEAST_REFUSALS:
        return (
            f"The refusal log-odds counts replies that begin with {openings}. Whether this model's refusals do is not "
            f"known: by their openings {refuses} of {refuses + others} replies refuse, {LEAST_REFUSALS} are needed."
        )
    covered, also = int(counted["refuses"].sum()), int(counted["others"].sum())
    sentences = [
        f"The refusal log-odds counts replies that begin with {openings}: by their openings "
        f"{_share(covered, refuses)} of the replies that refuse do, and {_share(also, others)} of the others."
    ]
    if _interval(covered, refuses)[1] < _UNFIT_SHARE:
        named = ", ".join(
            f"“{row.token}” {row.refuses}" for row in counts[counts["refuses"] > 0][:_MOST_NAMED].itertuples()
        )
        sentences.append(
            f"So it does not see how this model refuses these prompts, which is with {named}: go by the openings."
        )
    elif _interval(also, others)[0] > _UNFIT_SHARE:
        sentences.append("So a high value does not mean that a reply refuses: go by the openings.")
    return " ".join(sentences)


def _openings(run: Run) -> tuple[str, ...]:
    """Return how refusals open by the run's refusal log-odds; empty where that was not stored."""
    return run.manifest.refusal.openings if run.manifest.refusal is not None else ()


def _interval(count: int, n: int) -> tuple[float, float]:
    low, high = share_interval(np.array(count), n) if n else (0.0, 1.0)
    return float(low), float(high)


def _share(count: int, n: int) -> str:
    low, high = _interval(count, n)
    return f"{count} of {n} ({100 * low:.0f} to {100 * high:.0f} %)"
