"""Keeps a figure that the browser moves by itself and the page around it at the same site."""

from __future__ import annotations

from collections.abc import Hashable

import streamlit as st

from refusal_core.ui import address
from refusal_core.ui.newest import Newest
from refusal_core.ui.streamlit_internals import component

_STARTS = "scrubbing_starts"
_MOST_STARTS = 500


def keep_together(container: str, site: int) -> None:
    """Keep the slider of a figure and the page at one site.

    Args:
        container: the ``key`` of the ``st.container`` that holds the figure.
        site: what the page shows; the figure is moved there.
    """
    key = f"{container}-driver"

    def forward_site() -> None:
        rested = st.session_state[key].site
        if rested is not None:
            address.change(site=int(rested))

    def forward_width() -> None:
        st.session_state[_narrow_key(container)] = bool(st.session_state[key].narrow)

    component("figure_driver")(
        key=key,
        data={"container": container, "site": site, "narrow": is_narrow(container)},
        on_site_change=forward_site,
        on_narrow_change=forward_width,
    )


def is_narrow(container: str) -> bool:
    """Return whether a figure's container is as narrow as on a phone, as far as its browser has told."""
    return bool(st.session_state.get(_narrow_key(container), False))


def first_site(container: str, site: int, shown: tuple[Hashable, ...]) -> int:
    """Return the site that a figure is drawn at: the one it was first drawn at, for it not to be sent at every step.

    Args:
        container: as for :func:`keep_together`.
        site: what the page shows.
        shown: what else the figure depends on.
    """
    starts: Newest[int, int] = st.session_state.setdefault(_STARTS, Newest(_MOST_STARTS))
    # What is shown may name thousands of prompts, which need not be held for each figure.
    figure = hash((container, *shown))
    if figure not in starts:
        starts[figure] = site
    return starts[figure]


def _narrow_key(container: str) -> str:
    return f"{container}-narrow"
