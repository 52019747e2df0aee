"""Pieces that several pages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.elements.lib.mutable_expander_container import ExpanderContainer

from refusal_core.errors import RefusalError
from refusal_core.figures.layers import QUESTIONS
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.figures.style import move_mark
from refusal_core.glossary import meaning_of
from refusal_core.markdown import typeset
from refusal_core.options import ESTIMATORS
from refusal_core.runs.manifest import MANIFEST, PositionsManifest, TemplateRecord
from refusal_core.runs.run import LAST_TOKEN, Run
from refusal_core.runs.store import open_run, run_titles
from refusal_core.sharing.rendering import MIME, SIZES, browser_found, render_image, render_page
from refusal_core.ui import address
from refusal_core.ui.glossary import glossary_link, link_terms
from refusal_core.ui.server import told
from refusal_core.ui.slow_downloads import limited

T = TypeVar("T")

_OWN = "own_figures"
_CHART_CONFIG = {"displaylogo": False, "displayModeBar": False}

_LAYER_NUMBERS = (
    "magnitude",
    "in_sample_d",
    "crossfit_d",
    "crossfit_auroc",
    "probe_d",
    "probe_auroc",
    "hedges_g",
    "in_sample_auroc",
    "log10_p",
    "t_statistic",
    "mean_crossings",
    "range_overlap",
    "harmful_projection_mean",
    "harmless_projection_mean",
    "harmful_projection_std",
    "harmless_projection_std",
)
"""Columns of the layers' statistics that a page lists, in this order."""


def part_picker(parts: Sequence[str]) -> str:
    """Show the parts of a page of which one is open at a time; return the open one, which the address names."""
    part = address.one_of(parts, "part")
    st.segmented_control(
        "Part of the page",
        parts,
        label_visibility="collapsed",
        required=True,
        key=address.fill("part_field", part),
        on_change=lambda: address.change(part=st.session_state["part_field"]),
    )
    return part


def chart(
    figure: go.Figure,
    key: str,
    saved: Callable[[], go.Figure] | None = None,
    page: Callable[[], bytes] | None = None,
    **options: Any,
) -> Any:
    """Show a figure over the full width, in the page's theme, with a menu below that saves it.

    Args:
        figure: to show.
        key: of the figure, also in the name of the saved file.
        saved: draws the figure that is saved, where that is another one.
        page: makes the HTML page that is saved, where that is not the figure with Plotly's script.
        options: of ``st.plotly_chart``.
    """
    with st.container(gap=None):
        event = st.plotly_chart(figure, key=key, width="stretch", config=_CHART_CONFIG, **options)
        _save_menu(saved or (lambda: figure), key, page)
    return event


def _save_menu(saved: Callable[[], go.Figure], key: str, page: Callable[[], bytes] | None) -> None:
    """Offer PNG, SVG and HTML of a figure; nothing is drawn before one of them is asked for."""
    dark, view, shown = st.context.theme.type == "dark", address.view(), address.shown_run()
    drawable = _drawable()

    def image(kind: str, use: str) -> bytes:
        return render_image(saved(), kind, dark, use, _heading(key, view, shown))

    pictures: dict[tuple[str, str], Callable[[], bytes]] = {
        (kind, use): partial(image, kind, use) for use in SIZES for kind in ("png", "svg")
    }

    def figure_page() -> bytes:
        figure = saved()
        # One that moves over the layers names the layer itself.
        return render_page(figure, _heading(key, view, shown, of_layer=not figure.frames), dark)

    page = page or figure_page
    with (
        st.container(horizontal=True, horizontal_alignment="right"),
        st.popover("Save", type="tertiary", icon=":material/download:", help="This figure as a file."),
    ):
        for (kind, use), contents in (pictures | {("html", ""): page}).items():
            st.download_button(
                f"Save as {kind.upper()}" + (f" for a {use}" if use else ""),
                limited(contents),
                file_name="--".join(filter(None, (_file_name(key), use))) + f".{kind}",
                mime=MIME[kind],
                on_click="ignore",
                disabled=kind != "html" and not drawable,
                key=f"{key}-{kind}{use}",
                width="stretch",
            )
        st.caption(
            "PNG and SVG take some seconds; HTML keeps what moves and what shows on hover, without a network."
            if drawable
            else "PNG and SVG need a Chrome or Chromium on the machine that serves this page; it has none."
        )


def _heading(key: str, view: address.View, shown: str | None, *, of_layer: bool = True) -> tuple[str, str]:
    """Return a title for a saved figure that has none, and what it is of: runs, layer if it is of one, and day."""
    runs = [shown, *(view.others or ())] if key.startswith("compare") else [shown]
    name = key.partition(f"_{shown}")[0].replace("_", " ").capitalize()
    layer = ""
    with suppress(RefusalError):
        layer = open_run(str(view.run)).site_label(view.site or 0) if of_layer else ""
    said = [*runs, layer, f"{date.today():%-d %B %Y}"]
    return name, " · ".join(filter(None, said))


def folded(label: str, key: str, icon: str = ":material/table_rows:") -> ExpanderContainer:
    """Return a folded part of a page; what is in it is computed and sent only while its ``open`` is true."""
    return st.expander(label, icon=icon, key=key, on_change="rerun")


def csv_button(table: Callable[[], pd.DataFrame], file_name: str, label: str = "Download as csv") -> None:
    """Offer a table as a csv file, which is made when it is asked for."""
    st.download_button(
        label,
        # A file cannot hold the lone surrogates that a prompt may have.
        lambda: table().to_csv(index=False).encode("utf-8", "replace"),
        file_name=f"{file_name}.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv_{file_name}",
    )


def _file_name(key: str) -> str:
    """Return the name of a saved figure: the run and the figure; the layer is in the figure itself, which may move."""
    return re.sub(r"[^\w.-]+", "-", "--".join(part for part in (address.shown_run(), key) if part))


@st.cache_data(ttl=600, show_spinner=False)
def _drawable() -> bool:
    return browser_found()


def raw_units() -> bool:
    """Show a switch between activation units and a scale on which layers compare; return whether the former is on."""
    return st.toggle(
        "Activation units",
        key=address.fill("raw_units", address.view().units == "raw"),
        on_change=lambda: address.change(units="raw" if st.session_state["raw_units"] else None),
        help="Off: a scale on which layers compare.",
    )


def identity(run: Run) -> tuple[str, int]:
    """Return a key for caching: the run's name and when it was made, since it may be made again under its name."""
    # A run may be deleted while a page shows it.
    made = MANIFEST if run.position == LAST_TOKEN else f"{PositionsManifest.kind}.json"
    return run.run_id, modified(run.path / made)


def addition_identity(run: Run, kind: str) -> tuple[str, int, int]:
    """Return :func:`identity` and when a later measurement was made, 0 where it was not."""
    return *identity(run), modified(run.path / f"{kind}.json")


def modified(path: Path) -> int:
    """Return when a file was written, in nanoseconds, 0 where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_resource(max_entries=512, show_spinner=False)
def shared(key: tuple[Hashable, ...], _make: Callable[[], T]) -> T:
    """Return what is computed once for all visitors, and changed by none.

    Args:
        key: what it is of: the :func:`identity` of the run, a name and whatever else it depends on.
        _make: computes it.
    """
    return _make()


def shared_figure(key: tuple[Hashable, ...], draw: Callable[[], go.Figure]) -> go.Figure:
    """Return a figure that is drawn once for all visitors, and changed by none; see :func:`shared`."""
    return shared((*key, "figure"), lambda: serialise_once(draw()))


def own_figure(run: Run, name: Hashable, draw: Callable[[], go.Figure]) -> go.Figure:
    """Return the visitor's own figure, to be changed in place: drawing a new one takes fifty times as long.

    Args:
        run: that the figure shows.
        name: distinguishes the figures of a run.
        draw: makes the figure.
    """
    of, figures = st.session_state.get(_OWN, (None, {}))
    if of != identity(run):
        figures = {}
        st.session_state[_OWN] = identity(run), figures
    if name not in figures:
        figures[name] = draw()
    figure: go.Figure = figures[name]
    return figure


def marked(run: Run, name: Hashable, site: int, draw: Callable[[int], go.Figure]) -> go.Figure:
    """Return the visitor's own figure over the layers, its mark moved to the site.

    Args:
        run: that the figure shows.
        name: as for :func:`own_figure`.
        site: that is marked.
        draw: makes the figure for a site; only the mark may depend on that.
    """
    return move_mark(own_figure(run, name, lambda: serialise_once(draw(site))), site)


def sentences(text: str) -> str:
    """Return a sentence about numbers as Markdown in which terms of the glossary are links to it."""
    return link_terms(typeset(text))


def show_error(what: str, reason: object, severe: bool = True) -> None:
    """Show what did not work, and why.

    Args:
        what: one sentence of the page's own.
        reason: an error, or what it said: untrusted, shown letter by letter, to visitors without the machine's paths.
        severe: whether something is broken, and not merely to be typed otherwise.
    """
    if severe:
        st.error(what, icon=":material/error:")
    else:
        st.warning(what, icon=":material/warning:")
    st.text(told(reason))


def heading(text: str) -> None:
    """Show a sentence about numbers in large letters."""
    st.markdown(f"#### {typeset(text)}")


def strongest_layers(run: Run) -> None:
    """Show the highest value of the three effect sizes, with its layer."""
    for container, column in zip(st.columns(3), QUESTIONS, strict=True):
        values = run.layer_stats[column]
        question, *_ = QUESTIONS[column][0].partition("?")
        if values.isna().all():
            container.metric(f"{question.capitalize()}?", "–", help=meaning_of(column))
            continue
        site = int(values.idxmax())
        container.metric(
            f"{question.capitalize()}?",
            f"d = {values[site]:.2f}",
            delta=run.site_label(site),
            delta_color="off",
            delta_arrow="off",
            help=meaning_of(column),
        )


def layer_numbers(run: Run, site: int) -> None:
    """Show the site's statistics, with their meaning on hover."""
    row = run.layer_stats.loc[site]
    columns = st.columns(4)
    for place, column in enumerate(_LAYER_NUMBERS):
        value = row[column]
        shown = (
            "–" if pd.isna(value) else f"{value:.0f}" if run.layer_stats[column].dtype.kind in "iu" else f"{value:.3g}"
        )
        columns[4 * place // len(_LAYER_NUMBERS)].markdown(f"{glossary_link(column)} **{shown}**")


def run_in_a_line(run: Run) -> str:
    """Return the model and the contrast set as a line of text."""
    model, prompts = run.manifest.model, run.manifest.prompts
    counts = " + ".join(f"{count} {label}" for label, count in prompts.counts.items())
    return f"{model.name}, {model.n_layers} layers × {model.d_model}, on {prompts.name}: {counts} prompts"


def _describe_template(template: TemplateRecord) -> str:
    borrowed, day = template.borrowed, template.day
    whose = "none: bare prompts" if template.sha256 is None else "the model's own"
    return (whose if borrowed is None else f"borrowed from {borrowed.source}") + (
        f", which tells the date: {day}" if day else ""
    )


def facts(run: Run) -> dict[str, str]:
    """Return how a run was made, by the name of the fact on screen."""
    manifest = run.manifest
    model, prompts, template, compute = manifest.model, manifest.prompts, manifest.template, manifest.compute
    return {
        "model": f"{model.name} ({model.architecture}, {model.n_layers} layers × {model.d_model}"
        + (f", {model.quantisation}" if model.quantisation else "")
        + ")",
        "licence of the model": model.licence or "not stated",
        "contrast set": f"{prompts.name}: {prompts.counts['harmful']} harmful, {prompts.counts['harmless']} harmless",
        "transfer sets": ", ".join(f"{scored.name} ({sum(scored.counts.values())})" for scored in manifest.transfer),
        "chat template": _describe_template(template),
        "thinking": {None: "default of the chat template", True: "on", False: "off"}[template.thinking],
        "reasoning effort": template.reasoning_effort or "default of the chat template",
        "system prompt": template.system_prompt or template.default_system_prompt or "none",
        "read position": template.token_position if run.position == LAST_TOKEN else run.read_at,
        "computed in": f"{compute.dtype} on {compute.device}, seed {compute.seed}",
        "weights": compute.weights or "not recorded",
        "engine": {"process": "one process", "ray": "Ray's actors"}.get(compute.engine or "", "not recorded"),
        "batches": compute.batch_note or "default size",
        "prompts per pass": compute.pack_note or "not recorded",
        "template prefix": compute.prefix_note or "not recorded",
        "revision": model.revision or "not recorded",
        "prompts": f"SHA-256 {prompts.sha256[:12]}" if prompts.sha256 else "not recorded",
        "direction": run.imported or f"{ESTIMATORS[manifest.estimator]}, fitted on the contrast set",
        "refit of": "no other run" if manifest.refit is None else manifest.refit.parent,
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())),
        "made": manifest.created,
        "name": run.run_id,
        "title": run_titles(run.path.parent).get(run.path.name, "none"),
    }


def run_facts(run: Run) -> None:
    """Show how the run was made, so that it can be repeated."""
    made = facts(run)
    with st.expander("How this run was made"):
        st.dataframe(
            pd.DataFrame({"": made.keys(), "value": made.values()}),
            hide_index=True,
            width="stretch",
            placeholder="–",
            height="content",
        )
