"""How far a model of the prompts' wording tells the labels apart, without the language model or before its first block.

Each text model is a logistic regression whose penalty is chosen inside the training folds (nested cross-validation,
Varma & Simon 2006), so that none is weak for want of tuning: the strongest is what a direction has to exceed.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.groups import MOST_REDRAWN, assign_folds, sample_groups

WORDS, CHARACTERS, EMBEDDINGS = "words (TF–IDF)", "characters (TF–IDF)", "input embeddings"
TEXT_MODELS = (WORDS, CHARACTERS, EMBEDDINGS)

PENALTIES = (1.0, 10.0, 100.0)
"""Inverse strengths of the penalty, from which the inner folds choose."""
_INNER_FOLDS = 3
_VECTORISERS: dict[str, dict[str, Any]] = {
    WORDS: {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True},
    CHARACTERS: {"analyzer": "char", "ngram_range": (3, 5), "sublinear_tf": True},
}

Features: TypeAlias = Any
"""``(prompt, feature)``, an array or a sparse matrix of SciPy's."""


def text_features(
    name: str, texts: np.ndarray, embeddings: np.ndarray | None, fitted: np.ndarray
) -> tuple[Features, Features] | None:
    """Return what a text model sees of the fitted and of the other prompts.

    TF–IDF weighs words, or strings of three to five characters, by how rare they are among the fitted prompts (Spärck
    Jones 1972); no label is used.

    Args:
        name: one of :data:`TEXT_MODELS`.
        texts: ``(prompt,)`` str.
        embeddings: ``(prompt, width)`` mean of the language model's input embeddings over the prompt's tokens, or None.
        fitted: ``(prompt,)`` bool.

    Returns:
        ``(fitted prompt, feature)`` and ``(other prompt, feature)``; None where there is nothing to see.
    """
    if name == EMBEDDINGS:
        if embeddings is None:
            return None
        centred = embeddings.astype(np.float64) - embeddings[fitted].mean(axis=0, dtype=np.float64)
        # As long as a text of TF–IDF weights, so that the same penalties fit.
        length = np.sqrt(np.square(centred[fitted]).sum(axis=1).mean())
        if not length > 0:
            return None
        ours, others = centred[fitted] / length, centred[~fitted] / length
    else:
        try:
            vectoriser = TfidfVectorizer(**_VECTORISERS[name]).fit(texts[fitted])
        except ValueError:  # no text has a word
            return None
        seen = vectoriser.transform(texts)
        ours, others = seen[fitted], seen[~fitted]
    return _rotated(ours, others) if ours.shape[0] <= MOST_REDRAWN else (ours, others)


def score_texts(
    ours: Features, others: Features, labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a text model without each fold in turn, the penalty chosen among the rest, and score that fold.

    A score is the distance from the mean of all fitted prompts, in units of the features. The midpoint of the training
    prompts' two means would move with the labels that are left out, and order equal texts of different folds the wrong
    way round.

    Args:
        ours: ``(fitted prompt, feature)`` of :func:`text_features`.
        others: ``(other prompt, feature)``.
        labels: ``(fitted prompt,)`` bool, harmful.
        groups: ``(fitted prompt,)`` what has to stay in one fold.
        fold: ``(repeat, fitted prompt)`` of the cross-fitting.
        seed: of the inner folds.

    Returns:
        ``(repeat, fitted prompt)`` by models that were not fitted with the prompt, and ``(other prompt,)`` by the
        model of all fitted prompts.
    """
    rng = np.random.default_rng(seed)
    centre = np.asarray(ours.mean(axis=0)).ravel()
    held_out = np.empty(fold.shape)
    for row, outer in zip(held_out, fold, strict=True):
        for k in range(fold.max() + 1):
            rest = outer != k
            row[~rest] = _fit_and_score(ours[rest], labels[rest], groups[rest], ours[~rest], centre, rng)
    scores = _fit_and_score(ours, labels, groups, others, centre, rng) if others.shape[0] else np.empty(0)
    return held_out, scores


def _fit_and_score(
    features: Features,
    labels: np.ndarray,
    groups: np.ndarray,
    scored: Features,
    centre: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the distance of ``scored`` prompts from ``(feature,)`` a centre, along the weights.

    Distances and no decision values, since penalties differ between folds and scale those.
    """
    model = _regression(_choose_penalty(features, labels, groups, rng)).fit(features, labels)
    weights = model.coef_[0] / max(np.linalg.norm(model.coef_[0]), np.finfo(float).tiny)
    distance: np.ndarray = scored @ weights - centre @ weights
    return distance


def _choose_penalty(features: Features, labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> float:
    """Return the penalty with the highest mean AUROC over inner folds, of a sample where there are many prompts."""
    sample = sample_groups(labels, groups, MOST_REDRAWN, rng)
    features, labels, groups = features[sample], labels[sample], groups[sample]
    fold = assign_folds(labels, groups, _INNER_FOLDS, 1, rng)
    if not len(fold):
        return 1.0
    areas = []
    for penalty in PENALTIES:
        by_fold = []
        for k in range(fold.max() + 1):
            rest = fold[0] != k
            decided = _regression(penalty).fit(features[rest], labels[rest]).decision_function(features[~rest])
            by_fold.append(auroc(decided[labels[~rest]], decided[~labels[~rest]]))
        areas.append(np.mean(by_fold))
    return PENALTIES[int(np.argmax(areas))]


def _regression(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced")


def _rotated(ours: Features, others: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in the span of the fitted prompts' features: as many as prompts, where features are more.

    A penalised regression sees nothing outside that span, so it comes out the same, several times sooner.
    """
    gram, cross = ours @ ours.T, others @ ours.T
    gram, cross = (np.asarray(part.todense() if sparse.issparse(part) else part) for part in (gram, cross))
    values, vectors = np.linalg.eigh(gram)
    spanned = values > 1e-10 * values[-1]
    axes = vectors[:, spanned] / np.sqrt(values[spanned])
    return gram @ axes, cross @ axes
