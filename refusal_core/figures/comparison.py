"""Comparisons of runs: over relative depth, by rank of the prompts they share, by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_core.evidence.claims import detectable_from, probe_source
from refusal_core.exploration.comparison import NUMBERS, Shared, is_control, site_in_other
from refusal_core.exploration.outliers import standardised
from refusal_core.figures.style import ACCENT, GREY, PROBE, TEXT_SIZE, blank, line_at, ribbon, safe
from refusal_core.glossary import name_of
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import Run
from refusal_core.sites import relative_depth, site_short

MOST_RUNS = 5

COLOURS = (ACCENT, "#B8860B", "#7B5EA7", PROBE, "#3D8BC9")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
_NORM = 1.18
"""Where the final norm, which has no depth, is drawn."""
_DEPTH = {
    "title_text": "relative depth",
    "tickvals": [0, 0.25, 0.5, 0.75, 1, _NORM],
    "ticktext": ["0", "¼", "½", "¾", "1", "norm"],
    "tickangle": 0,
    "range": [-0.03, _NORM + 0.03],
    "zeroline": False,
}

_OVER_TITLES = {"orientation": "h", "yanchor": "bottom", "y": 1.06, "xanchor": "left", "x": 0}
_COLUMNS, _ROWS = ([0.0, 0.46], [0.54, 1.0]), ([0.58, 1.0], [0.0, 0.42])
"""Where the panels of :func:`over_depth` stand."""

CATEGORY_NUMBERS = {
    "mean": ("mean, in standard deviations", 0.0),
    "auroc": ("AUROC within the category", 0.5),
}


@dataclass(frozen=True, eq=False)
class Side:
    """A run in a comparison: its letter, its description, and its look, the same in all figures."""

    run: Run
    letter: str
    described: str
    colour: str
    dash: str
    symbol: str

    @property
    def name(self) -> str:
        """Its letter and what it is, as text that may stand in a figure."""
        return safe(f"{self.letter}: {self.described}", limit=70)


def sides(runs: Sequence[Run], described: Sequence[str]) -> list[Side]:
    """Give up to five runs a letter, a colour, a dash and a mark; base models, as controls, are grey."""
    return [
        Side(run, "ABCDE"[place], text, GREY if is_control(run) else COLOURS[place], _DASHES[place], _SYMBOLS[place])
        for place, (run, text) in enumerate(zip(runs, described, strict=True))
    ]


def over_depth(
    compared: Sequence[Side], tables: Sequence[pd.DataFrame], evidence: Sequence[Evidence | None]
) -> go.Figure:
    """Return four numbers of all runs over relative depth, with intervals; stars mark from where d is detectable.

    Args:
        compared: the runs.
        tables: of :func:`refusal_core.exploration.comparison.numbers_over_depth`.
        evidence: of the runs, where they have any.
    """
    traces: list[dict[str, Any]] = []
    shapes, titles, axes = [], [], {}
    for place, number in enumerate(NUMBERS):
        panel = str(place + 1) if place else ""
        lines = []
        for side, table, found in zip(compared, tables, evidence, strict=True):
            lines += [*_line(side, table, number, name_of(number)), *_star(side, table, number, found)]
        # One legend is enough: a run looks the same in all panels.
        once = {"showlegend": False} if place else {}
        traces += [{**line, **once, "xaxis": f"x{panel}", "yaxis": f"y{panel}"} for line in lines]
        chance = _chance(0.5 if number.endswith("auroc") else 0)
        shapes.append({**chance, "xref": f"x{panel} domain", "yref": f"y{panel}"})
        row, column = divmod(place, 2)
        title = {} if row else {"title_text": ""}
        axes[f"xaxis{panel}"] = {**_DEPTH, **title, "domain": _COLUMNS[column], "anchor": f"y{panel}"}
        axes[f"yaxis{panel}"] = {"domain": _ROWS[row], "anchor": f"x{panel}"}
        titles.append(_above(panel, name_of(number)))
    return blank(620, traces, shapes=shapes, annotations=titles, legend=_OVER_TITLES, **axes)


def _above(panel: str, text: str) -> dict[str, Any]:
    """Return the title of a panel, above it: at its side it needs more room than a phone has between two."""
    place = {"xref": f"x{panel} domain", "yref": f"y{panel} domain", "x": 0, "y": 1}
    return {
        **place,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "bottom",
        "font": {"size": TEXT_SIZE},
    }


def _star(side: Side, table: pd.DataFrame, number: str, found: Evidence | None) -> list[dict[str, Any]]:
    """Return the mark of the layer from which harm is detectable, for d on matched pairs where there is evidence."""
    source = probe_source(found) if found is not None and number == "probe_d" else None
    first = detectable_from(found, "d", source) if found is not None and source is not None else None
    if first is None:
        return []
    return [
        {
            "type": "scatter",
            "x": [_x(first, side.run.n_layers)],
            "y": [table[number][first]],
            "mode": "markers",
            "showlegend": False,
            "marker": {"symbol": "star", "size": 14, "color": side.colour, "line": {"width": 1, "color": "#FFFFFF"}},
            "hovertemplate": f"{side.letter}: detectable from {side.run.site_label(first)}<extra></extra>",
        }
    ]


def rank_over_depth(compared: Sequence[Side], matrices: Sequence[np.ndarray], label: str) -> go.Figure:
    """Return Spearman's rho of the first run with the others, at matched relative depth.

    Args:
        compared: the first run, then the others.
        matrices: of :func:`refusal_core.exploration.comparison.rank_matrix`, one per other run.
        label: of the prompts that are ranked, or both.
    """
    first = compared[0].run
    traces = []
    for side, matrix in zip(compared[1:], matrices, strict=True):
        sites = [site_in_other(first, site, side.run) for site in range(first.n_sites)]
        table = pd.DataFrame(
            {
                "site": range(first.n_sites),
                "rho": matrix[range(first.n_sites), sites],
                "place": [
                    f"{first.site_label(site)} and {side.run.site_label(other)}" for site, other in enumerate(sites)
                ],
            }
        )
        table["depth"] = [relative_depth(site, first.n_layers) for site in table["site"]]
        if table["rho"].notna().any():
            traces += _line(side, table, "rho", "ρ")
    title = "Spearman's ρ with A" + ("" if label == "both" else f", {label} prompts")
    return blank(320, traces, shapes=[_chance(0)], xaxis=_DEPTH, yaxis={"title_text": title, "range": [-1.05, 1.05]})


def rank_heat(shared: Shared, matrix: np.ndarray, letters: Sequence[str]) -> go.Figure:
    """Return Spearman's rho of all sites of one run with all sites of another; see also :func:`move_square`."""
    figure = blank(420)
    labels = [[run.site_label(site) for site in range(run.n_sites)] for run in (shared.run, shared.other)]
    figure.add_heatmap(
        z=matrix,
        zmin=-1,
        zmax=1,
        colorscale="RdBu",
        reversescale=True,
        colorbar={"title": {"text": "ρ"}, "thickness": 12},
        customdata=np.array(
            [[f"{ours} of {letters[0]}, {theirs} of {letters[1]}" for theirs in labels[1]] for ours in labels[0]]
        ),
        hovertemplate="%{customdata}: ρ = %{z:.2f}<extra></extra>",
    )
    figure.add_scatter(
        mode="markers",
        marker={"symbol": "square-open", "size": 15, "color": "#000000", "line": {"width": 2.5}},
        showlegend=False,
        hoverinfo="skip",
    )
    for update, run, letter in (
        (figure.update_yaxes, shared.run, letters[0]),
        (figure.update_xaxes, shared.other, letters[1]),
    ):
        ticks = [*range(0, run.n_layers, max(1, run.n_layers // 6)), run.n_layers]
        if ticks[-1] - ticks[-2] < 3 and len(ticks) > 2:
            del ticks[-2]
        update(
            title_text=f"layer of {letter}",
            tickvals=ticks,
            ticktext=[site_short(tick, run.n_layers) for tick in ticks],
            range=[-0.5, run.n_layers + 0.5],
            showgrid=False,
            zeroline=False,
        )
    return figure


def move_square(figure: go.Figure, site: int, other_site: int) -> go.Figure:
    """Mark the two sites that are shown in a figure of :func:`rank_heat`; returns the figure."""
    return figure.update_traces(x=[other_site], y=[site], selector=-1)


def prompt_over_depth(compared: Sequence[Side], rows: Sequence[int | None], depth: float) -> go.Figure:
    """Return one prompt over depth in the runs that have it, in pooled standard deviations from the midpoint.

    Args:
        compared: the runs.
        rows: the prompt's row per run, or None.
        depth: marked with a vertical line; NaN for the final norm.
    """
    traces = []
    for side, row in zip(compared, rows, strict=True):
        if row is None:
            continue
        table = pd.DataFrame(
            {"site": range(side.run.n_sites), "course": standardised(side.run, side.run.projections[row])}
        )
        table["depth"] = [relative_depth(site, side.run.n_layers) for site in table["site"]]
        traces += _line(side, table, "course", "projection")
    here = line_at("x", _NORM if np.isnan(depth) else depth, color=GREY, width=1.5, dash="dot") | {"layer": "below"}
    return blank(
        340,
        traces,
        shapes=[_chance(0), here],
        xaxis=_DEPTH,
        yaxis={"title_text": "standard deviations from the midpoint"},
    )


def by_category(compared: Sequence[Side], tables: Sequence[pd.DataFrame], number: str) -> go.Figure:
    """Return a number per harm category and run, with intervals.

    Args:
        compared: the runs.
        tables: of :func:`refusal_core.exploration.comparison.separation_by_category`.
        number: one of :data:`CATEGORY_NUMBERS`.
    """
    title, chance = CATEGORY_NUMBERS[number]
    categories = sorted({category for table in tables for category in table["category"]}, reverse=True)
    step = 0.6 / len(compared)
    traces = []
    for place, (side, table) in enumerate(zip(compared, tables, strict=True)):
        known = table.dropna(subset=number)
        offset = (len(compared) - 1 - 2 * place) / 2 * step
        traces.append(
            {
                "type": "scatter",
                "x": known[number],
                "y": [categories.index(category) + offset for category in known["category"]],
                "mode": "markers",
                "name": side.name,
                "marker": {"color": side.colour, "symbol": side.symbol, "size": 8},
                "error_x": {
                    "type": "data",
                    "array": known[f"{number}_high"] - known[number],
                    "arrayminus": known[number] - known[f"{number}_low"],
                    "color": side.colour,
                    "thickness": 1.5,
                    "width": 0,
                },
                "customdata": [
                    f"{safe(row.category)}, {side.letter}: {row.n_harmful} harmful, {row.n_harmless} harmless prompts"
                    for row in known.itertuples()
                ],
                "hovertemplate": "%{customdata}<br>%{x:.2f}<extra></extra>",
            }
        )
    return blank(
        110 + 30 * len(categories),
        traces,
        shapes=[_chance(chance, "x")],
        xaxis={"title_text": title},
        yaxis={
            "tickvals": list(range(len(categories))),
            "ticktext": [safe(category, width=26, limit=40) for category in categories],
            "range": [-0.6, len(categories) - 0.4],
            "zeroline": False,
        },
    )


def direction_cosines(compared: Sequence[Side], cosines: Sequence[np.ndarray | None]) -> go.Figure:
    """Return the cosine of the first run's direction with those of other runs of the same model, over the layers.

    Args:
        compared: the first run, then the others.
        cosines: of :func:`refusal_core.exploration.comparison.direction_cosines`, one per other run.
    """
    first = compared[0].run
    traces = []
    for side, cosine in zip(compared[1:], cosines, strict=True):
        if cosine is None:
            continue
        table = pd.DataFrame({"site": range(first.n_sites), "cosine": cosine})
        table["depth"] = [relative_depth(site, first.n_layers) for site in table["site"]]
        traces += _line(side, table, "cosine", "cosine")
    title = {"title_text": "cosine with A's direction", "range": [-1.05, 1.05]}
    return blank(300, traces, shapes=[_chance(0)], xaxis=_DEPTH, yaxis=title)


def _line(side: Side, table: pd.DataFrame, number: str, name: str) -> list[dict[str, Any]]:
    """Return traces of a run's number over depth; the final norm stands apart, as a mark without a line."""
    traces: list[dict[str, Any]] = []
    table = table.assign(x=table["depth"].fillna(_NORM))
    if "place" not in table:
        table["place"] = [side.run.site_label(int(site)) for site in table["site"]]
    layers, norm = table[table["depth"].notna()], table[table["depth"].isna()]
    if f"{number}_low" in table:
        traces.append(ribbon(layers, f"{number}_low", f"{number}_high", side.colour, "", 0.13, x="x"))
        known = norm.dropna(subset=f"{number}_low")
        ends = {
            "x": np.repeat(known["x"].to_numpy(), 2),
            "y": known[[f"{number}_low", f"{number}_high"]].to_numpy().ravel(),
            "mode": "lines",
            "line": {"color": side.colour, "width": 1.5},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        traces.append(ends)
    for part, mode in ((layers, "lines+markers"), (norm, "markers")):
        line = {
            "x": part["x"].to_numpy(),
            "y": part[number].to_numpy(),
            "mode": mode,
            "name": side.name,
            "legendgroup": side.letter,
            "showlegend": mode != "markers",
            "line": {"color": side.colour, "width": 2.5, "dash": side.dash},
            "marker": {"symbol": side.symbol, "size": 6 if mode != "markers" else 9, "color": side.colour},
            "customdata": part["place"].tolist(),
            "hovertemplate": f"{side.letter}, %{{customdata}}<br>{name} = %{{y:.2f}}<extra></extra>",
        }
        traces.append(line)
    return [{"type": "scatter", **trace} for trace in traces]


def _x(site: int, n_layers: int) -> float:
    return _NORM if site == n_layers else relative_depth(site, n_layers)


def _chance(value: float, axis: str = "y") -> dict[str, Any]:
    """Return a line at the level of chance, below the traces."""
    return line_at(axis, value, color=GREY, width=1, dash="dot") | {"layer": "below"}
