"""Names and meanings of the quantities and terms on screen, from one file: pages, figures and command line use them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

_MEANS = "Mean activations: g of harmless prompts, b of harmful ones, r = b − g. A star: geometric medians for means."
_ENDINGS = {
    "_band_low": ("controls from", "Lower end of the band in which 95 % of control directions fall."),
    "_band_high": ("controls to", "Upper end of the band in which 95 % of control directions fall."),
    "_low": ("from", "Lower end of the 95 % interval."),
    "_high": ("to", "Upper end of the 95 % interval."),
    "_before": ("before", "In the run, before prompts were left out."),
    "_after": ("after", "In the refit, after prompts were left out."),
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
    text = (files("refusal_core") / "glossary.toml").read_text(encoding="utf-8")
    terms = {
        key: Term(entry["name"], entry["meaning"], tuple(entry.get("terms", ())))
        for key, entry in tomllib.loads(text).items()
    }
    for star in ("", "*"):
        for one, other in (("g", "b"), ("g", "r"), ("b", "r")):
            cosine = f"S({one}{star},{other}{star})"
            terms[cosine] = Term(f"cos({one}{star}, {other}{star})", f"{_MEANS} A cosine.")
        for vector in ("g", "b", "r"):
            terms[f"|{vector}{star}|"] = Term(f"|{vector}{star}|", f"{_MEANS} A norm, in activation units.")
    return MappingProxyType(terms)


def name_of(column: str) -> str:
    """Return a column's name on screen; one that the glossary lacks, without its underscores."""
    return _described(column).name


def meaning_of(column: str) -> str | None:
    """Return what a column means, or ``None`` where the glossary lacks it."""
    return _described(column).meaning or None


def _described(column: str) -> Term:
    terms = glossary()
    if column in terms:
        return terms[column]
    for ending, (suffix, meaning) in _ENDINGS.items():
        number = column.removesuffix(ending)
        if number != column and number in terms:
            return Term(f"{terms[number].name}, {suffix}", meaning)
    return Term(column.replace("_", " "), "")
