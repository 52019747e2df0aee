"""Ratings that people give in the dashboard: one file per rater, outside any run, on disk before the next prompt.

Ratings belong to prompts, so every run on the same prompts can use them. Every rater has an order of prompts of their
own, which is the same whenever they come back.
"""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from filelock import FileLock

from refusal_core.analysis.effect_sizes import plausible_band
from refusal_core.annotations.ratings import COLUMNS, Ratings, combine, read_ratings
from refusal_core.errors import RatingError, RefusalError
from refusal_core.files import write_atomically
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.sets import slug
from refusal_core.runs.run import Run
from refusal_core.runs.store import cache_folder, writable_cache

QUESTION = "How harmful would it be to do what this prompt asks for?"
SCALE = {1: "harmless", 2: "hardly", 3: "slightly", 4: "somewhat", 5: "clearly", 6: "very", 7: "extremely"}
"""What each rating means."""
LONGEST_NAME = 60
_FOLDER = ".ratings"


def normalise_name(typed: str) -> str:
    """Return a rater's name as it is saved, without blanks around it or double ones.

    Raises:
        RatingError: when it is empty, too long or not printable.
    """
    name = " ".join(unicodedata.normalize("NFC", typed).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise RatingError(f"expected a name of 1 to {LONGEST_NAME} printable characters, found {typed!r:.90}")
    return name


def save_rating(rater: str, prompt_id: str, text: str, rating: int, cache: str | Path | None = None) -> None:
    """Save a rating, replacing the rater's earlier one of the prompt; it is on disk when this returns.

    Raises:
        RefusalError: when it cannot be saved, or the rater's file cannot be read.
    """
    if rating not in SCALE:
        raise RatingError(f"expected a rating from {min(SCALE)} to {max(SCALE)}, found {rating!r:.20}")
    path = _path(rater, writable_cache(cache))
    try:
        path.parent.mkdir(exist_ok=True)
        # One rater in two tabs.
        with FileLock(path.with_suffix(".lock")):
            rows = {row[0]: row for row in load_ratings_by(rater, cache).table.itertuples(index=False, name=None)}
            name = next(iter(rows.values()))[2] if rows else normalise_name(rater)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            rows[prompt_id] = (prompt_id, text, name, rating, now)
            _write(path, [(*row[:3], f"{row[3]:g}", row[4]) for row in rows.values()])
    except OSError as error:
        raise RatingError(f"the rating cannot be saved in {path.parent} ({error.strerror})") from error


def load_ratings_by(rater: str, cache: str | Path | None = None) -> Ratings:
    """Return a rater's ratings in the order in which they were first given; empty for someone new.

    Raises:
        RefusalError: when the rater's file cannot be read.
    """
    return _read(_path(rater, cache_folder(cache)))


def load_all_ratings(cache: str | Path | None = None) -> Ratings:
    """Return the ratings of everyone.

    Raises:
        RefusalError: naming the first file that cannot be read.
    """
    paths = sorted((cache_folder(cache) / _FOLDER).glob("[!.]*.csv"))
    return combine([_no_ratings(), *(_read(path) for path in paths)])


def rating_order(run: Run, rater: str) -> list[int]:
    """Return the rows of the run's prompts, repeated ones once, in the order in which the rater is asked.

    The order is that of digests, so that it reveals no label or pair.
    """
    rows = run.prompts["prompt_id"].drop_duplicates()
    return [int(row) for row in rows.map(lambda prompt_id: _digest(f"{_key(rater)}\n{prompt_id}")).sort_values().index]


def balanced_batch(run: Run, rater: str, rated: Collection[str], size: int) -> list[str]:
    """Return ids of prompts that the rater has not rated yet, as many of either label and band, in the rater's order.

    The band is where both labels are plausible at the run's best layer. Of prompts in and outside it, of every label,
    one after the other is taken, in the order of :func:`rating_order`; then they are put into that order, which
    reveals neither.

    Args:
        run: the run.
        rater: whose order it is.
        rated: ids that are left out.
        size: prompts at most.
    """
    site = run.best_site()
    low, high = plausible_band(*(run.projections[run.rows(label), site] for label in LABELS))
    inside = (run.projections[:, site] >= low) & (run.projections[:, site] <= high)
    order = [row for row in rating_order(run, rater) if run.prompts["prompt_id"][row] not in set(rated)]
    kinds: dict[tuple[str, bool], list[int]] = {}
    for row in order:
        kinds.setdefault((str(run.prompts["label"][row]), bool(inside[row])), []).append(row)
    turns = [row for turn in zip_longest(*kinds.values()) for row in turn if row is not None]
    chosen = set(turns[:size])
    return [str(run.prompts["prompt_id"][row]) for row in order if row in chosen]


def _read(path: Path) -> Ratings:
    if path.is_symlink():
        raise RatingError(f"{path.name} in {path.parent} is a link, and links are not followed; remove it")
    try:
        return read_ratings(path) if path.exists() else _no_ratings()
    except RefusalError as error:
        raise RatingError(
            f"ratings saved in {path.parent} cannot be used: {error}; mend or remove that file"
        ) from error


def _no_ratings() -> Ratings:
    return Ratings(pd.DataFrame({name: pd.Series(dtype=float if name == "rating" else object) for name in COLUMNS}))


def _path(rater: str, cache: Path) -> Path:
    """Return the path of a rater's file, whose name is made of letters, digits, dots and dashes whatever theirs is."""
    key = _key(rater)
    return cache / _FOLDER / f"{slug(key)}-{_digest(key)[:12]}.csv"


def _key(rater: str) -> str:
    """Return what all spellings of a rater's name have in common."""
    return unicodedata.normalize("NFKC", normalise_name(rater)).casefold()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Replace a rater's file."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_MINIMAL, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomically(path, text.getvalue())
