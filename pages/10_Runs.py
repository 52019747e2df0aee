"""The runs of the cache: what there is, making one, sending one, and taking in one that someone sent."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui import runs as parts
from refusal_core.ui.frame import head
from refusal_core.ui.start import start_a_run

head("Runs", "Start a run and watch it, open, rename, send or delete what there is, and take in what someone sent.")
# Always there, or the tabs would begin anew, at the first, when the last job ends.
with st.container():
    parts.jobs_under_way()
here, new, sent = st.tabs(
    [":material/folder_open: In the cache", ":material/play_arrow: Start a run", ":material/upload_file: Import"]
)
with here:
    chosen = parts.run_table()
    if chosen is not None:
        parts.chosen_run(chosen)
with new:
    start_a_run()
with sent:
    parts.import_a_run()
parts.jobs_that_ended()
