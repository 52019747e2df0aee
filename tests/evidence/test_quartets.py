"""Intent and cue of quartets, on activations in which either is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, evaluate_run, prompt_table

from refusal_core.evidence import quartets
from refusal_core.evidence.claims import cue_side, follows_intent, of_quartets, probe_source, separated
from refusal_core.evidence.findings import verdict
from refusal_core.evidence.phrases import intent_and_cue
from refusal_core.prompts.sets import find_quartets, load_transfer_set, prompt_groups, prompt_pairs
from refusal_core.runs.evidence_tables import Evidence

N_QUARTETS = 24
LIGHT = {"permutations": 255, "draws": 100, "random_directions": 4, "repeats": 1, "learning_draws": 1, "folds": 5}
MORE = "follows what is asked more than how alarming it sounds"
LESS = "follows how alarming a prompt sounds more than what is asked"


def quartet_table(n: int = N_QUARTETS) -> pd.DataFrame:
    cells = [
        (f"q{k:03d}", cue, label) for k in range(n) for cue in ("alarming", "calm") for label in ("harmful", "harmless")
    ]
    return pd.DataFrame(
        {
            "prompt_id": [f"c{k:011x}" for k in range(4 * n)],
            "text": [" ".join(cell) for cell in cells],
            "label": [label for *_, label in cells],
            "pair_id": [f"{quartet}-{cue}" for quartet, cue, _ in cells],
            "source": "quartets",
            "fitted": False,
            "n_tokens": 20,
            "refusal_log_odds": np.linspace(-1, 1, 4 * n),
        }
    )


def quartet_run(
    seed: int, intent: float, cue: float, both: float = 0.0, n: int = N_QUARTETS, slot: float = 2.0
) -> Evidence:
    """The direction is planted in the contrast set; the quartets have these effects along it, in standard deviations.

    What their slots hold, by itself, moves prompts of both cues as much, ``slot`` standard deviations.
    """
    rng = np.random.default_rng([seed, 9])
    contrast, others = prompt_table(64, 0, seed=seed), quartet_table(n)
    prompts = pd.concat([contrast, others], ignore_index=True)
    hidden = rng.normal(size=(len(prompts), 2, WIDTH))
    hidden[: len(contrast), :, 0] += 6 * contrast["label"].eq("harmful").to_numpy()[:, None]
    harmful, alarming = (
        others["label"].eq("harmful").to_numpy(),
        others["pair_id"].str.endswith("alarming").to_numpy(),
    )
    # The same words fill the slot of the alarming harmful and of the calm harmless prompt.
    words = np.repeat(rng.normal(size=n), 4) * np.where(harmful == alarming, 1, -1)
    moved = (harmful - 0.5) * intent + (alarming - 0.5) * cue + (harmful == alarming) * both / 2 + slot * words
    hidden[len(contrast) :, :, 0] += moved[:, None]
    return evaluate_run(hidden.astype(np.float32), prompts, **LIGHT)


def test_the_bundled_quartets_are_found_and_grouped():
    table = load_transfer_set("quartets").table
    found = find_quartets(table)
    assert found.shape == (len(table) // 4, 4)
    for place, (cue, label) in enumerate(
        [("alarming", "harmful"), ("alarming", "harmless"), ("calm", "harmful"), ("calm", "harmless")]
    ):
        cell = table.iloc[found[:, place]]
        assert cell["label"].eq(label).all()
        assert cell["pair_id"].str.endswith(f"-{cue}").all()
    groups = prompt_groups(table)
    assert all(len(set(groups[rows])) == 1 for rows in found)
    assert len(set(groups)) == len(found)
    assert len(set(prompt_pairs(table))) == 2 * len(found)


def test_half_a_quartet_is_a_pair():
    half = quartet_table(3).query("pair_id != 'q001-calm'").reset_index(drop=True)
    assert find_quartets(half).shape == (2, 4)
    assert set(prompt_groups(half)) == {"q000", "q001-alarming", "q002"}
    assert find_quartets(half.assign(pair_id=None)).shape == (0, 4)


def test_effects_are_those_that_were_planted():
    evidence = quartet_run(0, 1.5, 0.8, 1.0, n=400, slot=0.0)
    row = of_quartets(evidence, "quartets").loc[0]
    # The direction is not quite the planted one, and adds noise of its own.
    for name, planted in (("intent", 1.5), ("cue", 0.8), ("interaction", 1.0)):
        assert row[f"{name}_low"] < planted * 0.97 < row[f"{name}_high"]
        assert row[name] == pytest.approx(planted, abs=0.25)
    assert row["intent_lead"] == pytest.approx(row["intent"] - row["cue"])
    assert row["n_quartets"] == 400
    said, rest = intent_and_cue(evidence, 0, "quartets")
    assert MORE in said
    assert rest.startswith(f"The other words of the slot move it by {row['interaction']:.2f} (")


def test_effects_by_hand():
    cells = np.random.default_rng(0).normal([3.0, 1.0, 2.0, 0.5], size=(1, N_QUARTETS, 4))
    effects = quartets.standardised(cells, np.ones((1, N_QUARTETS)))
    mean, spread = cells[0].mean(axis=0), np.sqrt(cells[0].var(axis=0).mean())
    assert effects["intent"][0] == pytest.approx(((mean[0] - mean[1]) + (mean[2] - mean[3])) / 2 / spread)
    assert effects["cue"][0] == pytest.approx(((mean[0] - mean[2]) + (mean[1] - mean[3])) / 2 / spread)
    assert effects["interaction"][0] == pytest.approx(((mean[0] - mean[1]) - (mean[2] - mean[3])) / spread)


@pytest.mark.parametrize(("intent", "cue", "said"), [(2.0, 0.0, MORE), (0.0, 3.0, LESS), (0.0, -3.0, LESS)])
def test_what_is_planted_is_what_it_is_said_to_follow(intent, cue, said):
    evidence = quartet_run(2, intent, cue)
    assert said in verdict(evidence)
    assert follows_intent(evidence, 0) == ("yes" if said == MORE else "no")
    assert cue_side(evidence, "quartets")[0] == np.sign(cue)
    assert separated(evidence, "quartets")[0] == np.sign(intent)


def test_a_set_with_few_quartets_has_no_effects():
    evidence = quartet_run(0, 3.0, 0.0, n=7)
    assert evidence.quartets.empty
    assert probe_source(evidence) == "quartets"
    assert intent_and_cue(evidence, 0, "quartets") == []


@pytest.mark.slow
@pytest.mark.parametrize("cue", [0.0, 2.0])
def test_intent_is_hardly_ever_claimed_of_quartets_that_differ_in_their_words_alone(cue):
    runs = [quartet_run(seed, 0.0, cue) for seed in range(50)]
    assert sum((separated(evidence, "quartets") > 0).any() for evidence in runs) <= 1
    assert not any(MORE in verdict(evidence) for evidence in runs)
    found = sum((cue_side(evidence, "quartets") > 0).any() for evidence in runs)
    assert found >= 47 if cue else found <= 1


@pytest.mark.slow
def test_intent_of_one_standard_deviation_is_found():
    runs = [quartet_run(seed, 2.0, 0.0) for seed in range(30)]
    assert sum(MORE in verdict(evidence) for evidence in runs) >= 27
