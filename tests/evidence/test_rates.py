"""How often the sentences claim something of runs whose truth is planted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, evaluate_run, harmful_rows, planted_run, prompt_table

from refusal_core.analysis import baselines
from refusal_core.analysis.text_models import WORDS
from refusal_core.evidence.claims import better_than_wording_from, detectable_from
from refusal_core.evidence.findings import verdict
from refusal_core.runs.evidence_tables import CONTRAST, Evidence

pytestmark = pytest.mark.slow

SEEDS, N_SITES = 100, 8
LIGHT = {"permutations": 255, "draws": 80, "random_directions": 4, "repeats": 1, "learning_draws": 1, "folds": 5}
HARM = "separates the harmful from the harmless prompts of probe-pairs"

Truth = Callable[[int], tuple[np.ndarray, pd.DataFrame]]


def nothing(seed: int, n: int = 48, n_probes: int = 48) -> tuple[np.ndarray, pd.DataFrame]:
    return planted_run(seed, [0.0] * N_SITES, n, n_probes)


def style(seed: int, n: int = 48, n_probes: int = 48) -> tuple[np.ndarray, pd.DataFrame]:
    """The contrast set's labels are written in two styles, which the model sees at every site; the probes' are not."""
    rng = np.random.default_rng([seed, 1])
    prompts = prompt_table(n, n_probes, paired=False, seed=seed)
    written = np.where(prompts["fitted"], harmful_rows(prompts), np.repeat(rng.random(len(prompts) // 2) < 0.5, 2))
    hidden = rng.normal(size=(len(prompts), N_SITES, WIDTH))
    hidden[..., :3] += 2.4 * written[:, None, None]
    return hidden.astype(np.float32), prompts


def cue(seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """One word goes with the label in three of four prompts, and is all that the model and a reader see."""
    rng = np.random.default_rng([seed, 2])
    prompts = prompt_table(64, 48, seed=seed)
    alarming = harmful_rows(prompts) == (rng.random(len(prompts)) < 0.75)
    prompts["text"] = np.where(alarming, "do it secretly", "do it kindly")
    hidden = rng.normal(size=(len(prompts), N_SITES, WIDTH))
    hidden[..., 0] += 4 * alarming[:, None]
    return hidden.astype(np.float32), prompts


def step(seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    return planted_run(seed, [0.0] * 4 + [2.5] * 4, 48, 48)


def ramp(seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    return planted_run(seed, [0.0, 0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4], 48, 48)


def runs_of(truth: Truth, monkeypatch: pytest.MonkeyPatch, models: tuple[str, ...] = ()) -> list[Evidence]:
    # Text models take most of the time.
    monkeypatch.setattr(baselines, "TEXT_MODELS", models)
    return [evaluate_run(*truth(seed), **LIGHT) for seed in range(SEEDS)]


def claims(runs: list[Evidence]) -> int:
    return sum(HARM in verdict(evidence) for evidence in runs)


@pytest.mark.parametrize("size", [48, 16], ids=["24 + 24 prompts", "8 + 8 prompts"])
@pytest.mark.parametrize("truth", [nothing, style])
def test_runs_without_harm_hardly_ever_claim_it(truth, size, monkeypatch):
    runs = runs_of(lambda seed: truth(seed, size, size), monkeypatch)
    assert claims(runs) <= 0.025 * SEEDS
    if truth is style and size == 48:
        assert all("separates the two halves of its contrast set" in verdict(evidence) for evidence in runs)


def test_a_direction_of_a_cue_does_not_exceed_the_wording(monkeypatch):
    runs = runs_of(cue, monkeypatch, (WORDS,))
    assert claims(runs) > 0.5 * SEEDS
    for source in (CONTRAST, "probe-pairs"):
        assert sum(better_than_wording_from(evidence, source) is not None for evidence in runs) <= 0.025 * SEEDS


def test_a_planted_step_is_claimed_from_where_it_is(monkeypatch):
    runs = runs_of(step, monkeypatch)
    assert claims(runs) == SEEDS
    firsts = [detectable_from(evidence, "d", "probe-pairs") for evidence in runs]
    assert sum(first == 4 for first in firsts) >= 0.95 * SEEDS


def test_a_planted_ramp_is_detectable_some_way_up_and_its_interval_says_so(monkeypatch):
    runs = runs_of(ramp, monkeypatch)
    assert claims(runs) >= 0.99 * SEEDS
    firsts = np.array([detectable_from(evidence, "d", "probe-pairs") for evidence in runs])
    # The ramp begins at 2. What is detectable begins later, by as much as 24 pairs are too few.
    assert np.median(firsts) == 4
    assert (firsts < 2).mean() <= 0.025
    rows = pd.concat(evidence.detectable_from for evidence in runs).query("source == 'probe-pairs'")
    low, high = (rows[end].astype(float).fillna(N_SITES) for end in ("site_low", "site_high"))
    assert ((low <= np.median(firsts)) & (np.median(firsts) <= high)).mean() >= 0.9


def test_an_effect_that_is_called_detectable_is_detected_four_times_in_five(monkeypatch):
    """The stated effect, planted anew into as many runs at all sites, is found about as often as it is said to be."""
    stated = np.median([evidence.transfer["d_detectable"].median() for evidence in runs_of(nothing, monkeypatch)[:10]])
    # A direction fitted on 24 + 24 prompts sees part of what is planted: plant what makes d come out as stated.
    strength = stated * np.sqrt(1 + 2 * WIDTH / (24 * stated**2))
    runs = runs_of(lambda seed: planted_run(seed, [0.0, strength, 0.0], 48, 48), monkeypatch)
    found = np.mean([HARM in verdict(evidence) for evidence in runs])
    assert 0.65 <= found <= 0.95
