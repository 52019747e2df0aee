"""Comparison of a run with its refit: numbers and directions before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.errors import RunError
from refusal_core.evidence.claims import detectable_from, probe_source
from refusal_core.glossary import name_of
from refusal_core.options import ESTIMATORS
from refusal_core.runs.run import LEFT_OUT, Run

MEASURES = ("in_sample_d", "crossfit_d", "probe_d")


@dataclass(frozen=True, eq=False)
class Change:
    """A run compared with its refit, site by site.

    Attributes:
        before: the run.
        after: its refit.
        table: one row per site: ``site``, every measure of :data:`MEASURES` with ``_before`` and ``_after``, and
            ``cosine`` of the two directions (missing where either does not exist).
        left_out: the refit's prompts that it was no longer fitted on, or that left their transfer set.
        detectable_before: the first site from which the run's d on matched pairs stays above chance; None for never, or
            without matched pairs.
        detectable_after: that site of the refit.
    """

    before: Run
    after: Run
    table: pd.DataFrame
    left_out: pd.DataFrame
    detectable_before: int | None
    detectable_after: int | None


def compare(before: Run, after: Run) -> Change:
    """Compare a run with its refit.

    Raises:
        RunError: when ``after`` is no refit of ``before``.
    """
    if after.manifest.refit is None or after.manifest.refit.parent != before.run_id or after.n_sites != before.n_sites:
        raise RunError(f"{after.run_id} is no refit of {before.run_id}")
    table = pd.DataFrame({"site": np.arange(before.n_sites)})
    for measure in MEASURES:
        table[f"{measure}_before"] = before.layer_stats[measure].to_numpy()
        table[f"{measure}_after"] = after.layer_stats[measure].to_numpy()
    units = [run.directions.unit_direction.astype(np.float64) for run in (before, after)]
    exist = units[0].any(axis=1) & units[1].any(axis=1)
    table["cosine"] = np.where(exist, (units[0] * units[1]).sum(axis=1), np.nan)
    source = probe_source(before.evidence)
    first, second = (None if source is None else detectable_from(run.evidence, "d", source) for run in (before, after))
    left_out = after.prompts[after.prompts["source"].eq(LEFT_OUT)]
    return Change(before, after, table, left_out, first, second)


def describe_change(change: Change) -> str:
    """Say what changed."""
    counts = change.left_out["label"].value_counts()
    sentences = []
    if len(counts):
        sentences.append(f"Left out: {', '.join(f'{count} {label}' for label, count in counts.items())}.")
    before, after = (ESTIMATORS[run.manifest.estimator] for run in (change.before, change.after))
    if before != after:
        sentences.append(f"Direction: {after} in place of {before}.")
    for measure in MEASURES:
        first_d, second_d = change.table[f"{measure}_before"], change.table[f"{measure}_after"]
        if first_d.isna().all() or second_d.isna().all():
            continue
        first, second = int(first_d.idxmax()), int(second_d.idxmax())
        where = (
            f"at {change.before.site_label(first)}"
            if first == second
            else f"from {change.before.site_label(first)} to {change.before.site_label(second)}"
        )
        sentences.append(
            f"Strongest {name_of(measure)}: {first_d[first]:.2f} before, {second_d[second]:.2f} after, {where}."
        )
    first_site, second_site = _site_name(change, change.detectable_before), _site_name(change, change.detectable_after)
    same = first_site == second_site
    now = ", as before" if same else f" before, {second_site} after"
    sentences.append(f"Detectable on matched pairs from: {first_site}{now}.")
    cosine = change.table["cosine"]
    if cosine.notna().any():
        least = int(cosine.idxmin())
        sentences.append(
            f"The directions turn most at {change.before.site_label(least)}, to a cosine of {cosine[least]:.3f}."
        )
    return " ".join(sentences)


def change_table(change: Change) -> pd.DataFrame:
    """Return the table as it is shown, with sites by name."""
    table = change.table.rename(columns=name_of)
    table["site"] = [change.before.site_label(site) for site in change.table["site"]]
    return table


def _site_name(change: Change, site: int | None) -> str:
    return "never" if site is None else change.before.site_label(site)
