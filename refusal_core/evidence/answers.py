"""What the numbers of one site say in words: a sentence per question, computed from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refusal_core.evidence.claims import (
    FALSE_ALARMS,
    SIGNIFICANT,
    against_wording,
    holds,
    is_tested,
    probe_source,
    separated,
)
from refusal_core.evidence.phrases import (
    NO_DIFFERENCE,
    ORIGIN_UNKNOWN,
    contrary,
    intent_and_cue,
    missing,
    new_prompts_d,
    p_value,
    place,
    style,
    what_would_have_been_seen,
    with_interval,
)
from refusal_core.runs.evidence_tables import BOTH, CONTRAST, EVERY_PROMPT, NEAR_TWINS, Evidence

QUESTIONS = {
    "fit": "Does it fit?",
    "hold": "Does it hold on new prompts?",
    "chance": "Is it more than chance?",
    "harm": "Is it about harm?",
    "simpler": "Is it something simpler?",
    "refusing": "Does it go with refusing?",
    "space": "What does the space look like?",
    "enough": "How many prompts are enough?",
}
"""The questions in order, by the name :func:`answer` knows them under."""


def answer(evidence: Evidence, question: str, site: int) -> str:
    """Return what the numbers of one site say to one question.

    Args:
        evidence: of the run.
        question: a key of :data:`QUESTIONS`.
        site: ``0 … n_sites - 1``.

    Raises:
        KeyError: for another question.
    """
    return _ANSWERS[question](evidence, site)


def _fit(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["in_sample_d"]):
        return missing(evidence, site, "sites", "in_sample_d")
    if evidence.imported:
        return (
            f"At {place(evidence, site)} the labels of the contrast set lie d = {row['in_sample_d']:.2f} apart along "
            f"the imported direction; {ORIGIN_UNKNOWN}."
        )
    return (
        f"At {place(evidence, site)} the labels lie d = {row['in_sample_d']:.2f} apart on the prompts that the "
        f"direction was fitted on; shuffled labels give {row['chance_d_median']:.2f}, so this says how well it fits "
        "and nothing about new prompts."
    )


def _hold(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["crossfit_d"]):
        return missing(evidence, site, "sites", "crossfit_d")
    number = f"{new_prompts_d(evidence)} is {with_interval(row, 'crossfit_d')}, AUROC {row['crossfit_auroc']:.2f}"
    if np.isfinite(row.get("category_d", np.nan)):
        number += f", and d of each category on the direction of the others {with_interval(row, 'category_d')}"
    if not row["crossfit_d_low"] > 0:
        where = "on the contrast set" if evidence.imported else "on prompts it was not fitted with"
        return f"At {place(evidence, site)} {number}: {where} it is {NO_DIFFERENCE}."
    if evidence.imported:
        return (
            f"At {place(evidence, site)} {number}: it puts {100 * row['crossfit_accuracy']:.0f} % of the contrast set "
            f"on the right side, which does not yet say what it is about; {ORIGIN_UNKNOWN}."
        )
    return (
        f"At {place(evidence, site)} {number}: it holds on new prompts of the same kind and puts "
        f"{100 * row['crossfit_accuracy']:.0f} % of them on the right side, which does not yet say what it is about."
    )


def _chance(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["permutation_p_corrected"]):
        return missing(evidence, site, "sites", "in_sample_d")
    random = evidence.random_directions
    random = random[random["site"].eq(site) & random["kind"].eq("covariance")].iloc[0]
    reaching = round(random["share_reaching"] * random["directions"]) or "none"
    number = f"{'d' if evidence.imported else 'in-sample d'} = {row['in_sample_d']:.2f}"
    p = f"{p_value(row['permutation_p_corrected'])}, corrected over all sites"
    if row["permutation_p_corrected"] >= SIGNIFICANT:
        return f"At {place(evidence, site)} {number} is {NO_DIFFERENCE} ({p})."
    return (
        f"At {place(evidence, site)} {number} is more than chance ({p}): 95 % of shuffled labels stay under "
        f"{row['chance_d_95']:.2f}, and {reaching} of {random['directions']} random directions drawn like the "
        "activations reach it."
    )


def _harm(evidence: Evidence, site: int) -> str:
    source = probe_source(evidence)
    if source is None:
        return "Whether it is about harm cannot be said: the run has no transfer set."
    table = evidence.transfer
    row = table[table["site"].eq(site) & table["source"].eq(source)].iloc[0]
    if np.isnan(row["d"]):
        return missing(evidence, site, "transfer", "d", source)
    number = f"At {place(evidence, site)} d on {source} is {with_interval(row, 'd')}, AUROC {row['auroc']:.2f}"
    if np.isfinite(row["pair_accuracy"]):
        number += f", with {100 * row['pair_accuracy']:.0f} % of {row['n_pairs']:.0f} pairs in the right order"
    if not is_tested(evidence):
        return f"{number}. Whether that is more than chance was not tested over all sites when this run was made."
    p = f"{p_value(row['permutation_p_corrected'])} over all sites, {2 * FALSE_ALARMS:g} needed"
    effects = intent_and_cue(evidence, site, source)
    side = separated(evidence, source)[site]
    if side > 0:
        meaning = f"{number}: more than chance ({p}){_and_wording(evidence, source, site)}."
        return " ".join([meaning, *effects, *contrary(evidence, site, source)])
    if side < 0:
        meaning = f"{number}: it puts harmless prompts on the harmful side ({p}), so it is about something else."
        return " ".join([meaning, *effects])
    seen = what_would_have_been_seen(evidence, site, source)
    held = holds(evidence)[site]
    nothing = f"{number}, {NO_DIFFERENCE} ({p})" + (f": {style(evidence)}. {seen}" if held else f". {seen}")
    return " ".join([nothing, *effects])


def _and_wording(evidence: Evidence, source: str, site: int) -> str:
    """Say what a separation that is more than chance says about harm, given what the prompts' wording reaches."""
    closest = against_wording(evidence, source)
    if site not in closest.index:
        return ""
    row = closest.loc[site]
    than = f"{row['opponent']}, AUROC {row['text_auroc']:.2f}, difference {with_interval(row, 'auroc_difference')}"
    if row["auroc_difference_low"] > 0:
        return f" and more than their wording tells ({than}): it is about harm, as far as these prompts show it"
    return f", but it may be their wording ({than})"


def _simpler(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["crossfit_d"]):
        return missing(evidence, site, "sites", "crossfit_d")
    parts = [
        comparison
        for prompts in (EVERY_PROMPT, NEAR_TWINS)
        if (comparison := _compared_with_text(evidence, site, prompts))
    ]
    if np.isfinite(row["length_d"]):
        gone = "" if row["length_d_low"] > 0 else f", {NO_DIFFERENCE}"
        without = f"{new_prompts_d(evidence)} is {with_interval(row, 'length_d')}{gone}"
        parts.append(f"with prompt length regressed out, {without}")
    if not parts:
        return missing(evidence, site, "sites", "length_d")
    return f"At {place(evidence, site)} {'; '.join(parts)}."


def _compared_with_text(evidence: Evidence, site: int, prompts: str) -> str:
    """Write how the direction and the text model that comes closest to it do on held-out contrast prompts."""
    closest = against_wording(evidence, CONTRAST, prompts)
    if site not in closest.index:
        return ""
    row = closest.loc[site]
    everywhere = "on the contrast set" if evidence.imported else "on held-out prompts"
    where = everywhere if prompts == EVERY_PROMPT else f"on the {row['n_pairs']:.0f} {prompts}"
    above = "more than" if row["auroc_difference_low"] > 0 else "not shown to be more than"
    pairs = [
        f" ({100 * row[share]:.0f} % of pairs in order)" if np.isfinite(row[share]) else ""
        for share in ("pair_accuracy", "text_pair_accuracy")
    ]
    return (
        f"{where} the direction reaches AUROC {row['auroc']:.2f}{pairs[0]}, {above} the wording, "
        f"{row['text_auroc']:.2f}{pairs[1]} by {row['opponent']}: difference {with_interval(row, 'auroc_difference')}"
    )


def _refusing(evidence: Evidence, site: int) -> str:
    table = evidence.refusal[evidence.refusal["site"].eq(site) & evidence.refusal["source"].eq(CONTRAST)]
    row = table[table["label"].eq(BOTH)].iloc[0]
    if np.isnan(row["rho"]):
        return missing(evidence, site, "refusal", BOTH)
    number = (
        f"projection and refusal log-odds correlate within the labels with Spearman's rho = {with_interval(row, 'rho')}"
    )
    if row["rho_low"] > 0:
        meaning = "prompts that lie further along the direction are refused more"
    elif row["rho_high"] < 0:
        meaning = "prompts that lie further along the direction are refused less"
    else:
        meaning = f"a link with the model's own refusals is {NO_DIFFERENCE}"
    cosine = evidence.sites.loc[site, "behaviour_cosine"]
    if np.isfinite(cosine):
        meaning += f"; the direction of what it refuses has cosine {cosine:.2f} with this one"
    return f"At {place(evidence, site)} {number}: {meaning}."


def _space(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["effective_dimension"]):
        return missing(evidence, site, "sites", "effective_dimension")
    spread = f"about {row['effective_dimension']:.0f} of {evidence.settings['d_model'].iloc[0]} dimensions"
    if np.isnan(row["variance_share"]):
        return (
            f"At {place(evidence, site)} the activations spread over {spread}, and no direction separates the labels."
        )
    return (
        f"At {place(evidence, site)} the activations spread over {spread}, and the direction carries "
        f"{100 * row['variance_share']:.1f} % of their variance, the first principal component "
        f"{100 * row['pc1_share']:.1f} %."
    )


def _enough(evidence: Evidence, site: int) -> str:
    curve = evidence.learning[evidence.learning["site"].eq(site)].dropna(subset="d")
    if curve.empty:
        measured = np.isfinite(evidence.sites.loc[site, "crossfit_d"])
        table, number = ("learning", "d") if evidence.imported or measured else ("sites", "crossfit_d")
        return missing(evidence, site, table, number)
    last = curve.iloc[-1]
    if not evidence.sites.loc[site, "crossfit_d_low"] > 0:
        return f"At {place(evidence, site)}, {last['size']:.0f} prompts are not enough for more than chance."
    enough = curve[curve["d"] >= 0.95 * last["d"]].iloc[0]
    if enough["size"] == last["size"]:
        most = f"{last['d']:.2f} at {last['size']:.0f}"
        return f"At {place(evidence, site)} d still grows with prompts, to {most}: more would help."
    return (
        f"At {place(evidence, site)}, {enough['size']:.0f} prompts give 95 % of the d that {last['size']:.0f} give "
        f"({enough['d']:.2f} of {last['d']:.2f}), with cosine {enough['cosine']:.2f} to the full direction."
    )


_ANSWERS: dict[str, Callable[[Evidence, int], str]] = {
    "fit": _fit,
    "hold": _hold,
    "chance": _chance,
    "harm": _harm,
    "simpler": _simpler,
    "refusing": _refusing,
    "space": _space,
    "enough": _enough,
}
