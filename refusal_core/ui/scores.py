"""Scores as a table, which can be downloaded as csv."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pandas as pd
import streamlit as st

from refusal_core.glossary import meaning_of
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run
from refusal_core.ui.conversations import written_out
from refusal_core.ui.numbers import whole


def score_table(
    run: Run,
    scores: Sequence[Score],
    site: int,
    key: str,
    every_site: bool = False,
    columns: pd.DataFrame | None = None,
) -> None:
    """Show a row per prompt with its numbers at a site.

    Args:
        run: the prompts were scored on.
        scores: of the prompts.
        site: whose numbers are shown.
        key: of the table.
        every_site: whether the projections at all sites are shown too.
        columns: further columns, a row per prompt.
    """
    table = pd.DataFrame(
        {
            "prompt": [written_out(score.prompt) for score in scores],
            "projection": [score.projection[site] for score in scores],
            "percentile, harmful": [whole(score.percentile["harmful"][site]) for score in scores],
            "percentile, harmless": [whole(score.percentile["harmless"][site]) for score in scores],
            "refusal log-odds": [score.refusal_log_odds for score in scores],
            "first token": [score.first_token for score in scores],
        }
    )
    if every_site:
        sites = {run.site_label(at): [score.projection[at] for score in scores] for at in range(run.n_sites)}
        table = pd.concat([table, pd.DataFrame(sites)], axis=1)
    if columns is not None:
        # As text, since a json file may have lists and the like.
        known = columns.map(_as_text).mask(columns.isna(), "")
        taken = list(table.columns)
        for name in map(_as_text, columns.columns):
            taken.append(name + " (file)" * next(n for n in count() if name + " (file)" * n not in taken))
        known.columns = taken[len(table.columns) :]
        table = pd.concat([table, known.reset_index(drop=True)], axis=1)
    st.dataframe(
        table,
        column_config={
            # Narrow enough for all columns to fit on a laptop.
            "prompt": st.column_config.TextColumn(width=300),
            "projection": st.column_config.NumberColumn(
                format="%.3f", help=f"At {run.site_label(site)}, in activation units."
            ),
            **{
                f"percentile, {label}": st.column_config.NumberColumn(
                    format="%.0f",
                    help=f"Percent of the run's {label} prompts that project below it at {run.site_label(site)}.",
                )
                for label in LABELS
            },
            "refusal log-odds": st.column_config.NumberColumn(format="%.2f", help=meaning_of("refusal_log_odds")),
            "first token": st.column_config.TextColumn(width="small", help="The likeliest first token of the reply."),
        },
        hide_index=True,
        width="stretch",
        placeholder="–",
        key=key,
    )


def _as_text(value: object) -> str:
    """Return a value as text without lone surrogates, which a table cannot hold."""
    return str(value).encode("utf-8", "replace").decode()
