"""How far the labels can be told apart without the model: by prompt length, words, question marks, TF–IDF."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from refusal_core.analysis.crossfit import TOO_FEW_GROUPS
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.groups import assign_folds

TOKENS, WORDS, QUESTION, TFIDF = "tokens", "words", "question mark", "TF–IDF"
BASELINES = (TOKENS, WORDS, QUESTION, TFIDF)


@dataclass(frozen=True, eq=False)
class Baseline:
    """One text-only score of every prompt.

    Attributes:
        name: one of :data:`BASELINES`.
        score: ``(prompt,)``: cross-fitted on fitted prompts, on the others by a rule learnt from all fitted ones;
            higher means more harmful by that rule; mean over the repeats.
        d: on the fitted prompts, cross-fitted, mean over the repeats.
        auroc: the same.
        reason: why the numbers are NaN, or None.
    """

    name: str
    score: np.ndarray
    d: float
    auroc: float
    reason: str | None = None


def text_baselines(
    prompts: pd.DataFrame,
    fitted: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: int,
    repeats: int,
    seed: int,
) -> list[Baseline]:
    """Score every prompt by its text alone, in the same folds as the directions.

    Of a single feature only which side is harmful is learnt. TF–IDF
    weighs the prompt's words (Spärck Jones 1972) for a logistic regression (scikit-learn's defaults, labels
    balanced).

    Args:
        prompts: with ``text`` and ``n_tokens``, one row per prompt.
        fitted: ``(prompt,)`` bool.
        labels: ``(fitted prompt,)`` bool, harmful.
        groups: ``(fitted prompt,)`` what has to stay in one fold.
        folds: of the cross-fitting.
        repeats: how often the folds are dealt anew.
        seed: of the folds.
    """
    text = prompts["text"].astype(str)
    features = {
        TOKENS: prompts["n_tokens"],
        WORDS: text.str.split().str.len(),
        QUESTION: text.str.contains("?", regex=False),
    }
    fold = assign_folds(labels, groups, folds, repeats, np.random.default_rng(seed))
    if not len(fold):
        return [_nothing(name, len(text), TOO_FEW_GROUPS) for name in BASELINES]
    baselines = [
        _feature_baseline(name, values.to_numpy(np.float64), fitted, labels, fold) for name, values in features.items()
    ]
    return [*baselines, _tfidf_baseline(text.to_numpy(), fitted, labels, fold)]


def _feature_baseline(
    name: str, values: np.ndarray, fitted: np.ndarray, labels: np.ndarray, fold: np.ndarray
) -> Baseline:
    known = values[fitted]
    if not np.isfinite(known).all() or not np.ptp(known) > 0:
        return _nothing(name, len(values), "it is the same in every prompt")

    def towards_harmful(training: np.ndarray, scored: np.ndarray) -> np.ndarray:
        harmful, harmless = known[training & labels].mean(), known[training & ~labels].mean()
        distance: np.ndarray = np.sign(harmful - harmless) * (scored - (harmful + harmless) / 2)
        return distance

    held_out = np.empty(fold.shape)
    for row, folds_of_repeat in zip(held_out, fold, strict=True):
        for k in range(fold.max() + 1):
            row[folds_of_repeat == k] = towards_harmful(folds_of_repeat != k, known[folds_of_repeat == k])
    return _held_out_baseline(name, held_out, fitted, labels, towards_harmful(np.ones(len(known), bool), values))


def _tfidf_baseline(text: np.ndarray, fitted: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> Baseline:
    known = text[fitted]
    held_out = np.empty(fold.shape)
    try:
        for row, folds_of_repeat in zip(held_out, fold, strict=True):
            for k in range(fold.max() + 1):
                rest = folds_of_repeat != k
                row[~rest] = _classifier().fit(known[rest], labels[rest]).decision_function(known[~rest])
        score = _classifier().fit(known, labels).decision_function(text)
    except ValueError as error:
        if "vocabulary" not in str(error):
            raise
        return _nothing(TFIDF, len(text), "the prompts contain no words")
    return _held_out_baseline(TFIDF, held_out, fitted, labels, score)


def _held_out_baseline(
    name: str, held_out: np.ndarray, fitted: np.ndarray, labels: np.ndarray, score: np.ndarray
) -> Baseline:
    d = float(np.mean([cohens_d(row[labels], row[~labels]) for row in held_out]))
    area = float(np.mean([auroc(row[labels], row[~labels]) for row in held_out]))
    score[fitted] = held_out.mean(axis=0)
    return Baseline(name, score, d, area, None if np.isfinite(d) else "it does not vary within the labels")


def _nothing(name: str, n_prompts: int, reason: str) -> Baseline:
    return Baseline(name, np.full(n_prompts, np.nan), np.nan, np.nan, reason)


def _classifier() -> Pipeline:
    return make_pipeline(
        TfidfVectorizer(token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
