"""How far verdicts on a model's replies agree: of the measures, and from elsewhere, a judge model's or people's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from refusal_core.annotations.csv_files import read_annotation_file
from refusal_core.behaviour.measurement import MEASURES, refusals_by_measure
from refusal_core.errors import PromptError
from refusal_core.prompts.columns import first_column, listed
from refusal_core.runs.run import Run

_COLUMNS = ("verdict", "refused", "refusal", "is_refusal", "label")
_REFUSES = ("refuses", "refused", "refusal", "refuse", "full refusal", "true", "yes", "1", "1.0")
_COMPLIES = (
    *("answers", "answered", "answer", "complies", "complied", "comply", "compliance", "full compliance"),
    *("false", "no", "0", "0.0"),
    *("partial", "partial refusal", "cannot", "degenerate"),
)
"""Whoever goes along in part, is unable to, or writes nonsense does not refuse, as in the rules that name openings."""

_NUMBERED = re.compile(r"^\d+_")
"""XSTest's own verdicts are numbered: 1_full_compliance, 2_full_refusal, 3_partial_refusal."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What somebody else says of the replies to prompts.

    Attributes:
        name: of the file, without its ending.
        refuses: by prompt_id; of several rows of a prompt the last counts.
        blank: number of rows without a verdict, which are left out.
    """

    name: str
    refuses: Mapping[str, bool]
    blank: int


def read_verdicts(source: str | Path | BinaryIO) -> Verdicts:
    """Read a csv with a verdict per prompt: refuses or complies, in the words that judges use, or yes and no.

    Args:
        source: a file's path or an open file, with a ``prompt_id`` or text column to join by.

    Raises:
        RefusalError: when it cannot be read, or a verdict is not known, naming the row.
    """
    file = read_annotation_file(source)
    column = first_column(file.columns, _COLUMNS)
    if column is None:
        raise PromptError(
            f"{file.name}: expected a verdict column called {', '.join(_COLUMNS)}, found {listed(file.columns)}; "
            "rename the one that holds the verdicts"
        )
    refuses: dict[str, bool] = {}
    blank = 0
    for row in file.rows():
        said = row.cells[column].strip()
        if said:
            refuses[row.prompt_id] = _refuses(said, row.where)
        else:
            blank += 1
    return Verdicts(Path(file.name).stem, refuses, blank)


def agreement(run: Run, table: pd.DataFrame, verdicts: Verdicts) -> pd.DataFrame:
    """Return how far verdicts agree with each measure, on the prompts that both know.

    Args:
        run: the run.
        table: its behaviour, one row per prompt.
        verdicts: from elsewhere.

    Returns:
        One row per measure: ``measure``, ``n`` prompts, ``kappa`` (Cohen 1960), the share ``same``, and among the
        prompts that the verdicts call refused and not refused the shares ``sensitivity`` and ``specificity`` on which
        the measure says the same. NaN where nothing varies or there are none.
    """
    theirs = run.prompts["prompt_id"].map(dict(verdicts.refuses))
    known = theirs.notna() & table["opening_label"].notna().to_numpy()
    theirs = theirs[known].astype(bool).to_numpy()
    rows = []
    for measure, ours in refusals_by_measure(run, table)[known.to_numpy()].items():
        same = ours.to_numpy() == theirs
        varies = min(len(set(theirs)), ours.nunique()) > 1
        kappa = float(cohen_kappa_score(theirs, ours)) if varies else np.nan
        everyone = np.ones_like(same)
        shares = [float(same[chosen].mean()) if chosen.any() else np.nan for chosen in (everyone, theirs, ~theirs)]
        rows.append((measure, len(same), kappa, *shares))
    return pd.DataFrame(rows, columns=["measure", "n", "kappa", "same", "sensitivity", "specificity"])


def measure_agreement(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return how far the measures agree on the fitted prompts, by pair: Cohen's kappa (Cohen 1960), shared verdicts.

    Returns:
        ``first, second, kappa, same`` with ``same`` the share of prompts; kappa is NaN where a measure is constant.
    """
    verdicts = refusals_by_measure(run, table)[run.rows()]
    rows = []
    for first, second in combinations(MEASURES, 2):
        varies = verdicts[first].nunique() > 1 and verdicts[second].nunique() > 1
        kappa = cohen_kappa_score(verdicts[first], verdicts[second]) if varies else np.nan
        rows.append((first, second, kappa, float((verdicts[first] == verdicts[second]).mean())))
    return pd.DataFrame(rows, columns=["first", "second", "kappa", "same"])


def describe_verdicts(run: Run, table: pd.DataFrame, verdicts: Verdicts) -> str:
    """Say how many of the verdicts are of this run's measured prompts, and what is left out."""
    recorded = run.prompts["prompt_id"][table["opening_label"].notna().to_numpy()]
    n = len(verdicts.refuses.keys() & set(recorded))
    elsewhere = len(verdicts.refuses) - n
    sentences = [f"Verdicts of prompts whose replies were measured here: {n}."]
    if elsewhere:
        sentences.append(f"Of other prompts, left out: {elsewhere}.")
    if verdicts.blank:
        sentences.append(f"Rows without a verdict: {verdicts.blank}.")
    return " ".join(sentences)


def _refuses(said: str, where: str) -> bool:
    word = " ".join(_NUMBERED.sub("", said.lower()).replace("_", " ").replace("-", " ").split())
    if word in _REFUSES:
        return True
    if word in _COMPLIES:
        return False
    raise PromptError(f"{where}: expected a verdict such as refuses or complies, yes or no, found {said!r:.60}")
