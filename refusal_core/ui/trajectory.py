"""The part of the Behaviour page on the projection along replies."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.exploration import trajectory
from refusal_core.exploration.outliers import row_of
from refusal_core.figures.trajectory import along_replies
from refusal_core.runs.manifest import TrajectoryManifest
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.frame import own_position_only
from refusal_core.ui.layout import chart, csv_button, identity, sentences, shared_figure
from refusal_core.ui.model import recorded
from refusal_core.ui.numbers import numbers_table
from refusal_core.ui.selection import chosen_row

KIND = TrajectoryManifest.kind


def replies(run: Run, site: int) -> int | None:
    """Show how the projection moves along replies at a site; return the row of a prompt that was just chosen."""
    if own_position_only(run, "Replies are followed on the direction that was read"):
        return None
    measured = recorded(
        run,
        trajectory.load_trajectory,
        KIND,
        "projections along replies",
        "Whether the projection falls where the model goes along has not been measured yet. It needs the run's model.",
        ":material/timeline:",
    )
    if measured is None:
        return None
    st.markdown(sentences(trajectory.what_happens(run, measured, site)))
    row = row_of(run, address.view().prompt)
    key = (*identity(run), KIND, measured.manifest.sha256, site, row)
    chart(shared_figure(key, lambda: along_replies(run, measured, site, row)), "along_replies")
    thinking = trajectory.thinking_share(measured)
    thought = f" {100 * thinking:.0f} % of the replies have a thought in these tokens (open marks)." if thinking else ""
    st.caption(
        sentences(
            f"Greedy replies to prompts of {measured.manifest.prompts.source}, at most "
            f"{measured.manifest.reply_tokens} tokens; a line ends where half of its replies have ended. Bands are "
            "95 % intervals. From token 1 on the reply's own words are in it: compare lines of one kind of reply. The "
            f"direction was fitted where replies begin, and other directions were not followed.{thought}"
        )
    )
    numbers_table(trajectory.gaps(measured, site))
    shown = measured.prompts[["text", "label", "reply"]]
    columns = {
        "text": st.column_config.TextColumn("prompt", width=520),
        "label": st.column_config.TextColumn("label", width="small"),
        "reply": st.column_config.TextColumn("the model", width="small"),
    }
    chosen: int | None = chosen_row(shown, columns, "along_replies_prompts", row)
    csv_button(lambda: _with_texts(measured), f"{run.run_id}--{KIND}")
    return chosen


def _with_texts(measured: trajectory.Trajectories) -> pd.DataFrame:
    return measured.prompts[["prompt_id", "text", "label"]].merge(measured.table, on="prompt_id")
