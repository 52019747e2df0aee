"""All questions put to one site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis import geometry
from refusal_core.analysis.crossfit import Crossfit, no_direction
from refusal_core.analysis.gram import Gram, gram_matrices, mean_products
from refusal_core.analysis.projections import project_draws
from refusal_core.analysis.refitting import Refitted
from refusal_core.analysis.weighted_statistics import weighted_d
from refusal_core.evidence import estimated_direction, fixed_direction, questions
from refusal_core.evidence.design import Contrast, Design, TransferSet, random_stream
from refusal_core.evidence.estimated_direction import Estimated
from refusal_core.evidence.quartets import FEWEST_QUARTETS, intent_and_cue
from refusal_core.evidence.questions import N_COMPONENTS
from refusal_core.evidence.rows import Rows
from refusal_core.evidence.wording import Compared
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT


@dataclass(frozen=True, eq=False)
class _Site:
    """The inner products of one site.

    Attributes:
        index: ``0 … n_sites - 1``.
        gram: ``(prompt, prompt)`` of the contrast set.
        sampled_gram: ``(sampled, sampled)`` of its prompts that draws are taken of.
        cross_gram: ``(prompt, any prompt)`` of the contrast set with all prompts of the run.
        components: of the contrast set.
        fixed: ``(any prompt,)`` projections on a direction that was imported, NaN where it has none for this site;
            None for the direction fitted on the contrast set.
        refitted: the prompts for an estimator that is no difference of means; None for that.
    """

    index: int
    gram: Gram
    sampled_gram: np.ndarray
    cross_gram: Gram
    components: geometry.Components
    fixed: np.ndarray | None
    refitted: Estimated | None = None


@dataclass(frozen=True, eq=False)
class _AboutContrast:
    """What is asked about the contrast set, before it is known how well text separates it.

    Attributes:
        fit, sampled_d: the in-sample numbers with their reasons, and d of the prompts that are redrawn.
        held_out: the cross-fitted numbers.
        drawn: ``(draw, sampled)`` cross-fitted projections of every bootstrap draw.
        null: ``(draw,)`` in-sample d of permuted labels.
        others: numbers and reasons of the other questions.
    """

    fit: tuple[questions.Numbers, questions.Reasons]
    sampled_d: float
    held_out: Crossfit
    drawn: np.ndarray
    null: np.ndarray
    others: Sequence[tuple[questions.Numbers, questions.Reasons]]


def answer_site(
    index: int,
    hidden_site: np.ndarray,
    design: Design,
    compared: Sequence[Compared],
    fixed: np.ndarray | None = None,
    estimator: Refitted | None = None,
) -> Rows:
    """Put all questions to one site.

    Args:
        index: ``0 … n_sites - 1``.
        hidden_site: ``(prompt, d_model)`` activations of all prompts of the run.
        design: what all sites share.
        compared: the prompts whose labels directions and text models separate.
        fixed: ``(prompt,)`` projections of all prompts on a direction that was imported; None to fit one.
        estimator: that it is fitted by; None for the difference of means.
    """
    contrast, fitted = design.contrast, design.fitted
    all_products = gram_matrices(hidden_site, fitted)
    gram = all_products[np.ix_(fitted, fitted)]
    sampled_gram = _held(gram, contrast.sample, contrast.sample)
    if contrast.sampled is contrast:
        gram = sampled_gram
    components = geometry.principal_components(gram, N_COMPONENTS)
    estimated = None if estimator is None else estimated_direction.prepare(estimator, hidden_site, design)
    site = _Site(index, gram, sampled_gram, all_products[fitted], components, fixed, estimated)
    answers = Rows()
    sampled_d = _answer_about_contrast(site, design, compared, answers)
    for transfer in design.transfers:
        _answer_about_transfer(site, design, transfer, compared, answers)
    learned = (
        questions.how_many_prompts(sampled_gram, contrast.sampled, design.samples)
        if estimated is None
        else estimated_direction.how_many_prompts(estimated, contrast, design.samples)
    )
    for row in learned:
        answers.add("learning", site=index, **row)
    shape = geometry.residual_geometry(gram, *mean_products(hidden_site, fitted), contrast.is_harmful)
    shape["Silh"] = geometry.silhouette(sampled_gram, contrast.sampled.is_harmful)
    answers.add("geometry", site=index, **shape)
    _add_random_directions(site, design, sampled_d, answers)
    answers.components.append(_component_scores(site, design.prompts["prompt_id"]))
    return answers


def _answer_about_contrast(site: _Site, design: Design, compared: Sequence[Compared], answers: Rows) -> float:
    """Ask what concerns the fitted prompts; return the in-sample d of those that are redrawn."""
    contrast = design.contrast
    if site.refitted is not None:
        about = _about_refitted(site, contrast, site.refitted)
    else:
        about = _about_fitted(site, contrast) if site.fixed is None else _about_fixed(site, design, site.fixed)
    held_out, drawn = about.held_out, about.drawn
    answers.held_out.append(held_out.projection)
    answers.draws["null", CONTRAST], answers.draws["observed", CONTRAST] = [about.null], [np.array(about.sampled_d)]
    answers.draws["crossfit_d", CONTRAST] = [weighted_d(drawn, contrast.bootstrap.harmful, contrast.bootstrap.harmless)]
    _separate(CONTRAST, held_out.projections, drawn, compared, answers)
    separation = answers.separations[CONTRAST, EVERY_PROMPT][0]
    site_numbers: dict[str, float] = {}
    for numbers, reasons in (
        about.fit,
        questions.does_it_hold(held_out, drawn, contrast, separation),
        *about.others,
    ):
        site_numbers |= numbers
        answers.explain("sites", reasons, site.index)
    answers.add("sites", site=site.index, **site_numbers)
    _add_refusal(site.index, CONTRAST, held_out.projection, drawn, contrast, contrast.bootstrap.counts, answers)
    return about.sampled_d


def _about_fitted(site: _Site, contrast: Contrast) -> _AboutContrast:
    """Ask about a direction that is fitted on the contrast set."""
    sampled = contrast.sampled
    fit = questions.does_it_fit(site.gram, contrast)
    chance, null = questions.is_it_chance(site.sampled_gram, sampled)
    of_sampled = fit if sampled is contrast else questions.does_it_fit(site.sampled_gram, sampled)
    return _AboutContrast(
        fit=fit,
        sampled_d=of_sampled[0]["in_sample_d"],
        held_out=contrast.crossfit(site.gram),
        drawn=contrast.bootstrap.project_held_out(site.sampled_gram),
        null=null,
        others=(
            questions.does_it_hold_across_categories(site.gram, site.sampled_gram, contrast),
            (chance, {}),
            questions.is_it_length(site.gram, site.sampled_gram, contrast),
            questions.is_it_the_same_as_refusing(site.gram, site.sampled_gram, contrast),
            questions.what_does_the_space_look_like(site.gram, contrast, site.components),
        ),
    )


def _about_fixed(site: _Site, design: Design, fixed: np.ndarray) -> _AboutContrast:
    """Ask about a direction that was imported."""
    contrast = design.contrast
    projection = fixed[design.fitted]
    sampled = projection[contrast.sample]
    chance, null = fixed_direction.is_it_chance(sampled, contrast.sampled)
    return _AboutContrast(
        fit=fixed_direction.does_it_fit(projection, contrast),
        sampled_d=fixed_direction.does_it_fit(sampled, contrast.sampled)[0]["in_sample_d"],
        held_out=fixed_direction.held_out(projection, contrast.is_harmful),
        drawn=fixed_direction.project_in_draws(sampled, sampled, contrast.bootstrap),
        null=null,
        others=(
            fixed_direction.does_it_hold_across_categories(),
            (chance, {}),
            fixed_direction.is_it_length(projection, contrast),
            fixed_direction.is_it_the_same_as_refusing(site.gram, site.sampled_gram, projection, contrast),
            fixed_direction.what_does_the_space_look_like(site.gram, projection, site.components),
        ),
    )


def _about_refitted(site: _Site, contrast: Contrast, estimated: Estimated) -> _AboutContrast:
    """Ask about a direction that another estimator fits on the contrast set."""
    why_none = no_direction(site.gram)
    fit = estimated_direction.does_it_fit(estimated, contrast, why_none)
    chance, null = estimated_direction.is_it_chance(estimated, contrast)
    return _AboutContrast(
        fit=fit,
        sampled_d=estimated_direction.sampled_d(estimated, contrast),
        held_out=estimated_direction.held_out(estimated, contrast, why_none),
        drawn=estimated.held_out_draws,
        null=null,
        others=(
            estimated_direction.does_it_hold_across_categories(estimated, contrast, why_none),
            chance,
            estimated_direction.is_it_length(estimated, contrast),
            estimated_direction.is_it_the_same_as_refusing(site.gram, estimated, contrast),
            fixed_direction.what_does_the_space_look_like(
                site.gram, estimated.projection - estimated.midpoint, site.components, why_none
            ),
        ),
    )


def _project_transfer(site: _Site, design: Design, transfer: TransferSet) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return ``(other,)`` projections of a transfer set, ``(draw, sampled other)``, and why there are none."""
    contrast = design.contrast
    if site.refitted is not None:
        projection = site.refitted.of_others(transfer.rows)
        drawn = site.refitted.draws_of_others(transfer.rows[transfer.sample])
        return projection, drawn, None if np.isfinite(projection).all() else no_direction(site.gram)
    if site.fixed is not None:
        own, other = site.fixed[design.fitted], site.fixed[transfer.rows]
        labels = contrast.is_harmful[None, :] * 1.0
        projection = other - fixed_direction.midpoints(own, labels, 1 - labels)[0]
        drawn = fixed_direction.project_in_draws(own[contrast.sample], other[transfer.sample], contrast.bootstrap)
        return projection, drawn, None if np.isfinite(projection).all() else fixed_direction.NO_VECTOR
    cross = site.cross_gram[:, transfer.rows]
    projection = project_draws(site.gram, contrast.weights, cross)[0]
    sampled_cross = _held(cross, contrast.sample, transfer.sample)
    drawn = project_draws(site.sampled_gram, contrast.bootstrap.weights, sampled_cross)
    return projection, drawn, None if np.isfinite(projection).all() else no_direction(site.gram)


def _answer_about_transfer(
    site: _Site, design: Design, transfer: TransferSet, compared: Sequence[Compared], answers: Rows
) -> None:
    projection, drawn, why_none = _project_transfer(site, design, transfer)
    _separate(transfer.source, projection[None, :], drawn, compared, answers)
    (separation,) = answers.separations.get((transfer.source, EVERY_PROMPT), [None])
    harm = questions.is_it_about_harm(projection, drawn, transfer, separation, why_none)
    answers.add("transfer", site=site.index, source=transfer.source, **harm.numbers)
    answers.explain("transfer", harm.reasons, site.index, transfer.source)
    answers.draws["d", transfer.source] = [harm.draws]
    answers.draws["observed", transfer.source] = [np.array(harm.observed)]
    answers.draws["null", transfer.source] = [harm.null]
    if len(transfer.sampled.quartets) >= FEWEST_QUARTETS:
        effects = intent_and_cue(projection, drawn, transfer)
        answers.add("quartets", site=site.index, source=transfer.source, **effects.numbers)
        answers.draws["observed cue", transfer.source] = [np.array(effects.cue)]
        answers.draws["null cue", transfer.source] = [effects.cue_null]
    _add_refusal(site.index, transfer.source, projection, drawn, transfer, transfer.counts, answers)


def _separate(source: str, scores: np.ndarray, drawn: np.ndarray, compared: Sequence[Compared], answers: Rows) -> None:
    for prompts in compared:
        if prompts.source == source:
            answers.separations[source, prompts.prompts] = [prompts.separation(scores, drawn)]


def _add_refusal(
    index: int,
    source: str,
    projection: np.ndarray,
    drawn: np.ndarray,
    of: Contrast | TransferSet,
    counts: np.ndarray,
    answers: Rows,
) -> None:
    by_label = questions.does_it_go_with_refusing(projection, drawn, of.log_odds, of.is_harmful, counts, of.sample)
    for label, (numbers, reason) in by_label.items():
        answers.add("refusal", site=index, source=source, label=label, **numbers)
        if reason is not None:
            answers.explain("refusal", {label: reason}, index, source)


def _held(gram: Gram, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
    """Return a part of a Gram matrix that is small enough to be held."""
    return np.asarray(gram[rows][:, columns])


def _add_random_directions(site: _Site, design: Design, in_sample_d: float, answers: Rows) -> None:
    sampled = design.contrast.sampled
    components = site.components
    if sampled is not design.contrast:
        components = geometry.principal_components(site.sampled_gram, N_COMPONENTS)
    by_kind = geometry.random_direction_d(
        components, sampled.is_harmful, design.random_directions, random_stream(design.seed, 4, site.index)
    )
    for kind, values in by_kind.items():
        median, high, most = questions.quantiles(values, (0.5, 0.95, 1.0))
        answers.add(
            "random_directions",
            site=site.index,
            kind=kind,
            directions=int(np.isfinite(values).sum()),
            d_median=median,
            d_95=high,
            d_max=most,
            share_reaching=float((values >= in_sample_d).mean()) if np.isfinite(in_sample_d) else np.nan,
        )


def _component_scores(site: _Site, prompt_ids: pd.Series) -> pd.DataFrame:
    scores = np.full((len(prompt_ids), N_COMPONENTS), np.nan, dtype=np.float32)
    count = min(N_COMPONENTS, len(site.components.values))
    scores[:, :count] = site.components.project(site.cross_gram, count)
    columns = {f"pc{k + 1}": scores[:, k] for k in range(N_COMPONENTS)}
    return pd.DataFrame({"prompt_id": prompt_ids.to_numpy(), "site": np.int16(site.index), **columns})
