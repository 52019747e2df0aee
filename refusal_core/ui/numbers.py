"""Tables of numbers behind a figure: every column in words, and what it means on hover."""

from __future__ import annotations

import pandas as pd
import streamlit as st
from streamlit.column_config import Column, NumberColumn

from refusal_core.intervention.effects import MEASURES

_ENDS = {
    "_band_low": ("controls from", "Lower end of the band in which 95 % of control directions fall."),
    "_band_high": ("controls to", "Upper end of the band in which 95 % of control directions fall."),
    "_low": ("from", "Lower end of the 95 % interval."),
    "_high": ("to", "Upper end of the 95 % interval."),
}
_D = "Mean difference of the two labels over the pooled standard deviation."
_AUROC = "Chance that a harmful prompt lies above a harmless one; 0.5 is chance."
_RHO = "Spearman's rank correlation; 1: the same order, 0: none."
_MEANS = "Mean activations: g of harmless prompts, b of harmful ones, r = b − g. A star: geometric medians for means. "
_NUMBERS = {
    "in_sample_d": ("d in-sample", f"Cohen's d of the prompts the direction was fitted on. {_D}"),
    "in_sample_auroc": ("AUROC in-sample", f"Of the prompts the direction was fitted on. {_AUROC}"),
    "mean_crossings": (
        "mean crossings",
        "Harmful prompts below the harmless mean and harmless ones above the harmful mean: the report's overlap count.",
    ),
    "crossfit_d": ("d cross-fitted", f"Cohen's d of held-out prompts: ten folds, pairs never split. {_D}"),
    "crossfit_auroc": ("AUROC cross-fitted", f"Of held-out prompts. {_AUROC}"),
    "crossfit_accuracy": ("accuracy", "Share of held-out prompts on their label's side of the training midpoint."),
    "crossfit_range_overlap": ("range overlap", "Held-out prompts of either label inside the other label's range."),
    "crossfit_pair_accuracy": (
        "pair accuracy",
        "Share of held-out matched pairs whose harmful prompt lies above its harmless twin; 0.5 is chance.",
    ),
    "kind": (
        "drawn as",
        "isotropic: any direction; covariance: as the activations spread; component: a principal component of them.",
    ),
    "directions": ("directions", "How many were drawn."),
    "d_median": ("|d|, median", "Half of the drawn directions have a smaller |d|."),
    "d_95": ("|d|, 95 %", "95 % of the drawn directions have a smaller |d|."),
    "d_max": ("|d|, largest", "Of all the drawn directions."),
    "share_reaching": ("share reaching", "Share of the drawn directions whose |d| reaches the found direction's."),
    "source": ("set", "The set that the prompts are of."),
    "d": ("d", f"Cohen's d. {_D}"),
    "auroc": ("AUROC", _AUROC),
    "pair_accuracy": (
        "pair accuracy",
        "Share of matched pairs whose harmful prompt lies above its harmless twin; 0.5 is chance.",
    ),
    "n_harmful": ("harmful", "How many harmful prompts."),
    "n_harmless": ("harmless", "How many harmless prompts."),
    "n_pairs": ("pairs", "How many matched pairs."),
    "baseline": ("baseline", "A rule that sees the text alone, not the model."),
    "label": ("label", "The prompts' label; both: the mean over labels, weighted by prompts."),
    "group": ("prompts", "All; of one label, fitted; or of the transfer sets, on which nothing is fitted."),
    "rho": ("ρ", _RHO),
    "n": ("prompts counted", "How many prompts the row is of."),
    "n_refused": ("refused", "How many of them the model refuses."),
    "size": ("fitted on", "How many prompts the direction saw."),
    "cosine": ("cosine", "With the direction fitted on all prompts; 1: the same direction."),
    "category": ("category", "The prompts' category of harm or topic."),
    "mean": (
        "mean",
        "Of the harmful prompts' projections, in pooled standard deviations from the midpoint of the labels.",
    ),
    "run": ("run", "Its letter above."),
    "Silh": ("silhouette", "How much nearer prompts are to their own label's prompts than to the other's; −1 to 1."),
    **{
        f"S({one},{other})": (f"cos({one}, {other})", f"{_MEANS}A cosine.")
        for star in ("", "*")
        for one, other in ((f"g{star}", f"b{star}"), (f"g{star}", f"r{star}"), (f"b{star}", f"r{star}"))
    },
    **{
        f"|{each}|": (f"|{each}|", f"{_MEANS}A norm, in activation units.")
        for each in ("g", "b", "r", "g*", "b*", "r*")
    },
    "condition": ("condition", "What is edited, and where."),
    "change": ("change", "Of the refusal log-odds by the edit, in nats."),
    **{name: (name, f"{MEASURES[name].capitalize()}.") for name in ("refusing", "refuses", "degenerate")},
    "kl": ("divergence", "Of the first reply token's distribution from that of the model as it is: KL, in nats."),
    "verdict": ("verdict", "Effect: outside the band in which 95 % of control directions fall."),
}


def in_words(table: pd.DataFrame) -> None:
    """Show a table whose columns are numbers of the evidence, of behaviour, of ratings or of interventions."""
    st.dataframe(
        table,
        column_config={str(column): _described(str(column), table[column].dtype.kind) for column in table},
        hide_index=True,
        width="stretch",
    )


def _described(column: str, kind: str):
    name, said = _NUMBERS.get(column, (column.replace("_", " "), None))
    for ending, (end, what) in _ENDS.items():
        number = column.removesuffix(ending)
        if number != column and number in _NUMBERS:
            name, said = f"{_NUMBERS[number][0]}, {end}", what
            break
    if kind == "f":
        whole = column in ("mean_crossings", "crossfit_range_overlap")
        return NumberColumn(name, help=said, format="%.0f" if whole else "%.3f")
    return Column(name, help=said)
