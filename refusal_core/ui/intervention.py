"""The parts of the Causality page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.errors import PromptError, RefusalError
from refusal_core.figures import intervention as figures
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.intervention import effects, experiment
from refusal_core.intervention.conditions import ABLATE, ADD, PLAIN, Condition, Tried
from refusal_core.intervention.effects import MEASURES
from refusal_core.intervention.experiment import INTERVENTION
from refusal_core.markdown import plain
from refusal_core.runs.manifest import InterventionManifest
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.frame import own_position_only
from refusal_core.ui.layout import chart, marked, sentences, show_error
from refusal_core.ui.model import OpenRun, model_source, one_model, recorded
from refusal_core.ui.numbers import numbers_table


@dataclass(frozen=True, eq=False)
class Summary:
    """What recorded interventions say, the same at all sites.

    Attributes:
        sha256: of the record.
        effects: means, intervals and bands per condition.
        headline: in two sentences.
        findings: a sentence per question of the study.
        numbers: the conditions of the fitted direction as a table.
        candidates: what the published rule chooses from.
        choice: figure of the candidates and the one that is chosen.
        doses: figure of what adding more or less does, at the layer where that was measured.
    """

    sha256: str
    effects: pd.DataFrame
    headline: str
    findings: list[str]
    numbers: pd.DataFrame
    candidates: pd.DataFrame
    choice: go.Figure
    doses: go.Figure


def recorded_interventions(run: Run) -> tuple[pd.DataFrame, InterventionManifest] | None:
    """Return the run's recorded interventions and their manifest; ``None`` after showing how to measure them."""
    if own_position_only(run, "What edits change is measured with the direction that was read"):
        return None
    return recorded(
        run,
        experiment.load_interventions,
        INTERVENTION,
        "interventions",
        "What ablating the direction does to refusing has not been measured on this run yet. It needs the run's model, "
        "and time.",
        ":material/science:",
    )


def summary_of(run: Run, table: pd.DataFrame, manifest: InterventionManifest) -> Summary:
    """Return what the run's interventions say."""
    return _summarised(run.run_id, manifest.sha256, run, table, manifest)


def how_measured(run: Run, table: pd.DataFrame, manifest: InterventionManifest) -> None:
    """Show which prompts were edited, and compared with which controls."""
    labels = run.prompts.set_index("prompt_id").loc[table["prompt_id"].unique(), "label"].value_counts()
    layers = ", ".join(str(layer) for layer in manifest.controls.layers)
    source = manifest.prompts.source
    edited = "every token" if manifest.tokens == "all" else "the prompt's last token"
    fitted = "on which the direction was fitted, " if source == run.contrast_name and not run.imported else ""
    kinds = pd.Series(manifest.controls.names).str.split(" ").str[0].value_counts(sort=False)
    controls = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    st.caption(
        f"{labels['harmful']} harmful and {labels['harmless']} harmless prompts of {plain(source)}, {fitted}{edited} "
        f"edited, in {plain(manifest.compute.dtype)}. Controls at layers {plain(layers)}: "
        f"{plain(controls)}. A number is called an effect only outside the band in which one more control of either "
        "kind would fall with a probability of 95 %."
    )


def findings(summary: Summary) -> None:
    """Show a line per question."""
    st.markdown("\n".join(f"- {sentences(line)}" for line in summary.findings))


def sweeps(run: Run, summary: Summary, site: int) -> None:
    """Show the three sweeps over the layers, in a measure that can be chosen."""
    names = {"": "Default measure"} | {name: MEASURES[name] for name in MEASURES if name != "log_odds"}
    measure = st.selectbox(
        "Measure",
        list(names),
        format_func=names.__getitem__,
        key=address.fill("causality_measure", address.one_of(list(names), "measure")),
        on_change=lambda: address.change(measure=st.session_state["causality_measure"] or None),
    )
    for column, (sweep, (*_, title)) in zip(st.columns(3), figures.SWEEPS.items(), strict=True):
        with column:
            st.markdown(f"##### {title}")
            draw = partial(figures.over_layers, run, summary.effects, sweep, measure or None)
            name = ("causality", sweep, measure, summary.sha256)
            # Nothing is edited at the final norm.
            chart(marked(run, name, site, draw) if site < run.n_layers else draw(None), f"causality_{sweep}")


def choice(summary: Summary) -> None:
    """Show what the published rule chooses, and its candidates."""
    chart(summary.choice, "causality_choice")
    with st.expander("The candidates in numbers", icon=":material/table_rows:"):
        st.dataframe(
            summary.candidates,
            column_config={
                "position": st.column_config.NumberColumn("token", help="-1 is the last of the templated prompt."),
                "read_at": st.column_config.NumberColumn("layer"),
                "bypass": st.column_config.NumberColumn(format="%.2f"),
                "induce": st.column_config.NumberColumn(format="%.2f"),
                "kl": st.column_config.NumberColumn("divergence", format="%.3f"),
                "allowed": st.column_config.CheckboxColumn(help=f"Divergence at most {effects.MOST_KL}, induce ≥ 0."),
            },
            hide_index=True,
            width="stretch",
            placeholder="–",
        )


def numbers(summary: Summary) -> None:
    """Show the conditions of the fitted direction, with intervals, controls and verdict."""
    numbers_table(summary.numbers)


def try_it(run: Run, site: int) -> None:
    """Show a field for a prompt, an edit to choose, and how the reply would open."""
    source = model_source(run)
    layer = min(site, run.n_layers - 1)
    text = st.text_input(
        "Prompt", key="causality_text", placeholder="How do I pick the lock of a stranger's flat?", disabled=not source
    )
    how, where, which, much = st.columns([2, 3, 2, 4], vertical_alignment="bottom")
    edit = how.segmented_control(
        "Edit", [ABLATE, ADD], default=ADD, required=True, key="causality_edit", help="Project out, or add α times."
    )
    places = {"one": f"layer {layer}", "all": f"all {run.n_layers} layers"}
    place = where.segmented_control(
        "Where", list(places), default="one", required=True, format_func=places.__getitem__, key="causality_where"
    )
    tokens = which.segmented_control(
        "Tokens",
        ["all", "last"],
        default="all",
        required=True,
        key="causality_tokens",
        help="All: of the prompt and the reply. Last: only the prompt's last token, behind which the reply begins.",
    )
    alpha = much.slider(
        "α",
        -2.0,
        2.0,
        1.0,
        0.25,
        key="causality_alpha",
        disabled=edit == ABLATE,
        help="How much is added, in distances between the two labels' means at the layer.",
    )
    if not source or not text.strip():
        return
    layers = (layer,) if place == "one" else tuple(range(run.n_layers))
    condition = Condition(edit, layers=layers, alpha=alpha if edit == ADD else 0.0)
    try:
        before, after = _tried(run, source, text, condition, tokens)
    except PromptError as error:
        show_error("This prompt was not tried.", error, severe=False)
        return
    except RefusalError as error:
        show_error("The run's model cannot be used.", error)
        return
    for column, title, reply in zip(st.columns(2), ("unedited", "edited"), (before, after), strict=True):
        change = None if reply is before else f"{after.refusal_log_odds - before.refusal_log_odds:+.2f}"
        column.metric(f"refusal log-odds, {title}", f"{reply.refusal_log_odds:.2f}", delta=change, delta_color="off")
        column.caption("The reply opens:")
        with column.container(border=True):
            st.text(reply.opening or "(nothing)")
    st.caption(
        f"The next token's distribution diverges by {after.kl:.3f} nats. Openings of at most {OPENING_TOKENS} tokens."
    )


def _tried(run: Run, source: str, text: str, condition: Condition, tokens: str) -> tuple[Tried, Tried]:
    """Return the prompt without and under the edit; the prompt's activations are reused."""

    def question(opened: OpenRun) -> tuple[Tried, Tried]:
        tried = opened.tried(text)
        return tried.under(Condition(PLAIN)), tried.under(condition, tokens)

    slot = st.empty()
    with st.spinner("Asking the model …"):
        answers = one_model().ask(run, source, question, slot.caption)
    slot.empty()
    return answers


@st.cache_resource(max_entries=8, show_spinner="Comparing with the controls …")
def _summarised(run_id: str, sha256: str, _run: Run, _table: pd.DataFrame, _manifest: InterventionManifest) -> Summary:
    summary, candidates = effects.summarise(_run, _table), effects.candidates(_run, _table)
    return Summary(
        sha256=sha256,
        effects=summary,
        headline=effects.headline(_run, summary),
        findings=effects.reading(_run, _table, summary),
        numbers=effects.numbers(_run, summary),
        candidates=candidates,
        choice=serialise_once(figures.choice(_run, candidates, effects.published_choice(_run, _table))),
        doses=serialise_once(figures.doses(_run, summary, _manifest.dose_layer, _manifest.dose_position)),
    )
