from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, evaluate_run, harmful_rows, planted_run

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.gram import gram_matrix
from refusal_core.evidence import questions
from refusal_core.evidence.answers import answer
from refusal_core.evidence.design import plan_contrast


def in_categories(prompts: pd.DataFrame, count: int) -> pd.DataFrame:
    """Pairs dealt into categories in turn."""
    return prompts.assign(category=[f"category {row // 2 % count}" for row in range(len(prompts))])


def test_each_category_is_projected_on_the_direction_of_the_others():
    hidden, prompts = planted_run(0, [1.5], n=48, n_probes=0)
    prompts = in_categories(prompts, 3)
    contrast = plan_contrast(prompts, 5, 1, 0, 10, 40)
    labels, category = harmful_rows(prompts), np.arange(48) // 2 % 3
    gram = gram_matrix(hidden[:, 0])
    numbers, reasons = questions.does_it_hold_across_categories(gram, gram, contrast)
    assert reasons == {}
    by_hand = np.empty(48)
    for left_out in range(3):
        rest = category != left_out
        harmful, harmless = hidden[rest & labels, 0].mean(axis=0), hidden[rest & ~labels, 0].mean(axis=0)
        unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
        by_hand[~rest] = (hidden[:, 0] @ unit - (harmful + harmless) @ unit / 2)[~rest]
    assert numbers["category_d"] == pytest.approx(cohens_d(by_hand[labels], by_hand[~labels]), abs=1e-5)
    assert numbers["category_auroc"] == pytest.approx(auroc(by_hand[labels], by_hand[~labels]))
    assert numbers["category_d_low"] < numbers["category_d"] < numbers["category_d_high"]
    assert 0 <= numbers["category_auroc_low"] <= numbers["category_auroc"] <= numbers["category_auroc_high"] <= 1


def test_what_each_category_has_of_its_own_does_not_carry_over():
    rng = np.random.default_rng(0)
    _, prompts = planted_run(0, [0.0], n=80, n_probes=48)
    prompts = in_categories(prompts, 4)
    hidden = rng.normal(size=(128, 2, WIDTH))
    own = np.eye(WIDTH)[np.arange(128) // 2 % 4]
    hidden[:, 0] += 6 * harmful_rows(prompts)[:, None] * own
    hidden[:, 1] += 3 * harmful_rows(prompts)[:, None] * np.eye(WIDTH)[0]
    evidence = evaluate_run(hidden.astype(np.float32), prompts)
    sites = evidence.sites.set_index("site")
    assert (sites["crossfit_d_low"] > 1).all()
    assert sites.loc[0, "category_d_low"] < 0 < sites.loc[0, "category_d_high"]
    assert sites.loc[1, "category_d"] == pytest.approx(sites.loc[1, "crossfit_d"], rel=0.2)
    said = answer(evidence, "hold", 1)
    assert f"and d of each category on the direction of the others {sites.loc[1, 'category_d']:.2f} (" in said


@pytest.mark.parametrize(
    "category",
    [None, ["a"] * 24, [None] * 24, ["a"] * 22 + ["b"] * 2, ["a", "b"] * 12],
    ids=["no column", "one", "missing", "one pair besides", "a category per label"],
)
def test_a_category_is_left_out_only_where_both_labels_are_left(category):
    hidden, prompts = planted_run(0, [1.0, 1.0], n=24, n_probes=24)
    if category is not None:
        prompts["category"] = category * 2
    evidence = evaluate_run(hidden, prompts, **dict.fromkeys(("permutations", "draws"), 20))
    assert evidence.sites["category_d"].isna().all()
    assert "two categories" in evidence.reason("sites", "category_d", 0)
    assert "each category" not in answer(evidence, "hold", 0)


def test_constant_activations_hold_across_no_category():
    hidden, prompts = planted_run(0, [1.0], n=24, n_probes=0)
    contrast = plan_contrast(in_categories(prompts, 3), 5, 1, 0, 5, 5)
    gram = gram_matrix(np.full_like(hidden[:, 0], 0.3))
    numbers, reasons = questions.does_it_hold_across_categories(gram, gram, contrast)
    assert np.isnan(list(numbers.values())).all()
    assert reasons["category_d"] == "the activations are the same for every prompt"
    assert set(numbers) >= {"category_d_low", "category_auroc_high"}
