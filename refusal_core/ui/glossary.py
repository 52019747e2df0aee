"""What the quantities and terms on screen are called and mean, from one file.

Terms in a page's own prose become links to the page Glossary, which show the meaning on hover: of all that Streamlit
draws, only a link in Markdown can do both.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import streamlit as st

from refusal_core.ui.markdown import plain
from refusal_core.ui.streamlit_internals import resource

PAGE = "Glossary"
"""Address of the page that lists all terms."""

_MEANS = "Mean activations: g of harmless prompts, b of harmful ones, r = b − g. A star: geometric medians for means."
_ENDS = {
    "_band_low": ("controls from", "Lower end of the band in which 95 % of control directions fall."),
    "_band_high": ("controls to", "Upper end of the band in which 95 % of control directions fall."),
    "_low": ("from", "Lower end of the 95 % interval."),
    "_high": ("to", "Upper end of the 95 % interval."),
}


@dataclass(frozen=True)
class Term:
    """A quantity or a word of the field.

    Attributes:
        name: on screen.
        meaning: in one or two sentences.
        terms: spellings that are explained wherever a page's own prose has them.
    """

    name: str
    meaning: str
    terms: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def glossary() -> Mapping[str, Term]:
    """Return all terms by their key, which is the column's name where a table has such a column."""
    read = tomllib.loads(resource("glossary.toml"))
    terms = {key: Term(entry["name"], entry["meaning"], tuple(entry.get("terms", ()))) for key, entry in read.items()}
    for star in ("", "*"):
        for one, other in (("g", "b"), ("g", "r"), ("b", "r")):
            cosine = f"S({one}{star},{other}{star})"
            terms[cosine] = Term(f"cos({one}{star}, {other}{star})", f"{_MEANS} A cosine.")
        for vector in ("g", "b", "r"):
            terms[f"|{vector}{star}|"] = Term(f"|{vector}{star}|", f"{_MEANS} A norm, in activation units.")
    return MappingProxyType(terms)


def name_of(column: str) -> str:
    """Return what a column is called on screen; one that the glossary lacks, without its underscores."""
    return _described(column).name


def meaning_of(column: str) -> str | None:
    """Return what a column means, or ``None`` where the glossary lacks it."""
    return _described(column).meaning or None


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
    """Show all terms that prose, figures or tables mention, in alphabetical order."""
    terms = sorted(glossary().values(), key=lambda term: term.name.casefold())
    st.markdown("\n".join(f"- **{plain(term.name)}**: {plain(term.meaning)}" for term in terms))


def _link(text: str, key: str) -> str:
    meaning = glossary()[key].meaning.replace('"', "”")
    return f'[{text}]({PAGE} "{meaning}")'


def _described(column: str) -> Term:
    terms = glossary()
    if column in terms:
        return terms[column]
    for ending, (end, meaning) in _ENDS.items():
        number = column.removesuffix(ending)
        if number != column and number in terms:
            return Term(f"{terms[number].name}, {end}", meaning)
    return Term(column.replace("_", " "), "")


@lru_cache(maxsize=1)
def _spellings() -> Mapping[str, str]:
    return {spelling.casefold(): key for key, term in glossary().items() for spelling in term.terms}


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(_spellings(), key=len, reverse=True)
    spelled = "|".join(re.escape(spelling).replace("\\ ", "[ \u00a0]") for spelling in longest_first)
    return re.compile(rf"(?<![\w-])(?:{spelled})(?![\w-])", re.IGNORECASE)
