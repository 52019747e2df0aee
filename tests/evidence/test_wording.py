from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import QUICK, harmful_rows, planted_run
from scipy import stats

from refusal_core.analysis.baselines import Baseline
from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.groups import ALL_PROMPTS
from refusal_core.analysis.text_models import CHARACTERS, WORDS
from refusal_core.evidence.design import Design, plan_design
from refusal_core.evidence.text_answers import scores_of, strongest_text_model, text_separations
from refusal_core.evidence.wording import Compared, Separation, compared_prompts, wording_table
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT, NEAR_TWINS


def design_of(prompts: pd.DataFrame, draws: int = 60) -> Design:
    return plan_design(prompts, seed=0, folds=4, **(QUICK | {"draws": draws}))


def twins(prompts: pd.DataFrame, near: int) -> pd.DataFrame:
    """The first pairs differ in one word, the others in four."""
    texts = []
    for row, harmful in enumerate(harmful_rows(prompts)):
        pair = row // 2
        word = "alpha" if harmful else "beta"
        texts.append(f"tell me {word} {pair}" if pair < near else f"tell me {word} {word} {word} {word} {pair}")
    return prompts.assign(text=texts)


def test_a_separation_is_of_the_prompts_that_each_draw_has():
    rng = np.random.default_rng(0)
    _, prompts = planted_run(0, [0], n=20, n_probes=0)
    design = design_of(prompts)
    compared = compared_prompts(design)[0]
    scores, drawn = rng.normal(size=(3, 20)), rng.normal(size=(60, 20))
    found = compared.separation(scores, drawn)
    labels = harmful_rows(prompts)
    assert found.point["auroc"] == pytest.approx(np.mean([auroc(row[labels], row[~labels]) for row in scores]))
    mean = scores.mean(axis=0)
    assert found.point["pair_accuracy"] == pytest.approx((mean[0::2] > mean[1::2]).mean())
    for draw in (0, 7, 59):
        copies = np.repeat(np.arange(20), design.contrast.bootstrap.counts[draw].astype(int))
        values, of_label = drawn[draw][copies], labels[copies]
        assert found.draws["auroc"][draw] == pytest.approx(auroc(values[of_label], values[~of_label]))
        above = (drawn[draw][0::2] > drawn[draw][1::2])[copies[of_label] // 2]
        assert found.draws["pair_accuracy"][draw] == pytest.approx(above.mean())
    same = compared.separation(scores, scores[0])
    each_draw = compared.separation(scores, np.broadcast_to(scores[0], (60, 20)))
    np.testing.assert_allclose(same.draws["auroc"], each_draw.draws["auroc"])
    np.testing.assert_allclose(same.draws["pair_accuracy"], each_draw.draws["pair_accuracy"])


def test_near_twins_are_compared_apart_where_there_are_enough():
    _, prompts = planted_run(0, [0], n=40, n_probes=40)
    compared = compared_prompts(design_of(twins(prompts, 8)))
    assert [(each.source, each.prompts) for each in compared] == [
        (CONTRAST, EVERY_PROMPT),
        (CONTRAST, NEAR_TWINS),
        ("probe-pairs", EVERY_PROMPT),
    ]
    assert compared[1].rows.tolist() == [True] * 16 + [False] * 24
    np.testing.assert_array_equal(compared[1].twins, np.arange(16).reshape(8, 2))
    assert len(compared_prompts(design_of(twins(prompts, 7)))) == 2


def test_near_twins_are_separated_among_themselves():
    _, prompts = planted_run(0, [0], n=40, n_probes=0)
    everyone, near = compared_prompts(design_of(twins(prompts, 10)))
    labels = harmful_rows(prompts)
    scores = np.where(np.arange(40) < 20, labels * 1.0, ~labels * 1.0)[None, :]
    assert near.separation(scores, scores[0]).point == {"auroc": 1.0, "pair_accuracy": 1.0}
    assert (near.separation(scores, scores[0]).draws["auroc"] == 1).all()
    assert (near.separation(scores, scores[0]).draws["pair_accuracy"] == 1).all()
    assert everyone.separation(scores, scores[0]).point == {"auroc": 0.5, "pair_accuracy": 0.5}


def test_a_set_of_one_label_is_not_compared():
    _, prompts = planted_run(0, [0], n=20, n_probes=20)
    prompts.loc[~prompts["fitted"], "label"] = "harmless"
    assert [each.source for each in compared_prompts(design_of(prompts.assign(pair_id=None)))] == [CONTRAST]


def test_scores_that_do_not_exist_separate_nothing():
    _, prompts = planted_run(0, [0], n=20, n_probes=0)
    compared = compared_prompts(design_of(prompts))[0]
    nothing = compared.separation(np.full((1, 20), np.nan), np.full((60, 20), np.nan))
    assert np.isnan(list(nothing.point.values())).all()
    assert all(np.isnan(draws).all() for draws in nothing.draws.values())


def test_a_difference_is_of_the_same_draws():
    ours = Separation(
        {"auroc": 0.8, "pair_accuracy": 0.9}, {"auroc": np.array([0.7, 0.8, 0.9])} | {"pair_accuracy": np.ones(3)}
    )
    theirs = Separation(
        {"auroc": 0.6, "pair_accuracy": 0.7}, {"auroc": np.array([0.5, 0.6, 0.7])} | {"pair_accuracy": np.zeros(3)}
    )
    numbers = dict(ours.minus(theirs).numbers("{}_difference", -1.0))
    # Every draw moves both alike, so nothing is uncertain about their difference.
    assert numbers["auroc_difference"] == pytest.approx(0.2)
    assert numbers["auroc_difference_low"] == pytest.approx(0.2)
    assert numbers["auroc_difference_high"] == pytest.approx(0.2)
    assert numbers["pair_accuracy_difference"] == pytest.approx(0.2)
    assert dict(ours.numbers("text_{}", 0.0))["text_auroc_low"] == pytest.approx(0.7, abs=0.01)


def baseline_of(name: str, design: Design, strength: float, seed: int) -> Baseline:
    rng = np.random.default_rng(seed)
    labels = harmful_rows(design.prompts)
    scores = rng.normal(size=(2, len(labels))) + labels * strength
    return Baseline(name, scores[:, design.fitted], scores[0, ~design.fitted])


def test_the_table_has_each_text_model_against_each_site():
    _, prompts = planted_run(0, [0, 0], n=40, n_probes=30)
    design = design_of(prompts)
    compared = compared_prompts(design)
    weak, strong = baseline_of(WORDS, design, 0.3, 1), baseline_of(CHARACTERS, design, 1.5, 2)
    none = Baseline("input embeddings", weak.held_out, weak.others, "not read")
    texts = text_separations(design, compared, [weak, strong, none])
    ours = {
        (each.source, each.prompts): [each.separation(scores_of(weak, design, each), scores_of(weak, design, each)[0])]
        * 2
        for each in compared
    }
    labels = design.contrast.is_harmful
    strongest = strongest_text_model([weak, strong, none], labels)
    assert strongest == CHARACTERS
    assert strongest_text_model([none], labels) is None
    table = wording_table(compared, ours, texts, strongest)
    assert len(table) == 2 * 2 * 2
    assert table.groupby("opponent")["strongest"].all().to_dict() == {CHARACTERS: True, WORDS: False}
    same = table[table["opponent"].eq(WORDS)]
    for column in ("auroc_difference", "auroc_difference_low", "auroc_difference_high", "pair_accuracy_difference"):
        np.testing.assert_allclose(same[column], 0, atol=1e-12)
    np.testing.assert_allclose(same["auroc"], same["text_auroc"])
    others = table[table["opponent"].eq(CHARACTERS)]
    np.testing.assert_allclose(others["auroc_difference"], others["auroc"] - others["text_auroc"])
    assert (others["auroc_difference_high"] < 0).any()
    probes = others[others["source"].eq("probe-pairs")].iloc[0]
    assert (probes["n_harmful"], probes["n_harmless"], probes["n_pairs"]) == (15, 15, 15)
    by_hand = strong.others[0::2], strong.others[1::2]
    assert probes["text_auroc"] == pytest.approx(auroc(*by_hand))
    assert probes["text_pair_accuracy"] == pytest.approx((by_hand[0] > by_hand[1]).mean())


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    """Scores that share half of their noise: the true difference of their areas is known from the normal model."""
    covered, runs, n = 0, 200, 80
    labels = np.arange(n) % 2 == 0
    true = stats.norm.cdf(1.5 / 2**0.5) - stats.norm.cdf(1.0 / 2**0.5)
    _, prompts = planted_run(0, [0], n=n, n_probes=0)
    for seed in range(runs):
        rng = np.random.default_rng([seed, 3])
        design = plan_design(prompts, seed=seed, folds=4, **(QUICK | {"draws": 200, "permutations": 1}))
        compared = compared_prompts(design)[0]
        shared = rng.normal(size=n)
        scores = [(shared + rng.normal(size=n)) / 2**0.5 + labels * strength for strength in (1.5, 1.0)]
        ours, theirs = (compared.separation(score[None, :], score) for score in scores)
        low, high = (dict(ours.minus(theirs).numbers("{}", -1.0))[f"auroc_{end}"] for end in ("low", "high"))
        covered += low <= true <= high
    assert 0.9 * runs <= covered <= 0.99 * runs


def test_the_prompts_of_a_large_set_are_all_in_the_estimate_and_a_sample_in_the_draws(monkeypatch):
    from refusal_core.analysis import groups

    _, prompts = planted_run(0, [0], n=80, n_probes=0)
    monkeypatch.setattr(groups, "MOST_REDRAWN", 40)
    design = design_of(prompts)
    compared = compared_prompts(design)[0]
    assert isinstance(compared, Compared)
    assert compared.of.sample is not ALL_PROMPTS
    labels = harmful_rows(prompts)
    scores = np.where(np.isin(np.arange(80), compared.of.sample), labels, ~labels) * 1.0
    found = compared.separation(scores[None, :], scores[compared.of.sample])
    assert found.point["auroc"] == pytest.approx(0.5)
    assert (found.draws["auroc"] == 1).all()
    assert (found.draws["pair_accuracy"] == 1).all()
