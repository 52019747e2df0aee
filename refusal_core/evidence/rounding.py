"""Where a run's number format is too coarse for what it measures: rounding beside the spread of the projections."""

from __future__ import annotations

import numpy as np

from refusal_core.analysis.directions import Directions
from refusal_core.runs.run import Run

_FRACTION_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
MOST = 0.025
"""The share of the spread within the labels from which on one rounding marks a site.

A pass rounds many times: at layer 0 of the 0.5B (`everyday`), where one rounding is 0.038 of the spread, projections in
bfloat16 were off by 0.25 of it, and cross-fitted d was 1.35 in place of 1.27. At no other site did one exceed 0.012.
"""


def rounding_error(directions: Directions, dtype: str) -> np.ndarray:
    """Return the standard deviation of a projection that rounding the activations once causes, ``(site,)``.

    A number between two that the format can hold is off by up to half their distance, evenly, which has a standard
    deviation of that distance over √12; a projection adds up the coordinates' errors, as independent ones. The mean
    activation stands for all, so the error is a lower bound where a coordinate's mean is small beside its spread: most
    prompts' values are then larger than the mean, and coarser.

    Args:
        directions: of the run.
        dtype: that its model was computed in.
    """
    mean = np.abs((directions.harmful_mean.astype(np.float64) + directions.harmless_mean) / 2)
    exponent = np.floor(np.log2(mean, where=mean > 0, out=np.full_like(mean, -np.inf)))
    spacing = np.exp2(exponent - _FRACTION_BITS[dtype])
    error: np.ndarray = np.sqrt(np.sum((directions.unit_direction * spacing) ** 2, axis=1) / 12)
    return error


def coarse_sites(run: Run) -> list[int]:
    """Return the sites at which one rounding is more than :data:`MOST` of the projections' spread within the labels."""
    stats = run.layer_stats.set_index("site")
    spread = np.sqrt((stats["harmful_projection_std"] ** 2 + stats["harmless_projection_std"] ** 2) / 2)
    coarse = rounding_error(run.directions, run.manifest.compute.dtype) > MOST * spread.to_numpy(float)
    return [int(site) for site in np.flatnonzero(coarse)]


def describe_rounding(run: Run) -> str:
    """Say at which sites the run's number format is too coarse; empty where it is at none."""
    sites = coarse_sites(run)
    if not sites:
        return ""
    named = ", ".join(run.site_label(site) for site in sites)
    dtype, share = run.manifest.compute.dtype, f"{100 * MOST:.1f} %"
    return (
        f"At {named} the prompts differ so little that {dtype} is too coarse: rounding once already moves a projection "
        f"by more than {share} of the spread within the labels, and a pass rounds many times. Measure in float32 to "
        "read the numbers there."
    )
