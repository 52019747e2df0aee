"""What a visitor looks at: run, site, band and chosen prompt, kept across pages and in the address.

The view lives in session state under one key of its own, because Streamlit forgets a widget's value with the widget.
It is read from the address when a visit begins and when the browser goes back or forward, and written there whenever it
changes, so that the address can be sent to a colleague. Widgets that edit the view are filled from it before they are
drawn and change it when used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import streamlit as st

from refusal_core.ui.streamlit_internals import came_by_history, component

_VIEW = "view"
_SHOWN = "run_on_page"
_WORDS = (
    "run",
    "position",
    "versus",
    "prompts",
    "find",
    "panel",
    "axes",
    "units",
    "published",
    "among",
    "measure",
    "question",
    "part",
    "plane",
    "colour",
)
_LISTS = ("others", "sets", "labels", "categories", "replies", "marked", "over", "followed")
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"

_TEXT, _TEXT_READ = "text", "address_text_read"
_LONGEST_TEXT = 2000
"""Characters of a typed prompt that is put into the address; browsers and mail cut longer addresses."""


@dataclass(frozen=True)
class View:
    """What is looked at; ``None`` where nothing was chosen.

    Attributes:
        run: its id.
        position: the name of the read position that the run is looked at, on pages that have a choice.
        site: ``0 … n_layers``.
        band: in activation units, lower end first.
        prompt: id of the chosen prompt.
        others: runs compared with ``run``, and ``versus`` the one of them that is compared prompt by prompt, on those
            of ``prompts``.
        find: searched for in the prompts' texts; ``sets``, ``labels``, ``categories``, ``replies`` and ``marked`` are
            what the list of prompts is narrowed to.
        panel: of the Layers page, with its ``axes``, the transfer sets drawn ``over`` them, the prompts ``followed``
            in it, and whether the ``published`` curves are there.
        units: ``raw`` where prompts are followed over the layers in activation units.
        among: the labels whose ranks are correlated on the Compare page.
        measure: of the Causality page.
        question: of the Evidence page, whose figure and numbers are shown.
        part: of a page of several, one of which is open at a time.
        plane: of the Map page, and the column that its points are in the ``colour`` of.
    """

    run: str | None = None
    position: str | None = None
    site: int | None = None
    band: tuple[float, float] | None = None
    prompt: str | None = None
    others: tuple[str, ...] | None = None
    versus: str | None = None
    prompts: str | None = None
    find: str | None = None
    sets: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    replies: tuple[str, ...] | None = None
    marked: tuple[str, ...] | None = None
    panel: str | None = None
    axes: str | None = None
    over: tuple[str, ...] | None = None
    followed: tuple[str, ...] | None = None
    published: str | None = None
    units: str | None = None
    among: str | None = None
    measure: str | None = None
    question: str | None = None
    part: str | None = None
    plane: str | None = None
    colour: str | None = None


def view() -> View:
    """Return the visitor's view, read from the address on the first script run of a visit."""
    if _VIEW not in st.session_state:
        st.session_state[_VIEW] = _parsed(st.query_params.to_dict())
    current: View = st.session_state[_VIEW]
    return current


def follow() -> None:
    """Take the view of the address where the browser went back or forward to one that names a view."""
    came_to = _parsed(st.query_params.to_dict())
    if came_by_history() and came_to != View():
        st.session_state[_VIEW] = came_to
    with st.sidebar:
        component("one_step_per_page")(key="one_step_per_page")


def change(**parts: Any) -> None:
    """Change parts of the view; the address follows when the page is drawn."""
    st.session_state[_VIEW] = replace(view(), **parts)


def open_run(run_id: str | None) -> None:
    """Choose another run; position, site, band, prompt and search are of the run before, which differs in them."""
    change(run=run_id, position=None, site=None, band=None, prompt=None, find=None)


def show_run(name: str | None) -> None:
    """Set the run that the page shows, by its name at its read position; saved figures and texts go by it."""
    st.session_state[_SHOWN] = name


def shown_run() -> str | None:
    """Return the name of the run that the page shows: that of the view where the page sets none."""
    shown: str | None = st.session_state.get(_SHOWN)
    return shown or view().run


def write() -> None:
    """Make the address say what the view is, leaving Streamlit's own options in it."""
    shown = view()
    named: dict[str, str | None] = {
        "site": None if shown.site is None else str(shown.site),
        "band": "..".join(f"{end:.6g}" for end in shown.band) if shown.band else None,
        "prompt": shown.prompt,
    }
    named |= {name: getattr(shown, name) for name in _WORDS}
    for name in _LISTS:
        chosen = getattr(shown, name)
        named[name] = None if chosen is None else ",".join(quote(value, safe=" ") for value in chosen)
    others = {name: value for name, value in st.query_params.to_dict().items() if name not in named}
    address = others | {name: value for name, value in named.items() if value is not None}
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)


def linked_text() -> str | None:
    """Return the typed prompt that the address names, when a visit begins and on Back and Forward."""
    begins = not st.session_state.setdefault(_TEXT_READ, False)
    st.session_state[_TEXT_READ] = True
    return st.query_params.get(_TEXT) if begins or came_by_history() else None


def link_text(text: str) -> None:
    """Make the address name the prompt that is typed; other pages leave it out."""
    if text.strip() and len(text) <= _LONGEST_TEXT:
        if st.query_params.get(_TEXT) != text:
            st.query_params[_TEXT] = text
    elif _TEXT in st.query_params:
        del st.query_params[_TEXT]


def fill(key: str, value: Any) -> str:
    """Give a widget that is about to be drawn the value the view has, and return its key."""
    st.session_state[key] = value
    return key


def fill_once(key: str, value: Any) -> str:
    """Fill a widget that holds a part of the view itself, when it is first drawn and on Back and Forward."""
    if key not in st.session_state or came_by_history():
        st.session_state[key] = value
    return key


def one_of(options: Sequence[str], part: str) -> str:
    """Return the option that a part of the view names, or the first where it names none of them."""
    named = getattr(view(), part)
    return named if named in options else options[0]


def _parsed(address: dict[str, str]) -> View:
    """Return the view an address describes; what is malformed is ignored."""
    site, prompt = address.get("site", ""), address.get("prompt", "")
    band = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", address.get("band", ""))
    ends = sorted((float(band[1]), float(band[2]))) if band else None
    words: dict[str, Any] = {name: address[name] for name in _WORDS if name in address}
    lists: dict[str, Any] = {
        name: tuple(map(unquote, filter(None, address[name].split(",")))) for name in _LISTS if name in address
    }
    return View(
        site=int(site) if re.fullmatch(r"\d{1,4}", site) else None,
        band=(ends[0], ends[1]) if ends else None,
        prompt=prompt if re.fullmatch(r"[0-9a-f]{12}", prompt) else None,
        **words,
        **lists,
    )
