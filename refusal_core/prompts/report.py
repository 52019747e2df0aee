"""What a file of prompts was taken for, to be shown before anything is computed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import pandas as pd

from refusal_core.prompts.labelling import Meaning
from refusal_core.prompts.labels import GREY, LABELS

_LETTERS_PER_PROMPT = 60
_MOST_PLACES = 5
_FIRST_ROWS = 5


@dataclass(frozen=True)
class LeftOut:
    """Rows that are no prompts, and why."""

    reason: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        """Return how many rows, where they are and why they are left out."""
        n_rows = len(self.places)
        shown = ", ".join(self.places[:_MOST_PLACES])
        more = f" and {n_rows - _MOST_PLACES} more" if n_rows > _MOST_PLACES else ""
        return f"{n_rows} {'row' if n_rows == 1 else 'rows'} {self.reason}: {shown}{more}"


@dataclass(frozen=True)
class PromptReport:
    """What one source of prompts was taken for.

    Attributes:
        source: name of the file or set.
        shape: the shape that was recognised.
        counts: prompts by label.
        n_prompts: prompts, labelled or not.
        n_pairs: pairs of a harmful and a harmless prompt.
        pairs_from: where the pairs are from, in words.
        characters: shortest, median and longest text; ``None`` without prompts.
        scripts: prompts by the script that most of their letters are of.
        first_rows: label and text of the first prompts.
        text_columns: where the texts are; several where they are joined, or where there is one per label.
        label_column: where the labels are.
        meanings: what each value of the label column was taken for.
        other_columns: columns that are neither texts nor labels.
        left_out: rows that are no prompts.
        notes: what else was made out or skipped.
    """

    source: str
    shape: str
    counts: Mapping[str, int]
    n_prompts: int
    n_pairs: int
    pairs_from: str
    characters: tuple[int, int, int] | None
    scripts: Mapping[str, int]
    first_rows: tuple[tuple[str | None, str], ...]
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    meanings: tuple[Meaning, ...] = ()
    other_columns: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """Return what there is to say, as pairs of a name and a value, in the order in which it is read."""
        facts = [("Source", self.source), ("Shape", self.shape)]
        if self.text_columns:
            facts.append(("Text", " + ".join(self.text_columns)))
        if self.label_column is not None:
            facts.append(("Label", self.label_column))
        if self.meanings:
            facts.append(("Label values", ", ".join(map(_in_words, self.meanings))))
        labelled = ", ".join(f"{self.counts[label]} {label}" for label in (*LABELS, GREY) if self.counts.get(label))
        facts.append(("Prompts", f"{self.n_prompts}" + (f": {labelled}" if labelled else "")))
        if self.n_pairs:
            facts.append(("Pairs", f"{self.n_pairs}, {self.pairs_from}"))
        if self.characters is not None:
            shortest, middle, longest = self.characters
            facts.append(("Length", f"{shortest} to {longest} characters, median {middle}"))
        if self.scripts:
            facts.append(("Script", ", ".join(f"{script} ({n})" for script, n in self.scripts.items())))
        if self.other_columns:
            facts.append(("Other columns", ", ".join(self.other_columns)))
        facts += [("Left out", str(left_out)) for left_out in self.left_out]
        facts += [("Note", note) for note in self.notes]
        return facts

    @property
    def summary(self) -> str:
        """What was read in one sentence."""
        left_out = "".join(f"; {reason} (left out)" for reason in self.left_out)
        return f"{self.source}: {self.n_prompts} prompts, {self.shape}{left_out}"


def describe(table: pd.DataFrame, source: str, shape: str, pairs_from: str = "", **more: Any) -> PromptReport:
    """Return the report of a table of prompts.

    Args:
        table: one row per prompt with the columns ``text, label, pair_id``.
        source: name of the file or set.
        shape: in words.
        pairs_from: where its pairs are from, in words.
        more: what else the report has.
    """
    texts = table["text"].tolist()
    counts = table["label"].value_counts()
    paired = table[table["pair_id"].notna()]
    return PromptReport(
        source=source,
        shape=shape,
        counts={label: int(counts[label]) for label in (*LABELS, GREY) if label in counts},
        n_prompts=len(table),
        n_pairs=sum(set(labels) >= set(LABELS) for _, labels in paired.groupby("pair_id")["label"]),
        pairs_from=pairs_from,
        characters=_measure(texts),
        scripts=_count_scripts(texts),
        first_rows=tuple(zip(table["label"][:_FIRST_ROWS], texts[:_FIRST_ROWS], strict=True)),
        **more,
    )


def _measure(texts: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the characters of the shortest text, of the median and of the longest."""
    lengths = [len(text) for text in texts]
    return (min(lengths), round(median(lengths)), max(lengths)) if lengths else None


def _count_scripts(texts: Iterable[str]) -> dict[str, int]:
    """Return how many texts are mostly of each script, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        scripts = Counter(_script(letter) for letter in [c for c in text[:2000] if c.isalpha()][:_LETTERS_PER_PROMPT])
        counts[scripts.most_common(1)[0][0] if scripts else "no letters"] += 1
    return dict(counts.most_common())


@cache
def _script(letter: str) -> str:
    """Return the script of a letter, which its name in Unicode begins with."""
    word = unicodedata.name(letter, "other").split()[0]
    return {"CJK": "Chinese characters", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}.get(word, word.capitalize())


def _in_words(meaning: Meaning) -> str:
    value = meaning.value or "(none)"
    return f"{value} = {meaning.label or '?'} ({meaning.n_rows})"
