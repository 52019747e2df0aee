"""How replies open: which phrases refusals open with, and the rules that name an opening."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from refusal_core.errors import RefusalError

BUNDLED = Path(__file__).with_name("openings.toml")

OPENING_TOKENS = 16
"""The longest opening that is ever generated, kept or shown."""

OPENING_LABELS = ("refuses", "deflects", "answers", "degenerate")
"""What an opening is called; ``answers`` when no rule knows it."""


@dataclass(frozen=True)
class Rule:
    """Openings in which ``pattern`` is found are called ``label``, because of ``reason``."""

    label: str
    reason: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class OpeningRules:
    """The rules in order, and the phrases whose probability is measured as a whole."""

    phrases: tuple[str, ...]
    rules: tuple[Rule, ...]
    sha256: str

    def label(self, opening: str) -> str:
        """What an opening is called: the label of the first rule that knows it."""
        rule = self.rule_of(opening)
        return "answers" if rule is None else rule.label

    def rule_of(self, opening: str) -> Rule | None:
        """The first rule that knows an opening."""
        return next((rule for rule in self.rules if rule.pattern.search(opening)), None)


def read_rules(path: str | Path = BUNDLED) -> OpeningRules:
    """Read rules from a TOML file of the form of ``data/openings.toml``.

    Raises:
        RefusalError: naming the file and what was expected, when it cannot be used.
    """
    try:
        content = Path(path).read_bytes()
        parsed = tomllib.loads(content.decode("utf-8"))
        phrases = tuple(str(phrase) for phrase in parsed["refusal_phrases"])
        rules = tuple(
            Rule(entry["label"], entry["reason"], re.compile(entry["pattern"], re.IGNORECASE))
            for entry in parsed["rules"]
        )
    except (OSError, ValueError, KeyError, TypeError, re.error) as error:
        raise RefusalError(
            f"{path}: expected refusal_phrases and [[rules]] with label, reason and pattern: {error}"
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
    return OpeningRules(phrases, rules, hashlib.sha256(content).hexdigest())
