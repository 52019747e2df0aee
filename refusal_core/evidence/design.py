"""What all sites of a run share: who is compared with whom, the folds, the bootstrap draws and the permutations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from refusal_core.analysis import groups as grouping
from refusal_core.analysis.crossfit import Crossfit, crossfit
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.groups import (
    ALL_PROMPTS,
    assign_folds,
    bootstrap_counts,
    find_twins,
    permute_labels,
    sample_groups,
)
from refusal_core.analysis.learning import TrainingSample, sample_training_sizes
from refusal_core.analysis.projections import contrast_weights
from refusal_core.analysis.resampling import Draws, draw_bootstrap, draw_permutations
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.sets import find_quartets, prompt_groups, prompt_pairs


@dataclass(frozen=True, eq=False)
class Contrast:
    """The fitted prompts of a run.

    Attributes:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` str, the quartet, the matched pair or the prompt by itself.
        pairs: ``(prompt,)`` str, the matched pair or the prompt by itself.
        n_tokens: ``(prompt,)`` float64.
        log_odds: ``(prompt,)`` float64, refusal log-odds; may be NaN.
        category: ``(1, prompt)`` int, the number of every category; without rows where none could be left out.
        folds: of the cross-fitting.
        repeats: how often the folds are dealt anew.
        seed: of the folds.
        bootstrap: draws of the sampled prompts that serve every site.
        permutations: permuted labels of the sampled prompts, for every site.
        sample: positions of the prompts that draws are taken of; all of them unless there are too many.
    """

    is_harmful: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    n_tokens: np.ndarray
    log_odds: np.ndarray
    category: np.ndarray
    folds: int
    repeats: int
    seed: int
    bootstrap: Draws
    permutations: Draws
    sample: np.ndarray | slice = field(default_factory=lambda: ALL_PROMPTS)

    @cached_property
    def sampled(self) -> Contrast:
        """The prompts that draws are taken of, as a contrast set of their own; this one itself when those are all."""
        if isinstance(self.sample, slice):
            return self
        return replace(
            self,
            is_harmful=self.is_harmful[self.sample],
            groups=self.groups[self.sample],
            pairs=self.pairs[self.sample],
            n_tokens=self.n_tokens[self.sample],
            log_odds=self.log_odds[self.sample],
            category=self.category[:, self.sample],
            sample=ALL_PROMPTS,
        )

    @property
    def weights(self) -> np.ndarray:
        """``(1, prompt)`` of the direction itself."""
        return contrast_weights(self.is_harmful[None, :], ~self.is_harmful[None, :])

    @cached_property
    def repeated(self) -> Draws:
        """The prompts themselves, once for every time the folds are dealt: ``repeats`` rows."""
        fold = assign_folds(self.is_harmful, self.groups, self.folds, self.repeats, np.random.default_rng(self.seed))
        harmful = np.broadcast_to(self.is_harmful, fold.shape).astype(np.float64)
        return Draws(harmful, 1 - harmful, fold)

    @cached_property
    def twins(self) -> np.ndarray:
        """``(pair, 2)`` positions of harmful and harmless twins."""
        return find_twins(self.is_harmful, self.pairs)

    def crossfit(self, gram: Gram) -> Crossfit:
        """Cross-fit in this contrast set's folds, as :func:`.analysis.crossfit.crossfit`."""
        return crossfit(gram, self.is_harmful, self.groups, self.folds, self.repeats, self.seed)


@dataclass(frozen=True, eq=False)
class TransferSet:
    """The harmful and harmless prompts of one transfer set; grey ones belong to neither and are left out.

    Attributes:
        source: its name.
        rows: ``(prompt,)`` int, positions in the run's table.
        is_harmful: ``(prompt,)`` bool.
        log_odds: ``(prompt,)`` float64, refusal log-odds; may be NaN.
        twins: ``(pair, 2)`` positions within the set.
        quartets: ``(quartet, 4)`` positions within the set, see :func:`.find_quartets`.
        counts: ``(draw, sampled)`` bootstrap multiplicities, quartets and pairs drawn as one.
        permuted: ``(draw, sampled)`` bool, labels that are as likely as the true ones when labels mean nothing.
        cue_signs: ``(draw, sampled quartet)`` 1 or -1: cues that are as likely as the true ones when they mean nothing.
        sample: positions within the set of the prompts that draws are taken of; all of them unless there are too many.
    """

    source: str
    rows: np.ndarray
    is_harmful: np.ndarray
    log_odds: np.ndarray
    twins: np.ndarray
    quartets: np.ndarray
    counts: np.ndarray
    permuted: np.ndarray
    cue_signs: np.ndarray
    sample: np.ndarray | slice = field(default_factory=lambda: ALL_PROMPTS)

    @property
    def sampled(self) -> TransferSet:
        """The prompts that draws are taken of, as a set of their own; this one itself when those are all."""
        if isinstance(self.sample, slice):
            return self
        twins, quartets = (whole[np.isin(whole[:, 0], self.sample)] for whole in (self.twins, self.quartets))
        return replace(
            self,
            rows=self.rows[self.sample],
            is_harmful=self.is_harmful[self.sample],
            log_odds=self.log_odds[self.sample],
            twins=np.searchsorted(self.sample, twins),
            quartets=np.searchsorted(self.sample, quartets),
            sample=ALL_PROMPTS,
        )


@dataclass(frozen=True, eq=False)
class Design:
    """What all sites of a run share.

    Attributes:
        prompts: the run's table, one row per prompt.
        fitted: ``(prompt,)`` bool.
        contrast: the fitted prompts.
        transfers: the others, set by set.
        samples: training samples of growing size, of the contrast set's sampled prompts.
        random_directions: how many of a kind.
        seed: of everything random.
    """

    prompts: pd.DataFrame
    fitted: np.ndarray
    contrast: Contrast
    transfers: list[TransferSet]
    samples: list[TrainingSample]
    random_directions: int
    seed: int


def plan_design(
    prompts: pd.DataFrame,
    *,
    seed: int,
    folds: int,
    repeats: int,
    permutations: int,
    draws: int,
    random_directions: int,
    learning_draws: int,
) -> Design:
    """Deal folds and make all draws of a run; arguments as in :func:`.evaluation.evaluate`.

    Raises:
        ValueError: when the fitted prompts have one label only.
    """
    fitted = prompts["fitted"].to_numpy(bool)
    contrast = plan_contrast(prompts[fitted], folds, repeats, seed, permutations, draws)
    sampled = contrast.sampled
    return Design(
        prompts=prompts,
        fitted=fitted,
        contrast=contrast,
        transfers=_plan_transfer_sets(prompts, permutations, draws, seed),
        samples=sample_training_sizes(
            sampled.is_harmful, sampled.groups, learning_draws, folds, random_stream(seed, 3)
        ),
        random_directions=random_directions,
        seed=seed,
    )


def random_stream(seed: int, *purpose: int) -> np.random.Generator:
    """Return a stream of its own for every purpose, so that more draws of one change nothing in another."""
    return np.random.default_rng([seed, *purpose])


def plan_contrast(
    prompts: pd.DataFrame, folds: int, repeats: int, seed: int, permutations: int, draws: int
) -> Contrast:
    """Deal folds and make the draws of the fitted prompts alone; arguments as in :func:`.evaluation.evaluate`."""
    is_harmful, groups, pairs = prompts["label"].eq("harmful").to_numpy(), prompt_groups(prompts), prompt_pairs(prompts)
    if is_harmful.all() or not is_harmful.any():
        raise ValueError("evidence needs fitted prompts of both labels")
    sample = sample_groups(is_harmful, groups, grouping.MOST_REDRAWN, random_stream(seed, 5))
    drawn, drawn_groups = is_harmful[sample], groups[sample]
    # Of a set of which all prompts are redrawn, the first of the folds that `crossfit` deals from the same seed.
    fold = assign_folds(drawn, drawn_groups, folds, 1, np.random.default_rng(seed))
    return Contrast(
        is_harmful=is_harmful,
        groups=groups,
        pairs=pairs,
        n_tokens=prompts["n_tokens"].to_numpy(np.float64),
        log_odds=prompts["refusal_log_odds"].to_numpy(np.float64),
        category=_categories(prompts, is_harmful),
        folds=folds,
        repeats=repeats,
        seed=seed,
        bootstrap=draw_bootstrap(drawn, drawn_groups, fold, draws, random_stream(seed, 0)),
        permutations=draw_permutations(
            drawn, drawn_groups, fold, permutations, random_stream(seed, 1), find_twins(drawn, pairs[sample])
        ),
        sample=sample,
    )


def _categories(prompts: pd.DataFrame, is_harmful: np.ndarray) -> np.ndarray:
    """Return ``(1, prompt)`` categories by number; without rows where one cannot be left out."""
    if "category" not in prompts:
        return np.empty((0, len(prompts)), dtype=int)
    category: np.ndarray = pd.factorize(prompts["category"].fillna(""), sort=True)[0]
    left = (np.bincount(category, weights=label) for label in (is_harmful, ~is_harmful))
    if any((of_label.sum() - of_label < 2).any() for of_label in left):
        return np.empty((0, len(prompts)), dtype=int)
    return category[None, :]


def _plan_transfer_sets(prompts: pd.DataFrame, permutations: int, draws: int, seed: int) -> list[TransferSet]:
    rng, sampling, permuting, signing = (random_stream(seed, purpose) for purpose in (2, 6, 7, 8))
    scored = ~prompts["fitted"].to_numpy(bool)
    labelled = scored & prompts["label"].isin(LABELS).to_numpy()
    sets = []
    for source in prompts.loc[scored, "source"].unique():
        rows = np.flatnonzero(labelled & prompts["source"].eq(source).to_numpy())
        table = prompts.iloc[rows]
        is_harmful, groups, pairs = table["label"].eq("harmful").to_numpy(), prompt_groups(table), prompt_pairs(table)
        quartets = find_quartets(table)
        sample = sample_groups(is_harmful, groups, grouping.MOST_REDRAWN, sampling)
        drawn, drawn_groups = is_harmful[sample], groups[sample]
        sets.append(
            TransferSet(
                source=str(source),
                rows=rows,
                is_harmful=is_harmful,
                log_odds=table["refusal_log_odds"].to_numpy(np.float64),
                twins=find_twins(is_harmful, pairs),
                quartets=quartets,
                counts=bootstrap_counts(drawn, drawn_groups, draws, rng),
                permuted=drawn[
                    permute_labels(drawn, drawn_groups, permutations, permuting, find_twins(drawn, pairs[sample]))
                ],
                cue_signs=signing.choice(
                    [-1.0, 1.0], (permutations, np.isin(quartets[:, 0], np.arange(len(table))[sample]).sum())
                ),
                sample=sample,
            )
        )
    return sets
