"""The questions a sceptic asks of one site, a function per question, from Gram matrices.

Every function returns numbers by name, NaN where one does not exist, and the reasons why, by the same names.
``x_low`` and ``x_high`` are the 95 % bootstrap interval of ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from refusal_core.analysis import geometry
from refusal_core.analysis.crossfit import NO_SPREAD, TOO_FEW_GROUPS, Crossfit, crossfit, no_direction
from refusal_core.analysis.effect_sizes import auroc, cohens_d, mean_crossings
from refusal_core.analysis.gram import Gram
from refusal_core.analysis.groups import ALL_PROMPTS
from refusal_core.analysis.inference import interval
from refusal_core.analysis.learning import TrainingSample
from refusal_core.analysis.projections import contrast_weights, crossfit_draws, project_draws, remove_covariate
from refusal_core.analysis.resampling import Draws
from refusal_core.analysis.weighted_statistics import (
    weighted_accuracy,
    weighted_auroc,
    weighted_correlation,
    weighted_d,
    weighted_range_overlap,
    weighted_ranks,
)
from refusal_core.evidence.design import Contrast, TransferSet
from refusal_core.evidence.wording import Compared, Separation
from refusal_core.runs.evidence_tables import BOTH

FEWEST_BEHAVIOURS = 8
N_COMPONENTS = 3
NO_CATEGORIES = "the contrast set has no two categories of which either could be left out"
_SHARES = {"low": 0.0, "high": 1.0}

Numbers = dict[str, float]
Reasons = dict[str, str]


def does_it_fit(gram: Gram, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return ``in_sample_d, in_sample_auroc, mean_crossings``: on the prompts that the direction was fitted on."""
    projection = project_draws(gram, contrast.weights)[0]
    exists = np.isfinite(projection).all()
    return separation_of_labels(projection, contrast.is_harmful, "" if exists else no_direction(gram))


def separation_of_labels(projection: np.ndarray, is_harmful: np.ndarray, why_none: str) -> tuple[Numbers, Reasons]:
    """Return ``in_sample_d, in_sample_auroc, mean_crossings`` of projections.

    Args:
        projection: ``(prompt,)``; NaN without a direction.
        is_harmful: ``(prompt,)`` bool.
        why_none: why there is no direction, where there is none.
    """
    names = ("in_sample_d", "in_sample_auroc", "mean_crossings")
    if not np.isfinite(projection).all():
        return dict.fromkeys(names, np.nan), dict.fromkeys(names, why_none)
    harmful, harmless = projection[is_harmful], projection[~is_harmful]
    d = cohens_d(harmful, harmless)
    numbers = (d, auroc(harmful, harmless), float(mean_crossings(harmful, harmless)))
    return dict(zip(names, numbers, strict=True)), {} if np.isfinite(d) else {"in_sample_d": NO_SPREAD}


def does_it_hold(
    held_out: Crossfit, drawn: np.ndarray, contrast: Contrast, separation: Separation
) -> tuple[Numbers, Reasons]:
    """Return ``crossfit_d, …_auroc, …_accuracy, …_range_overlap, …_pair_accuracy`` with intervals.

    Extremes are what a bootstrap knows least, so the range overlap's interval is a rough one, and those of a sample
    say nothing of all prompts'.

    Args:
        held_out: the cross-fitted numbers themselves.
        drawn: ``(draw, sampled)`` cross-fitted projections of every bootstrap draw.
        contrast: the fitted prompts.
        separation: of all of them by the cross-fitted projections.
    """
    harmful, harmless = contrast.bootstrap.harmful, contrast.bootstrap.harmless
    overlap = weighted_range_overlap(drawn, harmful, harmless)
    measured: dict[str, tuple[float, np.ndarray, dict[str, float]]] = {
        "crossfit_d": (held_out.d, weighted_d(drawn, harmful, harmless), {}),
        "crossfit_auroc": (held_out.auroc, separation.draws["auroc"], _SHARES),
        "crossfit_accuracy": (held_out.accuracy, weighted_accuracy(drawn, harmful, harmless), _SHARES),
        "crossfit_range_overlap": (
            held_out.range_overlap,
            overlap if contrast.sampled is contrast else np.full_like(overlap, np.nan),
            {"low": 0.0, "high": float(len(contrast.groups))},
        ),
        "crossfit_pair_accuracy": (
            separation.point["pair_accuracy"],
            separation.draws["pair_accuracy"],
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
    """Return what shuffled labels give, the direction refitted on each labelling.

    The tested number is the in-sample d, the same function of the labels for the true and the shuffled ones; it is
    never negative, so one side is tested. The range of the cross-fitted d of shuffled labels is given too; it lies
    slightly below 0, since what is left out of training pulls the training mean the other way.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        contrast: the fitted prompts, all of them redrawn.

    Returns:
        ``chance_d_median, chance_d_95`` of the in-sample d, ``chance_crossfit_low, chance_crossfit_high`` (95 % of the
        cross-fitted d between them), and ``(draw,)`` the in-sample null itself.
    """
    shuffled = contrast.permutations
    null = weighted_d(shuffled.project(gram), shuffled.harmful, shuffled.harmless)
    held_out = weighted_d(shuffled.project_held_out(gram), shuffled.harmful, shuffled.harmless)
    return describe_chance(null, held_out), null


def describe_chance(null: np.ndarray, held_out: np.ndarray) -> Numbers:
    """Return the numbers of :func:`is_it_chance` from the two nulls, ``(draw,)`` each."""
    median, highest = quantiles(null, (0.5, 0.95))
    low, high = quantiles(held_out, (0.025, 0.975))
    return {
        "chance_d_median": median,
        "chance_d_95": highest,
        "chance_crossfit_low": low,
        "chance_crossfit_high": high,
    }


@dataclass(frozen=True, eq=False)
class Harm:
    """How the direction of one site separates a transfer set.

    Attributes:
        numbers: ``d, auroc, pair_accuracy`` with intervals, and the sizes.
        reasons: why numbers are missing.
        draws: ``(draw,)`` d of the bootstrap draws.
        observed: d of the prompts that are redrawn.
        null: ``(draw,)`` d of permuted labels, the direction as it is.
    """

    numbers: Numbers
    reasons: Reasons
    draws: np.ndarray
    observed: float
    null: np.ndarray


def is_it_about_harm(
    projection: np.ndarray,
    drawn: np.ndarray,
    transfer: TransferSet,
    separation: Separation | None,
    why_none: str | None,
) -> Harm:
    """Measure how the direction separates a transfer set; both sets are redrawn in every bootstrap draw.

    Labels are permuted on the transfer set alone, within its pairs where it has pairs: whatever the direction is, and
    however few prompts there are, labels that mean nothing are found in as many runs as the level says.

    Args:
        projection: ``(other,)`` of the transfer set on the direction.
        drawn: ``(draw, sampled other)`` on the bootstrap draws' directions.
        transfer: whose projections they are.
        separation: of all its prompts; None of one label.
        why_none: why there is no direction; None where there is one.
    """
    sampled = transfer.sampled
    harmful, harmless = transfer.counts * sampled.is_harmful, transfer.counts * ~sampled.is_harmful
    draws_d = weighted_d(drawn, harmful, harmless)
    n_harmful, n_harmless = int(transfer.is_harmful.sum()), int((~transfer.is_harmful).sum())
    counted: Numbers = {"n_harmful": n_harmful, "n_harmless": n_harmless, "n_pairs": len(transfer.twins)}
    reason = None
    if not n_harmful or not n_harmless:
        reason = f"{transfer.source} has prompts of one label only"
    elif why_none is not None:
        reason = why_none
    if reason is not None or separation is None:
        names = [f"{name}{end}" for name in ("d", "auroc", "pair_accuracy") for end in ("", "_low", "_high")]
        missing = dict.fromkeys(("d", "auroc", "pair_accuracy"), reason or "")
        nothing = np.full(len(transfer.permuted), np.nan)
        return Harm(dict.fromkeys(names, np.nan) | counted, missing, np.full(len(drawn), np.nan), np.nan, nothing)
    of_label = projection[transfer.is_harmful], projection[~transfer.is_harmful]
    numbers = _with_interval("d", cohens_d(*of_label), draws_d) | dict(separation.numbers("{}", 0.0))
    reasons: Reasons = {}
    if not len(transfer.twins):
        reasons["pair_accuracy"] = f"{transfer.source} has no matched pairs"
    if not np.isfinite(numbers["d"]):
        reasons["d"] = NO_SPREAD
    itself = projection[transfer.sample][None, :]
    permuted = transfer.permuted.astype(np.float64)
    return Harm(
        numbers | counted,
        reasons,
        draws_d,
        float(weighted_d(itself, sampled.is_harmful[None, :] * 1.0, ~sampled.is_harmful[None, :] * 1.0)[0]),
        weighted_d(np.broadcast_to(itself, permuted.shape), permuted, 1 - permuted),
    )


def does_it_hold_across_categories(gram: Gram, sampled_gram: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return ``category_d, category_auroc``: of each category on the direction of all others, with intervals.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
        contrast: the fitted prompts.
    """
    if not len(contrast.category):
        return no_categories(NO_CATEGORIES)
    harmful = contrast.is_harmful[None, :].astype(np.float64)
    itself = Draws(harmful, 1 - harmful, contrast.category).project_held_out(gram)
    bootstrap = replace(contrast.bootstrap, fold=contrast.sampled.category)
    drawn = bootstrap.project_held_out(sampled_gram)
    return category_numbers(itself, harmful, drawn, bootstrap, no_direction(gram))


def category_numbers(
    itself: np.ndarray, harmful: np.ndarray, drawn: np.ndarray, bootstrap: Draws, why_none: str
) -> tuple[Numbers, Reasons]:
    """Return ``category_d, category_auroc`` with intervals.

    Args:
        itself: ``(1, prompt)`` projections of each category on the direction of all others.
        harmful: ``(1, prompt)``, 1 for harmful prompts.
        drawn: ``(draw, sampled)`` the same of every bootstrap draw.
        bootstrap: the draws.
        why_none: why there is no direction, where there is none.
    """
    d, area = (float(statistic(itself, harmful, 1 - harmful)[0]) for statistic in (weighted_d, weighted_auroc))
    if not np.isfinite(d):
        return no_categories(why_none)
    return _with_interval("category_d", d, weighted_d(drawn, bootstrap.harmful, bootstrap.harmless)) | _with_interval(
        "category_auroc", area, weighted_auroc(drawn, bootstrap.harmful, bootstrap.harmless), **_SHARES
    ), {}


def no_categories(why: str) -> tuple[Numbers, Reasons]:
    """Return what :func:`does_it_hold_across_categories` returns where there is no answer."""
    names = ("category_d", "category_auroc")
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return dict.fromkeys(ends, np.nan), dict.fromkeys(names, why)


def is_it_length(gram: Gram, sampled_gram: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Return cross-fitted ``length_d, length_auroc`` with prompt length regressed out, and ``length_cosine``.

    The cosine is that of the direction without length and the full one.

    In every training part each dimension is regressed on the number of tokens, whatever the label: strictly, since all
    that label and length share is put down to length.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
        contrast: the fitted prompts.
    """
    why = why_no_length(contrast) or ("" if len(contrast.bootstrap.fold) else TOO_FEW_GROUPS)
    if why:
        return no_length(why)
    length = contrast.n_tokens - contrast.n_tokens.mean()
    itself = contrast.repeated.project_held_out_without(gram, length)
    drawn_length = contrast.sampled.n_tokens - contrast.sampled.n_tokens.mean()
    drawn = contrast.bootstrap.project_held_out_without(sampled_gram, drawn_length)
    repeated = contrast.repeated
    numbers, reasons = length_numbers(itself, repeated.harmful, repeated.harmless, drawn, contrast.bootstrap)
    if not reasons:
        remaining, _ = remove_covariate(contrast.weights, np.ones((1, len(length))), length)
        numbers["length_cosine"] = float(geometry.cosine(gram, contrast.weights, remaining)[0])
    return numbers, reasons


def length_numbers(
    itself: np.ndarray, harmful: np.ndarray, harmless: np.ndarray, drawn: np.ndarray, bootstrap: Draws
) -> tuple[Numbers, Reasons]:
    """Return ``length_d, length_auroc`` with intervals.

    Args:
        itself: ``(repeat, prompt)`` projections with length regressed out.
        harmful: ``(repeat, prompt)`` or ``(1, prompt)``, 1 for harmful prompts.
        harmless: the same for harmless.
        drawn: ``(draw, sampled)`` projections of every bootstrap draw.
        bootstrap: the draws.
    """
    d, area = (float(statistic(itself, harmful, harmless).mean()) for statistic in (weighted_d, weighted_auroc))
    if not np.isfinite(d):
        return no_length("no direction is left when length is regressed out")
    counts = bootstrap.harmful, bootstrap.harmless
    return _with_interval("length_d", d, weighted_d(drawn, *counts)) | _with_interval(
        "length_auroc", area, weighted_auroc(drawn, *counts), **_SHARES
    ), {}


def why_no_length(contrast: Contrast) -> str:
    """Return why length cannot be regressed out, whatever the direction; empty where it can."""
    varies = np.isfinite(contrast.n_tokens).all() and np.ptp(contrast.n_tokens) > 0
    return "" if varies else "every prompt of the contrast set has the same length"


def no_length(why: str) -> tuple[Numbers, Reasons]:
    """Return what :func:`is_it_length` returns where there is no answer."""
    names = ("length_d", "length_auroc", "length_cosine")
    ends = [f"{name}{end}" for name in names[:2] for end in ("", "_low", "_high")]
    return dict.fromkeys([*ends, "length_cosine"], np.nan), dict.fromkeys(names, why)


def how_far_does_the_text_get(scores: np.ndarray, compared: Compared) -> tuple[Numbers, str | None]:
    """Return ``d, auroc, pair_accuracy`` of a text-only score with intervals: prompts are redrawn, its rule is not.

    Args:
        scores: ``(repeat, prompt)`` of the set; d and AUROC are means over the repeats.
        compared: all prompts of the set.

    Returns:
        The numbers, and why there are none.
    """
    is_harmful, sample = compared.of.is_harmful, compared.of.sample
    sampled = compared.of.sampled.is_harmful
    harmful, harmless = compared.counts * sampled, compared.counts * ~sampled
    d = float(np.mean([cohens_d(row[is_harmful], row[~is_harmful]) for row in scores]))
    # The draws' folds are the first that were dealt.
    drawn = scores[0][sample]
    draws_d = weighted_d(np.broadcast_to(drawn, compared.counts.shape), harmful, harmless)
    separation = compared.separation(scores, drawn)
    numbers = _with_interval("d", d, draws_d) | dict(separation.numbers("{}", 0.0))
    return numbers, None if np.isfinite(d) else "it does not vary within the labels here"


def does_it_go_with_refusing(
    projection: np.ndarray,
    drawn: np.ndarray,
    log_odds: np.ndarray,
    is_harmful: np.ndarray,
    counts: np.ndarray,
    sample: np.ndarray | slice = ALL_PROMPTS,
) -> dict[str, tuple[Numbers, str | None]]:
    """Return Spearman's ``rho`` of projection and refusal log-odds within each label, so that no label explains it.

    Args:
        projection: ``(prompt,)``.
        drawn: ``(draw, sampled)`` projections of the bootstrap draws.
        log_odds: ``(prompt,)``; prompts without are left out.
        is_harmful: ``(prompt,)`` bool.
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
        points[label] = float(_rank_correlation(projection[None, rows], log_odds[rows], once)[0])
        drawn_rows = rows[sample]
        draws[label] = _rank_correlation(drawn[:, drawn_rows], log_odds[sample][drawn_rows], counts[:, drawn_rows])
    share = sizes["harmful"] / max(sum(sizes.values()), 1)
    points[BOTH] = share * points["harmful"] + (1 - share) * points["harmless"]
    draws[BOTH] = share * draws["harmful"] + (1 - share) * draws["harmless"]
    sizes[BOTH] = sum(sizes.values())
    correlations: dict[str, tuple[Numbers, str | None]] = {}
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
        correlations[label] = numbers, reason
    return correlations


def why_no_behaviour(log_odds: np.ndarray) -> str | None:
    """Return why the model's behaviour cannot serve as the label: too few refused or too few answered; or None.

    Args:
        log_odds: ``(prompt,)`` refusal log-odds; above 0 the model would refuse.
    """
    known = np.isfinite(log_odds)
    refused = int((log_odds[known] > 0).sum())
    if min(refused, int(known.sum()) - refused) < FEWEST_BEHAVIOURS:
        return (
            f"the model would refuse {refused} of {int(known.sum())} prompts (refusal log-odds above 0); "
            f"a direction needs {FEWEST_BEHAVIOURS} refused and {FEWEST_BEHAVIOURS} answered ones"
        )
    return None


def is_it_the_same_as_refusing(gram: Gram, sampled_gram: np.ndarray, contrast: Contrast) -> tuple[Numbers, Reasons]:
    """Fit the direction between prompts the model would refuse (refusal log-odds above 0) and those it would answer.

    ``behaviour_d, behaviour_auroc`` tell how well it holds, cross-fitted, for the behaviour; ``behaviour_cosine`` is
    its cosine with the harm direction, with interval.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of the prompts that draws are taken of.
        contrast: the fitted prompts.
    """
    behaviour = behaviour_direction(gram, contrast)
    if isinstance(behaviour, tuple):
        return behaviour
    weights = contrast_weights(behaviour.refused[None, :], behaviour.answered[None, :])
    point = float(geometry.cosine(gram, contrast.weights, weights)[0])
    drawn = geometry.cosine(sampled_gram, contrast.bootstrap.weights, behaviour.redrawn(contrast))
    return behaviour.numbers(point, drawn), {}


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The direction between the prompts that the model would refuse and those it would answer.

    Attributes:
        refused, answered: ``(prompt,)`` bool.
        held_out: how well it holds for the behaviour.
    """

    refused: np.ndarray
    answered: np.ndarray
    held_out: Crossfit

    def redrawn(self, contrast: Contrast) -> np.ndarray:
        """Return its ``(draw, sampled)`` weights in the bootstrap draws."""
        counts = contrast.bootstrap.counts
        return contrast_weights(counts * self.refused[contrast.sample], counts * self.answered[contrast.sample])

    def numbers(self, cosine: float, drawn: np.ndarray) -> Numbers:
        """Return the numbers, given the cosine with another direction and its draws ``(draw,)``."""
        numbers = {"behaviour_d": self.held_out.d, "behaviour_auroc": self.held_out.auroc}
        return numbers | _with_interval("behaviour_cosine", cosine, drawn, low=-1.0, high=1.0)


def no_behaviour(why: str) -> tuple[Numbers, Reasons]:
    """Return what :func:`is_it_the_same_as_refusing` returns where there is no answer."""
    names = ("behaviour_d", "behaviour_auroc", "behaviour_cosine")
    empty = dict.fromkeys([*names, "behaviour_cosine_low", "behaviour_cosine_high"], np.nan)
    return empty, dict.fromkeys(names, why)


def behaviour_direction(gram: Gram, contrast: Contrast) -> Behaviour | tuple[Numbers, Reasons]:
    """Fit the direction of what the model would refuse, or return :func:`no_behaviour`."""
    reason = why_no_behaviour(contrast.log_odds)
    if reason is not None:
        return no_behaviour(reason)
    known = np.isfinite(contrast.log_odds)
    refused = known & (contrast.log_odds > 0)
    answered = known & ~refused
    among = np.ix_(known, known)
    held_out = crossfit(
        gram[among], refused[known], contrast.groups[known], contrast.folds, contrast.repeats, contrast.seed
    )
    if held_out.reason is not None:
        return no_behaviour(held_out.reason)
    return Behaviour(refused, answered, held_out)


def what_does_the_space_look_like(
    gram: Gram, contrast: Contrast, components: geometry.Components
) -> tuple[Numbers, Reasons]:
    """Return ``effective_dimension``, ``variance_share`` of the direction, ``pc1_share …`` of the first components."""
    share = geometry.variance_share(gram, contrast.weights[0])
    numbers, _ = space_numbers(geometry.effective_dimension(gram), share, components, "")
    return numbers, {name: no_direction(gram) for name, value in numbers.items() if not np.isfinite(value)}


def space_numbers(
    effective_dimension: float, variance_share: float, components: geometry.Components, why_none: str
) -> tuple[Numbers, Reasons]:
    """Return the numbers of :func:`what_does_the_space_look_like`, and for what is missing one reason."""
    numbers = {"effective_dimension": effective_dimension, "variance_share": variance_share}
    shares = np.full(N_COMPONENTS, np.nan)
    first = components.shares[:N_COMPONENTS]
    shares[: len(first)] = first
    numbers |= {f"pc{k + 1}_share": float(share) for k, share in enumerate(shares)}
    return numbers, {name: why_none for name, value in numbers.items() if not np.isfinite(value)}


def how_many_prompts(gram: Gram, contrast: Contrast, samples: list[TrainingSample]) -> list[Numbers]:
    """Return the cross-fitted d of directions that saw few prompts, and their cosine to the direction that saw all.

    Args:
        gram: ``(prompt, prompt)`` of the contrast set.
        contrast: the fitted prompts, all of them redrawn.
        samples: training samples of growing size.

    Returns:
        One row per size: ``size, d, d_low, d_high, cosine, cosine_low, cosine_high``: mean and central 95 % of the
        draws.
    """
    harmful = contrast.is_harmful[None, :].astype(np.float64)
    rows = []
    for sample in samples:
        d = weighted_d(crossfit_draws(gram, sample.weights, sample.fold), harmful, 1 - harmful)
        cosines = np.mean([geometry.cosine(gram, weights, contrast.weights) for weights in sample.weights], axis=0)
        rows.append(learning_numbers(sample.size, d, cosines))
    return rows


def learning_numbers(size: int, d: np.ndarray, cosines: np.ndarray) -> Numbers:
    """Return a row of :func:`how_many_prompts` from ``(draw,)`` d and cosines."""
    row: Numbers = {"size": size}
    for name, values in (("d", d), ("cosine", cosines)):
        low, high = quantiles(values, (0.025, 0.975))
        row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return row


def quantiles(values: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Return quantiles of the finite values, NaN when there are none."""
    finite = values[np.isfinite(values)]
    return np.quantile(finite, shares).tolist() if len(finite) else [float("nan")] * len(shares)


def _rank_correlation(values: np.ndarray, others: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(draw,)`` Spearman's rho of ``(draw, prompt)`` values and ``(prompt,)`` others; NaN without values."""
    rho = weighted_correlation(weighted_ranks(values, counts), weighted_ranks(others, counts), counts)
    return np.where(np.isfinite(values).all(axis=1), rho, np.nan)


def _with_interval(name: str, point: float, draws: np.ndarray, low: float = -np.inf, high: float = np.inf) -> Numbers:
    lower, upper = interval(draws, point, low, high)
    return {name: float(point), f"{name}_low": float(lower), f"{name}_high": float(upper)}
