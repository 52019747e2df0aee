"""The parts of the Evidence page."""

from __future__ import annotations

import streamlit as st

from refusal_core.errors import RunError
from refusal_core.evidence.answers import QUESTIONS, answer
from refusal_core.figures.evidence import FIGURES, OVER_LAYERS, cosines
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import Run
from refusal_core.ui import address, numbers
from refusal_core.ui.layout import chart, identity, marked, sentences, shared, shared_figure, show_error
from refusal_core.ui.server import told

_TABLES = {
    "fit": ("sites", ["in_sample_d", "in_sample_auroc", "mean_crossings"]),
    "hold": (
        "sites",
        ["crossfit_d", "crossfit_auroc", "crossfit_accuracy", "crossfit_range_overlap", "crossfit_pair_accuracy"],
    ),
    "chance": ("random_directions", []),
    "harm": ("transfer", []),
    "simpler": ("baselines", []),
    "refusing": ("refusal", []),
    "space": ("geometry", []),
    "enough": ("learning", []),
}


def evidence_of(run: Run) -> Evidence:
    """Return the run's evidence, read once for all visitors.

    Raises:
        RunError: when the run has none, or it cannot be read.
    """
    return run.evidence


def evidence_or_none(run: Run) -> Evidence | None:
    """Return the run's evidence, or None where it has none that can be read."""
    try:
        return evidence_of(run)
    except RunError:
        return None


def evidence_or_end(run: Run) -> Evidence:
    """Return the run's evidence; the page ends with the reason when it cannot be read."""
    try:
        return evidence_of(run)
    except RunError as error:
        show_error("This run's evidence cannot be read.", error)
        st.stop()


def evidence_chart(run: Run, evidence: Evidence, name: str, site: int) -> None:
    """Show the figure of a question, or the overview."""
    key = f"evidence_{name}"
    if name in OVER_LAYERS:
        figure = marked(run, key, site, lambda site: OVER_LAYERS[name](run, evidence, site))
    else:
        of_site = (*identity(run), "evidence", name, site)
        figure = shared_figure(of_site, lambda: FIGURES[name](run, evidence, site))
    chart(figure, key)


def question_section(run: Run, evidence: Evidence, name: str, site: int) -> None:
    """Show a question with what the numbers say to it; its figure and numbers once unfolded, one question at a time."""
    st.subheader(QUESTIONS[name], anchor=False)
    st.markdown(sentences(shared((*identity(run), "answer", name, site), lambda: answer(evidence, name, site))))
    key = f"evidence_open_{name}"
    with st.expander(
        "Figure and numbers",
        icon=":material/show_chart:",
        key=address.fill(key, address.view().question == name),
        on_change=_unfold,
        args=(name, key),
    ) as section:
        if section.open:
            evidence_chart(run, evidence, name, site)
            if name == "space":
                figure = shared_figure((*identity(run), "cosines"), lambda: cosines(run, evidence))
                chart(figure, "evidence_cosines")
            _numbers(evidence, name, site)


def _unfold(name: str, key: str) -> None:
    """Open a question, which folds the one that was open."""
    address.change(question=name if st.session_state[key] else None)


def _numbers(evidence: Evidence, question: str, site: int) -> None:
    table_name, wanted = _TABLES[question]
    table = getattr(evidence, table_name)
    if "site" in table:
        table = table[table["site"].eq(site)]
    if wanted:
        columns = [column for number in wanted for column in (number, f"{number}_low", f"{number}_high")]
        table = table[[column for column in columns if column in table]]
    numbers.numbers_table(table.drop(columns="site", errors="ignore"))
    reasons = evidence.reasons
    here = reasons["site"].isna() | reasons["site"].eq(site).fillna(False).astype(bool)
    for missing in reasons[here & reasons["table"].eq(table_name)].itertuples():
        st.text(f"{missing.number} ({missing.source}): {told(missing.reason)}")
