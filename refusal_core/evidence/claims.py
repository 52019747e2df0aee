"""What the numbers of a run allow to be claimed: about harm, about wording, and from which site on."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from refusal_core.analysis import inference
from refusal_core.prompts.bundled import PROBE_PAIRS, QUARTETS
from refusal_core.runs.evidence_tables import EVERY_PROMPT, Evidence
from refusal_core.runs.run import LEFT_OUT
from refusal_core.sites import best_layer

ASKED_FIRST = (QUARTETS, PROBE_PAIRS)
"""Bundled transfer sets that carry the question about harm, the first choice first."""
SIGNIFICANT = 0.05
FALSE_ALARMS = 0.01
"""Share of runs, of those whose labels mean nothing, that may say that they separate harm."""


def probe_source(evidence: Evidence) -> str | None:
    """Return the transfer set that is asked about harm: a bundled one, else the first with pairs, else the first.

    What a refit left out is none: it was chosen for being mislabelled or ambiguous.
    """
    table = evidence.transfer.drop_duplicates("source")
    table = table[table["source"].ne(LEFT_OUT)]
    sources = table["source"].tolist()
    for bundled in ASKED_FIRST:
        if bundled in sources:
            return bundled
    paired = table[table["n_pairs"] > 0]["source"].tolist() if sources else []
    return next(iter(paired or sources), None)


def best_site(evidence: Evidence) -> int:
    """Return the layer with the highest cross-fitted d, which no transfer set has a say in; 0 where there is none."""
    return best_layer(evidence.sites["crossfit_d"].to_numpy(float))


def is_tested(evidence: Evidence) -> bool:
    """Return whether transfer sets were tested over all sites, which runs of earlier versions were not."""
    return "permutation_p_corrected" in evidence.transfer


def separated(evidence: Evidence, source: str) -> pd.Series:
    """Return the side on which a transfer set's harmful prompts lie, where that is more than chance.

    The test is corrected over sites, so that labels which mean nothing have any site on the harmful side in no more
    than :data:`.FALSE_ALARMS` of runs; the interval has to agree.

    Returns:
        By site: 1 on the harmful side, -1 on the harmless one, 0 where it may be chance.
    """
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    significant = table["permutation_p_corrected"] <= 2 * FALSE_ALARMS
    sides = (table["d_low"] > 0).astype(int) - (table["d_high"] < 0).astype(int)
    return sides.where(significant, 0)


def cue_side(evidence: Evidence, source: str) -> pd.Series:
    """Return by site 1 or -1 where an alarming cue moves the projection up or down by more than chance, else 0.

    The test is as strict as :func:`separated`.
    """
    table = of_quartets(evidence, source)
    sides = (table["cue_low"] > 0).astype(int) - (table["cue_high"] < 0).astype(int)
    return sides.where(table["cue_p_corrected"] <= 2 * FALSE_ALARMS, 0)


def of_quartets(evidence: Evidence, source: str) -> pd.DataFrame:
    """Return the effects of intent and cue on a transfer set, indexed by site; no rows where it has no quartets."""
    return evidence.quartets[evidence.quartets["source"].eq(source)].set_index("site")


def follows_intent(evidence: Evidence, site: int) -> Literal["yes", "no", "unclear"] | None:
    """Return whether the direction follows what is asked more than how it is said; None where that was not tested.

    On quartets intent has to move the projection more than an alarming cue does, on other sets the direction has to
    separate the labels better than every text model.
    """
    source = probe_source(evidence)
    if source is None or not is_tested(evidence):
        return None
    side, quartets = separated(evidence, source).get(site, 0), of_quartets(evidence, source)
    if site in quartets.index:
        row = quartets.loc[site]
        more = row["intent_lead_low"] > 0
        less = row["intent_lead_high"] < 0 and cue_side(evidence, source)[site] != 0
    else:
        closest = against_wording(evidence, source)
        more = site in closest.index and closest.loc[site, "auroc_difference_low"] > 0
        less = False
    if side < 0 or less:
        return "no"
    return "yes" if side > 0 and more else "unclear"


def detectable_from(evidence: Evidence, measure: str, source: str) -> int | None:
    """Return the first site from which a number's interval stays above chance up to the last site; None for never."""
    table = evidence.detectable_from
    row = table[table["measure"].eq(measure) & table["source"].eq(source)]
    return None if row.empty or pd.isna(row["site"].iloc[0]) else int(row["site"].iloc[0])


def against_wording(evidence: Evidence, source: str, prompts: str = EVERY_PROMPT) -> pd.DataFrame:
    """Return by site how the direction compares with the text model that comes closest to it there.

    Closest is the one whose difference has the lowest lower bound: what is claimed against it holds against all.

    Args:
        evidence: of the run.
        source: :data:`.CONTRAST` or the name of a transfer set.
        prompts: :data:`.EVERY_PROMPT` or :data:`.NEAR_TWINS`.

    Returns:
        Rows of the wording table, indexed by site; none where nothing was compared.
    """
    table = evidence.wording
    table = table[table["source"].eq(source) & table["prompts"].eq(prompts)].dropna(subset="auroc_difference_low")
    return table.loc[table.groupby("site")["auroc_difference_low"].idxmin()].set_index("site")


def better_than_wording_from(evidence: Evidence, source: str, prompts: str = EVERY_PROMPT) -> int | None:
    """Return the first site from which the direction stays above every text model; None for never.

    On a transfer set it is no earlier than where the set's labels are separated at all.
    """
    lower = against_wording(evidence, source, prompts)["auroc_difference_low"].reindex(range(evidence.n_sites))
    if source in set(evidence.transfer["source"]):
        lower = lower.where(separated(evidence, source).reindex(lower.index) > 0)
    return inference.detectable_from(lower.to_numpy(float))


def holds(evidence: Evidence) -> pd.Series:
    """Return by site whether the direction separates prompts of its own kind that it was not fitted with."""
    sites = evidence.sites.set_index("site")
    return (sites["crossfit_d_low"] > 0) & (sites["permutation_p_corrected"] <= SIGNIFICANT)
