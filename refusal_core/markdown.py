"""Texts as Markdown: untrusted ones letter by letter, and sentences about numbers."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Return an untrusted text as Markdown that shows it letter by letter."""
    # No backslash keeps an address or a mail address from being made a link; a word joiner inside, which shows nothing,
    # does.
    unlinked = re.sub(r"(?i)(?<=https:)(?=//)|(?<=http:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u2060", text)
    # Nor does one keep Streamlit from setting arrows, signs and dashes, or a number or dash from beginning a list.
    unset = re.sub(r"(?<=[<>!~-])(?=[=>-])|(?<=^[-+])", "\u2060", re.sub(r"^(\d+)(?=[.)])", "\\1\u2060", unlinked))
    return re.sub(r"([\\`*_\[\]<>$:#|~!&])", r"\\\1", unset)


def typeset(text: str) -> str:
    """Return a sentence about numbers, with minus signs and with percent signs that stay with their number."""
    return plain(re.sub(r"(?<![\w.])-(?=\d)", "\u2212", re.sub(r"(?<=\d) (?=%)", "\u00a0", text)))
