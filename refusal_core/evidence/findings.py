"""What the evidence of a run says in words and in one table, computed from the numbers alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.evidence.claims import (
    best_site,
    better_than_wording_from,
    detectable_from,
    holds,
    is_tested,
    probe_source,
    separated,
)
from refusal_core.evidence.phrases import (
    NO_DIFFERENCE,
    NO_REASON,
    ORIGIN_UNKNOWN,
    contrary,
    intent_and_cue,
    new_prompts_d,
    place,
    style,
    text_auroc,
    what_would_have_been_seen,
    with_interval,
)
from refusal_core.evidence.rounding import describe_rounding
from refusal_core.options import DEFAULT_ESTIMATOR, ESTIMATORS
from refusal_core.runs.evidence_tables import BOTH, CONTRAST, EVERY_PROMPT, NEAR_TWINS, Evidence
from refusal_core.runs.run import Run
from refusal_core.sites import site_short

FEW = 24
"""Prompts of a label below which a sample is called small."""


def verdict(evidence: Evidence) -> str:
    """Say the run in a few sentences: whether it separates harm on prompts of another kind, from where on, how well.

    The transfer number is that of the layer with the highest cross-fitted d, which was chosen without it.
    """
    source = probe_source(evidence)
    if source is None:
        return "Whether the direction is about harm cannot be said: the run has no transfer set."
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    if table["d"].isna().all():
        reason = evidence.reason("transfer", "d", source=source) or NO_REASON
        return f"Whether the direction is about harm cannot be said: {reason}."
    best = best_site(evidence)
    if not np.isfinite(evidence.sites["crossfit_d"][best]):
        return _no_layer(evidence, source)
    number = f"d is {with_interval(table.loc[best], 'd')}, AUROC {table.loc[best, 'auroc']:.2f}"
    article = "" if evidence.imported else "the "
    chosen = f"where {article}{new_prompts_d(evidence)} is highest"
    if not is_tested(evidence):
        return (
            f"On {source} {number} at {place(evidence, best)}, {chosen}. Whether that is "
            "more than chance was not tested over all sites when this run was made: make it again to know."
        )
    above = separated(evidence, source) > 0
    if not above.any():
        said = intent_and_cue(evidence, best, source), contrary(evidence, best, source)
        return " ".join([_nothing_there(evidence, source), *said[0], *said[1]])
    if above[best]:
        first = (
            f"At {place(evidence, best)}, {chosen}, the direction separates the harmful "
            f"from the harmless prompts of {source}: {number}."
        )
    else:
        first = (
            f"The direction separates the harmful from the harmless prompts of {source} at {above.sum()} of "
            f"{evidence.n_sites} sites, but not at {place(evidence, best)}, {chosen}: there "
            f"{number}."
        )
    return " ".join(
        [
            first,
            _from_where(evidence, source),
            _better_than_wording(evidence, source),
            *intent_and_cue(evidence, best, source),
            *contrary(evidence, best, source),
        ]
    )


def caveats(evidence: Evidence) -> list[str]:
    """Say what a reader has to know about how the numbers came about, a sentence or two each; none where nothing is."""
    notes = (_imported(evidence), _estimator(evidence), _small(evidence), _sampling(evidence), _pairs_found(evidence))
    return [note for note in notes if note]


def notes(run: Run) -> list[str]:
    """Say what a reader has to know about how a run's numbers came about: :func:`caveats`, and where it was rounded."""
    rounding = describe_rounding(run)
    return caveats(run.evidence) + ([rounding] if rounding else [])


def overview_table(evidence: Evidence) -> pd.DataFrame:
    """Return the first picture as a table: one row per site, indexed by it, with the numbers of the main questions."""
    sites = evidence.sites.set_index("site")
    columns = {
        **({} if evidence.imported else {"d in-sample": sites["in_sample_d"]}),
        "95 % of chance below": sites["chance_d_95"],
        "d imported" if evidence.imported else "d cross-fitted": sites["crossfit_d"],
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


def _nothing_there(evidence: Evidence, source: str) -> str:
    """Say that a transfer set is not separated anywhere, and how large an effect would not have been missed."""
    seen = what_would_have_been_seen(evidence, best_site(evidence), source)
    held = int(holds(evidence).sum())
    on_contrast = "on the contrast set" if evidence.imported else "cross-fitted"
    contrast = "the contrast set" if evidence.imported else "its contrast set, cross-fitted"
    if not held:
        return (
            f"At no site is the direction more than chance: {on_contrast} and on {source} it is {NO_DIFFERENCE}. {seen}"
        )
    return (
        f"The direction separates the two halves of {contrast}, at {held} of {evidence.n_sites} "
        f"sites, but on {source} it is {NO_DIFFERENCE} at any: {style(evidence)}. {seen}"
    )


def _no_layer(evidence: Evidence, source: str) -> str:
    """Say that no layer can be chosen, and what a transfer set's number is at the final norm, if there is one."""
    reason = evidence.reason("sites", "crossfit_d", best_site(evidence)) or NO_REASON
    first = f"No layer has a {new_prompts_d(evidence)} by which it could be chosen: {reason}."
    norm = evidence.n_sites - 1
    row = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site").loc[norm]
    if not np.isfinite(row["d"]):
        return first
    number = f"At {place(evidence, norm)} d on {source} is {with_interval(row, 'd')}, AUROC {row['auroc']:.2f}"
    if not is_tested(evidence):
        return f"{first} {number}."
    side = separated(evidence, source)[norm]
    meaning = {1: "more than chance", -1: "it puts harmless prompts on the harmful side"}.get(side, NO_DIFFERENCE)
    return f"{first} {number}: {meaning}."


def _from_where(evidence: Evidence, source: str) -> str:
    """Say from which site on the separation can be told from chance."""
    first = detectable_from(evidence, "d", source)
    above = separated(evidence, source) > 0
    if first is None:
        return f"It is detectable at {above.sum()} of {evidence.n_sites} sites, but not up to the last."
    table = evidence.detectable_from
    row = table[table["measure"].eq("d") & table["source"].eq(source)].iloc[0]
    ends = (row["site_low"], row["site_high"])
    low, high = ("never" if pd.isna(end) else site_short(int(end), evidence.n_sites - 1) for end in ends)
    return f"It is detectable from {place(evidence, first)} on (95 % interval {low} to {high})."


def _better_than_wording(evidence: Evidence, source: str) -> str:
    """Say from which site on the direction does better than every text model, held out and on the transfer set."""
    if evidence.wording.empty:
        return "No text model was compared with it."
    parts = []
    for name, where, prompts in (
        (CONTRAST, "contrast prompts" if evidence.imported else "held-out contrast prompts", EVERY_PROMPT),
        (source, source, EVERY_PROMPT),
        (CONTRAST, "the {n} contrast pairs that differ in at most two words", NEAR_TWINS),
        (source, f"the {{n}} such pairs of {source}", NEAR_TWINS),
    ):
        table = evidence.wording[evidence.wording["source"].eq(name) & evidence.wording["prompts"].eq(prompts)]
        if table.empty:
            continue
        first = better_than_wording_from(evidence, name, prompts)
        from_where = "at no site up to the last" if first is None else f"from {place(evidence, first)} on"
        reached = f"text reaches AUROC {text_auroc(evidence, name, prompts):.2f}"
        parts.append(f"on {where.format(n=int(table['n_pairs'].iloc[0]))} {from_where} ({reached})")
    return f"It does better than the prompts' wording {', '.join(parts)}."


def _imported(evidence: Evidence) -> str:
    if not evidence.imported:
        return ""
    return (
        f"The direction was imported; {ORIGIN_UNKNOWN}. Nothing here is cross-fitted: what is called so, and what is "
        "called in-sample, is the number of the imported direction on all prompts of the contrast set."
    )


def _estimator(evidence: Evidence) -> str:
    if evidence.estimator == DEFAULT_ESTIMATOR:
        return ""
    settings = evidence.settings.iloc[0]
    return (
        f"The direction is that of an estimator, {ESTIMATORS[evidence.estimator]}, which was fitted anew without every "
        f"fold, in {settings['draws']} bootstrap draws and on {settings['permutations']} shuffled labellings: fewer "
        "than of mean differences, so that the ends of intervals are rougher and no p-value of the contrast set is "
        f"below {1 / (settings['permutations'] + 1):.2g}. The direction of what the model refuses is a difference of "
        "means."
    )


def _small(evidence: Evidence) -> str:
    settings = evidence.settings.iloc[0]
    fitted_on = "the contrast set has" if evidence.imported else "the direction was fitted on"
    sizes = {fitted_on: (settings["n_harmful"], settings["n_harmless"])}
    source = probe_source(evidence)
    if source is not None:
        row = evidence.transfer[evidence.transfer["source"].eq(source)].iloc[0]
        sizes[f"{source} has"] = (row["n_harmful"], row["n_harmless"])
    small = [
        f"{what} {harmful:.0f} harmful and {harmless:.0f} harmless prompts"
        for what, (harmful, harmless) in sizes.items()
        if min(harmful, harmless) < FEW
    ]
    if not small:
        return ""
    sentence = f"{' and '.join(small)}: of so few, intervals are rough and only large effects can be seen."
    return f"A small sample: {sentence}"


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
