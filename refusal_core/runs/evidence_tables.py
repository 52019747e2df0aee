"""The tables of a run's evidence: what was measured at every site, and why a number is missing where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from refusal_core.errors import RunError
from refusal_core.options import DEFAULT_ESTIMATOR, ESTIMATORS

if TYPE_CHECKING:
    # The names of columns are wanted without.
    import pandas as pd

CONTRAST = "contrast"
"""What the tables call the fitted prompts, where transfer sets go by their own names."""
BOTH = "both"
"""What they call the labels together."""
EVERY_PROMPT, NEAR_TWINS = "all prompts", "pairs that differ in at most two words"
"""The prompts of a set that a direction is compared with the wording on."""
_MEASURES = ("auroc", "pair_accuracy")
_ENDS = ("", "_low", "_high")
WORDING_COLUMNS = (
    *("site", "source", "prompts", "opponent", "strongest", "n_harmful", "n_harmless", "n_pairs"),
    *(f"{start}{measure}{end}" for start in ("", "text_") for measure in _MEASURES for end in _ENDS),
    *(f"{measure}_difference{end}" for measure in _MEASURES for end in _ENDS),
)
TRANSFER_COLUMNS = (
    *("site", "source"),
    *(f"{measure}{end}" for measure in ("d", *_MEASURES) for end in _ENDS),
    *("n_harmful", "n_harmless", "n_pairs"),
)
QUARTETS_COLUMNS = (
    *("site", "source", "n_quartets"),
    *(f"{effect}{end}" for effect in ("intent", "cue", "interaction", "intent_lead") for end in _ENDS),
    "cue_p_corrected",
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of one run as tidy tables; a number that does not exist is missing, and ``reasons`` says why.

    ``x_low`` and ``x_high`` are the 95 % bootstrap interval of ``x``: groups of prompts redrawn, the direction
    refitted in every draw (:func:`refusal_core.analysis.inference.interval`).

    Every number is of all prompts. Of a set of more than :data:`.MOST_REDRAWN`, what needs thousands of directions, or
    every prompt's distance to every other, is of a sample, whole pairs and labels in proportion: intervals (wider than
    those of all prompts would be), permutations, random directions, learning and ``Silh``. ``settings`` says so.

    Attributes:
        sites: one row per site: ``in_sample_d, in_sample_auroc, mean_crossings``; ``crossfit_d, crossfit_auroc,
            crossfit_accuracy, crossfit_range_overlap, crossfit_pair_accuracy`` with intervals; ``category_d,
            category_auroc`` of each category on the direction of all others, with intervals; ``permutation_p`` and
            ``permutation_p_corrected`` of the in-sample d; ``chance_d_median, chance_d_95`` what shuffled labels give
            in-sample and ``chance_crossfit_low, chance_crossfit_high`` where 95 % of them lie cross-fitted;
            ``length_d, length_auroc`` cross-fitted after prompt length is regressed out of the activations, with
            intervals, and ``length_cosine`` of that direction with the full one; ``behaviour_d, behaviour_auroc``
            cross-fitted for the direction fitted on what the model refuses, and ``behaviour_cosine`` with the harm
            direction, with interval; ``effective_dimension, variance_share, pc1_share …``.
        transfer: one row per site and transfer set: ``d, auroc, pair_accuracy`` with intervals, ``n_harmful,
            n_harmless, n_pairs``; ``permutation_p_corrected`` of d, two-sided and over all sites, the set's labels
            permuted and the direction as it is; ``d_detectable``, which would have been called harm with
            a probability of 80 %.
        quartets: one row per site and transfer set of quartets: ``intent, cue, interaction`` and ``intent_lead``
            (intent less the size of cue) with intervals, in standard deviations within a cell, ``n_quartets``, and
            ``cue_p_corrected``, two-sided and over all sites, the cue's signs permuted.
        wording: one row per site, set (``source``), its ``prompts`` (all, or near twins) and text model
            (``opponent``; ``strongest`` on the contrast set): ``auroc, pair_accuracy`` of the direction, ``text_…`` of
            the text model and ``…_difference``, the first minus the second on the same redrawn prompts, each with
            intervals. Held out on the contrast set.
        detectable_from: one row per number (``measure, source``): the first ``site`` from which its lower bound stays
            above chance, a statement about the number of prompts as much as about the model, and ``site_low,
            site_high`` the bootstrap interval of that site; the published decision layer (first site without mean
            crossings) as ``mean_crossings``. Missing means never.
        random_directions: one row per site and ``kind`` (isotropic, covariance, component): ``directions`` drawn,
            ``d_median, d_95, d_max`` of their |d|, and ``share_reaching`` the in-sample d.
        permutations: ``site, quantile, d``: the in-sample d of shuffled labels, by quantile.
        learning: ``site, size``: cross-fitted ``d`` of directions that saw ``size`` prompts and their ``cosine`` to
            the full direction; means over draws, ``_low`` and ``_high`` where 95 % of the draws lie.
        baselines: one row per text-only baseline and source: ``d, auroc, pair_accuracy`` with intervals (prompts
            redrawn, rule kept).
        refusal: ``site, source, label, n``: Spearman's ``rho`` of projection and refusal log-odds within the label,
            with interval; cross-fitted projections on the contrast set; ``both`` is the labels' mean weighted by
            prompts.
        geometry: one row per site, the columns of heretic's table.
        cosines: ``site, other, cosine`` of the directions of every two sites.
        components: ``prompt_id, site, pc1 …``: scores on the contrast set's principal components, in activation units.
        reasons: ``table, number, source, site, reason``: why a number is missing; a missing site means at every site.
        settings: one row: seed, draws, folds, prompts, width; ``most_redrawn`` prompts of a set; ``n_detected_pairs``
            of the contrast set that were found by their texts; ``imported`` where the directions were; ``estimator``
            where it is no difference of means; its ``draws`` and ``permutations`` are fewer, those of the contrast set.
    """

    sites: pd.DataFrame
    transfer: pd.DataFrame
    quartets: pd.DataFrame
    wording: pd.DataFrame
    detectable_from: pd.DataFrame
    random_directions: pd.DataFrame
    permutations: pd.DataFrame
    learning: pd.DataFrame
    baselines: pd.DataFrame
    refusal: pd.DataFrame
    geometry: pd.DataFrame
    cosines: pd.DataFrame
    components: pd.DataFrame
    reasons: pd.DataFrame
    settings: pd.DataFrame

    @property
    def n_sites(self) -> int:
        """Layers plus one, for the final norm."""
        return len(self.sites)

    @property
    def imported(self) -> bool:
        """Whether the directions came from elsewhere, so that no number is cross-fitted."""
        return bool(self.settings.iloc[0].get("imported", 0))

    @property
    def estimator(self) -> str:
        """What the directions were fitted by, a key of :data:`refusal_core.options.ESTIMATORS`."""
        named = self.settings.iloc[0].get("estimator", DEFAULT_ESTIMATOR)
        return named if named in ESTIMATORS else DEFAULT_ESTIMATOR

    def to_tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name, fit for parquet."""
        return {table.name: getattr(self, table.name) for table in fields(self)}

    @classmethod
    def from_tables(cls, tables: Mapping[str, pd.DataFrame]) -> Evidence:
        """Return what :meth:`to_tables` was of.

        Raises:
            RunError: naming the tables that are missing.
        """
        missing = [table.name for table in fields(cls) if table.name not in tables]
        if missing:
            raise RunError(f"the run's evidence lacks {', '.join(missing)}; delete the run and make it again")
        return cls(**{table.name: tables[table.name] for table in fields(cls)})

    def reason(self, table: str, number: str, site: int | None = None, source: str | None = None) -> str | None:
        """Return why a number of a table is missing (at a site, of a source), or None when it is not."""
        rows = self.reasons[self.reasons["table"].eq(table) & self.reasons["number"].eq(number)]
        if site is not None:
            rows = rows[rows["site"].isna() | rows["site"].eq(site).fillna(False).astype(bool)]
        if source is not None:
            rows = rows[rows["source"].eq(source)]
        return None if rows.empty else str(rows["reason"].iloc[0])
