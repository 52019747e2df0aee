"""Whether a direction separates the labels better than the prompts' wording does, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.inference import interval
from refusal_core.analysis.texts import words_changed
from refusal_core.analysis.weighted_statistics import auroc_of_ranks, weighted_pair_accuracy, weighted_ranks
from refusal_core.conversations import prompts_of, words_of
from refusal_core.evidence.design import Contrast, Design, TransferSet
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT, NEAR_TWINS, WORDING_COLUMNS

MOST_CHANGED = 2
FEWEST_PAIRS = 8
"""Near twins that a set needs to have rows of their own."""

_MEASURES = ("auroc", "pair_accuracy")


@dataclass(frozen=True, eq=False)
class Compared:
    """Prompts of one set whose labels a direction and the text models separate.

    Attributes:
        source: :data:`.CONTRAST` or the name of a transfer set.
        prompts: :data:`EVERY_PROMPT` or :data:`NEAR_TWINS`.
        of: the set.
        counts: ``(draw, sampled)`` bootstrap multiplicities of the set.
        rows: ``(prompt,)`` bool, the prompts of the set that are meant.
    """

    source: str
    prompts: str
    of: Contrast | TransferSet
    counts: np.ndarray
    rows: np.ndarray

    @property
    def twins(self) -> np.ndarray:
        """``(pair, 2)`` positions in the set of the pairs that are meant."""
        twins: np.ndarray = self.of.twins[self.rows[self.of.twins[:, 0]]]
        return twins

    def separation(self, scores: np.ndarray, drawn: np.ndarray) -> Separation:
        """Measure how well scores separate the labels.

        Args:
            scores: ``(repeat, prompt)`` of the set; the AUROC is the mean over the repeats, pair accuracy that of the
                mean score.
            drawn: ``(draw, sampled)`` scores of every bootstrap draw, or ``(sampled,)`` where no draw changes them.
        """
        of_label = scores[:, self.rows & self.of.is_harmful], scores[:, self.rows & ~self.of.is_harmful]
        pairs = weighted_pair_accuracy(scores.mean(axis=0)[None, :], self.twins, np.ones((1, scores.shape[1])))
        sampled, rows = self.of.sampled, self.rows[self.of.sample]
        counts, chosen = self.counts[:, rows], drawn[..., rows]
        harmful, harmless = counts * sampled.is_harmful[rows], counts * ~sampled.is_harmful[rows]
        exist = np.isfinite(chosen).all(axis=-1)
        areas = auroc_of_ranks(weighted_ranks(chosen, counts), harmful, harmless)
        twins = sampled.twins[rows[sampled.twins[:, 0]]]
        shares = weighted_pair_accuracy(np.broadcast_to(drawn, self.counts.shape), twins, self.counts)
        return Separation(
            {
                "auroc": float(np.mean([auroc(*rows) for rows in zip(*of_label, strict=True)])),
                "pair_accuracy": float(pairs[0]),
            },
            {"auroc": np.where(exist, areas, np.nan), "pair_accuracy": shares},
        )


@dataclass(frozen=True, eq=False)
class Separation:
    """How well one score separates the labels of some prompts.

    Attributes:
        point: ``auroc`` and ``pair_accuracy``.
        draws: the same, ``(draw,)``; a draw has the same prompts for every score.
    """

    point: Mapping[str, float]
    draws: Mapping[str, np.ndarray]

    def minus(self, other: Separation) -> Separation:
        """Return the paired difference of two scores on the same prompts."""
        return Separation(
            {measure: self.point[measure] - other.point[measure] for measure in _MEASURES},
            {measure: self.draws[measure] - other.draws[measure] for measure in _MEASURES},
        )

    def numbers(self, name: str, lowest: float) -> Iterator[tuple[str, float]]:
        """Yield the numbers by column and their intervals; ``name`` has braces where the measure goes."""
        for measure in _MEASURES:
            low, high = interval(self.draws[measure], self.point[measure], lowest, 1.0)
            column = name.format(measure)
            yield from ((column, self.point[measure]), (f"{column}_low", float(low)), (f"{column}_high", float(high)))


def compared_prompts(design: Design) -> list[Compared]:
    """Return what separations are compared on: every set with both labels, and its near twins unless they are few."""
    texts = np.array([words_of(prompt) for prompt in prompts_of(design.prompts)], dtype=object)
    sets: list[tuple[str, Contrast | TransferSet, np.ndarray, np.ndarray]] = [
        (CONTRAST, design.contrast, design.contrast.bootstrap.counts, texts[design.fitted])
    ]
    sets += [(each.source, each, each.counts, texts[each.rows]) for each in design.transfers]
    compared = []
    for source, of, counts, texts_of_set in sets:
        if not of.is_harmful.any() or of.is_harmful.all():
            continue
        compared.append(Compared(source, EVERY_PROMPT, of, counts, np.ones(len(of.is_harmful), dtype=bool)))
        near = [pair for pair in of.twins if words_changed(*texts_of_set[pair]) <= MOST_CHANGED]
        if len(near) >= FEWEST_PAIRS:
            rows = np.isin(np.arange(len(of.is_harmful)), near)
            compared.append(Compared(source, NEAR_TWINS, of, counts, rows))
    return compared


def wording_table(
    compared: Sequence[Compared],
    by_site: Mapping[tuple[str, str], Sequence[Separation]],
    by_model: Sequence[Mapping[str, Separation]],
    strongest: str | None,
) -> pd.DataFrame:
    """Return one row per site, prompts that are compared, and text model.

    Args:
        compared: the prompts.
        by_site: by source and prompts, how well the direction of every site separates them.
        by_model: per entry of ``compared``, how well each text model does.
        strongest: the text model with the highest AUROC on the contrast set.
    """
    rows = []
    for prompts, opponents in zip(compared, by_model, strict=True):
        harmful = prompts.of.is_harmful[prompts.rows]
        sizes = {"n_harmful": int(harmful.sum()), "n_harmless": int((~harmful).sum()), "n_pairs": len(prompts.twins)}
        for opponent, theirs in opponents.items():
            text = dict(theirs.numbers("text_{}", 0.0))
            for site, ours in enumerate(by_site[prompts.source, prompts.prompts]):
                names = {"site": site, "source": prompts.source, "prompts": prompts.prompts, "opponent": opponent}
                difference = dict(ours.minus(theirs).numbers("{}_difference", -1.0))
                numbers = dict(ours.numbers("{}", 0.0)) | text | difference
                rows.append(names | {"strongest": opponent == strongest} | sizes | numbers)
    return pd.DataFrame(rows, columns=list(WORDING_COLUMNS))
