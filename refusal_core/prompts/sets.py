"""Contrast sets and transfer sets: bundled, on the Hugging Face hub, or in local files.

A set is a table of labelled prompts. Bad input ends in a ``PromptError`` that names the file, the row (the first row of
data is row 1) and what was expected; nothing is dropped or cut silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from refusal_core.conversations import COLUMN as CONVERSATION
from refusal_core.conversations import prompts_of, words_of
from refusal_core.errors import PromptError
from refusal_core.options import MINIMUM_PER_LABEL
from refusal_core.prompts.benchmarks import BENCHMARKS, Half, benchmark_half, find_benchmark
from refusal_core.prompts.bundled import BUNDLED, CONTRAST_SETS, QUARTETS, TRANSFER_SETS, read_bundled
from refusal_core.prompts.columns import first_column
from refusal_core.prompts.hub import HubSet, parse_hub_set, read_hub_set
from refusal_core.prompts.labels import GREY, LABELS, NOTHING_CHOSEN, Choice
from refusal_core.prompts.reading import EXTRA, OPTIONAL_COLUMNS, PromptFile, read_prompt_file
from refusal_core.prompts.records import TABLE_ENDINGS, TEXT_ENDINGS, stem
from refusal_core.prompts.report import PromptReport, describe

COLUMNS = ("prompt_id", "text", CONVERSATION, "label", "category", "pair_id", "source", "note", EXTRA)
PROMPT_ID = re.compile(r"[0-9a-f]{12}")

DETECTED = "detected-"
"""What the pair_id of a pair begins with that was found by its texts."""
_ALIKE = 0.55
"""Share of words from which on two texts of opposite labels are a pair.

Of the 256 bundled pairs it finds 230 and no wrong one, and none in everyday; from 0.52 down it pairs prompts that are
alike in nothing but their form.
"""

CUES = ("alarming", "calm")
"""How the two pairs of a quartet sound."""
_EXPERIMENT_0 = ("mlabonne/harmful_behaviors", "mlabonne/harmless_alpaca")
_EXPERIMENT_0_ROWS = 256


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Labelled prompts under one name.

    Attributes:
        name: bundled name, file stem or dataset ids; shown on screen and part of a run's name.
        revision: commit of each hub dataset, joined by ``+``; ``None`` for local and bundled sets.
        table: one row per prompt with the columns ``prompt_id, text, conversation, label, category, pair_id, source,
            note, extra, origin``; ``conversation``, ``category``, ``pair_id``, ``note`` and ``extra`` may be missing
            (None); ``origin`` is what errors call the row.
        reports: what each source was taken for; none for a set that a run holds.
    """

    name: str
    revision: str | None
    table: pd.DataFrame
    reports: tuple[PromptReport, ...] = ()

    @property
    def origin(self) -> str:
        """What errors call the set."""
        return ",".join(report.source for report in self.reports) or self.name

    @property
    def n_detected_pairs(self) -> int:
        """Pairs that the set does not name, found by their texts and kept together."""
        return len(detected_pairs(self.table))

    @property
    def counts(self) -> dict[str, int]:
        """Prompts a label."""
        return {str(label): int(n) for label, n in self.table["label"].value_counts().items()}

    @property
    def sha256(self) -> str:
        """Digest of everything a result depends on: prompts, labels, categories and pairs, in order."""
        # Sets without conversations keep the digest that they had before there were any.
        later = [name for name in (CONVERSATION,) if name in self.table and self.table[name].notna().any()]
        content = self.table[["text", "label", "category", "pair_id", *later]].astype(object)
        rows = content.where(content.notna(), None).to_numpy().tolist()
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Inspection:
    """What a source would be read as, before anything is computed.

    Attributes:
        reports: of each file.
        outcome: what the source can be used as, in one sentence.
        problem: why it is no contrast set, in words; empty where it is one.
    """

    reports: tuple[PromptReport, ...]
    outcome: str
    problem: str = ""


@dataclass(frozen=True, eq=False)
class _Part:
    """One source of a set: its prompts, and the label that all of them have where it has none of its own."""

    file: PromptFile
    revision: str | None = None
    label: str | None = None


def prompt_id(text: str, conversation: str | None = None) -> str:
    """Return a prompt's identity across runs: the first twelve hex digits of a SHA-256.

    It is that of the text without the blanks around it, or that of the conversation where there is more to a prompt.
    """
    content = text.strip() if conversation is None else conversation
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def load_contrast_set(source: str, limit: int | None = None, choice: Choice = NOTHING_CHOSEN) -> PromptSet:
    """Load a set that directions can be fitted on.

    Args:
        source: a bundled name (``pairs``, ``everyday``, ``experiment-0``, ``quartets``), a benchmark's
            (:data:`.benchmarks.BENCHMARKS`), a file or hub set with texts and labels, or two sources without labels
            ``HARMFUL,HARMLESS``, each a file, a benchmark or a hub set; see :mod:`refusal_core.prompts.hub`.
        limit: prompts per label, spread evenly over the set; matched pairs stay together.
        choice: columns and labels, where they are not to be found by their names and values.

    Raises:
        PromptError: when the source cannot be read or is not a contrast set.
    """
    if source in TRANSFER_SETS:
        raise PromptError(
            f"{source} is a transfer set: it is scored and never fitted on. "
            f"Choose one of {', '.join(CONTRAST_SETS)}, or a file"
        )
    if source in BUNDLED:
        prompts = _bundled(source)
        _check_contrast(prompts)
    else:
        prompts = _assembled_contrast(source, _read_parts(source, choice))
    return _limited(prompts, limit) if limit is not None else prompts


def load_transfer_set(source: str, choice: Choice = NOTHING_CHOSEN) -> PromptSet:
    """Load a set that is scored and never fitted on: ``probe-pairs``, ``borderline``, ``quartets``, a labelled file.

    Labels may also be ``grey`` here. One label alone is enough.

    Raises:
        PromptError: when the source cannot be read.
    """
    if source in (*TRANSFER_SETS, QUARTETS):
        return _bundled(source)
    prompts = _assembled(source, _read_parts(source, choice))
    _check_texts(prompts)
    return _with_detected_pairs(prompts)


def check_choice(sources: Sequence[str], choice: Choice) -> None:
    """Raise PromptError where columns or labels were chosen and all sets are bundled, whose columns are known."""
    given = {"a text column": choice.text_column, "a label column": choice.label_column, "labels": choice.labels}
    chosen = [what for what, value in given.items() if value]
    if chosen and all(source in (*CONTRAST_SETS, *TRANSFER_SETS) for source in sources):
        raise PromptError(
            f"{' and '.join(chosen)} can be chosen for prompts of your own alone; bundled sets "
            f"({', '.join(sources)}) have theirs"
        )


def read_source(source: str, choice: Choice = NOTHING_CHOSEN) -> PromptFile:
    """Read the prompts of one source as a list, whatever their labels: a file or a hub set.

    Raises:
        PromptError: when it cannot be read.
    """
    return _read_part(source, choice).file


def inspect_source(source: str, choice: Choice = NOTHING_CHOSEN) -> Inspection:
    """Read a source and say what it is taken for, whether or not it is a contrast set.

    Raises:
        PromptError: when it cannot be read, or something was chosen of a bundled set.
    """
    check_choice([source], choice)
    if source in BUNDLED:
        prompts = _bundled(source)
        problem = "a transfer set is scored and never fitted on" if source in TRANSFER_SETS else ""
        return _not_a_contrast(prompts.reports, problem) if problem else _a_contrast(prompts)
    parts = _read_parts(source, choice)
    reports = tuple(part.file.report for part in parts)
    try:
        return _a_contrast(_assembled_contrast(source, parts))
    except PromptError as error:
        return _not_a_contrast(reports, str(error))


def _a_contrast(prompts: PromptSet) -> Inspection:
    counts = prompts.counts
    n_pairs, n_detected = prompts.table["pair_id"].nunique(), prompts.n_detected_pairs
    pairs = f"; {n_pairs} matched pairs" if n_pairs else ""
    if n_detected:
        pairs = f"; {n_detected} pairs found by their texts and kept together"
    in_words = " + ".join(f"{counts[label]} {label}" for label in LABELS)
    return Inspection(prompts.reports, f"A contrast set: {in_words} prompts{pairs}")


def _not_a_contrast(reports: tuple[PromptReport, ...], problem: str) -> Inspection:
    return Inspection(reports, f"Not a contrast set: {problem}", problem)


def without(prompts: PromptSet, fitted: PromptSet) -> tuple[PromptSet, int]:
    """Leave out of a transfer set what the direction is fitted on, whole pairs at a time.

    Returns:
        The rest, and how many prompts were left out.
    """
    shared = prompts.table["prompt_id"].isin(fitted.table["prompt_id"])
    pairs = prompts.table.loc[shared, "pair_id"].dropna()
    leave_out = shared | prompts.table["pair_id"].isin(pairs)
    return replace(prompts, table=prompts.table[~leave_out].reset_index(drop=True)), int(leave_out.sum())


def _bundled(name: str) -> PromptSet:
    table = _table(read_bundled(name), source=name)
    origins = pd.Series([f"{name}, row {row}" for row in range(1, len(table) + 1)], dtype=object)
    report = describe(table, name, "bundled set", "as the set names them")
    return PromptSet(name, None, table.assign(origin=origins), (report,))


def _read_parts(source: str, choice: Choice) -> list[_Part]:
    """Read the one labelled source, or the two that have a label each.

    Raises:
        PromptError: when there are none, or they cannot be read.
    """
    if source == "experiment-0":
        return [_read_part(dataset, Choice(), label) for dataset, label in zip(_EXPERIMENT_0, LABELS, strict=True)]
    benchmark = find_benchmark(source)
    if benchmark is not None and not _is_file(source):
        return [_read_half(half, choice) for half in benchmark.halves]
    if "," not in source or _is_file(source) or HubSet(source).is_folder:
        return [_read_part(source, choice)]
    sources = [part.strip() for part in source.split(",")]
    if len(sources) != 2 or not all(sources):
        raise PromptError(f"expected two sources as HARMFUL,HARMLESS, got {source!r:.120}")
    return [_read_part(part, choice, label) for part, label in zip(sources, LABELS, strict=True)]


def _read_half(half: Half, choice: Choice) -> _Part:
    file, revision = read_hub_set(parse_hub_set(half.source), choice, half.only)
    return _Part(file.without_repeated(), revision, half.label)


def _read_part(source: str, choice: Choice, label: str | None = None) -> _Part:
    if _is_file(source):
        return _Part(read_prompt_file(source, choice), None, label)
    half = benchmark_half(source)
    if half is not None:
        if label not in (None, half.label):
            raise PromptError(f"{source} has {half.label} prompts alone, expected {label} ones in its place")
        return _read_half(half, choice)
    hub_set = parse_hub_set(source)
    if not hub_set.is_folder and "/" not in hub_set.name:
        endings = ", ".join((*TEXT_ENDINGS, *TABLE_ENDINGS))
        raise PromptError(
            f"no prompt set or file called {source!r:.120}: expected one of {', '.join(CONTRAST_SETS)}, a file ending "
            f"in {endings}, a benchmark ({', '.join(BENCHMARKS)}), a set on the hub as owner/name, or two sources as "
            "HARMFUL,HARMLESS"
        )
    return _Part(*read_hub_set(hub_set, choice), label)


def _assembled_contrast(source: str, parts: list[_Part]) -> PromptSet:
    prompts = _assembled(source, parts)
    if source == "experiment-0":
        tables = [prompts.table[prompts.table["label"] == label][:_EXPERIMENT_0_ROWS] for label in LABELS]
        prompts = replace(prompts, table=pd.concat(tables, ignore_index=True))
    _check_contrast(prompts)
    return prompts if source in CONTRAST_SETS else _with_detected_pairs(prompts)


def _assembled(source: str, parts: list[_Part]) -> PromptSet:
    """Return the set that the sources make together.

    Raises:
        PromptError: when a source that has to have labels has none, or one that has a label has others of its own.
    """
    name = source if source in CONTRAST_SETS else "+".join(_name(part.file.report.source) for part in parts)
    if find_benchmark(source) is not None and not _is_file(source):
        name = source.strip().lower()
    pair_ids = _pairs_of_halves(parts)
    tables = []
    for part, pair_id in zip(parts, pair_ids, strict=True):
        table = part.file.table
        if part.label is None:
            part.file.check_labels()
        else:
            part.file.check_label(part.label)
            table = table.assign(label=part.label, pair_id=pair_id)
        tables.append(_table(table, source=name).assign(origin=table["origin"]))
    revision = "+".join(part.revision for part in parts if part.revision) or None
    reports = tuple(part.file.report for part in parts)
    return PromptSet(name, revision, pd.concat(tables, ignore_index=True), reports)


def _pairs_of_halves(parts: list[_Part]) -> list[list[str] | None]:
    """Return the pair of each prompt of the parts, where they are two splits that number their prompts alike.

    So do JailbreakBench's, whose row 7 is about one subject in both.
    """
    nothing: list[list[str] | None] = [None] * len(parts)
    if len(parts) != 2 or {part.label for part in parts} != set(LABELS):
        return nothing
    columns = [first_column(list(part.file.others.columns), ("index",)) for part in parts]
    sets = {part.file.report.source.rpartition(":")[0] for part in parts}
    if len(sets) > 1 or "" in sets or None in columns:
        return nothing
    numbers = [part.file.others[column].astype(str).tolist() for part, column in zip(parts, columns, strict=True)]
    alike = sorted(numbers[0]) == sorted(numbers[1]) and len(set(numbers[0])) == len(numbers[0])
    return [*numbers] if alike else nothing


def _name(source: str) -> str:
    """Return a file's name without its ending, or a hub set's name without its owner."""
    return stem(source.split("/")[-1].replace(":", "-"))


def _table(given: pd.DataFrame, source: str) -> pd.DataFrame:
    table = pd.DataFrame({"text": given["text"], "label": given["label"]}).reset_index(drop=True)
    table["source"] = source
    for optional in (CONVERSATION, *OPTIONAL_COLUMNS, EXTRA):
        values = given[optional] if optional in given else [None] * len(given)
        table[optional] = pd.Series([value or None for value in values], dtype=object)
    identities = zip(table["text"], table[CONVERSATION], strict=True)
    table["prompt_id"] = [prompt_id(text, conversation) for text, conversation in identities]
    return table[list(COLUMNS)]


def _is_file(source: str) -> bool:
    """Return whether there is such a file; a name that none can have is none."""
    try:
        return Path(source).is_file()
    except (OSError, ValueError):
        return False


def _check_texts(prompts: PromptSet) -> None:
    """Raise PromptError where a prompt comes twice: it would be in two folds at once."""
    table = prompts.table
    first: dict[str, int] = {}
    for row, (identity, label, origin) in enumerate(
        zip(table["prompt_id"], table["label"], table["origin"], strict=True)
    ):
        before = first.setdefault(identity, row)
        if before == row:
            continue
        file = origin.rpartition(", row ")[0]
        again = f"{origin}: the text of {table['origin'].iloc[before].removeprefix(f'{file}, ')} again"
        if label != table["label"].iloc[before]:
            raise PromptError(f"{again}, under the other label; expected one label a text")
        raise PromptError(f"{again}; expected every text once, take one of them out")


def _check_contrast(prompts: PromptSet) -> None:
    counts = prompts.counts
    if counts.get(GREY):
        grey = prompts.table[prompts.table["label"] == GREY].iloc[0]
        raise PromptError(
            f"{grey['origin']}: the label grey is for transfer sets; a contrast set expects harmful and harmless alone"
        )
    missing = [label for label in LABELS if not counts.get(label)]
    if missing:
        raise PromptError(
            f"{prompts.origin}: expected prompts of both labels, found none labelled {missing[0]}; add some, or give a "
            "second file with them, as HARMFUL,HARMLESS"
        )
    _check_texts(prompts)
    pairs = prompts.table[prompts.table["pair_id"].notna()]
    for pair, twins in pairs.groupby("pair_id", sort=False)["label"]:
        if set(twins) != set(LABELS):
            raise PromptError(
                f"{prompts.origin}, pair_id {str(pair)!r:.60}: expected prompts of both labels, "
                f"found {', '.join(twins)}; "
                "leave pair_id empty for prompts without a twin"
            )
    for label in LABELS:
        if counts[label] < MINIMUM_PER_LABEL:
            raise PromptError(
                f"{prompts.origin}: expected at least {MINIMUM_PER_LABEL} {label} prompts, found {counts[label]}; "
                f"add {MINIMUM_PER_LABEL - counts[label]} or more"
            )


def _with_detected_pairs(prompts: PromptSet) -> PromptSet:
    """Pair texts of opposite labels that share most of their words, in a set that names no pairs.

    Twins that are split between folds make each other's label the wrong one: ten such pairs gave a cross-fitted d of
    -0.33 that is 2.10 with the pairs kept together.
    """
    table = prompts.table
    if table["pair_id"].notna().any():
        return prompts
    rows, other_rows = (np.flatnonzero(table["label"].eq(label)) for label in LABELS)
    pairs = _near_pairs(table["text"].tolist(), rows, other_rows)
    if table[CONVERSATION].notna().any():
        # One system message before all prompts would make them all alike, and "Go on." twins of strangers.
        said = [words_of(prompt) for prompt in prompts_of(table)]
        alike = set(_near_pairs(said, rows, other_rows))
        pairs = [pair for pair in pairs if pair in alike]
    pair_id = table["pair_id"].to_numpy(object, copy=True)
    for number, pair in enumerate(pairs, start=1):
        pair_id[list(pair)] = f"{DETECTED}{number}"
    return replace(prompts, table=table.assign(pair_id=pair_id))


def _near_pairs(texts: list[str], rows: np.ndarray, other_rows: np.ndarray) -> list[tuple[int, int]]:
    # scikit-learn, on which this rests, takes seconds to import; a file that cannot be read is refused without.
    from refusal_core.analysis.texts import near_duplicates

    found = near_duplicates([texts[row] for row in rows], [texts[row] for row in other_rows], _ALIKE)
    return [(int(rows[place]), int(other_rows[other_place])) for place, other_place in found]


def _limited(prompts: PromptSet, limit: int) -> PromptSet:
    if limit < MINIMUM_PER_LABEL:
        raise PromptError(f"expected a limit of at least {MINIMUM_PER_LABEL} prompts per label, got {limit}")
    table = prompts.table
    paired = table["pair_id"].notna().all()
    keep: set[int] = set()
    for label in LABELS:
        rows = np.flatnonzero((table["label"] == label).to_numpy())
        chosen = rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)]
        if paired:
            keep.update(np.flatnonzero(table["pair_id"].isin(table["pair_id"].iloc[chosen])))
            break
        keep.update(chosen)
    return replace(prompts, table=table.iloc[sorted(keep)].reset_index(drop=True))


def slug(name: str) -> str:
    """Return a set's or model's name as part of a folder name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:60] or "unnamed"


def detected_pairs(prompts: pd.DataFrame) -> set[str]:
    """Return the pair_ids of the pairs that were found by their texts."""
    return {pair for pair in prompts["pair_id"].dropna().unique() if pair.startswith(DETECTED)}


def prompt_groups(prompts: pd.DataFrame) -> np.ndarray:
    """Return the group of every prompt, ``(prompt,)`` str: its quartet, its pair, or itself where it is in none.

    Prompts of one group are never split between folds and are resampled together.
    """
    quartet = _quartets_and_cues(prompts)[0]
    groups: np.ndarray = np.where(quartet.notna(), quartet.fillna(""), prompt_pairs(prompts)).astype(str)
    return groups


def prompt_pairs(prompts: pd.DataFrame) -> np.ndarray:
    """Return the matched pair of every prompt, ``(prompt,)`` str, or itself where it is in none."""
    pairs: np.ndarray = prompts["pair_id"].where(prompts["pair_id"].notna(), prompts["prompt_id"]).to_numpy(str)
    return pairs


def find_quartets(prompts: pd.DataFrame) -> np.ndarray:
    """Return ``(quartet, 4)`` positions of quartets in a set: two pairs called ``<quartet>-alarming`` and ``-calm``.

    The order is that of the cells: alarming harmful and harmless, calm harmful and harmless.
    """
    quartet, cue = _quartets_and_cues(prompts)
    cells = pd.DataFrame({"quartet": quartet, "cue": cue, "label": prompts["label"]}).reset_index(drop=True)
    cells = cells.dropna(subset="quartet").reset_index(names="position")
    if cells.empty or cells.duplicated(["quartet", "cue", "label"]).any():
        return np.empty((0, 4), dtype=int)
    wide = cells.pivot(index="quartet", columns=["cue", "label"], values="position")
    order = [(cue, label) for cue in CUES for label in LABELS]
    positions: np.ndarray = wide.reindex(columns=pd.MultiIndex.from_tuples(order)).dropna().to_numpy(int)
    return positions


def _quartets_and_cues(prompts: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the quartet and the cue of every prompt; missing where it is in no quartet."""
    parts = prompts["pair_id"].astype("string").str.extract(rf"^(?P<quartet>.+)-(?P<cue>{'|'.join(CUES)})$")
    complete = parts.groupby("quartet")["cue"].transform("nunique").eq(len(CUES)).fillna(False)
    return parts["quartet"].where(complete), parts["cue"].where(complete)
