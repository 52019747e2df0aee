"""Harm and refusal at two read positions: what is planted is taken apart as planted, and a null gives no claim."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from synthetic import RUN

from refusal_core.evidence.apart import apart_table, weights_within
from refusal_core.exploration.positions import BELOW_1, verdict
from refusal_core.progress import no_progress
from refusal_core.runs.manifest import BehaviourCompute, PositionsManifest, RepliesRecord
from refusal_core.runs.schemas import (
    ASKED,
    BOTH_DIRECTIONS,
    CELLS,
    CORRECTED,
    COSINE,
    DONE,
    HARM,
    QUARTET_CELLS,
    REFUSAL,
)
from refusal_core.runs.store import open_run

WIDTH, PAIRS, QUARTETS, DRAWS = 40, 80, 12, 199
FIRST, LAST = -3, -1
HARM_AXIS, REFUSAL_AXIS = 0, 1


def planted_prompts(seed: int, refuses: float = 0.75, harmless: float = 0.25) -> tuple[pd.DataFrame, np.ndarray]:
    """Matched pairs and quartets, and which are refused: harmful ones oftener, each by chance."""
    rng = np.random.default_rng(seed)
    n = 2 * PAIRS
    quartet = np.arange(4 * QUARTETS)
    prompts = pd.DataFrame(
        {
            "prompt_id": [f"{place:012x}" for place in range(n + len(quartet))],
            "text": [f"prompt {place}" for place in range(n + len(quartet))],
            "label": np.where(np.arange(n + len(quartet)) % 2 == 0, "harmful", "harmless"),
            "pair_id": [
                *(f"pair-{place // 2}" for place in range(n)),
                *(f"{place // 4}-{'alarming' if place % 4 < 2 else 'calm'}" for place in quartet),
            ],
            "source": ["pairs"] * n + ["quartets"] * len(quartet),
            "fitted": np.arange(n + len(quartet)) < n,
            "n_tokens": rng.integers(20, 40, n + len(quartet)),
            "refusal_log_odds": rng.normal(size=n + len(quartet)),
        }
    )
    rate = np.where(prompts["label"].eq("harmful"), refuses, harmless)
    return prompts, rng.random(len(prompts)) < rate


def planted_ends(
    prompts: pd.DataFrame, refused: np.ndarray, seed: int, *terms: tuple[int, str, int, float]
) -> np.ndarray:
    """Noise ``(prompt, 2, 1, d)``; each term adds ``asked`` or ``done`` at an end, along an axis, of a strength."""
    ends = np.random.default_rng([seed, 1]).normal(size=(len(prompts), 2, 1, WIDTH))
    of = {"asked": prompts["label"].eq("harmful").to_numpy(), "done": refused}
    for end, what, axis, strength in terms:
        ends[of[what], end, 0, axis] += strength
    return ends


def compared(seed: int, *terms: tuple[int, str, int, float], draws: int = DRAWS, **rates: float) -> pd.DataFrame:
    prompts, refused = planted_prompts(seed, **rates)
    ends = planted_ends(prompts, refused, seed, *terms)
    table, _ = apart_table(ends, (FIRST, LAST), prompts, refused, 0, no_progress, draws)
    return table.set_index(["position", "subject", "measure"]).sort_index()


def test_harm_planted_at_the_first_and_refusal_at_the_last_position_are_found_there():
    table = compared(0, (0, "asked", HARM_AXIS, 3.0), (1, "done", REFUSAL_AXIS, 3.0))
    assert table.loc[(FIRST, HARM, ASKED), "number_low"] > 2
    assert abs(table.loc[(FIRST, HARM, DONE), "number"]) < 0.5
    assert table.loc[(FIRST, REFUSAL, DONE), "p"] > 0.025
    # What separates the labels at the last position is what the model does.
    assert table.loc[(LAST, HARM, DONE), "number_low"] > 2
    assert table.loc[(LAST, HARM, ASKED), "number_low"] < 0.3
    assert table.loc[(LAST, REFUSAL, DONE), "number_low"] > 2
    assert table.loc[(LAST, REFUSAL, DONE), "p"] == 1 / (DRAWS + 1)
    assert table.loc[(LAST, BOTH_DIRECTIONS, CORRECTED), "number"] == pytest.approx(1, abs=0.1)
    cells = table.loc[(LAST, REFUSAL)].loc[list(CELLS), "number"]
    assert min(cells["harmful_refused"], cells["harmless_refused"]) > 1 > -1
    assert max(cells["harmful_answered"], cells["harmless_answered"]) < -1
    quartets = table.loc[(FIRST, HARM)].loc[list(QUARTET_CELLS), "number"]
    assert min(quartets["alarming_harmful"], quartets["calm_harmful"]) > 1
    assert max(quartets["alarming_harmless"], quartets["calm_harmless"]) < -0.5


def test_two_directions_at_one_position_are_told_apart_and_one_is_not():
    two = compared(1, (1, "asked", HARM_AXIS, 2.0), (1, "done", REFUSAL_AXIS, 3.0))
    # The direction of the labels has what of the replies goes with them: half of 3, besides its own 2.
    truth = 1.5 / np.hypot(2.0, 1.5)
    cosine = two.loc[(LAST, BOTH_DIRECTIONS, CORRECTED)]
    assert cosine["number_low"] < truth < cosine["number_high"] < 1
    one = compared(1, (1, "asked", HARM_AXIS, 2.0), (1, "done", HARM_AXIS, 2.0))
    cosine, raw = one.loc[(LAST, BOTH_DIRECTIONS, CORRECTED)], one.loc[(LAST, BOTH_DIRECTIONS, COSINE)]
    assert cosine["number_low"] < 1 < cosine["number_high"]
    # Without the correction, one direction would look like two.
    assert raw["number"] < cosine["number"]
    assert raw["number_high"] < 1
    assert raw["chance_low"] < 0 < raw["chance_high"] < raw["number"]


def test_one_direction_that_replies_are_a_noisy_threshold_of_is_not_said_to_be_two(synthetic_cache):
    prompts, _ = planted_prompts(0)
    rng = np.random.default_rng(0)
    harm = np.eye(WIDTH)[:2].sum(axis=0) / np.sqrt(2)
    # One of the two axes that harm lies along varies more within a label, so refused prompts differ along that one.
    at_end = rng.normal(size=(len(prompts), WIDTH)) * np.where(np.arange(WIDTH) == 0, 2.0, 0.5)
    at_end += 2.0 * prompts["label"].eq("harmful").to_numpy()[:, None] * harm
    refused = rng.random(len(prompts)) < 1 / (1 + np.exp(-3 * (at_end @ harm - 1)))
    ends = np.repeat(at_end[:, None, None], 2, axis=1)
    table, replies = apart_table(ends, (FIRST, LAST), prompts, refused, 0, no_progress, DRAWS)
    cosine = table[table["position"].eq(LAST) & table["subject"].eq(BOTH_DIRECTIONS) & table["measure"].eq(CORRECTED)]
    assert cosine["number_high"].item() < 1
    manifest = PositionsManifest(
        created="",
        compute=BehaviourCompute(device="cpu", dtype="float32"),
        seed=0,
        draws=DRAWS,
        closing_tokens=("<|im_end|>", "\n"),
        replies=RepliesRecord(sha256="0" * 64, counts=replies.counts, reason=replies.why_none),
    )
    said = verdict(open_run(RUN, synthetic_cache), (table, manifest), 0)
    number, caveat = said.split(". ", 1)
    given = r"the corrected cosine of harm and refusal is [\d.]+ \([\d.]+ to [\d.]+\)"
    assert re.fullmatch(rf"At layer 0 of 6, at t_inst and at t_post, {given}", number)
    assert caveat == BELOW_1


@pytest.mark.slow
def test_replies_that_follow_the_label_alone_and_one_direction_give_few_claims():
    null, one, level = [], [], 0.025
    for seed in range(100):
        table = compared(seed, (1, "asked", HARM_AXIS, 1.5), draws=39)
        null.append(table.loc[(LAST, REFUSAL, DONE), "p"] <= level)
        table = compared(seed, (1, "asked", HARM_AXIS, 1.5), (1, "done", HARM_AXIS, 1.5), draws=39)
        one.append(table.loc[(LAST, BOTH_DIRECTIONS, CORRECTED), "number_high"] < 1)
    # Of 100, at a rate of 2.5 %, more than 7 would be rarer than one in a hundred.
    assert sum(null) <= 7
    assert sum(one) <= 7


def test_too_few_refusals_leave_refusing_without_a_direction_and_say_how_many():
    prompts, _ = planted_prompts(0)
    refused = np.zeros(len(prompts), dtype=bool)
    refused[:6:2] = True
    ends = planted_ends(prompts, refused, 0, (0, "asked", HARM_AXIS, 3.0))
    table, replies = apart_table(ends, (FIRST, LAST), prompts, refused, 0, no_progress, 99)
    assert replies.why_none.startswith("the model refuses 3 of 80 harmful and 0 of 80 harmless prompts")
    assert set(table["subject"]) == {HARM}
    table = table.set_index(["position", "measure"])
    assert table.loc[(FIRST, ASKED), "number_low"] > 2
    assert np.isnan(table.loc[(FIRST, DONE), "number"])
    assert np.isnan(table.loc[(FIRST, "harmless_refused"), "number"])
    few = table.loc[(FIRST, "harmful_refused")]
    assert np.isfinite(few["number"])
    assert np.isnan(few["number_low"])
    assert np.isfinite(table.loc[(FIRST, "harmless_answered"), "number"])


def test_weights_within_strata_do_not_feel_the_stratum():
    rng = np.random.default_rng(0)
    stratum, first = rng.random(50) < 0.5, rng.random(50) < 0.4
    counts = rng.integers(0, 3, (5, 50)).astype(float)
    weights = weights_within(counts, first, np.array([stratum, ~stratum]))
    np.testing.assert_allclose(weights @ stratum, 0, atol=1e-12)
    np.testing.assert_allclose(weights @ first, 1)
    np.testing.assert_allclose(weights_within(counts, first, np.array([stratum])) @ ~stratum, 0, atol=1e-12)
    assert np.isnan(weights_within(counts, first, np.empty((0, 50), dtype=bool))).all()
