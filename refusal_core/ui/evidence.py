"""The parts of the Evidence page."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.evidence import Evidence
from refusal_core.runs import MANIFEST, Run
from refusal_core.ui.numbers import in_words

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
    """The run's evidence, read once for all visitors."""
    return _read(run.run_id, (run.path / MANIFEST).stat().st_mtime_ns, run)


def numbers_table(evidence: Evidence, question: str, site: int) -> None:
    """The numbers behind a question at one site, folded away, with the reasons for those that are missing."""
    table_name, wanted = _TABLES[question]
    table = getattr(evidence, table_name)
    if "site" in table:
        table = table[table["site"].eq(site)]
    if wanted:
        columns = [column for number in wanted for column in (number, f"{number}_low", f"{number}_high")]
        table = table[[column for column in columns if column in table]]
    with st.expander("The numbers", icon=":material/table_rows:"):
        in_words(table.drop(columns="site", errors="ignore"))
        reasons = evidence.reasons
        here = reasons["site"].isna() | reasons["site"].eq(site).fillna(False).astype(bool)
        for missing in reasons[here & reasons["table"].eq(table_name)].itertuples():
            st.text(f"{missing.number} ({missing.source}): {missing.reason}")


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(run_id: str, changed: int, _run: Run) -> Evidence:
    tables: dict[str, pd.DataFrame] = _run.evidence_tables()
    return Evidence.from_tables(tables)
