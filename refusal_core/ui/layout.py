"""Pieces that several pages lay out."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from refusal_core.figures.layers import QUESTIONS
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.figures.style import move_mark
from refusal_core.runs.store import MANIFEST, Run, run_titles
from refusal_core.sharing.rendering import MIME, browser_found, image, page
from refusal_core.ui import address

_OWN = "own_figures"
_CHART_CONFIG = {"displaylogo": False, "displayModeBar": False}

COLUMN_HELP = {
    "magnitude": "Norm of the mean difference, in activation units.",
    "cohens_d": "Cohen's d of the prompts the direction was fitted on: mean difference over pooled standard deviation.",
    "crossfit_d": "Cohen's d of held-out prompts: ten folds, matched pairs never split, mean over five repeats.",
    "crossfit_auroc": "Chance that a held-out harmful prompt projects above a held-out harmless one.",
    "probe_d": "Cohen's d of the 48 probe pairs, on which no direction is ever fitted.",
    "probe_auroc": "Chance that a harmful probe prompt projects above a harmless one; 0.5 is chance.",
    "hedges_g": "Cohen's d with the correction for small samples.",
    "auroc": "In-sample chance that a harmful prompt projects above a harmless one.",
    "log10_p": "Base-10 logarithm of the t-test's p-value; small by construction, as the direction was fitted here.",
    "t_statistic": "Student's t of the in-sample projections.",
    "overlap_count": "The report's overlap count: harmful below the harmless mean, harmless above the harmful mean.",
    "range_overlap": "Prompts of either label inside the other label's range: what overlap means to most readers.",
    "harmful_mean": "Mean projection of the harmful prompts, in activation units.",
    "harmless_mean": "Mean projection of the harmless prompts, in activation units.",
    "harmful_std": "Standard deviation (ddof 0) of the harmful projections.",
    "harmless_std": "Standard deviation (ddof 0) of the harmless projections.",
}
_COLUMN_NAMES = {
    "magnitude": "separation",
    "cohens_d": "d in-sample",
    "crossfit_d": "d cross-fitted",
    "crossfit_auroc": "AUROC cross-fitted",
    "probe_d": "d probe pairs",
    "probe_auroc": "AUROC probe pairs",
    "hedges_g": "Hedges' g",
    "auroc": "AUROC in-sample",
    "log10_p": "log10 p",
    "t_statistic": "t",
    "overlap_count": "mean crossings",
    "range_overlap": "range overlap",
    "harmful_mean": "harmful mean",
    "harmless_mean": "harmless mean",
    "harmful_std": "harmful std",
    "harmless_std": "harmless std",
}


def chart(
    figure: go.Figure,
    key: str,
    saved: Callable[[], go.Figure] | None = None,
    **options: Any,
) -> Any:
    """A figure over the whole width, in the page's theme, with a menu below that saves it.

    Args:
        key: also in the name of the saved file.
        saved: draws what is saved instead, when it is asked for.
        options: of ``st.plotly_chart``.
    """
    with st.container(gap=None):
        event = st.plotly_chart(figure, key=key, width="stretch", config=_CHART_CONFIG, **options)
        _save_menu(saved or (lambda: figure), key)
    return event


def _save_menu(saved: Callable[[], go.Figure], key: str) -> None:
    """PNG, SVG and HTML of a figure; nothing is drawn before one of them is asked for."""
    dark = st.context.theme.type == "dark"
    drawable = _drawable()
    files: dict[str, Callable[[], bytes]] = {
        "png": lambda: image(saved(), "png", dark),
        "svg": lambda: image(saved(), "svg", dark),
        "html": lambda: page(saved(), key.replace("_", " "), dark),
    }
    with (
        st.container(horizontal=True, horizontal_alignment="right"),
        st.popover("Save", type="tertiary", icon=":material/download:", help="This figure as a file."),
    ):
        for kind, contents in files.items():
            st.download_button(
                f"Save as {kind.upper()}",
                contents,
                file_name=f"{_named(key)}.{kind}",
                mime=MIME[kind],
                on_click="ignore",
                disabled=kind != "html" and not drawable,
                key=f"{key}-{kind}",
                width="stretch",
            )
        st.caption(
            "PNG and SVG take some seconds; HTML keeps what moves and what shows on hover, without a network."
            if drawable
            else "PNG and SVG need a Chrome or Chromium on the machine that serves this page; it has none."
        )


def csv_button(table: Callable[[], pd.DataFrame], file_name: str, label: str = "Download as csv") -> None:
    """A table as a csv file, which is made when it is asked for."""
    st.download_button(
        label,
        # Half a surrogate in a prompt is no text that a file can have.
        lambda: table().to_csv(index=False).encode("utf-8", "replace"),
        file_name=f"{file_name}.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv_{file_name}",
    )


def _named(key: str) -> str:
    """A figure's name as a file: after the run that is looked at; the layer stands in the figure, which may move."""
    return re.sub(r"[^\w.-]+", "-", "--".join(part for part in (address.view().run, key) if part))


@st.cache_data(ttl=600, show_spinner=False)
def _drawable() -> bool:
    return browser_found()


def raw_units() -> bool:
    """A switch between activation units and a scale on which layers compare; returns whether it is the former."""
    return st.toggle(
        "Activation units",
        key=address.fill("raw_units", address.view().units == "raw"),
        on_change=lambda: address.change(units="raw" if st.session_state["raw_units"] else None),
        help="Off: a scale on which layers compare.",
    )


def identity(run: Run) -> tuple[str, int]:
    """What tells a run from every other, one that was made again under its name included: a key for what is cached."""
    manifest = run.path / MANIFEST
    # A run may be deleted while it is looked at.
    return run.run_id, manifest.stat().st_mtime_ns if manifest.is_file() else 0


def own_figure(run: Run, name: Hashable, draw: Callable[[], go.Figure]) -> go.Figure:
    """The visitor's own figure, to be changed in place; a new one takes fifty times as long.

    Args:
        name: tells the figure from the others of the run.
    """
    of, figures = st.session_state.get(_OWN, (None, {}))
    if of != identity(run):
        figures = {}
        st.session_state[_OWN] = identity(run), figures
    if name not in figures:
        figures[name] = draw()
    return figures[name]


def marked(run: Run, name: Hashable, site: int, draw: Callable[[int], go.Figure]) -> go.Figure:
    """The visitor's own figure over the layers, its mark moved to the site.

    Args:
        name: as for :func:`own_figure`.
        draw: makes it for a site; nothing but the mark may depend on that.
    """
    return move_mark(own_figure(run, name, lambda: serialise_once(draw(site))), site)


def plain(text: str) -> str:
    """A text that names things of a run, which are untrusted, as Markdown that shows it letter by letter."""
    # No backslash keeps an address or a mail address from being made a link; a word joiner inside, which shows nothing,
    # does.
    unlinked = re.sub(r"(?i)(?<=https:)(?=//)|(?<=http:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u2060", text)
    # Nor does one keep Streamlit from setting arrows, signs and dashes, or a number or dash from beginning a list.
    unset = re.sub(r"(?<=[<>!~-])(?=[=>-])|(?<=^[-+])", "\u2060", re.sub(r"^(\d+)(?=[.)])", "\\1\u2060", unlinked))
    return re.sub(r"([\\`*_\[\]<>$:#|~!&])", r"\\\1", unset)


def sentences(text: str) -> str:
    """What numbers say in words, as Markdown: a minus is set as one, and no number is parted from its percent sign."""
    return plain(re.sub(r"(?<![\w.])-(?=\d)", "\u2212", re.sub(r"(?<=\d) (?=%)", "\u00a0", text)))


def show_error(what: str, reason: object, severe: bool = True) -> None:
    """Show what did not work, and why.

    Args:
        what: one sentence of the page's own.
        reason: an error, or what it said: untrusted, shown letter by letter.
        severe: whether something is broken, and not merely to be typed otherwise.
    """
    if severe:
        st.error(what, icon=":material/error:")
    else:
        st.warning(what, icon=":material/warning:")
    st.text(str(reason))


def heading(text: str) -> None:
    """What numbers say in words, set large."""
    st.markdown(f"#### {sentences(text)}")


def strongest_layers(run: Run) -> None:
    """The strongest layer by each of the three questions, side by side."""
    for container, column in zip(st.columns(3), QUESTIONS, strict=True):
        values = run.layer_stats[column]
        question, *_ = QUESTIONS[column][0].partition("?")
        if values.isna().all():
            container.metric(f"{question.capitalize()}?", "–", help=COLUMN_HELP[column])
            continue
        site = int(values.idxmax())
        container.metric(
            f"{question.capitalize()}?",
            f"d = {values[site]:.2f}",
            delta=run.site_label(site),
            delta_color="off",
            delta_arrow="off",
            help=COLUMN_HELP[column],
        )


def layer_numbers(run: Run, site: int) -> None:
    """The site's row of statistics, each number with what it means on hover."""
    row = run.layer_stats.loc[site]
    columns = st.columns(4)
    for place, (column, name) in enumerate(_COLUMN_NAMES.items()):
        value = row[column]
        counts = column in ("overlap_count", "range_overlap")
        shown = "–" if pd.isna(value) else f"{value:.0f}" if counts else f"{value:.3g}"
        columns[4 * place // len(_COLUMN_NAMES)].markdown(f"{name} **{shown}**", help=COLUMN_HELP[column])


def run_in_a_line(run: Run) -> str:
    """The model and the contrast set, as a line of text."""
    model, prompts = run.manifest["model"], run.manifest["prompts"]
    counts = " + ".join(f"{count} {label}" for label, count in prompts["counts"].items())
    return f"{model['name']}, {model['n_layers']} layers × {model['d_model']}, on {prompts['name']}: {counts} prompts"


def _template_in_words(template: dict) -> str:
    borrowed, day = template.get("borrowed"), template.get("day")
    whose = "none: prompts as they are" if template["sha256"] is None else "the model's own"
    return (whose if borrowed is None else f"borrowed from {borrowed['from']}") + (
        f", which tells the date: {day}" if day else ""
    )


def run_facts(run: Run) -> None:
    """What the run is made of, for whoever wants to repeat it."""
    manifest = run.manifest
    model, prompts, compute = manifest["model"], manifest["prompts"], manifest["compute"]
    counts = prompts["counts"]
    facts = {
        "model": f"{model['name']} ({model['architecture']}, {model['n_layers']} layers × {model['d_model']}"
        + (f", {model['quantisation']}" if model["quantisation"] else "")
        + ")",
        "licence of the model": model["licence"] or "not stated",
        "contrast set": f"{prompts['name']}: {counts['harmful']} harmful, {counts['harmless']} harmless",
        "transfer sets": ", ".join(f"{each['name']} ({sum(each['counts'].values())})" for each in manifest["transfer"]),
        "chat template": _template_in_words(manifest["template"]),
        "thinking": {None: "as the template has it", True: "on", False: "off"}.get(
            manifest["template"].get("thinking"), "–"
        ),
        "system prompt": manifest["template"]["system_prompt"]
        or manifest["template"]["default_system_prompt"]
        or "none",
        "read at": manifest["template"]["token_position"],
        "computed in": f"{compute['dtype']} on {compute['device']}, seed {compute['seed']}",
        "weights": str(compute.get("weights", "not recorded")),
        "read by": {"process": "one process", "ray": "Ray's actors"}.get(compute.get("engine"), "not recorded"),
        "batches": compute.get("batch_note") or "of the usual size",
        "read together": str(compute.get("pack_note", "not recorded")),
        "beginning of the template": str(compute.get("prefix_note", "not recorded")),
        "made": manifest["created"],
        "name": run.run_id,
        "title": run_titles(run.path.parent).get(run.run_id, "none; the page Runs gives one"),
    }
    with st.expander("What this run is made of"):
        st.dataframe(
            pd.DataFrame({"": facts.keys(), "value": facts.values()}),
            hide_index=True,
            width="stretch",
            height="content",
        )
