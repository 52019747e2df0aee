"""All that is asked of the prompts' texts, without the model's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refusal_core.analysis.baselines import Baseline, mean_over_repeats, score_baselines
from refusal_core.analysis.text_models import TEXT_MODELS
from refusal_core.evidence import questions
from refusal_core.evidence.design import Design, TransferSet
from refusal_core.evidence.rows import Rows
from refusal_core.evidence.wording import Compared, Separation
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT

_NUMBERS = tuple(f"{name}{end}" for name in ("d", "auroc", "pair_accuracy") for end in ("", "_low", "_high"))


def score_texts(design: Design, embeddings: np.ndarray | None) -> list[Baseline]:
    """Score all prompts by their texts, in the folds of the directions; arguments as in :func:`.evaluate`."""
    contrast = design.contrast
    return score_baselines(
        design.prompts,
        design.fitted,
        contrast.is_harmful,
        contrast.groups,
        contrast.folds,
        contrast.repeats,
        contrast.seed,
        embeddings,
    )


def answer_texts(design: Design, compared: Sequence[Compared], baselines: Sequence[Baseline]) -> Rows:
    """Say how far each baseline gets on each set."""
    answers = Rows()
    by_source = {prompts.source: prompts for prompts in compared if prompts.prompts == EVERY_PROMPT}
    for baseline in baselines:
        for source in (CONTRAST, *(transfer.source for transfer in design.transfers)):
            numbers: Mapping[str, float] = dict.fromkeys(_NUMBERS, np.nan)
            reason = baseline.reason
            if source not in by_source:
                reason = "there are prompts of one label only"
            elif reason is None:
                scores = scores_of(baseline, design, by_source[source])
                numbers, reason = questions.how_far_does_the_text_get(scores, by_source[source])
            answers.add("baselines", baseline=baseline.name, source=source, **numbers)
            if reason is not None:
                answers.explain("baselines", {baseline.name: reason}, None, source)
    return answers


def text_separations(
    design: Design, compared: Sequence[Compared], baselines: Sequence[Baseline]
) -> list[dict[str, Separation]]:
    """Return how well each text model separates what is compared, by its name."""
    return [
        {
            model.name: prompts.separation(scores, scores[0][prompts.of.sample])
            for model in _text_models(baselines)
            for scores in (scores_of(model, design, prompts),)
        }
        for prompts in compared
    ]


def strongest_text_model(baselines: Sequence[Baseline], is_harmful: np.ndarray) -> str | None:
    """Return the text model with the highest cross-fitted AUROC on the contrast set; None without any.

    Args:
        baselines: of the fitted prompts.
        is_harmful: ``(fitted prompt,)`` bool.
    """
    areas = {model.name: mean_over_repeats(model, is_harmful)[1] for model in _text_models(baselines)}
    return max(areas, key=areas.__getitem__) if areas else None


def scores_of(baseline: Baseline, design: Design, prompts: Compared) -> np.ndarray:
    """Return ``(repeat, prompt)`` scores of the set that is compared."""
    if not isinstance(prompts.of, TransferSet):
        return baseline.held_out
    others = np.cumsum(~design.fitted) - 1
    scores: np.ndarray = baseline.others[others[prompts.of.rows]][None, :]
    return scores


def _text_models(baselines: Sequence[Baseline]) -> list[Baseline]:
    return [baseline for baseline in baselines if baseline.name in TEXT_MODELS and baseline.reason is None]
