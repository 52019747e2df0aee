"""The parts of the Outliers page: the band, the table, and one prompt in full."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram
from refusal_core.figures.style import LABEL_COLOUR
from refusal_core.outliers import derived_band, nearest_prompts, row_of, twin_of
from refusal_core.published import PUBLISHED_BAND, PUBLISHED_BAND_LAYER
from refusal_core.runs import Run
from refusal_core.ui import address
from refusal_core.ui.layout import chart
from refusal_core.ui.selection import newly

_COLUMNS = {
    "text": st.column_config.TextColumn("prompt", width=420),
    "projection": st.column_config.NumberColumn(
        "projection", format="%.3f", help="In activation units, at this layer."
    ),
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
    "label": st.column_config.TextColumn("label", width="small"),
    "category": st.column_config.TextColumn("category"),
    "source": st.column_config.TextColumn("set", width="small"),
    "note": st.column_config.TextColumn("note"),
}


def band_picker(run: Run, site: int, container) -> tuple[float, float]:
    """Choose the band: from the run, the published one, typed, or dragged on the histogram."""
    published = run.n_layers >= PUBLISHED_BAND_LAYER
    options = ["From the run", f"Published {PUBLISHED_BAND[0]:.0f}–{PUBLISHED_BAND[1]:.0f}"][: 1 + published]
    if st.session_state.pop("outliers_keep_band", False) or "outliers_preset" not in st.session_state:
        st.session_state["outliers_preset"] = None if address.view().band else options[0]
    pressed = container.segmented_control(
        "Band",
        options,
        key="outliers_preset",
        on_change=_use_preset,
        help="From the run: the 5th percentile of the harmful to the 95th of the harmless prompts at this layer. The "
        f"published band is of layer {PUBLISHED_BAND_LAYER} of another model, whose projections have another scale.",
    )
    if pressed == options[0] or address.view().band is None:
        address.change(band=derived_band(run, site))
    band = address.view().band or derived_band(run, site)
    dragged = chart(
        histogram(run, site, band),
        f"outliers_histogram_{run.run_id}_{site}",
        on_select="rerun",
        selection_mode="box",
    )["selection"]["box"]
    ends = newly("outliers_box", tuple(sorted(dragged[0]["x"])) if dragged else None)
    if ends is not None:
        address.change(band=(float(ends[0]), float(ends[1])))
        st.session_state["outliers_keep_band"] = True
        st.rerun()
    low, high, hint = st.columns([1, 1, 2], vertical_alignment="bottom")
    for place, column, name in ((0, low, "low"), (1, high, "high")):
        column.number_input(
            ("Lowest projection", "Highest projection")[place],
            key=address.fill(f"band_{name}", band[place]),
            format="%.3f",
            step=max(float(f"{(run.layer_stats['magnitude'][site] / 20):.1g}"), 1e-3),
            on_change=_use_typed,
        )
    hint.caption("Drag across the histogram to choose a band, or type its ends.")
    address.write()
    return band


def filtered(found: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The prompts that pass the filters above the table."""
    sets, labels, categories = st.columns(3)
    chosen_sets = sets.multiselect(
        "Sets",
        [run.contrast_name, *run.transfer_sources],
        default=[run.contrast_name],
        key=f"outliers_sets_{run.run_id}",
        help="The contrast set the direction was fitted on; transfer sets on demand.",
    )
    chosen_labels = labels.multiselect(
        "Labels", sorted(run.prompts["label"].unique()), key=f"outliers_labels_{run.run_id}"
    )
    chosen_categories = categories.multiselect(
        "Categories", sorted(run.prompts["category"].dropna().unique()), key=f"outliers_categories_{run.run_id}"
    )
    keep = found["source"].isin(chosen_sets)
    if chosen_labels:
        keep &= found["label"].isin(chosen_labels)
    if chosen_categories:
        keep &= found["category"].isin(chosen_categories)
    return found[keep]


def prompt_table(run: Run, found: pd.DataFrame, band: tuple[float, float], site: int) -> int | None:
    """The table of prompts; returns the row of the run that was just chosen in it."""
    counts = found["label"].value_counts()
    described = ", ".join(f"{count} {label}" for label, count in counts.items()) or "no prompts"
    st.subheader(f"{described} between {band[0]:.4g} and {band[1]:.4g}", anchor=False)
    if found.empty:
        st.info(
            "Nothing falls into this band with these filters. Widen the band, or press “From the run”.",
            icon=":material/filter_alt_off:",
        )
        return None
    event = st.dataframe(
        found,
        column_order=list(_COLUMNS),
        column_config=_COLUMNS,
        hide_index=True,
        width="stretch",
        height=min(420, 38 + 35 * len(found)),
        on_select="rerun",
        selection_mode="single-row",
        key="outliers_table",
    )
    st.download_button(
        "Download as csv",
        found.to_csv(index=False).encode(),
        file_name=f"{run.run_id}--site-{site}--band.csv",
        mime="text/csv",
        icon=":material/download:",
    )
    rows = event["selection"]["rows"]
    prompt_id = newly("outliers_table", found["prompt_id"].iloc[rows[0]] if rows and rows[0] < len(found) else None)
    return None if prompt_id is None else row_of(run, prompt_id)


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
    """One prompt in full, its twin, its course over the layers and the prompts nearest to it."""
    twin = twin_of(run, row)
    st.subheader("The chosen prompt", anchor=False)
    texts, facts = st.columns([3, 2])
    with texts:
        _quoted(run, row, "")
        if twin is not None:
            _quoted(run, twin, "Its twin, ")
    projection = run.projections[row, site]
    facts.metric(f"projection at {run.site_label(site)}", f"{projection:.3f}")
    facts.metric(
        "refusal log-odds",
        f"{run.prompts['refusal_log_odds'][row]:.2f}",
        help="Log-odds that the reply opens with a token that refusals open with.",
    )
    raw = st.toggle("Activation units", key="outliers_raw", help="Off: a scale on which layers compare.")
    lines = [_course(run, row, "the prompt", "solid")]
    if twin is not None:
        lines.append(_course(run, twin, "its twin", "dash"))
    chart(courses(run, lines, site, raw), "outliers_courses")
    st.markdown("##### Prompts that run alike over the layers")
    st.dataframe(
        nearest_prompts(run, run.projections[row], 8, leave_out=row),
        column_order=["text", "label", "category", "distance", "source"],
        column_config={
            **_COLUMNS,
            "distance": st.column_config.NumberColumn(
                "distance", format="%.2f", help="Root mean square over layers, in pooled standard deviations."
            ),
        },
        hide_index=True,
        width="stretch",
        key="outliers_nearest",
    )


def _course(run: Run, row: int, name: str, dash: str) -> Course:
    prompt = run.prompts.loc[row]
    return Course(
        prompt["text"], run.projections[row], f"{name} ({prompt['label']})", LABEL_COLOUR[prompt["label"]], dash
    )


def _quoted(run: Run, row: int, lead: str) -> None:
    prompt = run.prompts.loc[row]
    st.caption(f"{lead}{prompt['label']} · {prompt['source']}")
    st.code(prompt["text"], language=None, wrap_lines=True)
    if not pd.isna(prompt["note"]):
        st.text(prompt["note"])


def _use_preset() -> None:
    pressed = st.session_state.get("outliers_preset")
    if pressed and pressed.startswith("Published"):
        address.change(site=PUBLISHED_BAND_LAYER, band=PUBLISHED_BAND)


def _use_typed() -> None:
    low, high = sorted((st.session_state["band_low"], st.session_state["band_high"]))
    address.change(band=(low, high))
    st.session_state["outliers_preset"] = None
