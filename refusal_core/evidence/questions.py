"""The questions a sceptic asks of one site, one function each, from Gram matrices.

Every function returns numbers by name, NaN where one does not exist, and the reasons why, by the same names.
``x_low`` and ``x_high`` are the 95 % bootstrap interval of ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from refusal_core.analysis import geometry, resampling
from refusal_core.analysis.crossfit import (
    NO_SPREAD,
    TOO_FEW_GROUPS,
    Crossfit,
    TrainingSample,
    assign_folds,
    contrast_weights,
    crossfit,
    crossfit_draws,
    no_direction,
    project_draws,
    remove_covariate,
)
from refusal_core.analysis.effect_sizes import auroc, cohens_d, mean_crossings
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.resampling import EVERY, Draws

BOTH = "both"
FEWEST_BEHAVIOURS = 8
N_COMPONENTS = 3
_SHARES = {"low": 0.0, "high": 1.0}

Numbers = dict[str, float]
Reasons = dict[str, str]


@dataclass(frozen=True, eq=False)
class Contrast:
    """The fitted prompts of a run, as far as all sites share them.

    Attributes:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` str, the matched pair or the prompt by itself.
        n_tokens, log_odds: ``(prompt,)`` float64; log-odds of a refusal may be NaN.
        folds, repeats, seed: of the cross-fitting.
        bootstrap, permutations: the draws that serve every site, of the sampled prompts.
        sample: positions of the prompts that draws are taken of; all of them unless there are too many.
    """

    is_harmful: np.ndarray
    groups: np.ndarray
    n_tokens: np.ndarray
    log_odds: np.ndarray
    folds: int
    repeats: int
    seed: int
    bootstrap: Draws
    permutations: Draws
    sample: np.ndarray | slice = field(default_factory=lambda: EVERY)

    @cached_property
    def sampled(self) -> Contrast:
        """The prompts that draws are taken of, as a contrast set of their own; this one itself when those are all."""
        if isinstance(self.sample, slice):
            return self
        each = ("is_harmful", "groups", "n_tokens", "log_odds")
        return replace(self, **{name: getattr(self, name)[self.sample] for name in each}, sample=EVERY)

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
        return find_twins(self.is_harmful, self.groups)

    def crossfit(self, gram: Gram) -> Crossfit:
        """:func:`refusal_core.crossfit.crossfit` in this contrast set's folds."""
        return crossfit(gram, self.is_harmful, self.groups, self.folds, self.repeats, self.seed)


@dataclass(frozen=True, eq=False)
class TransferSet:
    """The harmful and harmless prompts of one transfer set; grey ones belong to neither and are left out.

    Attributes:
        source: its name.
        rows: ``(prompt,)`` int, positions in the run's table.
        is_harmful, log_odds: ``(prompt,)``.
        twins: ``(pair, 2)`` positions within the set.
        counts: ``(draw, sampled)`` bootstrap multiplicities, pairs drawn as pairs.
        sample: positions within the set of the prompts that draws are taken of; all of them unless there are too many.
    """

    source: str
    rows: np.ndarray
    is_harmful: np.ndarray
    log_odds: np.ndarray
    twins: np.ndarray
    counts: np.ndarray
    sample: np.ndarray | slice = field(default_factory=lambda: EVERY)

    @property
    def sampled(self) -> TransferSet:
        """The prompts that draws are taken of, as a set of their own; this one itself when those are all."""
        if isinstance(self.sample, slice):
            return self
        each = {name: getattr(self, name)[self.sample] for name in ("rows", "is_harmful", "log_odds")}
        twins = self.twins[np.isin(self.twins[:, 0], self.sample)]
        return replace(self, **each, twins=np.searchsorted(self.sample, twins), sample=EVERY)


def find_twins(is_harmful: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``(pair, 2)`` positions of the harmful and the harmless prompt of every group that holds exactly one of each."""
    _, group_of, size = np.unique(groups, return_inverse=True, return_counts=True)
    harmful = np.flatnonzero(is_harmful & (size[group_of] == 2))
    harmless = np.flatnonzero(~is_harmful & (size[group_of] == 2))
    shared = np.intersect1d(group_of[harmful], group_of[harmless])
    of_group = {int(group_of[row]): row for row in harmless}
    return np.array(
        [(row, of_group[int(group_of[row])]) for row in harmful if group_of[row] in shared], dtype=int
    ).reshape(-1, 2)


def does_it_fit(gram: Gram, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """``in_sample_d, in_sample_auroc, mean_crossings``: on the prompts that the direction was fitted on."""
    projection = project_draws(gram, contrast.weights)[0]
    names = ("in_sample_d", "in_sample_auroc", "mean_crossings")
    if not np.isfinite(projection).all():
        return dict.fromkeys(names, np.nan), dict.fromkeys(names, no_direction(gram))
    harmful, harmless = projection[contrast.is_harmful], projection[~contrast.is_harmful]
    d = cohens_d(harmful, harmless)
    numbers = (d, auroc(harmful, harmless), float(mean_crossings(harmful, harmless)))
    return dict(zip(names, numbers, strict=True)), {} if np.isfinite(d) else {"in_sample_d": NO_SPREAD}


def does_it_hold(held_out: Crossfit, drawn: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """``crossfit_d, crossfit_auroc, crossfit_accuracy, crossfit_range_overlap, crossfit_pair_accuracy`` and intervals.

    Args:
        held_out: the cross-fitted numbers themselves.
        drawn: ``(draw, sampled)`` cross-fitted projections of every bootstrap draw. Extremes are what a bootstrap knows
            least, so the range overlap's interval is a rough one, and those of a sample say nothing of all prompts'.
    """
    harmful, harmless = contrast.bootstrap.harmful, contrast.bootstrap.harmless
    whole = contrast.sampled is contrast
    pairs = resampling.draw_pair_accuracy(
        held_out.projection[None, :], contrast.twins, np.ones((1, len(contrast.groups)))
    )
    overlap = resampling.draw_range_overlap(drawn, harmful, harmless)
    measured = {
        "crossfit_d": (held_out.d, resampling.draw_d(drawn, harmful, harmless), {}),
        "crossfit_auroc": (held_out.auroc, resampling.draw_auroc(drawn, harmful, harmless), _SHARES),
        "crossfit_accuracy": (held_out.accuracy, resampling.draw_accuracy(drawn, harmful, harmless), _SHARES),
        "crossfit_range_overlap": (
            held_out.range_overlap,
            overlap if whole else np.full_like(overlap, np.nan),
            {"low": 0.0, "high": float(len(contrast.groups))},
        ),
        "crossfit_pair_accuracy": (
            float(pairs[0]),
            resampling.draw_pair_accuracy(drawn, contrast.sampled.twins, contrast.bootstrap.counts),
            _SHARES,
        ),
    }
    numbers: Numbers = {}
    for name, (point, draws, bounds) in measured.items():
        numbers |= _with_interval(name, point, draws, **bounds)
    reasons: Reasons = {}
    if held_out.reason is not None:
        reasons = {name: held_out.reason for name in measured if not np.isfinite(numbers[name])}
    if not len(contrast.twins):
        reasons["crossfit_pair_accuracy"] = "the contrast set has no matched pairs"
    return numbers, reasons


def is_it_chance(gram: Gram, contrast: Contrast) -> tuple[Numbers, np.ndarray]:
    """What shuffled labels give, the direction refitted on each.

    The tested number is the in-sample d, the same function of the labels for the true and the shuffled ones; it is
    never negative, so one side is tested. Where cross-fitted d of shuffled labels lies is given beside it, slightly
    below 0: what is left out of training pulls the training mean the other way.

    Returns:
        ``chance_d_median, chance_d_95`` of the in-sample d, ``chance_crossfit_low, chance_crossfit_high`` (95 % of the
        cross-fitted d between them), and ``(draw,)`` the in-sample null itself.
    """
    shuffled = contrast.permutations
    null = resampling.draw_d(shuffled.project(gram), shuffled.harmful, shuffled.harmless)
    held_out = resampling.draw_d(shuffled.project_held_out(gram), shuffled.harmful, shuffled.harmless)
    median, highest = quantiles(null, (0.5, 0.95))
    low, high = quantiles(held_out, (0.025, 0.975))
    numbers = {
        "chance_d_median": median,
        "chance_d_95": highest,
        "chance_crossfit_low": low,
        "chance_crossfit_high": high,
    }
    return numbers, null


def is_it_about_harm(
    gram: Gram, cross_gram: Gram, contrast: Contrast, transfer: TransferSet, drawn: np.ndarray
) -> tuple[Numbers, Reasons, np.ndarray]:
    """``d, auroc, pair_accuracy`` of a transfer set on the direction, with intervals; both sets redrawn in every draw.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        cross_gram: ``(prompt, other)`` with the transfer set.
        drawn: ``(draw, sampled other)`` projections on the bootstrap draws' directions.

    Returns:
        Numbers, reasons, and ``(draw,)`` the bootstrap draws of d.
    """
    drawn_of = transfer.sampled
    harmful, harmless = transfer.counts * drawn_of.is_harmful, transfer.counts * ~drawn_of.is_harmful
    projection = project_draws(gram, contrast.weights, cross_gram)[0]
    draws_d = resampling.draw_d(drawn, harmful, harmless)
    n_harmful, n_harmless = int(transfer.is_harmful.sum()), int((~transfer.is_harmful).sum())
    counted: Numbers = {"n_harmful": n_harmful, "n_harmless": n_harmless, "n_pairs": len(transfer.twins)}
    reason = None
    if not n_harmful or not n_harmless:
        reason = f"{transfer.source} has prompts of one label only"
    elif not np.isfinite(projection).all():
        reason = no_direction(gram)
    if reason is not None:
        names = [f"{name}{end}" for name in ("d", "auroc", "pair_accuracy") for end in ("", "_low", "_high")]
        missing = dict.fromkeys(("d", "auroc", "pair_accuracy"), reason)
        return dict.fromkeys(names, np.nan) | counted, missing, np.full(len(drawn), np.nan)
    pairs = resampling.draw_pair_accuracy(projection[None, :], transfer.twins, np.ones((1, len(projection))))
    of_label = projection[transfer.is_harmful], projection[~transfer.is_harmful]
    area = resampling.draw_auroc(drawn, harmful, harmless)
    pair_draws = resampling.draw_pair_accuracy(drawn, drawn_of.twins, transfer.counts)
    numbers = (
        _with_interval("d", cohens_d(*of_label), draws_d)
        | _with_interval("auroc", auroc(*of_label), area, **_SHARES)
        | _with_interval("pair_accuracy", float(pairs[0]), pair_draws, **_SHARES)
    )
    reasons: Reasons = {}
    if not len(transfer.twins):
        reasons["pair_accuracy"] = f"{transfer.source} has no matched pairs"
    if not np.isfinite(numbers["d"]):
        reasons["d"] = NO_SPREAD
    return numbers | counted, reasons, draws_d


def is_it_length(gram: Gram, sampled_gram: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """``length_d, length_auroc``: cross-fitted, prompt length regressed out; ``length_cosine`` to the full direction.

    In every training part each dimension is regressed on the number of tokens, whatever the label: the strict
    reading, in which all that label and length share is put down to length.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
    """
    names = ("length_d", "length_auroc", "length_cosine")
    ends = [f"{name}{end}" for name in names[:2] for end in ("", "_low", "_high")]
    empty = dict.fromkeys([*ends, "length_cosine"], np.nan)
    if not np.isfinite(contrast.n_tokens).all() or not np.ptp(contrast.n_tokens) > 0:
        return empty, dict.fromkeys(names, "every prompt of the contrast set has the same length")
    if not len(contrast.bootstrap.fold):
        return empty, dict.fromkeys(names, TOO_FEW_GROUPS)
    length = contrast.n_tokens - contrast.n_tokens.mean()
    itself = contrast.repeated.project_held_out_without(gram, length)
    drawn_length = contrast.sampled.n_tokens - contrast.sampled.n_tokens.mean()
    drawn = contrast.bootstrap.project_held_out_without(sampled_gram, drawn_length)
    d, area = (
        float(statistic(itself, contrast.repeated.harmful, contrast.repeated.harmless).mean())
        for statistic in (resampling.draw_d, resampling.draw_auroc)
    )
    if not np.isfinite(d):
        return empty, dict.fromkeys(names, "no direction is left when length is regressed out")
    harmful, harmless = contrast.bootstrap.harmful, contrast.bootstrap.harmless
    numbers = _with_interval("length_d", d, resampling.draw_d(drawn, harmful, harmless)) | _with_interval(
        "length_auroc", area, resampling.draw_auroc(drawn, harmful, harmless), **_SHARES
    )
    remaining, _ = remove_covariate(contrast.weights, np.ones((1, len(length))), length)
    numbers["length_cosine"] = float(geometry.cosine(gram, contrast.weights, remaining)[0])
    return numbers, {}


def baseline_numbers(
    score: np.ndarray,
    is_harmful: np.ndarray,
    counts: np.ndarray,
    point: tuple[float, float] | None = None,
    sample: np.ndarray | slice = EVERY,
) -> tuple[Numbers, str | None]:
    """``d, auroc`` of a text-only score with intervals: prompts are redrawn, the rule that gave the score is kept.

    Args:
        score: ``(prompt,)``.
        is_harmful: ``(prompt,)`` bool.
        counts: ``(draw, sampled)`` multiplicities.
        sample: positions of the prompts that draws are taken of.
        point: d and AUROC where they are known already, as means over repeats.

    Returns:
        The numbers, and why there are none.
    """
    if is_harmful.all() or not is_harmful.any():
        names = [f"{name}{end}" for name in ("d", "auroc") for end in ("", "_low", "_high")]
        return dict.fromkeys(names, np.nan), "there are prompts of one label only"
    of_label = score[is_harmful], score[~is_harmful]
    d, area = point or (cohens_d(*of_label), auroc(*of_label) if np.isfinite(score).all() else np.nan)
    scores = np.broadcast_to(score[sample], counts.shape)
    harmful, harmless = counts * is_harmful[sample], counts * ~is_harmful[sample]
    numbers = _with_interval("d", d, resampling.draw_d(scores, harmful, harmless)) | _with_interval(
        "auroc", area, resampling.draw_auroc(scores, harmful, harmless), **_SHARES
    )
    return numbers, None if np.isfinite(d) else "it does not vary within the labels here"


def does_it_go_with_refusing(
    projection: np.ndarray,
    drawn: np.ndarray,
    log_odds: np.ndarray,
    is_harmful: np.ndarray,
    counts: np.ndarray,
    sample: np.ndarray | slice = EVERY,
) -> dict[str, tuple[Numbers, str | None]]:
    """Spearman's ``rho`` of projection and refusal log-odds within each label, so that the label explains none of it.

    Args:
        projection: ``(prompt,)``.
        drawn: ``(draw, sampled)`` projections of the bootstrap draws.
        log_odds: ``(prompt,)``; prompts without are left out.
        counts: ``(draw, sampled)`` multiplicities.
        sample: positions of the prompts that draws are taken of.

    Returns:
        ``harmful``, ``harmless`` and ``both`` (their mean weighted by prompts) → ``rho, rho_low, rho_high, n`` and the
        reason when there is none.
    """
    rows_of = {"harmful": is_harmful & np.isfinite(log_odds), "harmless": ~is_harmful & np.isfinite(log_odds)}
    points, draws, sizes = {}, {}, {}
    for label, rows in rows_of.items():
        sizes[label] = int(rows.sum())
        if sizes[label] < 3:
            points[label], draws[label] = np.nan, np.full(len(drawn), np.nan)
            continue
        once = np.ones((1, sizes[label]))
        points[label] = float(_correlation(projection[None, rows], log_odds[None, rows], once)[0])
        drawn_rows, behaviour = rows[sample], log_odds[sample][rows[sample]]
        draws[label] = _correlation(
            drawn[:, drawn_rows], np.broadcast_to(behaviour, (len(drawn), len(behaviour))), counts[:, drawn_rows]
        )
    share = sizes["harmful"] / max(sum(sizes.values()), 1)
    points[BOTH] = share * points["harmful"] + (1 - share) * points["harmless"]
    draws[BOTH] = share * draws["harmful"] + (1 - share) * draws["harmless"]
    sizes[BOTH] = sum(sizes.values())
    answer: dict[str, tuple[Numbers, str | None]] = {}
    for label, point in points.items():
        numbers = _with_interval("rho", point, draws[label], low=-1.0, high=1.0) | {"n": sizes[label]}
        reason = None
        if not np.isfinite(point):
            few = sizes[label] < 3 if label != BOTH else min(sizes["harmful"], sizes["harmless"]) < 3
            reason = (
                "fewer than three prompts of a label have refusal log-odds"
                if few
                else "projection or refusal log-odds do not vary within a label"
            )
        answer[label] = numbers, reason
    return answer


def why_no_behaviour(log_odds: np.ndarray) -> str | None:
    """Why the model's behaviour cannot serve as the label, or None: too few prompts refused or too few answered."""
    known = np.isfinite(log_odds)
    refused = int((log_odds[known] > 0).sum())
    if min(refused, int(known.sum()) - refused) < FEWEST_BEHAVIOURS:
        return (
            f"the model would refuse {refused} of {int(known.sum())} prompts (refusal log-odds above 0); "
            f"a direction needs {FEWEST_BEHAVIOURS} refused and {FEWEST_BEHAVIOURS} answered ones"
        )
    return None


def is_it_the_same_as_refusing(gram: Gram, sampled_gram: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """The direction between prompts the model would refuse (refusal log-odds above 0) and those it would answer.

    ``behaviour_d, behaviour_auroc`` tell how well it holds, cross-fitted, for the behaviour; ``behaviour_cosine`` is
    its cosine with the harm direction, with interval.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
    """
    names = ("behaviour_d", "behaviour_auroc", "behaviour_cosine")
    empty = dict.fromkeys([*names, "behaviour_cosine_low", "behaviour_cosine_high"], np.nan)
    reason = why_no_behaviour(contrast.log_odds)
    if reason is not None:
        return empty, dict.fromkeys(names, reason)
    known = np.isfinite(contrast.log_odds)
    refused = known & (contrast.log_odds > 0)
    answered = known & ~refused
    among = np.ix_(known, known)
    held_out = crossfit(
        gram[among], refused[known], contrast.groups[known], contrast.folds, contrast.repeats, contrast.seed
    )
    if held_out.reason is not None:
        return empty, dict.fromkeys(names, held_out.reason)
    weights = contrast_weights(refused[None, :], answered[None, :])
    point = float(geometry.cosine(gram, contrast.weights, weights)[0])
    counts = contrast.bootstrap.counts
    redrawn = contrast_weights(counts * refused[contrast.sample], counts * answered[contrast.sample])
    drawn = geometry.cosine(sampled_gram, contrast.bootstrap.weights, redrawn)
    numbers = {"behaviour_d": held_out.d, "behaviour_auroc": held_out.auroc}
    return numbers | _with_interval("behaviour_cosine", point, drawn, low=-1.0, high=1.0), {}


def what_does_the_space_look_like(
    gram: Gram, contrast: Contrast, components: geometry.Components
) -> tuple[Numbers, Reasons]:
    """``effective_dimension``, ``variance_share`` of the direction, ``pc1_share …`` of the first components."""
    numbers = {
        "effective_dimension": geometry.effective_dimension(gram),
        "variance_share": geometry.variance_share(gram, contrast.weights[0]),
    }
    shares = np.full(N_COMPONENTS, np.nan)
    found = min(N_COMPONENTS, len(components.values))
    shares[:found] = components.shares[:found] if found else []
    numbers |= {f"pc{k + 1}_share": float(share) for k, share in enumerate(shares)}
    return numbers, {name: no_direction(gram) for name, value in numbers.items() if not np.isfinite(value)}


def how_many_prompts(gram: Gram, contrast: Contrast, samples: list[TrainingSample]) -> list[Numbers]:
    """Cross-fitted d of directions that saw few prompts, and their cosine to the direction that saw all.

    Returns:
        One row a size: ``size, d, d_low, d_high, cosine, cosine_low, cosine_high``: mean and central 95 % of the
        draws.
    """
    harmful = contrast.is_harmful[None, :].astype(np.float64)
    rows = []
    for sample in samples:
        d = resampling.draw_d(crossfit_draws(gram, sample.weights, sample.fold), harmful, 1 - harmful)
        cosines = np.mean([geometry.cosine(gram, weights, contrast.weights) for weights in sample.weights], axis=0)
        row: Numbers = {"size": sample.size}
        for name, values in (("d", d), ("cosine", cosines)):
            low, high = quantiles(values, (0.025, 0.975))
            row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def quantiles(values: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Quantiles of the finite values, NaN when there are none."""
    finite = values[np.isfinite(values)]
    return np.quantile(finite, shares).tolist() if len(finite) else [float("nan")] * len(shares)


def _correlation(values: np.ndarray, others: np.ndarray, counts: np.ndarray) -> np.ndarray:
    ranks, other_ranks = resampling.draw_ranks(values, counts), resampling.draw_ranks(others, counts)
    rho = resampling.draw_correlation(ranks, other_ranks, counts)
    return np.where(np.isfinite(values).all(axis=1), rho, np.nan)


def _with_interval(name: str, point: float, draws: np.ndarray, low: float = -np.inf, high: float = np.inf) -> Numbers:
    lower, upper = resampling.interval(draws, point, low, high)
    return {name: float(point), f"{name}_low": float(lower), f"{name}_high": float(upper)}
