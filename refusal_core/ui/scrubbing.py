"""Keeps a figure that the browser moves by itself and the page around it at the same site."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from refusal_core.ui.streamlit_internals import component


def keep_together(
    container: str, site: int, narrow: bool, moved: Callable[[int], None], narrowed: Callable[[bool], None]
) -> None:
    """Keep the slider of a figure and the page at one site.

    Args:
        container: the ``key`` of the ``st.container`` that holds the figure.
        site: what the page shows; the figure is moved there.
        narrow: whether the page takes the container to be as narrow as on a phone.
        moved: called with the site where the figure came to rest, before the rerun that follows.
        narrowed: called with whether the container is that narrow, when it is not what the page takes it to be.
    """
    key = f"{container}-driver"

    def forward_site() -> None:
        rested = st.session_state[key].site
        if rested is not None:
            moved(int(rested))

    component("figure_driver")(
        key=key,
        data={"container": container, "site": site, "narrow": narrow},
        on_site_change=forward_site,
        on_narrow_change=lambda: narrowed(bool(st.session_state[key].narrow)),
    )
