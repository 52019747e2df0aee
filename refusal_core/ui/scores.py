"""Scores as a table, to read and to take away as csv."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pandas as pd
import streamlit as st

from refusal_core.pipeline.scoring import Score
from refusal_core.runs.store import Run

LOG_ODDS_HELP = "Log-odds that the reply opens with a token that refusals open with (I, As): a tendency, not a refusal."


def score_table(
    run: Run,
    scores: Sequence[Score],
    site: int,
    key: str,
    every_site: bool = False,
    beside: pd.DataFrame | None = None,
) -> None:
    """A row a prompt: its numbers at a site, and with ``every_site`` its projections at all of them.

    Args:
        beside: what else is known of each prompt, a row each.
    """
    table = pd.DataFrame(
        {
            "prompt": [each.text for each in scores],
            "projection": [each.projection[site] for each in scores],
            "percentile, harmful": [each.percentile["harmful"][site] for each in scores],
            "percentile, harmless": [each.percentile["harmless"][site] for each in scores],
            "refusal log-odds": [each.refusal_log_odds for each in scores],
            "first token": [each.first_token for each in scores],
        }
    )
    if every_site:
        sites = {run.site_label(each): [score.projection[each] for score in scores] for each in range(run.n_sites)}
        table = pd.concat([table, pd.DataFrame(sites)], axis=1)
    if beside is not None:
        # As text, since a json file may have lists and the like.
        known = beside.map(_as_text).mask(beside.isna(), "")
        taken = list(table.columns)
        for name in map(_as_text, beside.columns):
            taken.append(name + " (file)" * next(n for n in count() if name + " (file)" * n not in taken))
        known.columns = taken[len(table.columns) :]
        table = pd.concat([table, known.reset_index(drop=True)], axis=1)
    st.dataframe(
        table,
        column_config={
            # With every other column in sight beside it on a laptop.
            "prompt": st.column_config.TextColumn(width=300),
            "projection": st.column_config.NumberColumn(
                format="%.3f", help=f"At {run.site_label(site)}, in activation units."
            ),
            **{
                f"percentile, {label}": st.column_config.NumberColumn(
                    format="%.0f",
                    help=f"Percent of the run's {label} prompts that project below it at {run.site_label(site)}.",
                )
                for label in ("harmful", "harmless")
            },
            "refusal log-odds": st.column_config.NumberColumn(format="%.2f", help=LOG_ODDS_HELP),
            "first token": st.column_config.TextColumn(width="small", help="The likeliest first token of the reply."),
        },
        hide_index=True,
        width="stretch",
        key=key,
    )


def _as_text(value: object) -> str:
    """A text without half surrogates, which are none that a table can have."""
    return str(value).encode("utf-8", "replace").decode()
