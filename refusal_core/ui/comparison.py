"""The parts of the Compare page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from refusal_core.errors import RunError
from refusal_core.exploration import comparison
from refusal_core.exploration.comparison import NUMBERS, Shared
from refusal_core.exploration.outliers import row_of
from refusal_core.figures import comparison as figures
from refusal_core.figures.comparison import MOST_RUNS, Side
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.glossary import meaning_of, name_of
from refusal_core.markdown import plain
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import T_POST, Run
from refusal_core.sites import relative_depth
from refusal_core.ui import address
from refusal_core.ui.conversations import prompt_in_full
from refusal_core.ui.frame import described_runs, listed, shared_run
from refusal_core.ui.layout import (
    chart,
    csv_button,
    facts,
    folded,
    heading,
    identity,
    own_figure,
    sentences,
    shared,
    show_error,
)
from refusal_core.ui.numbers import numbers_table
from refusal_core.ui.selection import chosen_row

FITTED = "fitted in both"
Key = tuple[tuple[str, int, str], ...]
"""Runs, when they were made, and their names on screen: what cached results depend on."""
_BY_DEFAULT = 2
_MOST_LISTED = 1000
_INTERVAL = " In brackets the 95 % bootstrap interval, where the run has evidence."


def chosen_sides(run: Run) -> list[Side]:
    """Return the run and those it is compared with; without any the page ends with how to make one."""
    described = described_runs()
    others = [run_id for run_id in described if run_id != run.run_id]
    if not others:
        st.info(
            "There is one run in the cache, and a comparison takes two: another model on the same prompts, the base "
            "model as a control, or the same model on other prompts. The page Runs starts one.",
            icon=":material/compare:",
        )
        st.page_link("pages/10_Runs.py", label="Start a run", icon=":material/play_arrow:")
        st.stop()
    if address.view().others is None:
        address.change(others=_default_others(run, others))
    chosen = [run_id for run_id in address.view().others or () if run_id in others][: MOST_RUNS - 1]
    st.multiselect(
        "Compare with",
        others,
        format_func=described.__getitem__,
        max_selections=MOST_RUNS - 1,
        key=address.fill("compare_others", chosen),
        on_change=lambda: address.change(others=tuple(st.session_state["compare_others"])),
        placeholder="Choose up to four runs",
        help="The run above is A; these are B, C, D and E. Layers are matched by relative depth.",
    )
    address.write()
    if not chosen:
        st.info("Choose at least one run to compare with.", icon=":material/compare:")
        st.stop()
    runs = [run]
    for run_id in chosen:
        try:
            runs.append(shared_run(run_id))
        except RunError as error:
            show_error("One of the runs cannot be opened; the others are shown.", error)
    if len(runs) == 1:
        st.stop()
    return figures.sides(runs, [described[side.run_id] for side in runs])


def tables_over_depth(compared: list[Side], evidence: list[Evidence | None]) -> list[pd.DataFrame]:
    """Return :func:`~refusal_core.exploration.comparison.numbers_over_depth` of the runs."""
    return [_table(identity(side.run), side.run, found) for side, found in zip(compared, evidence, strict=True)]


def controls(compared: list[Side], evidence: list[Evidence | None]) -> None:
    """Explain base models among the runs, and name runs without evidence."""
    letters = [side.letter for side in compared if comparison.is_control(side.run)]
    if letters:
        of = "is of a base model" if len(letters) == 1 else "are of base models"
        st.info(
            f"{', '.join(letters)} {of} (no chat template of its own), drawn in grey as a control: what it shows is "
            "there without refusal training. Only what a chat model shows beyond it can come from that training, and "
            "it is a fair control only for the chat model that was made from it.",
            icon=":material/science:",
        )
    bare = [side.letter for side, found in zip(compared, evidence, strict=True) if found is None]
    if bare:
        st.caption(f"Without intervals: {', '.join(bare)}, which has no evidence.")


def headline(compared: list[Side], tables: list[pd.DataFrame]) -> None:
    """Say in large letters how d on matched pairs compares between the runs."""
    runs, letters = [side.run for side in compared], [side.letter for side in compared]
    key = ("compare_headline", *_identities(compared))
    heading(shared(key, lambda: comparison.describe_probe_d(runs, letters, tables)))


def overview(compared: list[Side], evidence: list[Evidence | None], tables: list[pd.DataFrame]) -> None:
    """Show the runs as rows: the three effect sizes at their highest, and from where harm is detectable."""
    st.dataframe(
        _rows(_identities(compared), compared, evidence, tables),
        column_config={
            "run": st.column_config.TextColumn("run", width="small"),
            "of": st.column_config.TextColumn("contrast set · model"),
            **{
                number: st.column_config.TextColumn(
                    f"highest {name_of(number)}", help=f"{meaning_of(number)}{_INTERVAL}"
                )
                for number in NUMBERS
            },
            "detectable from": st.column_config.TextColumn(
                "detectable from",
                help="First layer from which the interval of d on matched pairs stays above 0, with the 95 % interval "
                "of that layer.",
            ),
        },
        hide_index=True,
        width="stretch",
        placeholder="–",
    )


def differences(compared: list[Side]) -> None:
    """Show how the runs were made, as far as that differs between them."""
    with folded("What differs between these runs", "compare_differences_open", ":material/difference:") as part:
        if not part.open:
            return
        made = pd.DataFrame({side.letter: facts(side.run) for side in compared})
        made = made[made.nunique(axis=1).gt(1)].drop(index=["name", "made"], errors="ignore")
        st.dataframe(
            made.reset_index(names=""), hide_index=True, width="stretch", placeholder="–", key="compare_differences"
        )


def over_depth(compared: list[Side], evidence: list[Evidence | None], tables: list[pd.DataFrame]) -> None:
    """Show the four numbers over relative depth."""
    chart(_over_depth(_identities(compared), compared, tables, evidence), "compare_over_depth")
    st.caption("Shaded: 95 % bootstrap intervals. Stars: detectable from there. The final norm stands apart.")


def chosen_pair(compared: list[Side], site: int) -> tuple[Side, Shared, int]:
    """Return the other run that is compared prompt by prompt, the shared prompts, and its site."""
    first, others = compared[0], compared[1:]
    by_id = {side.run.run_id: side for side in others}
    which, what = st.columns([1, 1])
    if address.view().versus not in by_id:
        address.change(versus=others[0].run.run_id)
    which.segmented_control(
        f"{first.letter} against",
        list(by_id),
        format_func=lambda run_id: plain(by_id[run_id].letter),
        key=address.fill("compare_versus", address.view().versus),
        required=True,
        on_change=lambda: address.change(versus=st.session_state["compare_versus"]),
        help="The run that is compared with A prompt by prompt.",
    )
    other = by_id[address.view().versus or ""]
    sources, left = _joinable(identity(first.run), identity(other.run), first.run, other.run)
    options = [FITTED, *sources]
    if address.view().prompts not in options:
        address.change(prompts=_most_shared(first.run, other.run, options))
    what.segmented_control(
        "Prompts",
        options,
        format_func=plain,
        key=address.fill("compare_prompts", address.view().prompts),
        required=True,
        on_change=lambda: address.change(prompts=st.session_state["compare_prompts"]),
        help="Prompts that both runs fitted, by their cross-fitted projections, or a transfer set that neither fitted.",
    )
    address.write()
    source = None if address.view().prompts == FITTED else address.view().prompts
    shared = _shared(identity(first.run), identity(other.run), source, first.run, other.run)
    if left:
        st.caption(f"{left} more prompts are in both runs, but only one of the two fitted them; they are left out.")
    return other, shared, comparison.site_in_other(first.run, site, other.run)


def rank_agreement(compared: list[Side], other: Side, shared: Shared, site: int, other_site: int) -> None:
    """Show rank correlations in words, as a table, over depth and layer against layer."""
    first = compared[0]
    pair = identity(first.run), identity(other.run)
    numbers = _correlations(*pair, shared.source, site, other_site, shared)
    letters = [first.letter, other.letter]
    st.markdown(sentences(comparison.describe_rank_correlations(shared, numbers, site, other_site, letters)))
    if len(shared.prompts) < comparison.MINIMUM:
        return
    if len(shared.prompts) > comparison.MOST_DRAWN:
        st.caption(
            f"These numbers are of {comparison.MOST_DRAWN} prompts, always the same ones; curves and map are of all "
            f"{len(shared.prompts)}."
        )
    best = (first.run.best_site(), other.run.best_site())
    at_best = _correlations(*pair, shared.source, *best, shared)
    tables = [
        table.assign(where=f"{first.run.site_label(ours)} and {other.run.site_label(theirs)}", kind=kind)
        for table, kind, (ours, theirs) in (
            (numbers, "same relative depth", (site, other_site)),
            (at_best, "each run's best", best),
        )
    ]
    _correlation_table(pd.concat(tables, ignore_index=True))
    labels = [label for label in comparison.LABELS if shared.of_label(label).sum() >= comparison.MINIMUM]
    label = address.one_of(labels, "among")
    st.segmented_control(
        "Labels",
        labels,
        required=True,
        key=address.fill("compare_among", label),
        on_change=lambda: address.change(among=st.session_state["compare_among"]),
        help="Over both labels a correlation is mostly that both runs tell the labels apart; within one it cannot be.",
    )
    curve, heat = st.columns(2)
    with curve:
        st.caption("Rank correlation with A at the same relative depth, layer by layer of A.")
        chart(
            _rank_over_depth(_identities(compared), shared.source, label, compared),
            "compare_rank_depth",
        )
    with heat:
        st.caption(f"Every layer of A against every layer of {other.letter}; the square marks the two shown here.")
        matrix = _matrix(*pair, shared.source, label, shared)
        name = ("rank_heat", pair, shared.source, label, *letters)
        heat_map = own_figure(first.run, name, lambda: figures.rank_heat(shared, matrix, letters))
        chart(figures.move_square(heat_map, site, other_site), "compare_rank_heat")


def disagreement_table(first: Side, other: Side, shared: Shared, site: int, other_site: int) -> None:
    """List the shared prompts, the most disputed first; a chosen row becomes the page's prompt."""
    found = comparison.rank_differences(shared, site, other_site)
    if found.empty:
        st.info("There is no shared prompt to disagree on.", icon=":material/join_inner:")
        return
    if (found["difference"] == 0).all():
        st.info("The two runs put every shared prompt at the same rank.", icon=":material/equal:")
        return
    units = (
        "In activation units; cross-fitted, 0 at the training midpoint."
        if shared.source is None
        else "In activation units."
    )
    columns = {
        "text": st.column_config.TextColumn("prompt", width=420),
        "label": st.column_config.TextColumn("label", width="small"),
        "difference": st.column_config.NumberColumn(
            "rank difference",
            format="%+.0f",
            help=f"Percentile in {first.letter} less percentile in {other.letter}, among the shared prompts.",
        ),
        "percentile": st.column_config.NumberColumn(f"percentile in {first.letter}", format="%.0f"),
        "other_percentile": st.column_config.NumberColumn(f"percentile in {other.letter}", format="%.0f"),
        "projection": st.column_config.NumberColumn(f"projection in {first.letter}", format="%.3g", help=units),
        "other_projection": st.column_config.NumberColumn(f"projection in {other.letter}", format="%.3g", help=units),
        "category": st.column_config.TextColumn("category"),
        "source": st.column_config.TextColumn("set", width="small"),
    }
    if len(found) > _MOST_LISTED:
        st.caption(f"The first {_MOST_LISTED} of {len(found)} are listed; the csv has all.")
    listed = found.head(_MOST_LISTED).set_index("prompt_id")
    chosen = chosen_row(listed, columns, "compare_disagreements", address.view().prompt)
    if chosen is not None:
        address.change(prompt=chosen)
        address.write()
    file_name = f"{first.run.run_id}--against--{other.run.run_id}"
    csv_button(lambda: found.drop(columns=["row", "other_row"]), file_name)


def chosen_prompt(compared: list[Side], site: int) -> None:
    """Show the chosen prompt in full, and over the layers of the runs that have it."""
    rows = [row_of(side.run, address.view().prompt) for side in compared]
    known = [(side, row) for side, row in zip(compared, rows, strict=True) if row is not None]
    if not known:
        st.caption("Choose a row to see its prompt over the layers of the runs.")
        return
    side, row = known[0]
    prompt = side.run.prompts.loc[row]
    st.subheader("The chosen prompt", anchor=False)
    st.caption(plain(f"{prompt['label']} · {prompt['source']}"))
    prompt_in_full(prompt)
    lacking = [side.letter for side, row in zip(compared, rows, strict=True) if row is None]
    if lacking:
        st.caption(f"Not among the prompts of {', '.join(lacking)}.")
    chart(figures.prompt_over_depth(compared, rows, relative_depth(site, compared[0].run.n_layers)), "compare_courses")
    st.caption("0 lies halfway between the two labels' means; the dotted line marks the depth that is shown above.")


def by_category(compared: list[Side], site: int, source: str | None) -> None:
    """Show the harm categories in the runs."""
    tables = [
        _by_category(identity(side.run), source, comparison.site_in_other(compared[0].run, site, side.run), side.run)
        for side in compared
    ]
    if all(table.empty for table in tables):
        st.info("These prompts have no categories.", icon=":material/category:")
        return
    places = st.columns(2)
    for place, (number, explained) in enumerate(
        (
            (
                "mean",
                "How far along the direction a category's harmful prompts lie; 0 is halfway between the labels.",
            ),
            (
                "auroc",
                "Chance that a harmful prompt projects above a harmless one of the same category; 0.5 is chance.",
            ),
        )
    ):
        with places[place]:
            st.caption(explained)
            if any(table[number].notna().any() for table in tables):
                chart(figures.by_category(compared, tables, number), f"compare_category_{number}")
            else:
                st.info("No category has three prompts of each label.", icon=":material/category:")
    with folded("The numbers", "compare_numbers_open") as part:
        if part.open:
            numbers = [table.assign(run=side.letter) for side, table in zip(compared, tables, strict=True)]
            numbers_table(pd.concat(numbers).set_index("run").reset_index())


def direction_cosines(compared: list[Side]) -> None:
    """Show the cosines of the directions of runs of the same model."""
    figure = _direction_cosines(_identities(compared), compared)
    if figure is None:
        st.info(
            "None of the others is of A's model, and directions of different models have no angle between them.",
            icon=":material/explore_off:",
        )
        return
    chart(figure, "compare_cosines")
    chance = 1.96 / np.sqrt(compared[0].run.directions.unit_direction.shape[1])
    st.caption(
        f"Directions of the same model. Random directions of this width stay within "
        f"±{chance:.2f}; any two directions fitted on its activations share more, since those fill few dimensions."
    )


def _default_others(run: Run, others: list[str]) -> tuple[str, ...]:
    """Return up to two runs that share the most with one: its read position, its contrast set, then its model."""
    summaries = {summary.run_id: summary for summary in listed()[0]}

    def shares(name: str) -> tuple[bool, bool, bool]:
        run_id, _, position = name.partition("@")
        summary = summaries[run_id]
        same_place = (position or T_POST) == run.read_at
        return same_place, summary.contrast_set == run.contrast_name, summary.model == run.model_name

    # A run at its other positions is no other run unless it is asked for.
    others = [name for name in others if not name.startswith(f"{run.path.name}@")]
    return tuple(sorted(others, key=shares, reverse=True)[:_BY_DEFAULT])


def _most_shared(run: Run, other: Run, options: list[str]) -> str:
    """Return prompts that have both labels in both runs, where there are any."""
    for option in options:
        source = None if option == FITTED else option
        shared = _shared(identity(run), identity(other), source, run, other)
        if min(shared.of_label(label).sum() for label in comparison.LABELS) >= comparison.MINIMUM:
            return option
    return options[0]


def _at_best(run: Run, table: pd.DataFrame, number: str) -> str:
    if table[number].isna().all():
        return "–"
    row = table.loc[table[number].idxmax()]
    low, high = row[f"{number}_low"], row[f"{number}_high"]
    interval = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return f"{row[number]:.2f}{interval}, {run.site_label(int(row['site']))}"


def _correlation_table(table: pd.DataFrame) -> None:
    numbers = {
        "rho": ("Spearman's ρ", meaning_of("rho")),
        "tau": (name_of("tau"), meaning_of("tau")),
    }
    shown = table[["kind", "where", "label", "n"]].copy()
    for number, (name, _) in numbers.items():
        shown[name] = [
            "–"
            if np.isnan(row[number])
            else f"{row[number]:.2f} ({row[f'{number}_low']:.2f} to {row[f'{number}_high']:.2f})"
            for _, row in table.iterrows()
        ]
    st.dataframe(
        shown,
        column_config={
            "kind": st.column_config.TextColumn("at"),
            "where": st.column_config.TextColumn("layers"),
            "label": st.column_config.TextColumn("labels", width="small"),
            "n": st.column_config.NumberColumn("prompts", width="small"),
            **{
                name: st.column_config.TextColumn(name, help=f"{meaning} In brackets the 95 % bootstrap interval.")
                for name, meaning in numbers.values()
            },
        },
        hide_index=True,
        width="stretch",
        placeholder="–",
    )


def _identities(compared: list[Side]) -> Key:
    """Return a key for caching: the runs, when they were made, and what they are called on screen."""
    return tuple((*identity(side.run), side.described) for side in compared)


@st.cache_resource(max_entries=16, show_spinner=False)
def _table(run: tuple[str, int], _run: Run, _evidence: Evidence | None) -> pd.DataFrame:
    return comparison.numbers_over_depth(_run, _evidence)


@st.cache_resource(max_entries=16, show_spinner=False)
def _rows(
    runs: Key, _compared: list[Side], _evidence: list[Evidence | None], _tables: list[pd.DataFrame]
) -> pd.DataFrame:
    rows = []
    for side, found, table in zip(_compared, _evidence, _tables, strict=True):
        best = {number: _at_best(side.run, table, number) for number in NUMBERS}
        first = comparison.describe_detectable_from(side.run, found)
        rows.append({"run": side.letter, "of": side.described, "detectable from": first, **best})
    return pd.DataFrame(rows)


@st.cache_data(max_entries=64, show_spinner=False)
def _joinable(run: tuple[str, int], other: tuple[str, int], _run: Run, _other: Run) -> tuple[list[str], int]:
    """Return the transfer sets that both have, and how many shared prompts are left out."""
    return comparison.shared_sources(_run, _other), comparison.count_left_out(_run, _other)


@st.cache_resource(max_entries=8, show_spinner=False)
def _shared(run: tuple[str, int], other: tuple[str, int], source: str | None, _run: Run, _other: Run) -> Shared:
    return comparison.shared_prompts(_run, _other, source)


@st.cache_resource(max_entries=16, show_spinner="Correlating ranks …")
def _matrix(
    run: tuple[str, int], other: tuple[str, int], source: str | None, label: str, _shared: Shared
) -> np.ndarray:
    return comparison.rank_matrix(_shared, label)


@st.cache_resource(max_entries=16, show_spinner=False)
def _over_depth(
    runs: Key, _compared: list[Side], _tables: list[pd.DataFrame], _evidence: list[Evidence | None]
) -> go.Figure:
    return serialise_once(figures.over_depth(_compared, _tables, _evidence))


@st.cache_resource(max_entries=16, show_spinner=False)
def _rank_over_depth(runs: Key, source: str | None, label: str, _compared: list[Side]) -> go.Figure:
    first, *others = (side.run for side in _compared)
    pairs = [(identity(first), identity(other)) for other in others]
    everyone = [_shared(*pair, source, first, other) for pair, other in zip(pairs, others, strict=True)]
    matrices = [_matrix(*pair, source, label, shared) for pair, shared in zip(pairs, everyone, strict=True)]
    return serialise_once(figures.rank_over_depth(_compared, matrices, label))


@st.cache_resource(max_entries=8, show_spinner=False)
def _direction_cosines(runs: Key, _compared: list[Side]) -> go.Figure | None:
    """None where no other run is of the first one's model."""
    first, *others = (side.run for side in _compared)
    cosines = [comparison.direction_cosines(first, other) for other in others]
    known = any(cosine is not None for cosine in cosines)
    return serialise_once(figures.direction_cosines(_compared, cosines)) if known else None


@st.cache_data(max_entries=64, show_spinner="Correlating ranks …")
def _correlations(
    run: tuple[str, int], other: tuple[str, int], source: str | None, site: int, other_site: int, _shared: Shared
) -> pd.DataFrame:
    return comparison.rank_correlations(_shared, site, other_site)


@st.cache_data(max_entries=64, show_spinner="Comparing categories …")
def _by_category(run: tuple[str, int], source: str | None, site: int, _run: Run) -> pd.DataFrame:
    return comparison.separation_by_category(_run, source, site)
