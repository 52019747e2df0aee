"""Links from a page's prose to the glossary, and the page that lists it.

Terms in a page's own prose become links to the page Glossary, which show the meaning on hover: of all that Streamlit
draws, only a link in Markdown can do both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import streamlit as st

from refusal_core.glossary import glossary
from refusal_core.markdown import plain

PAGE = "Glossary"
"""Address of the page that lists all terms."""


def link_terms(markdown: str) -> str:
    """Return Markdown in which the first mention of a term links to the glossary and shows its meaning on hover."""
    seen: set[str] = set()

    def linked(match: re.Match[str]) -> str:
        key = _spellings()[match[0].replace("\u00a0", " ").casefold()]
        if key in seen:
            return match[0]
        seen.add(key)
        return _link(match[0], key)

    return _pattern().sub(linked, markdown)


def glossary_link(key: str) -> str:
    """Return a term's name as Markdown that links to the glossary and shows its meaning on hover."""
    return _link(plain(glossary()[key].name), key)


def show_glossary() -> None:
    """Show all terms that prose, figures or tables mention, in alphabetical order, and a field that finds some."""
    find = st.text_input(
        "Find a term",
        key="glossary_find",
        live="300ms",
        icon=":material/search:",
        placeholder="part of a name or meaning",
    )
    names: dict[str, list[str]] = {}
    for term in sorted(glossary().values(), key=lambda term: term.name.casefold()):
        if find.casefold() in f"{term.name} {term.meaning}".casefold():
            # Some have one meaning together, as the cosines of heretic's table.
            names.setdefault(term.meaning, []).append(term.name)
    lines = [f"- :small[**{plain(', '.join(named))}**: {plain(meaning)}]" for meaning, named in names.items()]
    if not lines:
        st.caption("No term has these words.")
    half = -(-len(lines) // 2)
    with st.container(key="glossary"):
        for column, part in zip(st.columns(2, gap="medium"), (lines[:half], lines[half:]), strict=True):
            column.markdown("\n".join(part))


def _link(text: str, key: str) -> str:
    meaning = glossary()[key].meaning.replace('"', "”")
    return f'[{text}]({PAGE} "{meaning}")'


@lru_cache(maxsize=1)
def _spellings() -> Mapping[str, str]:
    return {spelling.casefold(): key for key, term in glossary().items() for spelling in term.terms}


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(_spellings(), key=len, reverse=True)
    spelled = "|".join(re.escape(spelling).replace("\\ ", "[ \u00a0]") for spelling in longest_first)
    return re.compile(rf"(?<![\w-])(?:{spelled})(?![\w-])", re.IGNORECASE)
