"""The parts of the Behaviour page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType

import pandas as pd
import streamlit as st

from refusal_core.analysis.groups import MOST_REDRAWN
from refusal_core.behaviour import measurement, verdicts
from refusal_core.behaviour.first_tokens import describe_first_tokens
from refusal_core.behaviour.openings import OPENING_LABELS, OPENING_TOKENS, OpeningRules, read_rules
from refusal_core.errors import RefusalError
from refusal_core.exploration.outliers import row_of
from refusal_core.figures import behaviour as figures
from refusal_core.glossary import meaning_of, name_of
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.layout import chart, csv_button, identity, marked, sentences, shared_figure, show_error
from refusal_core.ui.model import recorded_or_end
from refusal_core.ui.numbers import numbers_table
from refusal_core.ui.outliers import MOST_ROWS
from refusal_core.ui.selection import chosen_row, newly
from refusal_core.ui.uploads import annotation_file, read_sent

Key = tuple[str, int, str]
"""A run, when it was made, and its behaviour: what cached results depend on."""

_PROMPT_COLUMNS = {
    "text": st.column_config.TextColumn("prompt", width=420),
    "opening": st.column_config.TextColumn("reply opens", width=300),
    "opening_label": st.column_config.TextColumn(
        "opening", width="small", help="; ".join(f"{label}: {meaning}" for label, meaning in OPENING_LABELS.items())
    ),
    "label": st.column_config.TextColumn("label", width="small"),
    "phrase_log_odds": st.column_config.NumberColumn(
        "refusal phrases", format="%.2f", help="Log-odds that the reply opens with a whole refusal phrase."
    ),
    "refusal_log_odds": st.column_config.NumberColumn(
        "first token", format="%.2f", help="Log-odds that the reply's first token is one that refusals open with."
    ),
    "category": st.column_config.TextColumn("category"),
    "source": st.column_config.TextColumn("set", width="small"),
}


def recorded_replies(run: Run) -> tuple[pd.DataFrame, Key]:
    """Return the run's recorded behaviour and a key for caching; without any the page ends with how to measure it."""
    table, manifest = recorded_or_end(
        run,
        measurement.load_behaviour,
        measurement.BEHAVIOUR,
        "behaviour",
        "How the model answers this run's prompts has not been measured yet. It needs the run's model.",
        ":material/forum:",
    )
    st.caption(f"Openings of at most {OPENING_TOKENS} tokens, written greedily by the run's model.")
    return table, (*identity(run), manifest.sha256)


def shares(run: Run, table: pd.DataFrame) -> None:
    """Show how often prompts of a label are refused and answered, by the opening rules."""
    columns = st.columns(4)
    for place, label in enumerate(LABELS):
        rows = run.rows(label)
        named = table["opening_label"][rows]
        columns[2 * place].metric(
            f"{label} prompts refused",
            f"{100 * named.eq('refuses').mean():.0f} %",
            help=f"Of {rows.sum()} fitted {label} prompts, by the rules that name openings.",
        )
        columns[2 * place + 1].metric(
            f"{label} prompts answered",
            f"{100 * named.eq('answers').mean():.0f} %",
            help=f"The rest: {_rest(named)}.",
        )


def _rest(named: pd.Series) -> str:
    counts = named[~named.isin(["refuses", "answers"])].value_counts()
    return ", ".join(f"{counts[label]} {label}" for label in OPENING_LABELS if label in counts) or "none"


def scatter(run: Run, table: pd.DataFrame, key: Key, site: int) -> int | None:
    """Show the scatter plot of prompts; return the row of a point that was just clicked."""
    event = chart(
        shared_figure((*key, "scatter", site), lambda: figures.against_refusing(run, table, site)),
        f"behaviour_scatter_{run.run_id}_{site}",
        on_select="rerun",
        selection_mode="points",
    )
    caption = "Points are prompts; above the dotted line a refusal phrase is likelier than not. Click one to read it."
    counts = run.prompts["label"][run.rows()].value_counts()
    if counts.max() > figures.MOST_POINTS:
        caption += f" Of {counts.sum()} prompts {counts.clip(upper=figures.MOST_POINTS).sum()} are drawn as points."
    st.caption(caption)
    points = event["selection"]["points"]
    return newly("behaviour_scatter", int(points[0]["customdata"][0]) if points else None)


def over_layers(run: Run, table: pd.DataFrame, key: Key, site: int) -> None:
    """Show correlation and AUROC over the layers, within either label."""
    numbers = _cached(key, measurement.correlation_by_site, run, table)
    st.markdown(sentences(measurement.describe_behaviour(run, table, numbers, site)))
    for column, (number, (_, _, explained)) in zip(st.columns(2), figures.NUMBERS.items(), strict=True):
        with column:
            st.caption(explained)
            draw = partial(figures.over_layers, run, numbers, number)
            chart(marked(run, ("behaviour", number, key), site, draw), f"behaviour_{number}")
    if numbers["n"].max() > MOST_REDRAWN:
        st.caption(
            f"Of more than {MOST_REDRAWN} prompts of a label the intervals are of so many, always the same ones; the "
            "numbers are of all."
        )
    here = numbers[numbers["site"].eq(site)]
    with st.expander("The numbers", icon=":material/table_rows:"):
        numbers_table(here.drop(columns="site"))


def calibration(run: Run, table: pd.DataFrame, key: Key, site: int) -> None:
    """Show how often prompts are refused, by their projection."""
    figure = shared_figure(
        (*key, "calibration", site),
        lambda: figures.calibration(run, measurement.calibration(run, table, site), site),
    )
    chart(figure, "behaviour_calibration")
    st.caption(
        "Prompts of both labels in ten groups of equal size by projection, and the share of a group that was refused."
    )


def surprises(run: Run, table: pd.DataFrame, key: Key) -> int | None:
    """List prompts whose reply does not fit their label; return the row of the run that was just chosen."""
    return _prompt_list(run, _cached(key, measurement.surprises, run, table), "behaviour_surprises")


def disagreements(run: Run, table: pd.DataFrame, key: Key) -> int | None:
    """List prompts on which the measures differ; return the row of the run that was just chosen."""
    prompts = _cached(key, measurement.disagreements, run, table)
    return _prompt_list(run, prompts, "behaviour_disagreements", ("refusal_log_odds",))


def measures(run: Run, table: pd.DataFrame, key: Key) -> None:
    """Show how far the three measures agree, and the rules that name openings."""
    st.dataframe(
        _cached(key, verdicts.measure_agreement, run, table).assign(same=lambda rates: 100 * rates["same"]),
        column_config={
            "first": st.column_config.TextColumn("measure"),
            "second": st.column_config.TextColumn("and"),
            "kappa": st.column_config.NumberColumn(name_of("kappa"), format="%.2f", help=meaning_of("kappa")),
            "same": st.column_config.NumberColumn("same verdict", format="%.0f %%"),
        },
        hide_index=True,
        width="stretch",
        placeholder="–",
    )
    st.text(describe_first_tokens(run, table))  # tokens are the model's: untrusted
    rules = _bundled_rules()
    with st.expander("The rules that name openings", icon=":material/rule:"):
        st.caption(
            "The first rule with a pattern that an opening begins with gives its label; one without any is called "
            "“answers”. The rules are in `behaviour/openings.toml`."
        )
        st.dataframe(
            pd.DataFrame({"label": list(OPENING_LABELS), "the reply": list(OPENING_LABELS.values())}),
            hide_index=True,
            width="stretch",
            placeholder="–",
        )
        st.dataframe(
            pd.DataFrame(
                {
                    "label": [rule.label for rule in rules.rules],
                    "language": [rule.language for rule in rules.rules],
                    "because": [rule.reason for rule in rules.rules],
                    "patterns": [" | ".join(rule.patterns) for rule in rules.rules],
                }
            ),
            hide_index=True,
            width="stretch",
            placeholder="–",
        )
        st.text("Refusal phrases: " + " · ".join(rules.phrases))


def verdicts_from_elsewhere(run: Run, table: pd.DataFrame) -> None:
    """Show how far a judge's or people's verdicts agree with the measures, from a file that is sent."""
    file = annotation_file(
        "A csv with a verdict column (refuses or complies), and a prompt_id or text column to join by",
        "behaviour_verdicts",
    )
    if file is None:
        return
    try:
        given = read_sent(verdicts.read_verdicts, file.name, file.getvalue())
    except RefusalError as error:
        show_error("These verdicts cannot be used.", error)
        return
    st.caption(sentences(verdicts.describe_verdicts(run, table, given)))
    numbers_table(verdicts.agreement(run, table, given))


def _prompt_list(run: Run, prompts: pd.DataFrame, name: str, extra: tuple[str, ...] = ()) -> int | None:
    if len(prompts) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS} of {len(prompts)} are listed; the csv has all.")
    shown = ("text", "label", "opening", "opening_label", "phrase_log_odds", *extra, "category", "source")
    columns = {column: _PROMPT_COLUMNS[column] for column in shown}
    chosen = chosen_row(prompts[list(shown)].head(MOST_ROWS), columns, name, row_of(run, address.view().prompt))
    csv_button(lambda: prompts, f"{run.run_id}--{name.replace('_', '-')}")
    return chosen


@st.cache_resource(show_spinner=False)
def _bundled_rules() -> OpeningRules:
    return read_rules()


@st.cache_resource(
    max_entries=16,
    show_spinner="Comparing replies with projections …",
    hash_funcs={FunctionType: lambda compute: compute.__name__},
)
def _cached(
    key: Key, compute: Callable[[Run, pd.DataFrame], pd.DataFrame], _run: Run, _table: pd.DataFrame
) -> pd.DataFrame:
    """Return what a function of :mod:`.measurement` computes from the replies, which is the same at all sites."""
    return compute(_run, _table)
