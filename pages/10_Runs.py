"""The runs of the cache: opening, making, sending and importing them."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import runs as parts
from refusal_core.ui.frame import head
from refusal_core.ui.server import may_change
from refusal_core.ui.start import start_a_run

head("Runs", "Start a run and watch it; open, rename, send or delete runs, and import one that someone sent.")
# Always drawn, or the tabs would go back to the first one when the last job ends.
with st.container():
    parts.running_jobs()
labels = [":material/folder_open: In the cache", ":material/play_arrow: Start a run", ":material/upload_file: Import"]
here, *changing = st.tabs(labels if may_change() else labels[:1])
with here:
    chosen = parts.run_table()
    if chosen is not None:
        parts.chosen_run(chosen)
    parts.deleted_runs()
if changing:
    new, sent = changing
    with new:
        start_a_run()
    with sent:
        parts.import_a_run()
        parts.import_vectors_for(chosen)
parts.recent_jobs()
