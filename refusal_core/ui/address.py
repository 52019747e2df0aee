"""The view in the page's address: run, site, band and chosen prompt, so that it can be sent to a colleague.

Session state is the truth while a visitor looks around; the address is read once, when a visit begins, and written
whenever the view changes. Streamlit drops the address on a change of page, and the next page writes it again.
"""

from __future__ import annotations

import re

import streamlit as st

RUN, SITE, BAND, PROMPT = "run", "site", "band", "prompt"

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def read_once() -> None:
    """Put what the address says into session state, on a visit's first script run; what is malformed is ignored."""
    if "address_read" in st.session_state:
        return
    st.session_state["address_read"] = True
    given = st.query_params
    if RUN in given:
        st.session_state[RUN] = given[RUN]
    if re.fullmatch(r"\d{1,4}", given.get(SITE, "")):
        st.session_state[SITE] = int(given[SITE])
    band = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", given.get(BAND, ""))
    if band:
        st.session_state[BAND] = tuple(sorted((float(band[1]), float(band[2]))))
    if re.fullmatch(r"[0-9a-f]{12}", given.get(PROMPT, "")):
        st.session_state[PROMPT] = given[PROMPT]


def write() -> None:
    """Make the address say what session state says."""
    state = st.session_state
    view = {RUN: state.get(RUN), SITE: state.get(SITE), PROMPT: state.get(PROMPT)}
    if state.get(BAND):
        view[BAND] = "..".join(f"{end:.6g}" for end in state[BAND])
    address = {name: str(value) for name, value in view.items() if value is not None}
    if st.query_params.to_dict() != {**_others(), **address}:
        st.query_params.from_dict({**_others(), **address})


def go_to(**view: object) -> None:
    """Change the view from within a page, and show it; the widgets of this script run already hold the old one."""
    st.session_state["address_next"] = view
    st.rerun()


def apply_next() -> None:
    """Put a view asked for by :func:`go_to` in place, before any widget of the new script run exists."""
    for key, value in st.session_state.pop("address_next", {}).items():
        st.session_state[key] = value


def _others() -> dict[str, str]:
    """What stands in the address besides the view, such as Streamlit's own options."""
    return {name: value for name, value in st.query_params.to_dict().items() if name not in (RUN, SITE, BAND, PROMPT)}
