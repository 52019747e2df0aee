"""What screen readers and keyboards need of every page and Streamlit does not give.

Plotly figures and tables on canvas have no accessible name, so they are named after their own axes, legend and columns.
Streamlit's headings have the level of their size; screen readers are given levels without gaps.
"""

from __future__ import annotations

import streamlit as st

from refusal_core.ui.streamlit_internals import component, resource


def make_accessible() -> None:
    """Name what the page draws, for as long as it is open."""
    backgrounds = "".join(
        f"--{theme}-background: {st.get_option(f'theme.{theme}.backgroundColor')};" for theme in ("light", "dark")
    )
    css = f":root {{ {backgrounds} }}\n{resource('page.css')}"
    with st.sidebar:
        component("accessible_names", css=css, isolate_styles=False)(key="accessible_names")
