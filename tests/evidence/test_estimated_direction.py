"""The evidence of an estimator that is refitted one by one: the closed formulas', planted truths, and chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import QUICK, evaluate_run, harmful_rows, planted_run

from refusal_core.analysis import groups, refitting
from refusal_core.analysis.directions import estimated_directions, fit_directions
from refusal_core.analysis.estimators import mean_difference
from refusal_core.analysis.refitting import REFITTED, Refitted, estimate_unit_directions
from refusal_core.evidence.answers import QUESTIONS, answer
from refusal_core.evidence.evaluation import evaluate
from refusal_core.evidence.findings import caveats, overview_table, verdict
from refusal_core.options import DEFAULT_ESTIMATOR, ESTIMATORS
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.schemas import check_evidence


def estimated(name: str, hidden: np.ndarray, prompts: pd.DataFrame, **options) -> Evidence:
    fitted, harmful = prompts["fitted"].to_numpy(), harmful_rows(prompts)
    given = harmful, prompt_groups(prompts), prompt_pairs(prompts), fitted
    unit = estimate_unit_directions(name, hidden, *given)
    directions = estimated_directions(name, unit, hidden, harmful, fitted)
    return evaluate(hidden, prompts, directions, estimator=name, **(QUICK | options))[0]


def anisotropic(seed: int, strength: float, **options) -> tuple[np.ndarray, pd.DataFrame]:
    """A planted run whose noise is large along one more dimension, which harm shifts too."""
    hidden, prompts = planted_run(seed, [strength], **options)
    hidden[:, :, 1] = 5 + 12 * (hidden[:, :, 1] - 5) + strength * harmful_rows(prompts)[:, None]
    return hidden, prompts


def test_every_estimator_that_can_be_chosen_has_a_name_and_a_fit():
    assert {DEFAULT_ESTIMATOR, *REFITTED} == ESTIMATORS.keys()


@pytest.mark.parametrize(("paired", "redrawn"), [(True, 1024), (False, 1024), (True, 40)])
def test_refitted_one_by_one_a_mean_difference_has_the_numbers_of_the_closed_formulas(monkeypatch, paired, redrawn):
    monkeypatch.setattr(groups, "MOST_REDRAWN", redrawn)
    as_drawn = Refitted(mean_difference, repeats=2, draws=40, permutations=30, held_out_permutations=30)
    monkeypatch.setitem(REFITTED, "orthogonal", as_drawn)
    hidden, prompts = planted_run(0, [0, 1], paired=paired)
    prompts["category"] = [f"topic {k // 2 % 3}" for k in range(len(prompts))]
    prompts.loc[prompts["label"].eq("harmful"), "n_tokens"] += 4
    options = {"draws": 40, "permutations": 30, "random_directions": 20}
    closed, one_by_one = evaluate_run(hidden, prompts, **options), estimated("orthogonal", hidden, prompts, **options)
    for name, table in closed.to_tables().items():
        other = one_by_one.to_tables()[name].drop(columns="estimator", errors="ignore")
        pd.testing.assert_frame_equal(table, other, check_exact=False, rtol=1e-6, atol=1e-7, obj=name)
    assert one_by_one.estimator == "orthogonal"


def test_whitening_separates_held_out_prompts_better_where_noise_has_a_direction():
    hidden, prompts = anisotropic(0, 2, n=160, n_probes=160)
    by_means, whitened = evaluate_run(hidden, prompts), estimated("whitened", hidden, prompts)
    assert whitened.sites["crossfit_d_low"][0] > by_means.sites["crossfit_d_high"][0]
    assert whitened.transfer["d_low"][0] > by_means.transfer["d_high"][0]


def test_whitening_changes_little_where_noise_has_none():
    hidden, prompts = planted_run(1, [1.5], n=320)
    by_means, whitened = evaluate_run(hidden, prompts), estimated("whitened", hidden, prompts)
    for table, number in (("sites", "crossfit_d"), ("transfer", "d")):
        ours, theirs = getattr(whitened, table), getattr(by_means, table)
        assert theirs[f"{number}_low"][0] < ours[number][0] < theirs[f"{number}_high"][0]


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.slow) for each in REFITTED])
def test_without_harm_small_p_values_are_as_rare_as_they_say(name):
    p, held_out = [], []
    for seed in range(20):
        hidden, prompts = anisotropic(100 + seed, 0.0, n=40, n_probes=0, paired=seed % 2 == 0 or "pair" in name)
        options = {"permutations": 19, "draws": 4, "random_directions": 2, "learning_draws": 1, "repeats": 1}
        evidence = estimated(name, hidden, prompts, **options)
        p.append(evidence.sites["permutation_p"][0])
        held_out.append(evidence.sites["crossfit_d"][0])
    # Of 20 with a probability of 0.1 more than 5 are below by chance in one of a hundred tests.
    assert (np.array(p) <= 0.1).sum() <= 5
    assert abs(np.mean(held_out)) < 0.35


def test_what_the_bootstrap_tunes_once_is_tuned_without_the_fold_that_is_tested(monkeypatch):
    seen: list[set[str]] = []

    def tuned(training):
        seen.append({*training.groups})
        return mean_difference

    monkeypatch.setitem(REFITTED, "logistic", Refitted(mean_difference, tuned, draws=5, permutations=5))
    hidden, prompts = planted_run(0, [1], n=40, n_probes=0)
    estimated("logistic", hidden, prompts, draws=5, permutations=5)
    everyone = {*prompt_groups(prompts)}
    folds = [everyone - part for part in seen if part != everyone]
    # Of the held-out projections and of those without length, a fold each; the full direction has none to leave out.
    assert len(folds) == 20
    assert set().union(*folds[:10]) == everyone
    assert sum(map(len, folds[:10])) == len(everyone)


def test_length_is_regressed_out_of_what_is_fitted_and_of_what_is_tested():
    hidden, prompts = planted_run(2, [0], n=160, n_probes=0)
    prompts.loc[prompts["label"].eq("harmful"), "n_tokens"] += 6
    hidden[:, 0, 3] += prompts["n_tokens"].to_numpy() * 1.0
    evidence = estimated("whitened", hidden, prompts)
    assert evidence.sites["crossfit_d_low"][0] > 0.5
    assert evidence.sites["length_d_low"][0] < 0 < evidence.sites["length_d_high"][0] + 0.2


@pytest.mark.parametrize("name", list(REFITTED))
def test_every_question_has_an_answer_and_the_words_name_the_estimator(name):
    hidden, prompts = planted_run(3, [0, 3], n=48)
    hidden[:, 0] = 1.0
    evidence = estimated(name, hidden, prompts, draws=10, permutations=9, random_directions=5)
    check_evidence(evidence.to_tables(), 2, prompts["prompt_id"])
    assert any(ESTIMATORS[name] in note for note in caveats(evidence))
    assert "mean difference" not in verdict(evidence)
    for question in QUESTIONS:
        for site in (0, 1):
            assert answer(evidence, question, site)
    assert len(overview_table(evidence)) == 2
    # Where all activations are alike there is no direction, and no number of the mean difference in its place.
    assert np.isnan(evidence.sites["crossfit_d"][0])
    assert evidence.sites["crossfit_d"][1] > 1


def test_what_takes_too_many_fits_is_missing_with_the_reason():
    hidden, prompts = planted_run(4, [2], n=48)
    evidence = estimated("logistic", hidden, prompts, draws=5, permutations=5, random_directions=5)
    assert evidence.learning.empty
    assert "too many fits" in answer(evidence, "enough", 0)
    assert np.isnan(evidence.sites["chance_crossfit_low"][0])
    assert "too many fits" in evidence.reason("sites", "chance_crossfit_low", 0)


def test_the_default_is_the_difference_of_means_as_it_was():
    hidden, prompts = planted_run(5, [1])
    evidence = evaluate_run(hidden, prompts)
    directions = fit_directions(hidden, harmful_rows(prompts), prompts["fitted"].to_numpy())
    assert "estimator" not in evidence.settings
    assert directions.are_of_means
    # As the version before other estimators computed it.
    assert evidence.sites["crossfit_d"][0] == PUBLISHED


def test_an_estimator_of_pairs_is_refused_without_them():
    prompts = planted_run(0, [1], n=40, paired=False)[1]
    fitted = prompts[prompts["fitted"]]
    given = fitted["label"].eq("harmful").to_numpy(), prompt_pairs(fitted)
    assert "expected at least 8 matched pairs" in refitting.why_not("pair-component", *given)
    assert refitting.why_not("whitened", *given) is None
    assert "at most" in refitting.why_not("whitened", np.zeros(refitting.MOST_FITTED + 1, bool), given[1])


PUBLISHED = 0.740321306765644
