"""How far the labels can be told apart without the model's blocks: by prompt length, question marks, wording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.crossfit import TOO_FEW_GROUPS
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.groups import MOST_REDRAWN, assign_folds
from refusal_core.analysis.text_models import EMBEDDINGS, TEXT_MODELS, score_texts, text_features
from refusal_core.conversations import prompts_of, words_of

TOKENS, WORD_COUNT, QUESTION = "tokens", "words", "question mark"
BASELINES = (TOKENS, WORD_COUNT, QUESTION, *TEXT_MODELS)

_NOTHING_TO_SEE = {
    EMBEDDINGS: "the model's input embeddings were not read",
}


@dataclass(frozen=True, eq=False)
class Baseline:
    """One score of every prompt that asks nothing of the model's blocks; higher means more harmful by its rule.

    Attributes:
        name: one of :data:`BASELINES`.
        held_out: ``(repeat, fitted prompt)``, cross-fitted; NaN without a score.
        others: ``(other prompt,)`` by a rule learnt from all fitted prompts.
        reason: why there is no score, or None.
    """

    name: str
    held_out: np.ndarray
    others: np.ndarray
    reason: str | None = None


def score_baselines(
    prompts: pd.DataFrame,
    fitted: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: int,
    repeats: int,
    seed: int,
    embeddings: np.ndarray | None = None,
) -> list[Baseline]:
    """Score every prompt by its text alone, in the same folds as the directions.

    Of a single feature only which side is harmful is learnt; text models are those of :mod:`.text_models`.

    Args:
        prompts: with ``text``, ``n_tokens`` and, where there is one, ``conversation``; one row per prompt.
        fitted: ``(prompt,)`` bool.
        labels: ``(fitted prompt,)`` bool, harmful.
        groups: ``(fitted prompt,)`` what has to stay in one fold.
        folds: of the cross-fitting.
        repeats: how often the folds are dealt anew.
        seed: of the folds.
        embeddings: ``(prompt, width)`` mean of the model's input embeddings over the prompt's tokens, where known.
    """
    fold = assign_folds(labels, groups, folds, repeats, np.random.default_rng(seed))
    if not len(fold):
        return [_nothing(name, fitted, TOO_FEW_GROUPS) for name in BASELINES]
    text = pd.Series([words_of(prompt) for prompt in prompts_of(prompts)], index=prompts.index)
    features = {
        TOKENS: prompts["n_tokens"],
        WORD_COUNT: text.str.split().str.len(),
        QUESTION: text.str.contains("?", regex=False),
    }
    baselines = [
        _feature_baseline(name, values.to_numpy(np.float64), fitted, labels, fold) for name, values in features.items()
    ]
    # A large set's folds are dealt once: with so many prompts another deal changes little.
    fold = fold if len(labels) <= MOST_REDRAWN else fold[:1]
    for name in TEXT_MODELS:
        seen = text_features(name, text.to_numpy(), embeddings, fitted)
        if seen is None:
            baselines.append(_nothing(name, fitted, _NOTHING_TO_SEE.get(name, "the prompts contain no words")))
        else:
            baselines.append(Baseline(name, *score_texts(*seen, labels, groups, fold, seed)))
    return baselines


def mean_over_repeats(baseline: Baseline, labels: np.ndarray) -> tuple[float, float]:
    """Return Cohen's d and the AUROC of the cross-fitted scores, means over the repeats.

    Args:
        baseline: of the fitted prompts.
        labels: ``(fitted prompt,)`` bool, harmful.
    """
    of_label = [(row[labels], row[~labels]) for row in baseline.held_out]
    d, area = np.mean([cohens_d(*rows) for rows in of_label]), np.mean([auroc(*rows) for rows in of_label])
    return float(d), float(area) if np.isfinite(baseline.held_out).all() else float("nan")


def _feature_baseline(
    name: str, values: np.ndarray, fitted: np.ndarray, labels: np.ndarray, fold: np.ndarray
) -> Baseline:
    known = values[fitted]
    if not np.isfinite(known).all() or not np.ptp(known) > 0:
        return _nothing(name, fitted, "it is the same in every prompt")

    def towards_harmful(training: np.ndarray, scored: np.ndarray) -> np.ndarray:
        harmful, harmless = known[training & labels].mean(), known[training & ~labels].mean()
        distance: np.ndarray = np.sign(harmful - harmless) * (scored - (harmful + harmless) / 2)
        return distance

    held_out = np.empty(fold.shape)
    for row, folds_of_repeat in zip(held_out, fold, strict=True):
        for k in range(fold.max() + 1):
            row[folds_of_repeat == k] = towards_harmful(folds_of_repeat != k, known[folds_of_repeat == k])
    return Baseline(name, held_out, towards_harmful(np.ones(len(known), bool), values[~fitted]))


def _nothing(name: str, fitted: np.ndarray, reason: str) -> Baseline:
    return Baseline(name, np.full((1, fitted.sum()), np.nan), np.full((~fitted).sum(), np.nan), reason)
