"""Sentences that are computed from a run's numbers, so that they cannot say more than the numbers do."""

from __future__ import annotations

import numpy as np

from refusal_core.runs import Run
from refusal_core.sites import site_label

CHANCE = 0.65
"""AUROC on the probe pairs below which a site is called no better than chance: with 48 pairs the 95 % interval of pure
chance reaches about 0.62 (Hanley & McNeil 1982)."""


def verdict(run: Run) -> str:
    """What the run says about harm, in a sentence or two, from the probe pairs' AUROC over the layers."""
    area = run.layer_stats["probe_auroc"].to_numpy(float)
    d = run.layer_stats["cohens_d"].to_numpy(float)
    if np.isnan(area).all():
        return "This run has no probe pairs, so it cannot say whether its direction is about harm."
    best = int(np.nanargmax(area))
    name = site_label(best, run.n_layers)
    if area[best] < CHANCE:
        return (
            f"Not distinguishable from chance: on matched pairs no layer tells harm apart (best AUROC "
            f"{area[best]:.2f} at {name}), whatever the in-sample effect size of {np.nanmax(d):.1f} suggests."
        )
    above = area >= CHANCE
    # The first site from which every later one stays above chance.
    below = np.flatnonzero(~above)
    onset = int(below[-1]) + 1 if len(below) else 0
    if onset > run.n_layers:
        return f"Matched pairs are told apart best at {name} (AUROC {area[best]:.2f}), but not through to the end."
    told = f"on matched pairs the direction is about harm from {site_label(onset, run.n_layers)} on"
    best_at = f"best at {name}: AUROC {area[best]:.2f}"
    if onset == 0:
        return f"{told[0].upper()}{told[1:]}, {best_at}."
    early = np.nanmax(d[:onset])
    return (
        f"{told[0].upper()}{told[1:]}, {best_at}. Before that it is near chance, although d reaches {early:.1f} there."
    )
