"""How replies open: the phrases that refusals open with, and the rules that label an opening."""

from __future__ import annotations

import hashlib
import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from refusal_core.errors import RefusalError

BUNDLED = Path(__file__).with_name("openings.toml")

OPENING_TOKENS = 16
"""The longest opening that is generated, stored or shown."""

OPENING_LABELS = {
    "refuses": "declines what was asked, or does not say why it cannot help",
    "cannot": "lacks what the answer needs: access, senses, information, or opinions of its own",
    "partial": "names a limit and goes on to help",
    "deflects": "warns, lectures or points elsewhere, and neither answers nor declines",
    "answers": "begins to do what was asked: no rule matches",
    "degenerate": "is no reply: empty, repeating itself, or in a script that is neither the prompt's nor Latin",
}
"""Labels of openings, and what they mean."""

MOST_CHARACTERS = 240
"""Most characters of an opening that rules see; a token may be long."""

MOST_SECONDS = 1.0
"""The longest that one pattern may search one opening."""

_MARKUP = r"(?>[^\p{L}\p{N}]{0,24})?"
_BETWEEN = r"[\s,.;:!،。、，！–—-]{0,6}"
_MOST_PREAMBLES = 4


@dataclass(frozen=True)
class Rule:
    """A rule that labels openings that begin with one of its patterns.

    Attributes:
        label: one of :data:`OPENING_LABELS`.
        reason: why such openings have this label.
        language: ISO 639-1 code of the language that the patterns are in; empty for patterns of no language.
        patterns: as they are in the file.
        compiled: all patterns in one, after the language's preambles; see ``openings.toml``.
    """

    label: str
    reason: str
    language: str
    patterns: tuple[str, ...]
    compiled: regex.Pattern[str]


@dataclass(frozen=True)
class OpeningRules:
    """The rules in order, and the phrases whose probability is measured as a whole."""

    phrases: tuple[str, ...]
    rules: tuple[Rule, ...]
    sha256: str
    path: str

    def label(self, opening: str, prompt: str = "") -> str:
        """Return the label of the first rule that matches an opening, one of :data:`OPENING_LABELS`.

        Args:
            opening: the beginning of a reply.
            prompt: the prompt; without it no opening is degenerate for its script.

        Raises:
            RefusalError: when a pattern takes longer than :data:`MOST_SECONDS`.
        """
        text = _folded(opening[:MOST_CHARACTERS])
        for rule in self.rules:
            try:
                match = rule.compiled.match(text, timeout=MOST_SECONDS)
            except TimeoutError as error:
                raise RefusalError(
                    f"{self.path}: expected patterns that take less than {MOST_SECONDS:g} s, got one that took longer "
                    f"on {opening[:40]!r}; simplify the rule {rule.reason!r} (label {rule.label!r}, language "
                    f"{rule.language!r}): a repeat within a repeat is slow"
                ) from error
            if match:
                return rule.label
        return "degenerate" if prompt and _script(opening) not in {None, "LATIN", *_scripts(prompt)} else "answers"


def read_rules(path: str | Path = BUNDLED) -> OpeningRules:
    """Read rules from a TOML file of the form of the bundled ``openings.toml``.

    Raises:
        RefusalError: naming the file and what was expected, when it cannot be used.
    """
    try:
        content = Path(path).read_bytes()
        parsed = tomllib.loads(content.decode("utf-8"))
        phrases = tuple(str(phrase) for phrase in parsed["refusal_phrases"])
        preambles = {language: _any_of(patterns) for language, patterns in parsed.get("preambles", {}).items()}
        rules = tuple(_rule(entry, preambles) for entry in parsed["rules"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusalError(
            f"{path}: expected refusal_phrases and [[rules]] with label, reason and patterns: {error}"
        ) from error
    for rule in rules:
        if rule.label not in OPENING_LABELS:
            raise RefusalError(f"{path}: expected a label out of {', '.join(OPENING_LABELS)}, got {rule.label!r}")
    for phrase in phrases:
        longer = [other for other in phrases if other != phrase and other.startswith(phrase)]
        if longer:
            raise RefusalError(f"{path}: {longer[0]!r} begins with {phrase!r} and would be counted twice; keep one")
    if not phrases:
        raise RefusalError(f"{path}: expected at least one refusal phrase, got none")
    return OpeningRules(phrases, rules, hashlib.sha256(content).hexdigest(), str(path))


def _rule(entry: dict[str, Any], preambles: dict[str, str]) -> Rule:
    language, patterns = entry.get("language", ""), entry["patterns"]
    pattern = _any_of(patterns)
    if language in preambles:
        pattern = f"(?>(?:{preambles[language]}{_BETWEEN}){{0,{_MOST_PREAMBLES}}})?{pattern}"
    try:
        compiled = regex.compile(_MARKUP + pattern, regex.IGNORECASE)
    except regex.error as error:
        raise ValueError(f"{error} in the patterns of {entry['label']!r}, {entry['reason']!r} {language!r}") from error
    return Rule(entry["label"], entry["reason"], language, tuple(patterns), compiled)


def _any_of(patterns: list[str]) -> str:
    """Return a pattern that matches what any of several does."""
    if not isinstance(patterns, list) or not patterns:
        raise TypeError(f"expected a list of patterns, got {patterns!r}")
    return "(?:" + "|".join(f"(?:{_folded(pattern)})" for pattern in patterns) + ")"


def _folded(text: str) -> str:
    """Drop accents of Latin letters, Arabic vowel signs and hamzas, and straighten apostrophes, to compare texts."""
    text = regex.sub(r"\p{Latin}\K\p{Mn}+|[\u064b-\u0655\u0640]", "", unicodedata.normalize("NFD", text))
    return str(regex.sub("[’‘ʼ`´]", "'", unicodedata.normalize("NFC", text)).replace("\u00a0", " "))


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script in a text; Chinese characters and Japanese syllables are one script."""
    names = (
        unicodedata.name(letter, "").partition(" ")[0]
        for letter in unicodedata.normalize("NFKC", text)
        if letter.isalpha()
    )
    return Counter("CJK" if name in {"HIRAGANA", "KATAKANA"} else name for name in names)


def _script(text: str) -> str | None:
    """Return the script that most letters of a text are in, or ``None`` when it has fewer than two."""
    most = _scripts(text).most_common(1)
    return most[0][0] if most and most[0][1] > 1 else None
