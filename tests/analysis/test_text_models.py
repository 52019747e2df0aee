from __future__ import annotations

import numpy as np
import pytest
from planted import labels_and_groups
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from refusal_core.analysis import text_models
from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.groups import assign_folds
from refusal_core.analysis.text_models import CHARACTERS, EMBEDDINGS, WORDS, score_texts, text_features

FILLER = np.array(
    ["how", "open", "lock", "bake", "plan", "write", "letter", "flat", "cake", "city", "garden", "road", "river"]
)


def texts_with(telling: tuple[str, str], labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Random words, and in a share of the texts one of two that goes with the label."""
    rng = np.random.default_rng(seed)
    texts = []
    for harmful in labels:
        words = [*rng.choice(FILLER, 6)]
        if rng.random() < share:
            words.insert(rng.integers(0, 6), telling[0] if harmful else telling[1])
        texts.append(" ".join(words))
    return np.array(texts)


def separation(name: str, texts: np.ndarray, labels: np.ndarray, fitted: np.ndarray, embeddings=None):
    """AUROC of the fitted prompts, cross-fitted, and of the others."""
    seen = text_features(name, texts, embeddings, fitted)
    groups = np.arange(fitted.sum())
    fold = assign_folds(labels[fitted], groups, 5, 2, np.random.default_rng(0))
    held_out, others = score_texts(*seen, labels[fitted], groups, fold, 0)
    assert held_out.shape == (2, fitted.sum())
    ours, theirs = labels[fitted], labels[~fitted]
    return np.mean([auroc(row[ours], row[~ours]) for row in held_out]), auroc(others[theirs], others[~theirs])


@pytest.mark.parametrize("name", [WORDS, CHARACTERS])
def test_a_word_that_goes_with_the_label_is_learnt_and_none_is_not(name):
    labels, _ = labels_and_groups(160)
    fitted = np.arange(160) < 100
    # One text in five says nothing, and ranks by chance among the others: 0.8 + 0.2 · 0.8 · … is well above 0.85.
    for area in separation(name, texts_with(("secretly", "kindly"), labels, 0.8), labels, fitted):
        assert area > 0.85
    for area in separation(name, texts_with(("secretly", "kindly"), labels, 0.0), labels, fitted):
        assert 0.3 < area < 0.7


def test_characters_see_what_words_have_in_common():
    labels, _ = labels_and_groups(120)
    stems = ("poison", "flower")
    texts = np.array([f"{stems[not harmful]}{k:03d} the cake" for k, harmful in enumerate(labels)])
    fitted = np.arange(120) < 80
    assert min(separation(CHARACTERS, texts, labels, fitted)) > 0.95
    assert max(separation(WORDS, texts, labels, fitted)) < 0.8


def test_embeddings_are_one_more_text_model_of_any_scale():
    rng = np.random.default_rng(0)
    labels, _ = labels_and_groups(160)
    fitted = np.arange(160) < 100
    embeddings = rng.normal(size=(160, 20)) + labels[:, None] * np.eye(20)[0] * 3
    texts = np.full(160, "a")
    for scale in (1e-3, 1e3):
        assert min(separation(EMBEDDINGS, texts, labels, fitted, embeddings * scale + 5)) > 0.9
    assert text_features(EMBEDDINGS, texts, None, fitted) is None
    assert text_features(EMBEDDINGS, texts, np.full((160, 4), 2.0), fitted) is None


def test_texts_without_words_show_nothing():
    fitted = np.ones(4, dtype=bool)
    assert text_features(WORDS, np.full(4, "?!"), None, fitted) is None
    assert text_features(CHARACTERS, np.full(4, "?"), None, fitted) is None


def test_features_are_weighed_among_the_fitted_prompts_alone():
    texts = np.array(["open the lock", "bake the cake", "plan the city", "secretly kindly secretly"])
    fitted = np.array([True, True, True, False])
    ours, others = text_features(WORDS, texts, None, fitted)
    alone, _ = text_features(WORDS, texts[:3], None, fitted[:3])
    np.testing.assert_allclose(ours @ ours.T, alone @ alone.T)
    # Words that no fitted prompt has are not seen.
    np.testing.assert_allclose(others, 0, atol=1e-12)


def test_coordinates_in_the_span_give_the_regression_of_the_features():
    rng = np.random.default_rng(1)
    labels, _ = labels_and_groups(30)
    features = sparse.csr_matrix(rng.normal(size=(40, 200)) * (rng.random((40, 200)) < 0.2))
    ours, others = features[:30], features[30:]
    coordinates, other_coordinates = text_models._rotated(ours, others)
    assert coordinates.shape[1] <= 30
    np.testing.assert_allclose(coordinates @ coordinates.T, (ours @ ours.T).toarray(), atol=1e-9)
    expected = LogisticRegression(C=10.0, tol=1e-10, max_iter=5000).fit(ours, labels).decision_function(others)
    found = LogisticRegression(C=10.0, tol=1e-10, max_iter=5000).fit(coordinates, labels)
    np.testing.assert_allclose(found.decision_function(other_coordinates), expected, atol=1e-4)


def test_many_prompts_keep_their_features_and_score_alike(monkeypatch):
    labels, _ = labels_and_groups(120)
    texts, fitted = texts_with(("secretly", "kindly"), labels, 0.7), np.arange(120) < 80
    whole = separation(WORDS, texts, labels, fitted)
    monkeypatch.setattr(text_models, "MOST_REDRAWN", 50)
    ours, _ = text_features(WORDS, texts, None, fitted)
    assert sparse.issparse(ours)
    # The penalty is chosen on a sample, which may choose another one.
    np.testing.assert_allclose(separation(WORDS, texts, labels, fitted), whole, atol=0.05)


def test_the_penalty_is_chosen_inside_the_training_folds(monkeypatch):
    rng = np.random.default_rng(2)
    labels, groups = labels_and_groups(40)
    features = rng.normal(size=(40, 3)) + labels[:, None]
    fold = assign_folds(labels, groups, 4, 1, rng)
    chosen_on = []
    choose = text_models._choose_penalty
    monkeypatch.setattr(
        text_models,
        "_choose_penalty",
        lambda features, labels, groups, rng: chosen_on.append(groups) or choose(features, labels, groups, rng),
    )
    held_out, others = score_texts(features, features[:5], labels, groups, fold, 0)
    # Once per fold on the others, and once on all for the prompts that were not fitted.
    assert [len(each) for each in chosen_on] == [*(40 - np.bincount(fold[0])), 40]
    for k, each in enumerate(chosen_on[:4]):
        assert not set(each) & set(groups[fold[0] == k])
    assert np.isfinite(held_out).all()
    assert others.shape == (5,)


def test_a_penalty_that_separates_best_is_chosen():
    # One strong feature among many weak ones that noise fills: little shrinkage is too little.
    rng = np.random.default_rng(3)
    labels, groups = labels_and_groups(80, paired=False)
    noise = rng.normal(size=(80, 300)) * 0.3
    noise[:, 0] += labels * 0.4
    areas = {}
    for penalty in text_models.PENALTIES:
        fold = assign_folds(labels, groups, 3, 1, np.random.default_rng(5))
        by_fold = []
        for k in range(3):
            rest = fold[0] != k
            model = text_models._regression(penalty).fit(noise[rest], labels[rest])
            decided = model.decision_function(noise[~rest])
            by_fold.append(auroc(decided[labels[~rest]], decided[~labels[~rest]]))
        areas[penalty] = np.mean(by_fold)
    chosen = text_models._choose_penalty(noise, labels, groups, np.random.default_rng(5))
    assert areas[chosen] == max(areas.values())
    few = np.array([True, False, False])
    assert text_models._choose_penalty(noise[:3], few, np.arange(3), rng) == 1.0


def test_scores_are_distances_from_the_mean_prompt_whatever_the_penalty():
    labels = np.array([True, False] * 6)
    features = np.where(labels, 3.0, 1.0)[:, None] * [[2.0]]
    fold = assign_folds(labels, np.arange(12), 3, 1, np.random.default_rng(0))
    held_out, others = score_texts(features, np.array([[4.0], [7.0], [1.0]]), labels, np.arange(12), fold, 0)
    np.testing.assert_allclose(others, [0, 3, -3], atol=1e-9)
    np.testing.assert_allclose(held_out[0], np.where(labels, 2, -2), atol=1e-9)


def test_equal_texts_are_equal_in_all_folds():
    """Else a label that is left out would move its fold's scores, and the text would be ranked below its worth."""
    rng = np.random.default_rng(4)
    labels, groups = labels_and_groups(60, paired=False)
    telling = labels == (rng.random(60) < 0.75)
    fold = assign_folds(labels, groups, 6, 3, rng)
    held_out, _ = score_texts(np.where(telling, 1.0, 0.0)[:, None], np.empty((0, 1)), labels, groups, fold, 0)
    np.testing.assert_allclose(held_out[:, telling], held_out[0, telling][0])
    np.testing.assert_allclose(held_out[:, ~telling], held_out[0, ~telling][0])
    assert auroc(held_out[0, labels], held_out[0, ~labels]) == pytest.approx(auroc(telling[labels], telling[~labels]))
