"""Prompts in a band of projections, their ranks and twins, and prompts with similar courses over the layers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusal_core.analysis.effect_sizes import percentile, plausible_band
from refusal_core.conversations import prompts_of, words_of
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.run import Run

OTHER = {"harmful": "harmless", "harmless": "harmful"}


def derived_band(run: Run, site: int) -> tuple[float, float]:
    """Return the :func:`~refusal_core.analysis.effect_sizes.plausible_band` of the run's projections at a site."""
    low, high = plausible_band(*(run.projections[run.rows(label), site] for label in LABELS))
    return float(low), float(high)


def prompts_at(run: Run, site: int) -> pd.DataFrame:
    """Return all prompts, fitted and transfer, in the order of their projection at a site.

    Returns:
        The run's prompt columns with ``projection`` (activation units), ``projection_crossfit`` (0 at the training
        midpoint; missing for transfer prompts) and ``percentile_in_other``: percent of the other label's fitted
        prompts that project below it (missing for grey prompts). The index is the prompt's row in the run.
    """
    projection = run.projections[:, site]
    table = run.prompts.assign(
        projection=projection,
        projection_crossfit=run.projections_crossfit[:, site],
        percentile_in_other=np.nan,
    )
    for label, other in OTHER.items():
        of_label = table["label"].eq(label)
        table.loc[of_label, "percentile_in_other"] = percentile(
            projection[of_label.to_numpy()], run.projections[run.rows(other), site]
        )
    return table.sort_values("projection")


def in_band(prompts: pd.DataFrame, band: tuple[float, float]) -> pd.DataFrame:
    """Return those of :func:`prompts_at` whose projection lies in a band, ends included."""
    return prompts[prompts["projection"].between(*band)]


def prompts_containing(prompts: pd.DataFrame, text: str) -> pd.DataFrame:
    """Return the prompts whose text contains another literally, in upper or lower case."""
    return prompts[[text.casefold() in words_of(prompt).casefold() for prompt in prompts_of(prompts)]]


def percentile_ranks(run: Run, row: int) -> pd.DataFrame:
    """Return a prompt's rank at every site.

    Returns:
        ``site``, and percent of the fitted prompts that project below it: ``own`` of its label (missing for a grey
        prompt) and ``all`` of both labels.
    """
    label, fitted = run.prompts["label"][row], run.projections[run.rows()]
    own = run.projections[run.rows(label)]
    course = run.projections[row]
    return pd.DataFrame(
        {
            "site": np.arange(run.n_sites),
            "own": [
                float(percentile(course[site], own[:, site])) if len(own) else np.nan for site in range(run.n_sites)
            ],
            "all": [float(percentile(course[site], fitted[:, site])) for site in range(run.n_sites)],
        }
    )


def row_of(run: Run, prompt_id: str | None) -> int | None:
    """Return a prompt's row in the run, or ``None`` when the run has no such prompt."""
    rows = np.flatnonzero(run.prompts["prompt_id"].eq(prompt_id).to_numpy())
    return int(rows[0]) if len(rows) else None


def twin_of(run: Run, row: int) -> int | None:
    """Return the row of the prompt's matched twin, or ``None`` where it has none."""
    prompt = run.prompts.loc[row]
    if pd.isna(prompt["pair_id"]):
        return None
    same_pair = run.prompts["pair_id"].eq(prompt["pair_id"]) & run.prompts["source"].eq(prompt["source"])
    twins = [int(other) for other in run.prompts.index[same_pair] if other != row]
    return twins[0] if twins else None


def standardised(run: Run, projection: np.ndarray) -> np.ndarray:
    """Return projections in pooled standard deviations from the midpoint of the two means, which compares layers.

    The means then lie at plus and minus half the site's in-sample Cohen's d.

    Args:
        run: the run.
        projection: ``(..., site)`` in activation units.

    Returns:
        ``(..., site)``; NaN at a site without spread.
    """
    stats = run.layer_stats
    midpoint = ((stats["harmful_projection_mean"] + stats["harmless_projection_mean"]) / 2).to_numpy()
    spread = np.sqrt((stats["harmful_projection_std"] ** 2 + stats["harmless_projection_std"] ** 2) / 2).to_numpy()
    return np.asarray((projection - midpoint) / np.where(spread > 0, spread, np.nan))


def nearest_prompts(run: Run, course: np.ndarray, count: int, leave_out: int | None = None) -> pd.DataFrame:
    """Return the run's prompts whose course over the layers is most similar to a given one.

    Args:
        run: the run.
        course: ``(site,)`` projections in activation units.
        count: how many prompts.
        leave_out: a row not to return, such as the prompt itself.

    Returns:
        ``count`` rows of the prompt table with ``distance``, the root mean square over sites of the difference in
        pooled standard deviations, nearest first.
    """
    difference = standardised(run, run.projections) - standardised(run, course)
    table = run.prompts.assign(distance=np.sqrt(np.nanmean(difference**2, axis=1)))
    if leave_out is not None:
        table = table.drop(index=leave_out)
    return table.nsmallest(count, "distance")
