"""What the evidence of a run says in words and in one table, computed from the numbers alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.analysis import inference
from refusal_core.evidence.evaluation import BOTH, CONTRAST
from refusal_core.evidence.phrases import (
    NO_DIFFERENCE,
    NO_REASON,
    SIGNIFICANT,
    contrary,
    place,
    style,
    with_interval,
    words_auroc,
)
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import LEFT_OUT
from refusal_core.sites import site_short

PROBE_PAIRS = "probe-pairs"


def verdict(evidence: Evidence) -> str:
    """Say the run in a sentence or two: whether any site tells harm on matched pairs, from where on, and where best."""
    source = probe_source(evidence)
    if source is None:
        return "Whether the direction is about harm cannot be said: the run has no transfer set."
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    above = table[table["d_low"] > 0]
    held = evidence.sites[evidence.sites["crossfit_d_low"] > 0]
    first = onset(evidence, "d", source)
    if table["d"].isna().all():
        reason = evidence.reason("transfer", "d", source=source) or NO_REASON
        return f"Whether the direction is about harm cannot be said: {reason}."
    # As many as one expects of intervals that miss one time in twenty.
    if first is None and len(above) <= max(1, SIGNIFICANT * evidence.n_sites):
        if held.empty:
            return f"At no site is the direction more than chance: cross-fitted and on {source} it is {NO_DIFFERENCE}."
        return (
            f"The direction tells the two halves of its contrast set apart at {len(held)} of {evidence.n_sites} sites, "
            f"but on {source} it is {NO_DIFFERENCE}: {style(evidence)}."
        )
    best = int(above["d"].idxmax())
    d, area = with_interval(above.loc[best], "d"), above.loc[best, "auroc"]
    sentences = [f"On {source} the direction tells harm best at {place(evidence, best)} (d {d}, AUROC {area:.2f})."]
    if first is None:
        sentences.append(f"It is above chance at {len(above)} of {evidence.n_sites} sites, but not up to the last.")
    else:
        sentences.append(
            f"It is above chance from {place(evidence, first)} on{_onset_range(evidence, 'd', source)}, "
            f"{_above_words(evidence, source, first)}."
        )
    return " ".join([*sentences, *contrary(evidence, best, source)])


def caveats(evidence: Evidence) -> list[str]:
    """Say what a reader has to know about how the numbers came about, a sentence or two each; none where nothing is."""
    return [note for note in (_sampling(evidence), _pairs_found(evidence)) if note]


def _pairs_found(evidence: Evidence) -> str:
    count = evidence.settings.iloc[0].get("n_detected_pairs", 0)
    if not count:
        return ""
    return (
        f"The contrast set names no pairs. {count:.0f} pairs of texts that share most of their words under opposite "
        "labels were found in it and are kept together."
    )


def _sampling(evidence: Evidence) -> str:
    settings = evidence.settings.iloc[0]
    if "most_redrawn" not in settings:
        return ""
    most = settings["most_redrawn"]
    sizes = {"the contrast set": settings["n_harmful"] + settings["n_harmless"]}
    table = evidence.transfer.drop_duplicates("source")
    if len(table):
        sizes |= dict(zip(table["source"], table["n_harmful"] + table["n_harmless"], strict=True))
    large = [f"{name} ({size:,.0f} prompts)" for name, size in sizes.items() if size > most]
    if not large:
        return ""
    return (
        f"Estimates are of all prompts. Of {' and '.join(large)} a sample of about {most:,.0f}, whole pairs and "
        "labels in proportion, was redrawn: intervals are wider than those of all prompts would be, and permutations, "
        "random directions, the silhouette and what fewer prompts give are the sample's."
    )


def overview_table(evidence: Evidence) -> pd.DataFrame:
    """Return the first picture as a table: one row per site, with the numbers of the main questions."""
    sites = evidence.sites.set_index("site")
    columns = {
        "d in-sample": sites["in_sample_d"],
        "95 % of chance below": sites["chance_d_95"],
        "d cross-fitted": sites["crossfit_d"],
        "from": sites["crossfit_d_low"],
        "to": sites["crossfit_d_high"],
    }
    source = probe_source(evidence)
    if source is not None:
        transfer = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
        columns |= {
            f"d {source}": transfer["d"],
            " from": transfer["d_low"],
            " to": transfer["d_high"],
            "AUROC": transfer["auroc"],
        }
    refusal = evidence.refusal[evidence.refusal["source"].eq(CONTRAST) & evidence.refusal["label"].eq(BOTH)]
    return pd.DataFrame({**columns, "rho refusing": refusal.set_index("site")["rho"]})


def probe_source(evidence: Evidence) -> str | None:
    """Return the transfer set that is asked about harm: the probe pairs, else the first with pairs, else the first.

    What a refit left out is none: it was chosen for being mislabelled or ambiguous.
    """
    table = evidence.transfer.drop_duplicates("source")
    table = table[table["source"].ne(LEFT_OUT)]
    sources = table["source"].tolist()
    if PROBE_PAIRS in sources:
        return PROBE_PAIRS
    paired = table[table["n_pairs"] > 0]["source"].tolist() if sources else []
    return next(iter(paired or sources), None)


def onset(evidence: Evidence, measure: str, source: str) -> int | None:
    """Return the onset of a number as the evidence has it, or None for never."""
    row = evidence.onset[evidence.onset["measure"].eq(measure) & evidence.onset["source"].eq(source)]
    return None if row.empty or pd.isna(row["site"].iloc[0]) else int(row["site"].iloc[0])


def _onset_range(evidence: Evidence, measure: str, source: str) -> str:
    row = evidence.onset[evidence.onset["measure"].eq(measure) & evidence.onset["source"].eq(source)].iloc[0]
    ends = (row["site_low"], row["site_high"])
    low, high = ("never" if pd.isna(end) else site_short(int(end), evidence.n_sites - 1) for end in ends)
    return f" (95 % interval {low} to {high})"


def _above_words(evidence: Evidence, source: str, above_chance: int) -> str:
    """Say from where on the direction does better than the words of the prompts do without the model."""
    words = words_auroc(evidence, source)
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    first = inference.onset((table["auroc"] - words).to_numpy())
    if np.isnan(words):
        return "with no words to compare it with"
    reached = f"above what words alone reach (TF–IDF, AUROC {words:.2f})"
    if first is None:
        return f"but at the last site not {reached}"
    return f"and {reached} from {place(evidence, max(first, above_chance))} on"
