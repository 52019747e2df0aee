"""How alike texts are, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

# Scripts that write no spaces between words (Thai, Lao, Burmese, Khmer, kana, Chinese characters) count by character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’-][^\W{_UNSPACED}]+)*")
_BLOCK = 1024
"""Texts that are compared with all others together."""


def words(text: str) -> list[str]:
    """Return the words of a text in order, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def words_changed(text: str, other: str) -> int:
    """Return how many words are put in, taken out or replaced from one text to the other (Levenshtein 1966)."""
    ours, theirs = words(text), words(other)
    distance = list(range(len(theirs) + 1))
    for row, word in enumerate(ours, start=1):
        above, distance = distance, [row]
        for (diagonal, up), candidate in zip(pairwise(above), theirs, strict=True):
            distance.append(min(diagonal + (word != candidate), up + 1, distance[-1] + 1))
    return distance[-1]


def near_duplicates(texts: Sequence[str], others: Sequence[str], least: float) -> np.ndarray:
    """Match texts of two lists that share most of their words, each with at most one.

    Two texts match when each is the other's nearest. Their likeness is ``2 · shared / (words + other words)``, words
    counted as often as they occur (Dice 1945).

    Args:
        texts: the first list.
        others: the second list.
        least: likeness from which on texts match, 0 to 1.

    Returns:
        ``(match, 2)`` int, positions in the two lists, in the order of the first.
    """
    if not len(texts) or not len(others):
        return np.empty((0, 2), dtype=int)
    counts = HashingVectorizer(analyzer=_counted_words, norm=None, alternate_sign=False).transform([*texts, *others])
    sizes = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    theirs, their_sizes = counts[len(texts) :].T.tocsc(), sizes[len(texts) :]
    nearest, likeness = np.empty(len(texts), dtype=int), np.empty(len(texts))
    nearest_to_other, best = np.zeros(len(others), dtype=int), np.full(len(others), -1.0)
    for start in range(0, len(texts), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(texts)))
        alike = 2 * (counts[rows] @ theirs).toarray() / (sizes[rows, None] + their_sizes)
        nearest[rows], likeness[rows] = alike.argmax(axis=1), alike.max(axis=1)
        better = alike.max(axis=0) > best
        nearest_to_other[better] = start + alike.argmax(axis=0)[better]
        best[better] = alike.max(axis=0)[better]
    matched = np.flatnonzero((nearest_to_other[nearest] == np.arange(len(texts))) & (likeness >= least))
    return np.column_stack([matched, nearest[matched]])


def _counted_words(text: str) -> Iterator[str]:
    """Yield every word with how often it has occurred before, so that a word that comes twice is shared twice."""
    before: dict[str, int] = {}
    for word in words(text):
        yield f"{word} {before.get(word, 0)}"
        before[word] = before.get(word, 0) + 1
