"""Downloads of a run: the report's files and figures in one zip, the directions, and code that uses them."""

from __future__ import annotations

import streamlit as st

from refusal_core.runs.manifest import DIRECTIONS
from refusal_core.runs.run import Run
from refusal_core.sharing.export import export_zip
from refusal_core.sharing.snippets import transformer_lens_snippet, transformers_snippet
from refusal_core.ui import address
from refusal_core.ui.slow_downloads import limited


def downloads(run: Run) -> None:
    """Offer the downloads in an expander; nothing is made before it is asked for."""
    site = int(address.view().site or 0)
    with st.expander("Download", icon=":material/download:"):
        with st.container(horizontal=True):
            st.download_button(
                "Everything, as one zip",
                limited(lambda: export_zip(run, site)),
                file_name=f"{run.run_id}.zip",
                mime="application/zip",
                on_click="ignore",
                icon=":material/folder_zip:",
                help="The report's files and figures, a histogram per layer, all tables as csv, report.html, the "
                "directions. Drawing the figures takes up to a minute.",
                key="download_zip",
            )
            st.download_button(
                "The directions",
                lambda: (run.path / DIRECTIONS).read_bytes(),
                file_name=DIRECTIONS,
                mime="application/octet-stream",
                on_click="ignore",
                icon=":material/north_east:",
                help="unit_direction, harmful_mean and harmless_mean, arrays of shape (layers + 1, width) in float32.",
                key="download_directions",
            )
        st.caption(f"The directions in other tools, at {run.site_label(site)}:")
        plain, lens = st.tabs(["transformers", "TransformerLens"])
        plain.code(transformers_snippet(run, site), language="python")
        lens.code(transformer_lens_snippet(run, site), language="python")
