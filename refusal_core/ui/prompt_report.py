"""What prompts are read from a file or set, before anything is computed, and what is chosen where that is open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from refusal_core.children import BusyError, in_child
from refusal_core.errors import PromptError, RefusalError
from refusal_core.markdown import plain
from refusal_core.prompts.bundled import CONTRAST_SETS
from refusal_core.prompts.labels import GREY, LABELS, NOTHING_CHOSEN, SKIPPED, Choice
from refusal_core.prompts.reading import ListInspection, column_names, inspect_list
from refusal_core.prompts.report import PromptReport, describe
from refusal_core.prompts.sets import Inspection, inspect_source
from refusal_core.runs.run import Run
from refusal_core.ui.server import told
from refusal_core.ui.uploads import read_sent

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
        try:
            columns = _columns(source, stamp) if _is_file(path) else []
        except BusyError:  # which is told below
            columns = []
        choice = _column_fields(columns, key, with_labels=True)
        choice = _label_fields(source, stamp, choice, key)
        try:
            labels = tuple(choice.labels.items())
            inspection = _inspected(source, stamp, choice.text_column, choice.label_column, labels)
        except RefusalError as error:
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


def read_list(name: str, content: bytes, most: int) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Read an uploaded list of prompts and show what it is read as, with a field for its text column.

    Args:
        name: of the file.
        content: of the file.
        most: prompts that are wanted.

    Returns:
        The first prompts, their labels and pairs, and how many prompts there are.

    Raises:
        RefusalError: when it cannot be read.
    """
    with st.expander("What is read", icon=":material/table_view:"):
        choice = NOTHING_CHOSEN
        found: ListInspection = read_sent(inspect_list, name, content, choice, most)
        chosen = _column_fields(list(found.columns), "live_list", with_labels=False)
        if chosen != choice:
            found = read_sent(inspect_list, name, content, chosen, most)
        if found.report is None:
            raise PromptError(found.problem)
        show_report(found.report, "live_list")
    return found.prompts, found.labelled, found.report.n_prompts


def report_of_run(run: Run) -> None:
    """Show what a run's prompts are, set by set, once unfolded."""
    unfolded = st.expander(
        "Prompts of this run", icon=":material/table_view:", key="run_prompts_open", on_change="rerun"
    )
    if not unfolded.open:
        return
    with unfolded:
        prompts = run.prompts
        for source in (None, *run.transfer_sources):
            table = prompts[run.rows(source=source)]
            name, use = (run.contrast_name, "fitted on") if source is None else (source, "scored, not fitted on")
            show_report(describe(table, name, use, "as the set has them"), f"run_{name}")


def show_report(report: PromptReport, key: str) -> None:
    """Show what one source of prompts was taken for, as a table, and its first prompts."""
    facts = pd.DataFrame(report.facts(), columns=["what", "found"])
    st.dataframe(facts, hide_index=True, width="stretch", placeholder="–", key=f"{key}_facts_{report.source}")
    first = pd.DataFrame(report.first_rows, columns=["label", "prompt"])
    first["label"] = first["label"].fillna("–")
    first["prompt"] = [text[:300].encode("utf-8", "replace").decode() for text in first["prompt"]]
    st.dataframe(first, hide_index=True, width="stretch", placeholder="–", key=f"{key}_first_{report.source}")


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
    except RefusalError:
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


def _inspected(
    source: str, stamp: int, text_column: str | None, label_column: str | None, labels: tuple[tuple[str, str], ...]
) -> Inspection:
    found = _inspected_once(source, stamp, text_column, label_column, labels)
    if isinstance(found, RefusalError):
        raise found
    return found


@st.cache_data(max_entries=8, show_spinner="Reading the prompts …")
def _inspected_once(
    source: str, stamp: int, text_column: str | None, label_column: str | None, labels: tuple[tuple[str, str], ...]
) -> Inspection | RefusalError:
    """Return what a source is taken for; a file that changed has another stamp and is read again."""
    try:
        choice = Choice(text_column, label_column, dict(labels))
        return in_child(inspect_source, source, choice, online=not stamp)
    except BusyError:
        raise
    except RefusalError as error:
        if not stamp:  # the hub may answer the next time
            raise
        return error


@st.cache_data(max_entries=8, show_spinner="Reading the prompts …")
def _columns(source: str, stamp: int) -> list[str]:
    del stamp
    try:
        return in_child(column_names, source)
    except BusyError:
        raise
    except RefusalError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _problem(text: str) -> None:
    st.warning("This cannot be fitted on as it is.", icon=":material/error:")
    st.text(told(text))
