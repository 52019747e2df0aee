"""Sentences on harm and refusal, held to planted truths."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic import RUN

from refusal_core.exploration import positions as described
from refusal_core.runs.manifest import BehaviourCompute, PositionsManifest, RepliesRecord
from refusal_core.runs.schemas import ASKED, BOTH_DIRECTIONS, CORRECTED, COSINE, DONE, HARM, REFUSAL
from refusal_core.runs.store import open_run

FIRST, LAST, SITE = -3, -1, 1


@pytest.fixture
def run(synthetic_cache):
    return open_run(RUN, synthetic_cache)


def measured(reason: str | None = None, **at_last: object) -> described.Measured:
    """A comparison at one site: at the first position of harm alone, at the last as is said."""
    given = {"p": 0.01, "corrected": (0.4, 0.2, 0.6), "asked": (1.0, 0.8, 1.2), "done": (0.5, 0.3, 0.7)} | at_last
    rows = [
        (FIRST, HARM, ASKED, (2.0, 1.8, 2.2), np.nan),
        (FIRST, HARM, DONE, (0.1, -0.1, 0.3), np.nan),
        (FIRST, REFUSAL, ASKED, (0.0, -0.2, 0.2), np.nan),
        (FIRST, REFUSAL, DONE, (0.0, -0.2, 0.2), 0.6),
        (LAST, HARM, ASKED, given["asked"], np.nan),
        (LAST, HARM, DONE, given["done"], np.nan),
        (LAST, REFUSAL, ASKED, (0.0, -0.2, 0.2), np.nan),
        (LAST, REFUSAL, DONE, (1.5, 1.2, 1.8), given["p"]),
    ]
    rows += [
        (position, subject, measure, given["corrected"] if measure == CORRECTED else (0.3, 0.2, 0.4), np.nan)
        for position, subject in ((FIRST, BOTH_DIRECTIONS), (LAST, BOTH_DIRECTIONS))
        for measure in (COSINE, CORRECTED)
    ]
    table = pd.DataFrame(
        [(position, SITE, subject, measure, *numbers, -0.1, 0.1, p) for position, subject, measure, numbers, p in rows],
        columns=[
            *("position", "site", "subject", "measure", "number", "number_low", "number_high"),
            *("chance_low", "chance_high", "p"),
        ],
    )
    manifest = PositionsManifest(
        created="",
        compute=BehaviourCompute(device="cpu", dtype="float32"),
        seed=0,
        draws=99,
        closing_tokens=("<|im_end|>", "\n"),
        replies=RepliesRecord(sha256="0" * 64, counts={}, reason=reason),
    )
    return table, manifest


@pytest.mark.parametrize(
    ("at_last", "claim"),
    [
        ({}, f"the corrected cosine of harm and refusal is 0.40 (0.20 to 0.60). {described.BELOW_1}"),
        (
            {"corrected": (0.9, 0.7, 1.1)},
            "harm and refusal, with a corrected cosine of 0.90 (0.70 to 1.10), are not told apart. "
            + described.BELOW_1,
        ),
        ({"corrected": (np.nan, np.nan, np.nan)}, "harm and refusal are not told apart"),
        ({"p": 0.03}, "no direction of refusing is found"),
        ({"p": np.nan}, "no direction of refusing is found"),
        ({"asked": (0.1, -0.1, 0.3), "done": (0.1, -0.1, 0.3)}, "no direction of harm is found"),
    ],
)
def test_the_verdict_gives_the_cosine_where_both_exist_and_never_claims_two_directions(run, at_last, claim):
    said = described.verdict(run, measured(**at_last), SITE).removesuffix(".")
    claim = claim.removesuffix(".")
    if claim == "no direction of refusing is found":
        assert said == f"At layer 1 of 6, at t_inst and at t_post, {claim}"
    else:
        assert said == f"At layer 1 of 6 no direction of refusing is found at t_inst; at t_post {claim}"


def test_cosines_are_given_where_refusing_has_a_direction_and_effects_say_when_they_are_not_shown(run):
    alike = described.how_alike(measured(), SITE)
    assert "at t_inst it says nothing, since refusing is not shown to have a direction (p = 0.600)" in alike
    assert (
        "at t_post 0.30 (0.20 to 0.40), of permuted replies -0.10 to 0.10, without noise 0.40 (0.20 to 0.60)" in alike
    )
    assert alike.endswith("tested at a layer chosen beforehand: p is not corrected over the layers.")
    follows = described.what_follows(measured(), SITE)
    assert follows == (
        "Harm at t_inst follows what is asked by 2.00 (1.80 to 2.20), and is not shown to follow refusing. "
        "Harm at t_post follows what is asked by 1.00 (0.80 to 1.20) and refusing by 0.50 (0.30 to 0.70). "
        "Refusal at t_inst is not shown to follow what is asked or refusing. "
        "Refusal at t_post follows refusing by 1.50 (1.20 to 1.80), and is not shown to follow what is asked."
    )
    over = described.cosines_over_layers(measured())
    assert over.keys() == {"t_inst", "t_post"}
    assert over["t_inst"]["number"].isna().all()
    assert over["t_post"]["number"].tolist() == [0.4]


def test_too_few_refusals_are_said_and_leave_harm_alone(run):
    few = measured("the model refuses 3 of 256 harmful and 0 of 256 harmless prompts")
    few = few[0][few[0]["subject"].eq(HARM)], few[1]
    assert described.verdict(run, few, SITE).endswith(
        "said: the model refuses 3 of 256 harmful and 0 of 256 harmless prompts."
    )
    assert described.how_alike(few, SITE) == ""
    assert "Harm at t_inst follows what is asked by 2.00" in described.what_follows(few, SITE)
    assert described.cosines_over_layers(few) == {}
