from __future__ import annotations

import numpy as np
import pytest
from planted import harmful_rows, prompt_table

from refusal_core.analysis import baselines
from refusal_core.analysis.baselines import BASELINES, QUESTION, TOKENS, WORD_COUNT, mean_over_repeats, score_baselines
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.text_models import EMBEDDINGS, WORDS


def scored(prompts, repeats: int = 2, embeddings=None) -> dict[str, baselines.Baseline]:
    fitted = prompts["fitted"].to_numpy()
    labels, groups = harmful_rows(prompts)[fitted], np.arange(fitted.sum())
    found = score_baselines(prompts, fitted, labels, groups, 4, repeats, 0, embeddings)
    assert [baseline.name for baseline in found] == list(BASELINES)
    return {baseline.name: baseline for baseline in found}


def test_a_single_feature_is_scored_by_the_side_that_the_training_prompts_have():
    prompts = prompt_table(20, 4)
    labels = harmful_rows(prompts)[:20]
    prompts["n_tokens"] = np.r_[np.where(labels, 10, 20) + np.arange(20) % 5, 10, 20, 30, 15]
    found = scored(prompts)[TOKENS]
    values = prompts["n_tokens"].to_numpy(float)
    fold = assign_folds(labels, np.arange(20), 4, 2, np.random.default_rng(0))
    for repeat in range(2):
        for k in range(4):
            rest, left_out = fold[repeat] != k, fold[repeat] == k
            midpoint = (values[:20][rest & labels].mean() + values[:20][rest & ~labels].mean()) / 2
            # Harmful prompts are shorter, so a short prompt scores high.
            np.testing.assert_allclose(found.held_out[repeat, left_out], midpoint - values[:20][left_out])
    midpoint = (values[:20][labels].mean() + values[:20][~labels].mean()) / 2
    np.testing.assert_allclose(found.others, midpoint - values[20:])


def test_words_and_question_marks_are_counted():
    prompts = prompt_table(16, 4)
    labels = harmful_rows(prompts)
    prompts["text"] = [
        ("one two three" if harmful else "one two") + "?" * bool(k % 4) for k, harmful in enumerate(labels)
    ]
    found = scored(prompts)
    assert (np.sign(found[WORD_COUNT].held_out) == np.where(labels[:16], 1, -1)).all()
    assert (np.sign(found[WORD_COUNT].others) == np.where(labels[16:], 1, -1)).all()
    # Every second harmful prompt has no question mark, all harmless ones have.
    np.testing.assert_array_equal(np.sign(found[QUESTION].others), [1, -1, -1, -1])


@pytest.mark.parametrize("values", [np.full(20, 7.0), np.r_[np.nan, np.arange(19.0)]])
def test_a_feature_that_tells_nothing_has_a_reason_and_no_number(values):
    found = scored(prompt_table(16, 4).assign(n_tokens=values))[TOKENS]
    assert found.reason == "it is the same in every prompt"
    assert np.isnan(found.held_out).all()
    assert found.held_out.shape == (1, 16)
    assert found.others.shape == (4,)
    assert np.isnan(mean_over_repeats(found, np.arange(16) % 2 == 0)).all()


def test_without_folds_nothing_is_scored():
    prompts = prompt_table(16, 4)
    fitted = prompts["fitted"].to_numpy()
    labels = np.arange(16) == 0
    for baseline in score_baselines(prompts, fitted, labels, np.arange(16), 4, 1, 0):
        assert "at least two prompts" in baseline.reason


def test_input_embeddings_are_scored_where_they_are_known():
    prompts = prompt_table(40, 8)
    labels = harmful_rows(prompts)
    embeddings = np.random.default_rng(0).normal(size=(48, 5)) + labels[:, None] * 3.0
    assert scored(prompts)[EMBEDDINGS].reason == "the model's input embeddings were not read"
    found = scored(prompts, embeddings=embeddings)[EMBEDDINGS]
    assert found.reason is None
    assert mean_over_repeats(found, labels[:40])[1] > 0.95
    assert auroc(found.others[labels[40:]], found.others[~labels[40:]]) > 0.9


def test_the_numbers_of_a_baseline_are_means_over_the_repeats():
    prompts = prompt_table(32, 4)
    labels = harmful_rows(prompts)[:32]
    found = scored(prompts, repeats=3)[WORDS]
    assert found.held_out.shape == (3, 32)
    d, area = mean_over_repeats(found, labels)
    assert d == pytest.approx(np.mean([cohens_d(row[labels], row[~labels]) for row in found.held_out]))
    assert area == pytest.approx(np.mean([auroc(row[labels], row[~labels]) for row in found.held_out]))


def test_a_large_set_deals_its_folds_once_for_text_models(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_REDRAWN", 20)
    found = scored(prompt_table(32, 4), repeats=3)
    assert found[TOKENS].held_out.shape == (3, 32)
    assert found[WORDS].held_out.shape == (1, 32)
