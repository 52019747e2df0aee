"""The evidence of a run: an overview, and a figure per question."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.evidence.claims import detectable_from, probe_source
from refusal_core.evidence.phrases import new_prompts_d
from refusal_core.figures.style import (
    ACCENT,
    GREY,
    LABEL_COLOUR,
    LABEL_DASH,
    LABEL_SYMBOL,
    LINE_COLOURS,
    PROBE,
    blank,
    interval_line,
    line_at,
    ribbon,
    safe,
    site_axis,
    site_mark,
    translucent,
)
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.evidence_tables import CONTRAST, Evidence
from refusal_core.runs.run import Run

HEIGHT = 320


def overview(run: Run, evidence: Evidence, site: int | None = None) -> go.Figure:
    """Return in-sample, cross-fitted and probe-pair d, over what chance alone reaches.

    Vertical lines mark from where harm is detectable, with the interval of that site, and the published decision layer.
    """
    sites = evidence.sites
    source = probe_source(evidence)
    chance = "shuffled labels (95 %)" if evidence.imported else "shuffled labels, cross-fitted (95 %)"
    traces = [ribbon(sites, "chance_crossfit_low", "chance_crossfit_high", GREY, chance, 0.3)]
    if not evidence.imported:
        traces += interval_line(run, sites, "in_sample_d", "in-sample d", GREY, "dot")
    traces += interval_line(run, sites, "crossfit_d", new_prompts_d(evidence), ACCENT, "dash")
    if source is not None:
        traces += interval_line(run, _transfer(evidence, source), "d", f"d on {safe(source)}", PROBE)
    figure = blank(430, traces, xaxis=site_axis(run), yaxis={"title_text": "Cohen's d"})
    figure.update_layout(margin={"t": 64})
    if source is not None:
        _mark_first_site(figure, run, evidence, "d", source, "detectable from", PROBE)
    _mark_first_site(figure, run, evidence, "mean_crossings", CONTRAST, "published decision layer", GREY)
    figure.layout.shapes += tuple(site_mark(site))
    return figure


def fit(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return the in-sample d and the level that refitting on shuffled labels reaches."""
    traces = [
        *interval_line(run, evidence.sites, "in_sample_d", "d" if evidence.imported else "in-sample d", ACCENT),
        *interval_line(run, evidence.sites, "chance_d_95", "95 % of shuffled labels stay below", GREY, "dot"),
    ]
    return _over_layers(traces, run, site, "Cohen's d")


def hold(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return the cross-fitted AUROC and the accuracy at the training midpoint, with intervals."""
    named = "AUROC of the imported direction" if evidence.imported else "cross-fitted AUROC"
    traces = [
        *interval_line(run, evidence.sites, "crossfit_auroc", named, ACCENT),
        *interval_line(run, evidence.sites, "crossfit_accuracy", "accuracy at the midpoint", "#B8860B", "dash"),
    ]
    return _over_layers(traces, run, site, "share", 0.5)


def chance(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return the d of shuffled labels and of random directions at one site, and the measured d."""
    null = evidence.permutations[evidence.permutations["site"].eq(site)]
    traces: list[dict[str, Any]] = [
        {
            "x": null["d"],
            "y": null["quantile"],
            "mode": "lines",
            "name": "shuffled labels" if evidence.imported else "shuffled labels, refitted",
            "line": {"color": GREY, "width": 2.5},
            "hovertemplate": "%{y:.0%} of shuffled labels stay below d = %{x:.2f}<extra></extra>",
        }
    ]
    kinds = evidence.random_directions[evidence.random_directions["site"].eq(site)]
    for place, row in enumerate(kinds.itertuples()):
        of_kind = {
            "x": [row.d_median, row.d_95, row.d_max],
            "y": [0.5, 0.95, 1.0],
            "mode": "markers+lines",
            "name": f"random: {row.kind}",
            "line": {"color": LINE_COLOURS[place + 1], "width": 1, "dash": "dot"},
            "marker": {"size": 9, "symbol": ("square", "diamond", "cross")[place]},
            "hovertemplate": f"random directions, {row.kind}: %{{y:.0%}} stay below |d| = %{{x:.2f}}<extra></extra>",
        }
        traces.append(of_kind)
    measured = evidence.sites["in_sample_d"][site]
    mark: dict[str, Any] = {}
    if np.isfinite(measured):
        note = {"text": f"measured: {measured:.2f}", "showarrow": False, "yref": "y domain", "yanchor": "bottom"}
        mark = {
            "shapes": [line_at("x", measured, color=ACCENT, width=2.5)],
            "annotations": [{**note, "x": measured, "xanchor": "right", "y": 0}],
        }
    return blank(
        HEIGHT,
        [{"type": "scatter", **trace} for trace in traces],
        xaxis={"title_text": f"d at {run.site_label(site)}", "rangemode": "tozero"},
        yaxis={"title_text": "share below", "tickformat": ".0%", "range": [0, 1.05]},
        **mark,
    )


def harm(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return d on the transfer sets, with intervals."""
    traces = [
        trace
        for source, colour, dash in zip(
            evidence.transfer["source"].unique(), cycle(_SOURCE_COLOURS), cycle(_SOURCE_DASHES), strict=False
        )
        for trace in interval_line(run, _transfer(evidence, source), "d", f"d on {safe(source)}", colour, dash)
    ]
    return _over_layers(traces, run, site, "Cohen's d", 0)


def simpler(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return the AUROC of text-only baselines and of the direction at one site."""
    bars = []
    named = {CONTRAST: "contrast set" if evidence.imported else "contrast set, held out"}
    for source, colour in zip(
        evidence.baselines["source"].unique(), cycle((ACCENT, PROBE, GREY, *LINE_COLOURS)), strict=False
    ):
        table = evidence.baselines[evidence.baselines["source"].eq(source)].dropna(subset="auroc")
        if source == CONTRAST:
            own = evidence.sites.loc[site, ["crossfit_auroc", "crossfit_auroc_low", "crossfit_auroc_high"]].to_numpy(
                float
            )
        else:
            own = _transfer(evidence, source).loc[site, ["auroc", "auroc_low", "auroc_high"]].to_numpy(float)
        values = np.vstack([table[["auroc", "auroc_low", "auroc_high"]].to_numpy(float), own])
        of_source = {
            "type": "bar",
            "x": [*table["baseline"], "the direction"],
            "y": values[:, 0],
            "name": named.get(source, safe(source)),
            "marker": {"color": translucent(colour, 0.7)},
            "error_y": {
                "type": "data",
                "array": values[:, 2] - values[:, 0],
                "arrayminus": values[:, 0] - values[:, 1],
                "color": GREY,
            },
            "hovertemplate": "%{x}: AUROC %{y:.2f}<extra></extra>",
        }
        bars.append(of_source)
    return blank(
        HEIGHT,
        bars,
        barmode="group",
        shapes=[line_at("y", 0.5, color=GREY, width=1, dash="dot")],
        yaxis={"title_text": "AUROC", "range": [0, 1.05]},
    )


def refusing(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return Spearman's rho of projection and refusal log-odds within each label, with intervals."""
    of_contrast = evidence.refusal[evidence.refusal["source"].eq(CONTRAST)]
    traces = []
    for label in LABELS:
        table = of_contrast[of_contrast["label"].eq(label)]
        traces += interval_line(run, table, "rho", f"within {label}", LABEL_COLOUR[label], LABEL_DASH[label])
    named = "cosine with the direction of refusing"
    traces += interval_line(run, evidence.sites, "behaviour_cosine", named, "#7B5EA7", "dashdot")
    return _over_layers(traces, run, site, "ρ, cosine", 0)


def space(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return the contrast set's prompts on the first two principal components of one site."""
    points = []
    scores = evidence.components[evidence.components["site"].eq(site)].merge(
        run.prompts[["prompt_id", "label", "text", "fitted"]], on="prompt_id"
    )
    for label in reversed(LABELS):
        table = scores[scores["label"].eq(label) & scores["fitted"]]
        of_label = {
            "type": "scatter",
            "x": table["pc1"],
            "y": table["pc2"],
            "mode": "markers",
            "name": label,
            "marker": {"color": LABEL_COLOUR[label], "symbol": LABEL_SYMBOL[label], "size": 6, "opacity": 0.7},
            "customdata": [safe(text) for text in table["text"]],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        points.append(of_label)
    shares = evidence.sites.loc[site, ["pc1_share", "pc2_share"]]
    return blank(
        HEIGHT + 60,
        points,
        xaxis={"title_text": f"first component ({shares['pc1_share']:.0%} of the variance)"},
        yaxis={"title_text": f"second ({shares['pc2_share']:.0%})"},
    )


def cosines(run: Run, evidence: Evidence) -> go.Figure:
    """Return the cosine of the directions of any two sites."""
    table = evidence.cosines.pivot(index="site", columns="other", values="cosine")
    heat = {
        "type": "heatmap",
        "z": table.to_numpy(),
        "zmin": -1,
        "zmax": 1,
        "colorscale": "RdBu",
        "reversescale": True,
        "colorbar": {"title": {"text": "cosine"}, "thickness": 12},
        "hovertemplate": "sites %{y} and %{x}: cosine %{z:.2f}<extra></extra>",
    }
    return blank(HEIGHT + 60, [heat], xaxis=site_axis(run), yaxis={"title_text": "layer"})


def enough(run: Run, evidence: Evidence, site: int) -> go.Figure:
    """Return held-out d and cosine to the full direction for directions fitted on fewer prompts, at one site."""
    table = evidence.learning[evidence.learning["site"].eq(site)]
    traces = []
    for number, name, colour, dash in (
        ("d", "held-out d", ACCENT, "solid"),
        ("cosine", "cosine to the full direction", "#7B5EA7", "dashdot"),
    ):
        line = {
            "type": "scatter",
            "x": table["size"].to_numpy(),
            "y": table[number].to_numpy(),
            "mode": "lines+markers",
            "name": name,
            "line": {"color": colour, "width": 2.5, "dash": dash},
            "hovertemplate": f"%{{x}} prompts: {name} %{{y:.2f}}<extra></extra>",
        }
        traces += [ribbon(table, f"{number}_low", f"{number}_high", colour, "", 0.18, x="size"), line]
    along = {"title_text": f"prompts fitted on, at {run.site_label(site)}", "type": "log", "dtick": np.log10(2)}
    return blank(HEIGHT, traces, xaxis=along)


OVER_LAYERS: dict[str, Callable[[Run, Evidence, int], go.Figure]] = {
    "overview": overview,
    "fit": fit,
    "hold": hold,
    "harm": harm,
    "refusing": refusing,
}
"""The figures that differ between sites in their mark alone, which is their last shape."""

FIGURES: dict[str, Callable[[Run, Evidence, int], go.Figure]] = {
    "fit": fit,
    "hold": hold,
    "chance": chance,
    "harm": harm,
    "simpler": simpler,
    "refusing": refusing,
    "space": space,
    "enough": enough,
}
"""A figure per question, by the names of :data:`refusal_core.evidence.findings.QUESTIONS`."""

_SOURCE_COLOURS = (PROBE, "#B8860B", *LINE_COLOURS)
_SOURCE_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")


def _transfer(evidence: Evidence, source: str) -> pd.DataFrame:
    table = evidence.transfer[evidence.transfer["source"].eq(source)]
    return table.set_index("site", drop=False)


def _over_layers(
    traces: list[dict[str, Any]], run: Run, site: int, title: str, chance: float | None = None
) -> go.Figure:
    """Return a figure over the layers with its mark, and a line at the level of chance."""
    by_chance = [] if chance is None else [line_at("y", chance, color=GREY, width=1, dash="dot")]
    return blank(
        HEIGHT,
        traces,
        shapes=[*by_chance, *site_mark(site)],
        xaxis=site_axis(run),
        yaxis={"title_text": title},
    )


def _mark_first_site(
    figure: go.Figure, run: Run, evidence: Evidence, measure: str, source: str, name: str, colour: str
) -> None:
    first = detectable_from(evidence, measure, source)
    if first is None:
        return
    table = evidence.detectable_from
    row = table[table["measure"].eq(measure) & table["source"].eq(source)].iloc[0]
    if pd.notna(row["site_low"]) and pd.notna(row["site_high"]) and row["site_high"] > row["site_low"]:
        figure.add_vrect(
            x0=row["site_low"], x1=row["site_high"], line={"width": 0}, fillcolor=colour, opacity=0.12, layer="below"
        )
    figure.add_vline(
        x=first,
        line={"color": colour, "width": 2, "dash": "dash"},
        annotation={"text": f"{name}: {run.site_label(first)}", "font": {"size": 11}},
        annotation_position="top right" if measure == "d" else "bottom right",
    )
