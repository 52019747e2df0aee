"""Quartets: does a direction follow what a prompt asks, or how alarming it sounds?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusal_core.analysis.inference import interval
from refusal_core.evidence.design import TransferSet

FEWEST_QUARTETS = 8
"""Quartets that effects are measured on."""

_INTENT = np.array([1, -1, 1, -1]) / 2
_CUE = np.array([1, 1, -1, -1]) / 2
_INTERACTION = np.array([1.0, -1.0, -1.0, 1.0])
_CONTRASTS = {"intent": _INTENT, "cue": _CUE, "interaction": _INTERACTION}


@dataclass(frozen=True, eq=False)
class Effects:
    """What intent and cue do to the projections of one site, in standard deviations within a cell.

    Attributes:
        numbers: ``intent, cue, interaction`` and ``intent_lead``, intent less the size of cue, with intervals.
        cue: the effect of the cue on the quartets that are redrawn.
        cue_null: ``(draw,)`` the same of cues that mean nothing, the direction as it is.
    """

    numbers: dict[str, float]
    cue: float
    cue_null: np.ndarray


def intent_and_cue(projection: np.ndarray, drawn: np.ndarray, transfer: TransferSet) -> Effects:
    """Measure the effects of intent and cue: both sets are redrawn in every bootstrap draw, quartets as one.

    With the mean of a cell over quartets, ``intent`` is harmful less harmless, ``cue`` alarming less calm, each over
    both levels of the other, and ``interaction`` the effect of intent under an alarming cue less that under a calm
    one: that of the words which the alarming harmful and the calm harmless prompt share, as against the others'.

    Args:
        projection: ``(prompt,)`` of the set on the direction.
        drawn: ``(draw, sampled)`` on the bootstrap draws' directions.
        transfer: the set.
    """
    quartets, sampled = transfer.quartets, transfer.sampled.quartets
    once = np.ones((1, len(quartets)))
    point = standardised(projection[quartets][None], once)
    draws = standardised(drawn[:, sampled], transfer.counts[:, sampled[:, 0]])
    for effects in (point, draws):
        effects["intent_lead"] = effects["intent"] - np.abs(effects["cue"])
    numbers: dict[str, float] = {"n_quartets": len(quartets)}
    for name in point:
        low, high = interval(draws[name], point[name][0])
        numbers |= {name: float(point[name][0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    cells = projection[transfer.sample][sampled]
    scale = float(np.sqrt(cells.var(axis=0).mean()))
    of_quartet = cells @ _CUE / scale if scale > 0 else np.full(len(cells), np.nan)
    return Effects(numbers, float(of_quartet.mean()), transfer.cue_signs @ of_quartet / len(of_quartet))


def standardised(cells: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``(draw,)`` effects by name, over the standard deviation within a cell.

    Args:
        cells: ``(draw, quartet, 4)`` projections.
        counts: ``(draw, quartet)`` how often each quartet counts.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = np.einsum("dq,dqc->dc", shares, cells)
    centred = cells - mean[:, None]
    variance = np.einsum("dq,dqc->dc", shares, centred**2).mean(axis=1)
    spread = np.sqrt(np.where(variance > 0, variance, np.nan))
    return {name: mean @ contrast / spread for name, contrast in _CONTRASTS.items()}
