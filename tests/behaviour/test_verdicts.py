"""Verdicts from elsewhere join a run by prompt, and agree with its measures as far as one counts by hand."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from refusal_core.behaviour.verdicts import agreement, describe_verdicts, read_verdicts
from refusal_core.errors import PromptError
from refusal_core.runs.run import Run


def file_of(**columns: list[str]) -> io.BytesIO:
    file = io.BytesIO(pd.DataFrame(columns).to_csv(index=False).encode())
    file.name = "judge.csv"
    return file


@pytest.fixture
def table(run: Run) -> pd.DataFrame:
    """Replies to the run's prompts: every fourth refuses, by its opening and its phrases."""
    refuses = np.arange(len(run.prompts)) % 4 == 0
    return pd.DataFrame(
        {
            "prompt_id": run.prompts["prompt_id"],
            "phrase_log_odds": np.where(refuses, 2.0, -2.0),
            "opening": "…",
            "opening_label": np.where(refuses, "refuses", "answers"),
        }
    )


def test_agreement_is_what_one_counts(run, table):
    # Of eight prompts two refuse; the judge misses one of them, and calls one of the others refused.
    ids = run.prompts["prompt_id"].head(8).tolist()
    said = ["refuses", "refuses", *["complies"] * 6]
    found = agreement(run, table, read_verdicts(file_of(prompt_id=ids, verdict=said))).set_index("measure")
    for measure in ("whole phrases", "opening rules"):
        row = found.loc[measure]
        assert row["n"] == 8
        assert row["same"] == 6 / 8
        assert row["sensitivity"] == 1 / 2
        assert row["specificity"] == 5 / 6
        # By chance they agree on 2/8 · 2/8 + 6/8 · 6/8 of the prompts.
        assert row["kappa"] == pytest.approx((6 / 8 - 40 / 64) / (1 - 40 / 64))


def test_verdicts_are_joined_by_text_too_and_what_is_left_out_is_said(run, table):
    texts = [*run.prompts["text"].iloc[[8, 9, 10]], "a prompt that is nowhere"]
    given = read_verdicts(file_of(prompt=texts, refused=["yes", "", "no", "yes"]))
    assert given.refuses[run.prompts["prompt_id"][8]]
    assert not given.refuses[run.prompts["prompt_id"][10]]
    said = describe_verdicts(run, table, given)
    assert said == (
        "Verdicts of prompts whose replies were measured here: 2. Of other prompts, left out: 1. Rows without a "
        "verdict: 1."
    )
    assert set(agreement(run, table, given)["n"]) == {2}


def test_a_reply_that_was_not_measured_is_not_compared(run, table):
    table.loc[[0, 1], "opening_label"] = None
    ids = run.prompts["prompt_id"].head(4).tolist()
    assert set(agreement(run, table, read_verdicts(file_of(prompt_id=ids, verdict=["yes"] * 4)))["n"]) == {2}


@pytest.mark.parametrize(
    ("said", "refuses"),
    [
        ("refuses", True),
        ("Refused", True),
        ("2_full_refusal", True),
        ("1", True),
        ("1.0", True),
        ("0.0", False),
        ("comply", False),
        ("True", True),
        ("complies", False),
        ("1_full_compliance", False),
        ("3_partial_refusal", False),
        ("cannot", False),
        ("0", False),
        ("No", False),
    ],
)
def test_the_words_of_judges(run, said, refuses):
    given = read_verdicts(file_of(prompt_id=[run.prompts["prompt_id"][0]], verdict=[said]))
    assert list(given.refuses.values()) == [refuses]


def test_an_unknown_verdict_names_its_row(run):
    ids = run.prompts["prompt_id"].head(2).tolist()
    with pytest.raises(PromptError, match=r"judge\.csv, row 2: expected a verdict such as refuses or complies"):
        read_verdicts(file_of(prompt_id=ids, verdict=["yes", "<b>maybe</b>"]))
    with pytest.raises(PromptError, match=r"expected a verdict column called verdict, .*; rename the one"):
        read_verdicts(file_of(prompt_id=ids, other=["a", "b"]))
