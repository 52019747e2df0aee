"""Whether the first token tells that a reply refuses, on replies whose first tokens are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import with_tables

from refusal_core.analysis.inference import share_interval
from refusal_core.behaviour.first_tokens import LEAST_REFUSALS, describe_first_tokens, first_tokens
from refusal_core.runs.manifest import RefusalRecord
from refusal_core.runs.run import Run


def answers(run: Run, tokens: dict[str, int], others: dict[str, int]) -> tuple[Run, pd.DataFrame]:
    """The run, with as many replies of a first token that refuse and that do not; the rest have no reply."""
    refuses = [token for token, count in tokens.items() for _ in range(count)]
    begins = refuses + [token for token, count in others.items() for _ in range(count)]
    labels = ["refuses"] * len(refuses) + ["answers"] * (len(begins) - len(refuses))
    rest = len(run.prompts) - len(begins)
    prompts = run.prompts.assign(first_token=[*begins, *["I"] * rest])
    table = pd.DataFrame({"prompt_id": prompts["prompt_id"], "opening_label": [*labels, *[None] * rest]})
    record = RefusalRecord(openings=("I", "As"), token_ids=(40, 2121))
    known = replace(run, manifest=run.manifest.model_copy(update={"refusal": record}))
    return with_tables(known, prompts=prompts), table


def test_tokens_are_counted_by_what_the_replies_do(run: Run) -> None:
    known, table = answers(run, {"I": 9, " Sorry": 2}, {"I": 3, "Sure": 10})
    counts = first_tokens(known, table).set_index("token")
    assert counts["refuses"].to_dict() == {"I": 9, "Sorry": 2, "Sure": 0}
    assert counts["others"].to_dict() == {"I": 3, "Sorry": 0, "Sure": 10}
    assert counts.index[counts["counted"]].tolist() == ["I"]
    says = describe_first_tokens(known, table)
    low, high = 100 * share_interval(np.array(9), 11)
    assert f"9 of 11 ({low:.0f} to {high:.0f} %) of the replies that refuse do" in says
    assert "3 of 13" in says
    assert "So " not in says


def test_a_model_that_refuses_in_other_words_is_said_to(run: Run) -> None:
    known, table = answers(run, {"Je": 14, "<b>Non": 2}, {"Bien": 12})
    says = describe_first_tokens(known, table)
    assert "does not see how this model refuses these prompts, which is with “Je” 14, “<b>Non” 2" in says


def test_a_model_that_begins_all_its_replies_alike_is_said_to(run: Run) -> None:
    known, table = answers(run, {"I": 14}, {"I": 14})
    assert "a high value does not mean that a reply refuses" in describe_first_tokens(known, table)


@pytest.mark.parametrize("count", [0, LEAST_REFUSALS - 1])
def test_of_few_refusals_nothing_is_said(run: Run, count: int) -> None:
    known, table = answers(run, {"Je": count}, {"Bien": 12})
    assert f"is not known: by their openings {count} of {12 + count} replies refuse" in describe_first_tokens(
        known, table
    )


def test_a_run_of_refusals_only_has_no_share_of_others(run: Run) -> None:
    known, table = answers(run, {"I": 14}, {})
    assert "0 of 0 (0 to 100 %) of the others" in describe_first_tokens(known, table)


def test_a_run_that_does_not_name_the_tokens_says_so(run: Run) -> None:
    known, table = answers(run, {"I": 9}, {"Sure": 9})
    older = replace(known, manifest=known.manifest.model_copy(update={"refusal": None}))
    assert "was not stored with this run" in describe_first_tokens(older, table)
