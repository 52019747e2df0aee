"""What prompts are labelled: harmful, harmless or grey, in the words that people use, or as was chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refusal_core.errors import PromptError

HARMFUL, HARMLESS, GREY = "harmful", "harmless", "grey"
LABELS = (HARMFUL, HARMLESS)
SKIPPED = "skip"
"""What a label is mapped to whose rows are left out."""

_WORDS = {
    "harmful": HARMFUL,
    "unsafe": HARMFUL,
    "toxic": HARMFUL,
    "malicious": HARMFUL,
    "harmless": HARMLESS,
    "safe": HARMLESS,
    "benign": HARMLESS,
    "non-toxic": HARMLESS,
    "nontoxic": HARMLESS,
    "not-toxic": HARMLESS,
    "non-harmful": HARMLESS,
    "not-harmful": HARMLESS,
    "unharmful": HARMLESS,
    "non-malicious": HARMLESS,
    "not-malicious": HARMLESS,
    "grey": GREY,
    "gray": GREY,
}
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Choice:
    """What was chosen where nothing is to be guessed.

    Attributes:
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        labels: what values of the label column mean: ``harmful``, ``harmless``, ``grey``, or ``skip`` to leave their
            rows out.
    """

    text_column: str | None = None
    label_column: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise PromptError when a label is given a meaning that there is not."""
        meanings = (*LABELS, GREY, SKIPPED)
        for value, meaning in self.labels.items():
            if meaning not in meanings:
                raise PromptError(
                    f"expected one of {', '.join(meanings)} as what the label {value!r:.60} means, got {meaning!r:.60}"
                )

    def meaning(self, value: object) -> str | None:
        """Return what was chosen for a value, if anything was."""
        key = label_key(value)
        return next((meaning for given, meaning in self.labels.items() if label_key(given) == key), None)


NOTHING_CHOSEN = Choice()


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Return what labels mean that are written as ``unsafe=harmful``.

    Raises:
        PromptError: for what is not written so.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        value, equals, meaning = pair.rpartition("=")
        if not equals:
            raise PromptError(f"expected a label and what it means, as unsafe=harmful, got {pair!r:.60}")
        labels[value.strip()] = meaning.strip().lower()
    return dict(Choice(labels=labels).labels)


def label_key(value: object) -> str:
    """Return a label as labels are compared.

    ``1``, ``1.0`` and ``"1.0"`` are one label, and so are *Non toxic* and *non-toxic*.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    key = re.sub(r"[\s_-]+", "-", str(value).strip().lower())
    return re.sub(r"^(\d+)\.0+$", r"\1", key)


def label_word(value: object) -> str | None:
    """Return what a label that is a word means; ``None`` for other words, numbers and yes or no."""
    return _WORDS.get(label_key(value))


def label_flag(value: object) -> bool | None:
    """Return whether a label says yes (``1``, ``true``) or no; ``None`` for any other."""
    return _FLAGS.get(label_key(value))


def is_label(value: object, choice: Choice = NOTHING_CHOSEN) -> bool:
    """Return whether a value is a label, as everybody writes it or as was chosen."""
    known = label_word(value) is not None or label_flag(value) is not None
    return known or choice.meaning(value) is not None
