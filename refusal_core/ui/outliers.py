"""The parts of the Outliers page: the band, the list of prompts in it, and one prompt in full."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from refusal_core.annotations.marks import KINDS
from refusal_core.behaviour.measurement import verdicts
from refusal_core.errors import RunError
from refusal_core.exploration.outliers import derived_band, nearest_prompts, ranks, row_of, search, twin_of
from refusal_core.exploration.published import PUBLISHED_BAND, PUBLISHED_BAND_LAYER
from refusal_core.figures import outliers as figures
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.style import LABEL_COLOUR
from refusal_core.prompts.sets import PROMPT_ID
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.clicks import on_point
from refusal_core.ui.conversations import prompt_in_full
from refusal_core.ui.layout import chart, csv_button, raw_units
from refusal_core.ui.selection import chosen_row
from refusal_core.ui.streamlit_internals import select_rows

MOST_ROWS = 1000
_TABLE, _LISTED, _CHART = "outliers_table", "outliers_listed", "outliers_chart"
_REFUSED, _NOT_REFUSED, _UNMARKED = "refused", "not refused", "not marked"

_COLUMNS = {
    "text": st.column_config.TextColumn("prompt", width=250),
    "label": st.column_config.TextColumn("label", width=80),
    "projection": st.column_config.NumberColumn(
        "projection", format="%.3f", width=85, help="In activation units, at this layer."
    ),
    "mark": st.column_config.TextColumn("mark", width="small", help="What was found of the prompt; on every run."),
    "percentile_in_other": st.column_config.NumberColumn(
        "percentile in the other label",
        format="%.1f",
        help="Percent of the other label's fitted prompts that project below it. A harmful prompt at 50 lies where the "
        "typical harmless one does.",
    ),
    "refusal_log_odds": st.column_config.NumberColumn(
        "refusal log-odds",
        format="%.2f",
        help="Log-odds that the reply opens with a token that refusals open with (I, As): a tendency, not a refusal.",
    ),
    "first_token": st.column_config.TextColumn("first reply token", width="small"),
    "category": st.column_config.TextColumn("category"),
    "source": st.column_config.TextColumn("set", width="small"),
    "note": st.column_config.TextColumn("note of the set"),
    "marked_note": st.column_config.TextColumn("note of the mark"),
}


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
    """The histogram on which a band is dragged, and its prompts as points to click."""
    chart(
        figures.band(run, site, band, found, row),
        _CHART,
        on_select=_use_chart,
        selection_mode="box",
    )
    on_point(_CHART, _use_point)
    drawn = "Drag across the chart to choose a band; click a point to read its prompt. Hollow points are marked."
    if len(found) > figures.MOST_POINTS:
        drawn += f" Of {len(found)} prompts {figures.MOST_POINTS} are drawn as points."
    st.caption(drawn)


def filtered(found: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The prompts that pass the search and the filters above the list."""
    view = address.view()
    text, narrow = st.columns([3, 1], vertical_alignment="bottom")
    find = text.text_input(
        "Search the texts",
        key=address.fill_once(f"outliers_find_{run.run_id}", view.find or ""),
        live="300ms",
        icon=":material/search:",
        placeholder="part of a prompt, upper and lower case alike",
    )
    try:
        refuses, how = verdicts(run)
    except RunError:
        refuses, how = run.prompts["refusal_log_odds"].gt(0), "by the sign of the refusal log-odds: replies are damaged"
    with narrow.popover("Filters", icon=":material/filter_alt:", width="stretch"):
        sets = _choice(
            run, "sets", [run.contrast_name, *run.transfer_sources], "The set the direction was fitted on, by default."
        )
        labels = _choice(run, "labels", sorted(run.prompts["label"].unique()))
        categories = _choice(run, "categories", sorted(run.prompts["category"].dropna().unique()))
        replies = _choice(run, "replies", [_REFUSED, _NOT_REFUSED], f"Whether the model refuses, {how}.")
        st.caption(f"Refused or not: {how}.")
        marked = _choice(run, "marked", [*KINDS, _UNMARKED])
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
        keep &= found["mark"].replace("", _UNMARKED).isin(marked)
    said = [", ".join(each) for each in (sets, labels, categories, replies, marked) if each]
    if said or find:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text("Only: " + " · ".join([*said, *([f"“{find}”"] if find else [])]))
            st.button("Clear", icon=":material/filter_alt_off:", type="tertiary", on_click=_clear, args=(run,))
    return search(found[keep], find)


def described(found: pd.DataFrame, band: tuple[float, float]) -> None:
    """How many prompts of which label there are."""
    counts = found["label"].value_counts()
    prompts = ", ".join(f"{count} {label}" for label, count in counts.items()) or "no prompts"
    st.subheader(f"{prompts} between {band[0]:.4g} and {band[1]:.4g}", anchor=False)


def prompt_list(run: Run, found: pd.DataFrame, site: int) -> list[str]:
    """The list of prompts; returns the prompt_ids of the rows chosen in it."""
    if found.empty:
        st.session_state[_LISTED] = []
        st.info(
            "Nothing falls into this band with these filters. Widen the band, or clear the filters.",
            icon=":material/filter_alt_off:",
        )
        projection = run.projections[:, site]
        # A step further out, as the ends are shown and sent rounded.
        step_out = 1e-3 * float(np.abs(projection).max())
        band = float(projection.min()) - step_out, float(projection.max()) + step_out
        st.button("Widen it to all prompts", icon=":material/open_in_full:", on_click=lambda: address.change(band=band))
        return []
    shown = found.iloc[:MOST_ROWS]
    listed = shown["prompt_id"].tolist()
    several = st.session_state.get("outliers_several", False)
    chosen = [each for each in st.session_state.get("outliers_chosen", []) if each in set(listed)] if several else []
    current = address.view().prompt
    if not several and current in set(listed):
        chosen = [str(current)]
    st.session_state[_LISTED] = listed
    select_rows(_TABLE, [listed.index(prompt_id) for prompt_id in chosen])
    st.dataframe(
        shown.drop(columns="fitted"),
        column_order=list(_COLUMNS),
        column_config=_COLUMNS,
        hide_index=True,
        width="stretch",
        height=min(460, 38 + 35 * len(shown)),
        on_select=_use_table,
        selection_mode="multi-row" if several else "single-row",
        key=_TABLE,
        placeholder="",
        alt="Prompts in the band",
    )
    if len(found) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS} of {len(found)}; search, filter or narrow the band to see others.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.toggle("Choose several", key="outliers_several", help="Tick rows to mark them all at once.")
        csv_button(lambda: found, f"{run.run_id}--site-{site}--band")
    return chosen


def the_prompt(run: Run, row: int | None, site: int) -> None:
    """The chosen prompt and its twin, with the numbers people look at first."""
    if row is None:
        st.info(
            "Click a point in the chart or a row of the list to read the prompt, or press N for the first.",
            icon=":material/left_click:",
        )
        return
    st.markdown("##### The chosen prompt")
    _quoted(run, row, "")
    twin = twin_of(run, row)
    if twin is not None:
        _quoted(run, twin, "Its twin, ")
    place, odds = st.columns(2)
    place.metric(
        f"projection, {run.site_label(site)}", f"{run.projections[row, site]:.3f}", help="In activation units."
    )
    odds.metric(
        "refusal log-odds",
        f"{run.prompts['refusal_log_odds'][row]:.2f}",
        help="Log-odds that the reply opens with a token that refusals open with.",
    )


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
        chart(figures.ranks(run, ranks(run, row), label, site), "outliers_ranks")
    st.markdown("##### Prompts that run alike over the layers", help="Choose one to read it.")
    nearest = nearest_prompts(run, run.projections[row], 8, leave_out=row).set_index("prompt_id")
    distance = st.column_config.NumberColumn(
        "distance", format="%.2f", help="Root mean square over layers, in pooled standard deviations."
    )
    columns = {name: _COLUMNS[name] for name in ("text", "label", "category")} | {"distance": distance}
    chosen = chosen_row(nearest, columns | {"source": _COLUMNS["source"]}, "outliers_nearest", None)
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


def _choice(run: Run, name: str, options: list[str], help_text: str | None = None) -> tuple[str, ...]:
    """A filter, filled from the address when it is first drawn; what the run does not have is left out."""
    key = f"outliers_{name}_{run.run_id}"
    default = [run.contrast_name] if name == "sets" else []
    wanted = getattr(address.view(), name) or default
    address.fill_once(key, [each for each in wanted if each in options] or default)
    chosen = tuple(st.multiselect(name.capitalize(), options, key=key, help=help_text))
    return () if name == "sets" and chosen == (run.contrast_name,) else chosen


def _clear(run: Run) -> None:
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


def _use_table() -> None:
    listed = st.session_state[_LISTED]
    chosen = [listed[row] for row in st.session_state[_TABLE]["selection"]["rows"] if row < len(listed)]
    before = st.session_state.get("outliers_chosen", [])
    new = [each for each in chosen if each not in before]
    st.session_state["outliers_chosen"] = chosen
    address.change(prompt=(new or chosen or [None])[-1])
