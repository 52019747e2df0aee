"""What the evidence says in words: one sentence a question and site, computed from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd

from refusal_core.analysis import inference
from refusal_core.analysis.baselines import TFIDF
from refusal_core.evidence.evaluation import BOTH, CONTRAST, Evidence
from refusal_core.runs.store import LEFT_OUT
from refusal_core.sites import site_label, site_short

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
"""The questions in order, by the name :func:`reading` knows them under."""

NO_DIFFERENCE = "not distinguishable from chance"
PROBE_PAIRS = "probe-pairs"
BORDERLINE = "borderline"
SIGNIFICANT = 0.05


@lru_cache(maxsize=1024)
def reading(evidence: Evidence, question: str, site: int) -> str:
    """What the numbers of one site say to one question.

    Args:
        question: a key of :data:`QUESTIONS`.
        site: ``0 … n_sites - 1``.

    Raises:
        KeyError: for another question.
    """
    return _READINGS[question](evidence, site)


def sampling(evidence: Evidence) -> str:
    """What was measured on a sample because a set is large, in a sentence; empty where nothing was."""
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


@lru_cache(maxsize=16)
def verdict(evidence: Evidence) -> str:
    """The run in a sentence or two: whether any site tells harm on matched pairs, from where on, and where best."""
    source = probe_source(evidence)
    if source is None:
        return "Whether the direction is about harm cannot be said: the run has no transfer set."
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    above = table[table["d_low"] > 0]
    held = evidence.sites[evidence.sites["crossfit_d_low"] > 0]
    first = onset(evidence, "d", source)
    if table["d"].isna().all():
        reason = evidence.reason("transfer", "d", source=source)
        return f"Whether the direction is about harm cannot be said: {reason}."
    # As many as one expects of intervals that miss one time in twenty.
    if first is None and len(above) <= max(1, SIGNIFICANT * evidence.n_sites):
        if held.empty:
            return f"At no site is the direction more than chance: cross-fitted and on {source} it is {NO_DIFFERENCE}."
        return (
            f"The direction tells the two halves of its contrast set apart at {len(held)} of {evidence.n_sites} sites, "
            f"but on {source} it is {NO_DIFFERENCE}: {_style(evidence)}."
        )
    best = int(above["d"].idxmax())
    d, area = _interval(above.loc[best], "d"), above.loc[best, "auroc"]
    said = [f"On {source} the direction tells harm best at {_place(evidence, best)} (d {d}, AUROC {area:.2f})."]
    if first is None:
        said.append(f"It is above chance at {len(above)} of {evidence.n_sites} sites, but not up to the last.")
    else:
        said.append(
            f"It is above chance from {_place(evidence, first)} on{_onset_range(evidence, 'd', source)}, "
            f"{_above_words(evidence, source, first)}."
        )
    return " ".join([*said, *_contrary(evidence, best, source)])


def overview_table(evidence: Evidence) -> pd.DataFrame:
    """The first picture as a table: one row a site, indexed by site, with the numbers of the main questions."""
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


def strongest_site(evidence: Evidence) -> int:
    """The site that tells harm best on the set asked about harm; else the strongest cross-fitted or in-sample."""
    source = probe_source(evidence)
    transfer = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")["d"]
    sites = evidence.sites.set_index("site")
    for values in (transfer, sites["crossfit_d"], sites["in_sample_d"]):
        if values.notna().any():
            return int(values.idxmax())
    return 0


def probe_source(evidence: Evidence) -> str | None:
    """The transfer set that is asked about harm: the probe pairs, else the first with pairs, else the first.

    What a refit left out is none: it was chosen for being mislabelled or ambiguous.
    """
    table = evidence.transfer.drop_duplicates("source")
    table = table[table["source"].ne(LEFT_OUT)]
    sources = table["source"].tolist()
    if PROBE_PAIRS in sources:
        return PROBE_PAIRS
    paired = table[table["n_pairs"] > 0]["source"].tolist() if sources else []
    return (paired or sources or [None])[0]


def onset(evidence: Evidence, measure: str, source: str) -> int | None:
    """The onset of a number as the evidence has it, or None for never."""
    row = evidence.onset[evidence.onset["measure"].eq(measure) & evidence.onset["source"].eq(source)]
    return None if row.empty or pd.isna(row["site"].iloc[0]) else int(row["site"].iloc[0])


def _fit(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["in_sample_d"]):
        return _missing(evidence, site, "sites", "in_sample_d")
    return (
        f"At {_place(evidence, site)} the labels lie d = {row['in_sample_d']:.2f} apart on the prompts that the "
        f"direction was fitted on; shuffled labels give {row['chance_d_median']:.2f}, so this says how well it fits "
        "and nothing about new prompts."
    )


def _hold(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["crossfit_d"]):
        return _missing(evidence, site, "sites", "crossfit_d")
    number = f"cross-fitted d is {_interval(row, 'crossfit_d')}, AUROC {row['crossfit_auroc']:.2f}"
    if not row["crossfit_d_low"] > 0:
        return f"At {_place(evidence, site)} {number}: on prompts it was not fitted with it is {NO_DIFFERENCE}."
    return (
        f"At {_place(evidence, site)} {number}: it holds on new prompts of the same kind and puts "
        f"{100 * row['crossfit_accuracy']:.0f} % of them on the right side, which does not yet say what it is about."
    )


def _chance(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["permutation_p_corrected"]):
        return _missing(evidence, site, "sites", "in_sample_d")
    random = evidence.random_directions
    random = random[random["site"].eq(site) & random["kind"].eq("covariance")].iloc[0]
    reaching = round(random["share_reaching"] * random["directions"]) or "none"
    number = f"in-sample d = {row['in_sample_d']:.2f}"
    p = f"{_p(row['permutation_p_corrected'])}, corrected over all sites"
    if row["permutation_p_corrected"] >= SIGNIFICANT:
        return f"At {_place(evidence, site)} {number} is {NO_DIFFERENCE} ({p})."
    return (
        f"At {_place(evidence, site)} {number} is more than chance ({p}): 95 % of shuffled labels stay under "
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
        return _missing(evidence, site, "transfer", "d", source)
    number = f"At {_place(evidence, site)} d on {source} is {_interval(row, 'd')}, AUROC {row['auroc']:.2f}"
    if row["d_low"] > 0:
        right = row["pair_accuracy"]
        pairs = (
            f", with {100 * right:.0f} % of {row['n_pairs']:.0f} pairs in the right order" if np.isfinite(right) else ""
        )
        words = _words_auroc(evidence, source)
        if words >= row["auroc"]:
            said = f"{number}{pairs}: more than chance, but words alone (TF–IDF) reach AUROC {words:.2f} there too."
        else:
            said = f"{number}{pairs}: it is about harm, as far as these prompts show it."
        return " ".join([said, *_contrary(evidence, site, source)])
    if row["d_high"] < 0:
        return f"{number}: it puts harmless prompts on the harmful side, so it is about something else."
    held = evidence.sites.loc[site, "crossfit_d_low"] > 0
    return f"{number}, {NO_DIFFERENCE}" + (f": {_style(evidence)}." if held else ".")


def _simpler(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["crossfit_d"]):
        return _missing(evidence, site, "sites", "crossfit_d")
    parts = []
    own = evidence.baselines[evidence.baselines["source"].eq(CONTRAST)].dropna(subset=["d", "auroc"])
    if not own.empty:
        best = own.loc[own["auroc"].idxmax()]
        name = "TF–IDF of the words" if best["baseline"] == TFIDF else best["baseline"]
        ours = row["crossfit_auroc"]
        said = "which the direction does not exceed" if best["auroc"] >= ours else "less than the direction"
        parts.append(f"the best text-only baseline, {name}, reaches AUROC {best['auroc']:.2f}, {said} ({ours:.2f})")
    if np.isfinite(row["length_d"]):
        gone = "" if row["length_d_low"] > 0 else f", {NO_DIFFERENCE}"
        parts.append(f"with prompt length regressed out, cross-fitted d is {_interval(row, 'length_d')}{gone}")
    if not parts:
        return _missing(evidence, site, "sites", "length_d")
    return f"At {_place(evidence, site)} {'; '.join(parts)}."


def _refusing(evidence: Evidence, site: int) -> str:
    table = evidence.refusal[evidence.refusal["site"].eq(site) & evidence.refusal["source"].eq(CONTRAST)]
    row = table[table["label"].eq(BOTH)].iloc[0]
    if np.isnan(row["rho"]):
        return _missing(evidence, site, "refusal", BOTH)
    number = (
        f"projection and refusal log-odds correlate within the labels with Spearman's rho = {_interval(row, 'rho')}"
    )
    if row["rho_low"] > 0:
        said = "prompts that lie further along the direction are refused more"
    elif row["rho_high"] < 0:
        said = "prompts that lie further along the direction are refused less"
    else:
        said = f"a link with the model's own refusals is {NO_DIFFERENCE}"
    cosine = evidence.sites.loc[site, "behaviour_cosine"]
    beside = f"; the direction of what it refuses has cosine {cosine:.2f} with this one" if np.isfinite(cosine) else ""
    return f"At {_place(evidence, site)} {number}: {said}{beside}."


def _space(evidence: Evidence, site: int) -> str:
    row = evidence.sites.loc[site]
    if np.isnan(row["effective_dimension"]):
        return _missing(evidence, site, "sites", "effective_dimension")
    spread = f"about {row['effective_dimension']:.0f} of {evidence.settings['d_model'].iloc[0]} dimensions"
    if np.isnan(row["variance_share"]):
        return (
            f"At {_place(evidence, site)} the activations spread over {spread}, and no direction separates the labels."
        )
    return (
        f"At {_place(evidence, site)} the activations spread over {spread}, and the direction carries "
        f"{100 * row['variance_share']:.1f} % of their variance, the first principal component "
        f"{100 * row['pc1_share']:.1f} %."
    )


def _enough(evidence: Evidence, site: int) -> str:
    curve = evidence.learning[evidence.learning["site"].eq(site)].dropna(subset="d")
    if curve.empty:
        return _missing(evidence, site, "sites", "crossfit_d")
    last = curve.iloc[-1]
    if not evidence.sites.loc[site, "crossfit_d_low"] > 0:
        return f"At {_place(evidence, site)}, {last['size']:.0f} prompts are not enough for more than chance."
    enough = curve[curve["d"] >= 0.95 * last["d"]].iloc[0]
    if enough["size"] == last["size"]:
        most = f"{last['d']:.2f} at {last['size']:.0f}"
        return f"At {_place(evidence, site)} d still grows with prompts, to {most}: more would help."
    return (
        f"At {_place(evidence, site)}, {enough['size']:.0f} prompts give 95 % of the d that {last['size']:.0f} give "
        f"({enough['d']:.2f} of {last['d']:.2f}), with cosine {enough['cosine']:.2f} to the full direction."
    )


_READINGS: dict[str, Callable[[Evidence, int], str]] = {
    "fit": _fit,
    "hold": _hold,
    "chance": _chance,
    "harm": _harm,
    "simpler": _simpler,
    "refusing": _refusing,
    "space": _space,
    "enough": _enough,
}


def _place(evidence: Evidence, site: int) -> str:
    label = site_label(site, evidence.n_sites - 1)
    return f"the {label}" if label == "final norm" else label


def _p(value: float) -> str:
    """A p-value of a permutation test, which cannot come out below one over the number of permutations plus one."""
    return "p ≤ 0.001" if value <= 0.001 else f"p = {value:.2g}"


def _interval(row: pd.Series, number: str) -> str:
    return f"{row[number]:.2f} ({row[f'{number}_low']:.2f} to {row[f'{number}_high']:.2f})"


def _missing(evidence: Evidence, site: int, table: str, number: str, source: str = CONTRAST) -> str:
    reason = evidence.reason(table, number, site, source) or "the numbers it needs do not exist"
    return f"At {_place(evidence, site)} there is no answer: {reason}."


def _onset_range(evidence: Evidence, measure: str, source: str) -> str:
    row = evidence.onset[evidence.onset["measure"].eq(measure) & evidence.onset["source"].eq(source)].iloc[0]
    ends = (row["site_low"], row["site_high"])
    low, high = ("never" if pd.isna(end) else site_short(int(end), evidence.n_sites - 1) for end in ends)
    return f" (95 % interval {low} to {high})"


def _above_words(evidence: Evidence, source: str, above_chance: int) -> str:
    """From where on the direction does better than the words of the prompts do without the model."""
    words = _words_auroc(evidence, source)
    table = evidence.transfer[evidence.transfer["source"].eq(source)].set_index("site")
    first = inference.onset((table["auroc"] - words).to_numpy())
    if np.isnan(words):
        return "with no words to compare it with"
    reached = f"above what words alone reach (TF–IDF, AUROC {words:.2f})"
    if first is None:
        return f"but at the last site not {reached}"
    return f"and {reached} from {_place(evidence, max(first, above_chance))} on"


def _contrary(evidence: Evidence, site: int, source: str) -> list[str]:
    """A sentence for every other transfer set on which the direction points the other way at a site."""
    table = evidence.transfer[evidence.transfer["site"].eq(site) & evidence.transfer["source"].ne(source)]
    return [
        f"On {row['source']} it points the other way, d {_interval(row, 'd')}"
        + (": where words and intent disagree, it follows the words." if row["source"] == BORDERLINE else ".")
        for _, row in table[table["d_high"] < 0].iterrows()
    ]


def _words_auroc(evidence: Evidence, source: str) -> float:
    row = evidence.baselines[evidence.baselines["source"].eq(source) & evidence.baselines["baseline"].eq(TFIDF)]
    return float(row["auroc"].iloc[0])


def _style(evidence: Evidence) -> str:
    settings = evidence.settings.iloc[0]
    if 2 * settings["n_pairs"] == settings["n_harmful"] + settings["n_harmless"]:
        return "what holds on pairs of its own kind does not carry over to others"
    return "what holds on new prompts of its own kind is how the two sets were written, not harm"
