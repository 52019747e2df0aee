"""The home page: what this run says, in one screen, and a prompt of one's own; and the server of all pages."""

from __future__ import annotations

import streamlit as st

from refusal_core.ui.server import guard, show_failure

if __name__ != "__main__":
    # Streamlit imports this file once, to serve what it calls an app, and runs it as a script for every visit.
    app = st.App(__file__, middleware=guard(__file__), on_script_error=show_failure)
else:
    from refusal_core.ui import home
    from refusal_core.ui.downloads import downloads
    from refusal_core.ui.frame import frame
    from refusal_core.ui.layout import run_facts, run_in_a_line
    from refusal_core.ui.model import available_source, import_engine

    run = frame("Refusal directions", "How a chat model tells harmful requests from harmless ones, layer by layer.")
    site = run.best_site()
    answered = home.answered(run, site)
    home.show_headline(run, site, answered)
    home.prompt_box(run, site)
    if answered is not None:
        home.show_answers(run, site, answered)
        best = "d of the imported direction" if run.imported else "the cross-fitted d"
        st.caption(
            f"All numbers are of {run.site_label(site)}, where {best} is highest; in brackets 95 % "
            "intervals. A click on a question shows more."
        )
    st.caption(run_in_a_line(run))
    downloads(run)
    run_facts(run)
    if available_source(run) is not None:
        import_engine()
