"""What prompts are read from a file or set, before anything is computed, and what is chosen where that is open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from refusal_core.errors import PromptError
from refusal_core.prompts.bundled import CONTRAST_SETS
from refusal_core.prompts.labels import GREY, LABELS, NOTHING_CHOSEN, SKIPPED, Choice
from refusal_core.prompts.reading import PromptFile, interpret, read_records
from refusal_core.prompts.records import Records
from refusal_core.prompts.report import PromptReport, describe
from refusal_core.prompts.sets import Inspection, inspect_source
from refusal_core.runs.run import Run
from refusal_core.ui.markdown import plain

_BY_NAME = "by its name"
_NOT_SAID = "not said"
_MOST_VALUES = 12
_LOOKED_AT = "runs_looked_at"


def chosen_columns(source: str) -> dict[str, Any]:
    """Show what a contrast set is read as, with fields for columns and labels where those are not plain.

    A set that has to be downloaded is looked at when that is asked for.

    Args:
        source: as a run names it.

    Returns:
        The options of a run that say what was chosen.
    """
    if not source or source in CONTRAST_SETS:
        return {}
    with st.expander("What is read", icon=":material/table_view:", expanded=True):
        path = Path(source)
        if not _is_file(path):
            if st.button("Look at the prompts", key="runs_look", icon=":material/table_view:"):
                st.session_state[_LOOKED_AT] = source
            if st.session_state.get(_LOOKED_AT) != source:
                st.caption("Sets on the hub are downloaded to be looked at.")
                return {}
        key = f"runs_columns_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
        stamp = path.stat().st_mtime_ns if _is_file(path) else 0
        columns = _columns(source, stamp) if _is_file(path) else []
        choice = _column_fields(columns, key, with_labels=True)
        choice = _label_fields(source, stamp, choice, key)
        try:
            labels = tuple(choice.labels.items())
            inspection = _inspected(source, stamp, choice.text_column, choice.label_column, labels)
        except PromptError as error:
            _problem(str(error))
        else:
            for report in inspection.reports:
                show_report(report, key)
            if inspection.problem:
                _problem(inspection.outcome)
            else:
                st.success(plain(f"{inspection.outcome}."))
    return {
        "text_column": choice.text_column,
        "label_column": choice.label_column,
        "label": tuple(f"{value}={meaning}" for value, meaning in choice.labels.items()),
    }


def read_list(name: str, content: bytes) -> PromptFile:
    """Read an uploaded list of prompts and show what it is read as, with a field for its text column.

    Args:
        name: of the file.
        content: of the file.

    Raises:
        PromptError: when it cannot be read.
    """
    with st.expander("What is read", icon=":material/table_view:"):
        records = _records(name, content)
        choice = _column_fields(records.columns if records.has_columns else [], "live_list", with_labels=False)
        found = interpret(records, choice)
        show_report(found.report, "live_list")
    return found


def report_of_run(run: Run) -> None:
    """Show what a run's prompts are, set by set."""
    with st.expander("Prompts of this run", icon=":material/table_view:"):
        prompts = run.prompts
        for source in (None, *run.transfer_sources):
            table = prompts[run.rows(source=source)]
            name, use = (run.contrast_name, "fitted on") if source is None else (source, "scored, not fitted on")
            show_report(describe(table, name, use, "as the set has them"), f"run_{name}")


def show_report(report: PromptReport, key: str) -> None:
    """Show what one source of prompts was taken for, as a table, and its first prompts."""
    facts = pd.DataFrame(report.facts(), columns=["what", "found"])
    st.dataframe(facts, hide_index=True, width="stretch", key=f"{key}_facts_{report.source}")
    first = pd.DataFrame(report.first_rows, columns=["label", "prompt"])
    first["label"] = first["label"].fillna("–")
    first["prompt"] = [text[:300].encode("utf-8", "replace").decode() for text in first["prompt"]]
    st.dataframe(first, hide_index=True, width="stretch", key=f"{key}_first_{report.source}")


def _column_fields(columns: list[str], key: str, with_labels: bool) -> Choice:
    """Draw fields for the columns of texts and of labels; what is left alone is found by its name."""
    if len(columns) < 2:
        return NOTHING_CHOSEN
    names = ("Text column", "Label column") if with_labels else ("Text column",)
    chosen: list[str | None] = []
    for place, name in zip(st.columns(2), names, strict=False):
        value = place.selectbox(name, [_BY_NAME, *columns], key=f"{key}_{name}")
        chosen.append(None if value == _BY_NAME else value)
    return Choice(chosen[0], chosen[1] if with_labels else None)


def _label_fields(source: str, stamp: int, choice: Choice, key: str) -> Choice:
    """Draw a field for every value of the label column of which nobody said what it means."""
    try:
        reports = _inspected(source, stamp, choice.text_column, choice.label_column, ()).reports
    except PromptError:
        return choice
    unknown = [meaning for report in reports for meaning in report.meanings if meaning.label is None]
    labels = {}
    for number, meaning in enumerate(unknown[:_MOST_VALUES]):
        said = st.selectbox(
            f"What “{meaning.value or '(none)'}” means, in {meaning.n_rows} rows",
            [_NOT_SAID, *LABELS, GREY, SKIPPED],
            key=f"{key}_meaning_{number}_{meaning.value}",
            help="skip leaves the rows out",
        )
        if said != _NOT_SAID and meaning.value:
            labels[meaning.value] = said
    if len(unknown) > _MOST_VALUES:
        st.caption(f"{len(unknown)} values are not known as labels; is another column meant?")
    return Choice(choice.text_column, choice.label_column, labels)


@st.cache_data(max_entries=8, show_spinner="Reading the prompts …")
def _inspected(
    source: str, stamp: int, text_column: str | None, label_column: str | None, labels: tuple[tuple[str, str], ...]
) -> Inspection:
    del stamp  # a file that changed is read again
    return inspect_source(source, Choice(text_column, label_column, dict(labels)))


@st.cache_data(max_entries=4, show_spinner=False)
def _columns(source: str, stamp: int) -> list[str]:
    del stamp
    try:
        path = Path(source)
        records = _records(path.name, path.read_bytes())
    except (OSError, PromptError):
        return []
    return records.columns if records.has_columns else []


@st.cache_data(max_entries=2, show_spinner="Reading the prompts …")
def _records(name: str, content: bytes) -> Records:
    return read_records(content, name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _problem(text: str) -> None:
    st.warning("This cannot be fitted on as it is.", icon=":material/error:")
    st.text(text)
