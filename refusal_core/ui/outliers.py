"""The parts of the Outliers page: the band, the list of prompts in it, and one prompt in full."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from refusal_core.annotations.marks import KINDS
from refusal_core.behaviour.measurement import BEHAVIOUR, known_refusals
from refusal_core.errors import RunError
from refusal_core.exploration.outliers import (
    derived_band,
    in_band,
    nearest_prompts,
    percentile_ranks,
    prompts_containing,
    row_of,
    twin_of,
)
from refusal_core.exploration.published import PUBLISHED_BAND, PUBLISHED_BAND_LAYER
from refusal_core.exploration.separation import FEWEST_FOR_INTERVAL, Estimate, Separation, separation
from refusal_core.figures import outliers as figures
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.style import LABEL_COLOUR
from refusal_core.markdown import plain
from refusal_core.prompts.sets import PROMPT_ID
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.clicks import on_point
from refusal_core.ui.conversations import prompt_in_full
from refusal_core.ui.layout import addition_identity, chart, csv_button, identity, raw_units
from refusal_core.ui.selection import chosen_row
from refusal_core.ui.streamlit_internals import component, resource

_MOST_VALUES = 30
MOST_ROWS = 500
"""The most prompts that the list shows, which a browser draws at once."""
_LIST, _LISTED, _CHART = "outliers_list", "outliers_listed", "outliers_chart"
_HEIGHT = 350
"""Pixels of the chart, and of what is read at its side."""
_REFUSED, _NOT_REFUSED, _UNMARKED = "refused", "not refused", "not marked"

_COLUMNS = {
    "text": ("prompt", "prompt", "A click opens it."),
    "label": ("label", "label", "What the set says of the prompt."),
    "projection": ("projection", "number", "In activation units, at this layer."),
    "percentile_in_other": (
        "percentile in other",
        "number more",
        "Percent of the other label's fitted prompts that project below it. A harmful prompt at 50 lies where the "
        "typical harmless one does.",
    ),
    "refusal_log_odds": (
        "refusal log-odds",
        "number more",
        "Log-odds that the reply opens with a token that refusals open with (I, As): a tendency, not a refusal.",
    ),
    "category": ("category", "text", "Of the set."),
    "mark": ("mark", "mark", "What was found of the prompt; on every run."),
}
"""Columns of the list: their name on screen, their look and their meaning."""


def band_picker(run: Run, site: int, columns: list[DeltaGenerator]) -> tuple[float, float]:
    """Choose the band: from the run at whatever layer, the published one, or typed; see also :func:`band_chart`."""
    options = ["From the run", f"Published {PUBLISHED_BAND[0]:.0f}–{PUBLISHED_BAND[1]:.0f}"]
    options = options[: 1 + (run.n_layers > PUBLISHED_BAND_LAYER)]
    chosen = address.view().band
    published = (address.view().site, chosen) == (PUBLISHED_BAND_LAYER, PUBLISHED_BAND)
    columns[0].segmented_control(
        "Band",
        options,
        key=address.fill("outliers_preset", options[0] if chosen is None else options[-1] if published else None),
        on_change=_use_preset,
        help="From the run: the 5th percentile of the harmful to the 95th of the harmless prompts at this layer. The "
        f"published band is of layer {PUBLISHED_BAND_LAYER} of another model, whose projections have another scale.",
    )
    band = chosen or derived_band(run, site)
    for place, name in enumerate(("low", "high")):
        columns[1 + place].number_input(
            ("Lowest projection", "Highest projection")[place],
            key=address.fill(f"band_{name}", band[place]),
            format="%.3f",
            step=max(float(f"{(run.layer_stats['magnitude'][site] / 20):.1g}"), 1e-3),
            on_change=_use_typed,
        )
    return band


def band_chart(run: Run, site: int, band: tuple[float, float], found: pd.DataFrame, row: int | None) -> None:
    """Show the histogram on which a band is dragged, and its prompts as points to click."""
    columns = _columns_of_values(run)
    groups = None
    if columns:
        chosen = st.selectbox("Colour the points by", ["label", *columns], key=f"outliers_colour_{run.run_id}")
        groups = columns.get(chosen)
    chart(
        figures.band(run, site, band, found, row, _HEIGHT, groups),
        _CHART,
        on_select=_use_chart,
        selection_mode="box",
    )
    on_point(_CHART, _use_point)
    drawn = "Drag across the chart to choose a band; click a point to read its prompt. Hollow points are marked."
    if len(found) > figures.MOST_POINTS:
        drawn += f" Of {len(found)} prompts {figures.MOST_POINTS} are drawn as points."
    st.caption(drawn)


def reader() -> DeltaGenerator:
    """Return the place at the chart's side where a prompt is read and judged, as high as the chart."""
    return st.container(height=_HEIGHT + 60, border=False, key="outliers_reader")


def filtered(found: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the prompts that pass the search and the filters above the list."""
    view = address.view()
    text, narrow = st.columns([3, 1], vertical_alignment="bottom")
    find = text.text_input(
        "Search the texts",
        key=address.fill_once(f"outliers_find_{run.run_id}", view.find or ""),
        live="300ms",
        icon=":material/search:",
        placeholder="part of a prompt, upper and lower case alike",
    )
    refuses, how = _refusals(*addition_identity(run, BEHAVIOUR), run)
    with narrow.popover("Filters", icon=":material/filter_alt:", width="stretch"):
        sets = _choice(
            run, "sets", [run.contrast_name, *run.transfer_sources], "The set the direction was fitted on, by default."
        )
        labels = _choice(run, "labels", sorted(run.prompts["label"].unique()))
        categories = _choice(run, "categories", sorted(run.prompts["category"].dropna().unique()))
        replies = _choice(run, "replies", [_REFUSED, _NOT_REFUSED], f"Whether the model refuses, {how}.")
        st.caption(f"Refused or not: {how}.")
        marked = _choice(run, "marked", [*KINDS, _UNMARKED])
        of_columns = {
            name: st.multiselect(name, sorted(values.dropna().unique()), key=f"outliers_column_{run.run_id}_{name}")
            for name, values in _columns_of_values(run).items()
            if name != "category"
        }
    address.change(
        find=find or None,
        sets=sets or None,
        labels=labels or None,
        categories=categories or None,
        replies=replies or None,
        marked=marked or None,
    )
    keep = found["source"].isin(sets or (run.contrast_name,))
    if labels:
        keep &= found["label"].isin(labels)
    if categories:
        keep &= found["category"].isin(categories)
    if len(replies) == 1:
        keep &= refuses[found.index].eq(replies[0] == _REFUSED)
    if marked:
        # Several people may have marked a prompt differently.
        keep &= found["mark"].map(lambda kinds: not {*(kinds or _UNMARKED).split(", ")}.isdisjoint(marked))
    for name, values in of_columns.items():
        if values:
            keep &= run.extra[name][found.index].isin(values)
    said = [", ".join(each) for each in (sets, labels, categories, replies, marked, *of_columns.values()) if each]
    if said or find:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text("Only: " + " · ".join([*said, *([f"“{find}”"] if find else [])]))
            st.button("Clear", icon=":material/filter_alt_off:", type="tertiary", on_click=_clear, args=(run,))
    return prompts_containing(found[keep], find)


def described(found: pd.DataFrame, band: tuple[float, float]) -> None:
    """Say how many prompts of which label are listed; of a search, how many in the band and outside it."""
    find, ends = address.view().find, f"{band[0]:.4g} and {band[1]:.4g}"
    if find:
        inside = len(in_band(found, band))
        st.subheader(f"{inside} with “{plain(find)}” between {ends}, {len(found) - inside} outside it", anchor=False)
        return
    counts = found["label"].value_counts()
    prompts = ", ".join(f"{count} {label}" for label, count in counts.items()) or "no prompts"
    st.subheader(f"{prompts} between {ends}", anchor=False)


def show_separation(run: Run, found: pd.DataFrame, site: int) -> None:
    """Say how far apart the labels of all prompts lie that pass search and filters, in the band or not."""
    told = _separation(*identity(run), site, tuple(found.index), found)
    harmful, harmless = told.counts["harmful"], told.counts["harmless"]
    with st.container(border=True, key="outliers_separation"):
        st.markdown(
            f"{harmful} harmful, {harmless} harmless, in the band or not: {separation_in_words(told)}",
            help="Of all prompts that pass search and filters, but grey ones; in brackets 95 % intervals, the "
            "AUROC's by Newcombe's method, the others by bootstrap, pairs as one, the direction as it is. Prompts of "
            "the contrast set alone are taken by the projection on a direction fitted without them; with others among "
            "them, all by the projection on the run's own.",
        )


def prompt_list(run: Run, found: pd.DataFrame, band: tuple[float, float], site: int) -> list[str]:
    """Show the list of prompts; return the prompt_ids of those chosen in it."""
    if found.empty:
        st.session_state[_LISTED] = []
        st.info(
            "Nothing falls into this band with these filters. Widen the band, or clear the filters."
            if not address.view().find
            else "No prompt has these words, in the band or not. Search for others, or clear the filters.",
            icon=":material/filter_alt_off:",
        )
        projection = run.projections[:, site]
        # A step further out, as the ends are shown and sent rounded.
        step_out = 1e-3 * float(np.abs(projection).max())
        widest = float(projection.min()) - step_out, float(projection.max()) + step_out
        if not address.view().find:
            st.button(
                "Widen it to all prompts",
                icon=":material/open_in_full:",
                on_click=lambda: address.change(band=widest),
            )
        return []
    shown = found.iloc[:MOST_ROWS]
    listed = shown["prompt_id"].tolist()
    several = st.session_state.get("outliers_several", False)
    chosen = [each for each in st.session_state.get("outliers_chosen", []) if each in set(listed)] if several else []
    current = address.view().prompt
    if not several and current in set(listed):
        chosen = [str(current)]
    st.session_state[_LISTED], st.session_state["outliers_chosen"] = listed, chosen
    component("prompt_list", css=resource("prompt_list.css"))(
        key=_LIST,
        data={
            "columns": [{"name": name, "kind": kind, "meaning": meaning} for name, kind, meaning in _COLUMNS.values()],
            "rows": _rows(shown, band),
            "find": address.view().find or "",
            "chosen": chosen,
            "several": several,
            "colours": LABEL_COLOUR,
        },
        on_clicked_change=_use_list,
    )
    if len(found) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS} of {len(found)}; search, filter or narrow the band to see others.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.toggle("Choose several", key="outliers_several", help="Click several rows to mark them all at once.")
        csv_button(lambda: found, f"{run.run_id}--site-{site}--band")
    return chosen


def _rows(shown: pd.DataFrame, band: tuple[float, float]) -> list[dict[str, Any]]:
    """Return what the list shows of prompts."""
    cells = shown[list(_COLUMNS)].astype(object)
    cells = cells.where(shown[list(_COLUMNS)].notna(), None)
    inside = shown["projection"].between(*band)
    return [
        {"id": prompt_id, "inside": bool(within), "cells": values}
        for prompt_id, within, values in zip(shown["prompt_id"], inside, cells.to_numpy().tolist(), strict=True)
    ]


@st.cache_resource(max_entries=8, show_spinner=False)
def _refusals(run_id: str, changed: int, measured: int, _run: Run) -> tuple[pd.Series, str]:
    """Return which prompts are refused, and how that is known; read again when the replies are measured again."""
    try:
        return known_refusals(_run)
    except RunError:
        return _run.prompts["refusal_log_odds"].gt(0), "by the sign of the refusal log-odds: replies are damaged"


@st.cache_data(max_entries=64, show_spinner=False)
def _separation(run_id: str, changed: int, site: int, rows: tuple[int, ...], _found: pd.DataFrame) -> Separation:
    return separation(_found)


def separation_in_words(told: Separation) -> str:
    """Return d, AUROC and means with their intervals as Markdown, or why they have none."""
    numbers = {
        "cross-fitted d" if told.crossfitted else "d": (told.d, 2),
        "AUROC": (told.auroc, 3),
        "harmful mean": (told.means["harmful"], 2),
        "harmless mean": (told.means["harmless"], 2),
    }
    why = [f"fewer than {FEWEST_FOR_INTERVAL} prompts of a label, too few for an interval"] if told.few else []
    return " · ".join([*(f"{name} {_estimate(*number)}" for name, number in numbers.items()), *why])


def _estimate(number: Estimate, digits: int) -> str:
    """Return a number with its interval as Markdown."""
    point, low, high = (_signed(value, digits) for value in number)
    if np.isnan(number[0]):
        return "**–**"
    return f"**{point}**" + ("" if np.isnan(number[1]) else f" ({low} to {high})")


def the_prompt(run: Run, row: int | None, site: int) -> None:
    """Show the chosen prompt with the numbers people look at first."""
    if row is None:
        st.info(
            "Click a point in the chart or a row of the list to read the prompt here, or press N for the first.",
            icon=":material/left_click:",
        )
        return
    st.markdown("##### The chosen prompt")
    _quoted(run, row, "")
    st.markdown(
        f"projection at {run.site_label(site)} **{_signed(run.projections[row, site], 3)}** · refusal log-odds "
        f"**{_signed(run.prompts['refusal_log_odds'][row], 2)}**",
        help="The projection is in activation units; the log-odds are those that the reply opens with a token that "
        "refusals open with.",
    )


def its_twin(run: Run, row: int | None) -> None:
    """Show the matched twin of a prompt that has one."""
    twin = None if row is None else twin_of(run, row)
    if twin is not None:
        _quoted(run, twin, "Its twin, ")


def chosen_prompt(run: Run, just_chosen: int | None) -> int | None:
    """The row of the prompt to show: the one just chosen, else the one in the address."""
    if just_chosen is not None:
        address.change(prompt=run.prompts["prompt_id"][just_chosen])
        address.write()
        return just_chosen
    row = row_of(run, address.view().prompt)
    if row is None:
        st.caption("Choose a row to see the prompt over all layers, beside its twin.")
    return row


def prompt_details(run: Run, row: int, site: int) -> None:
    """One prompt in full, its twin, and both over the layers."""
    the_prompt(run, row, site)
    its_twin(run, row)
    over_layers(run, row, site)


def over_layers(run: Run, row: int, site: int) -> None:
    """One prompt's course and rank over the layers, and the prompts that run like it."""
    st.subheader("Over the layers", anchor=False)
    label, twin = run.prompts["label"][row], twin_of(run, row)
    course, rank = st.columns([3, 2])
    with course:
        raw = raw_units()
        lines = [_course(run, row, "the prompt", "solid")]
        if twin is not None:
            lines.append(_course(run, twin, "its twin", "dash"))
        chart(courses(run, lines, site, raw), "outliers_courses")
    with rank:
        st.markdown(
            "Its rank",
            help="Percent of the fitted prompts that project below it: among those of its own label, and among all. A "
            "harmful prompt that ranks low among harmful ones at every layer is a steady outlier.",
        )
        chart(figures.ranks(run, percentile_ranks(run, row), label, site), "outliers_ranks")
    st.markdown("##### Prompts that run alike over the layers", help="Choose one to read it.")
    nearest = nearest_prompts(run, run.projections[row], 8, leave_out=row).set_index("prompt_id")
    distance = st.column_config.NumberColumn(
        "distance", format="%.2f", help="Root mean square over layers, in pooled standard deviations."
    )
    columns = {
        "text": st.column_config.TextColumn("prompt", width=250),
        "label": "label",
        "category": "category",
        "distance": distance,
        "source": "set",
    }
    chosen = chosen_row(nearest, columns, "outliers_nearest", None, height=200)
    if chosen is not None:
        read(chosen)
        st.rerun()


def step(by: int) -> None:
    """Go to the next prompt of the list, or an earlier one; from outside the list, to its first."""
    listed, current = st.session_state.get(_LISTED, []), address.view().prompt
    if listed:
        place = listed.index(current) + by if current in listed else 0
        read(listed[int(np.clip(place, 0, len(listed) - 1))])


def read(prompt_id: str) -> None:
    """Show a prompt."""
    address.change(prompt=prompt_id)
    st.session_state["outliers_chosen"] = [prompt_id]


def _signed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "\u2212")


def _choice(run: Run, name: str, options: list[str], help_text: str | None = None) -> tuple[str, ...]:
    """A filter, filled from the address when it is first drawn; what the run does not have is left out."""
    key = f"outliers_{name}_{run.run_id}"
    default = [run.contrast_name] if name == "sets" else []
    wanted = getattr(address.view(), name) or default
    address.fill_once(key, [each for each in wanted if each in options] or default)
    chosen = tuple(st.multiselect(name.capitalize(), options, key=key, help=help_text))
    return () if name == "sets" and chosen == (run.contrast_name,) else chosen


def _columns_of_values(run: Run) -> dict[str, pd.Series]:
    """Return the users' own columns, and the category, that have few enough values to tell prompts apart by."""
    if run.extra.empty:
        return {}
    known = {"category": run.prompts["category"], **{str(name): run.extra[name] for name in run.extra}}
    return {name: values for name, values in known.items() if 1 < values.nunique() <= _MOST_VALUES}


def _clear(run: Run) -> None:
    for name in _columns_of_values(run):
        st.session_state[f"outliers_column_{run.run_id}_{name}"] = []
    st.session_state[f"outliers_find_{run.run_id}"] = ""
    for name in ("sets", "labels", "categories", "replies", "marked"):
        st.session_state[f"outliers_{name}_{run.run_id}"] = [run.contrast_name] if name == "sets" else []


def _course(run: Run, row: int, name: str, dash: str) -> Course:
    prompt = run.prompts.loc[row]
    return Course(
        prompt["text"], run.projections[row], f"{name} ({prompt['label']})", LABEL_COLOUR[prompt["label"]], dash
    )


def _quoted(run: Run, row: int, lead: str) -> None:
    prompt = run.prompts.loc[row]
    st.text(f"{lead}{prompt['label']} · {prompt['source']}")
    prompt_in_full(prompt)
    if not pd.isna(prompt["note"]):
        st.text(prompt["note"])


def _use_preset() -> None:
    pressed = st.session_state.get("outliers_preset")
    if pressed and pressed.startswith("Published"):
        address.change(site=PUBLISHED_BAND_LAYER, band=PUBLISHED_BAND)
    else:
        address.change(band=None)


def _use_typed() -> None:
    low, high = sorted((st.session_state["band_low"], st.session_state["band_high"]))
    address.change(band=(low, high))


def _use_chart() -> None:
    boxes = st.session_state[_CHART]["selection"]["box"]
    if boxes:
        low, high = sorted(map(float, boxes[0]["x"]))
        address.change(band=(low, high))


def _use_point(told: str) -> None:
    # Bars have other data.
    if re.fullmatch(PROMPT_ID, told):
        read(told)


def _use_list() -> None:
    clicked = st.session_state[_LIST].clicked
    if clicked not in st.session_state[_LISTED]:
        return
    chosen = list(st.session_state.get("outliers_chosen", []))
    if not st.session_state.get("outliers_several", False):
        read(clicked)
        return
    kept = [prompt_id for prompt_id in chosen if prompt_id != clicked]
    st.session_state["outliers_chosen"] = kept if clicked in chosen else [*kept, clicked]
    address.change(prompt=(kept or [None])[-1] if clicked in chosen else clicked)
