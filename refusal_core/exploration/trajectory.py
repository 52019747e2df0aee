"""Projections along a run's replies, as they were measured, and sentences on whether the labels stay apart there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusal_core.analysis.groups import bootstrap_counts, fewest_groups
from refusal_core.analysis.inference import interval, simultaneous_margin
from refusal_core.analysis.weighted_statistics import weighted_d
from refusal_core.errors import RunError
from refusal_core.prompts.labels import LABELS
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import TrajectoryManifest
from refusal_core.runs.run import Run

REFUSED, ANSWERED = "refused", "answered"
_REPLIES = {"refuses": REFUSED, "answers": ANSWERED, "partial": ANSWERED}
"""What the model does with a prompt, by the label of the reply's opening; of others nothing is said."""
FEWEST = 8
"""Groups with prompts in a cell, of which a mean is given; a prompt without others is a group."""
SHORTEST = 4
"""Tokens that replies have to have for a first and a last quarter."""
DRAWS = 999
WINDOWS = ("the end of the prompt", "the reply's first tokens", "the reply's last tokens")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """What was measured along replies.

    Attributes:
        table: as it is stored.
        manifest: how it was measured.
        prompts: the rows of the run's prompts, with what the model does with them as ``reply``, missing where it does
            neither; the index is the row in the run.
    """

    table: pd.DataFrame
    manifest: TrajectoryManifest
    prompts: pd.DataFrame

    def projections(self, site: int) -> np.ndarray:
        """Return ``(prompt, token)`` at a site, NaN after a reply's end; token 0 is the prompt's last."""
        return self._by_token("projection", site, np.nan)

    def thought(self) -> np.ndarray:
        """Return ``(prompt, token)`` bool, whether a token belongs to a thought."""
        return self._by_token("thought", 0, False)

    def _by_token(self, column: str, site: int, missing: float | bool) -> np.ndarray:
        rows = self.table[self.table["site"].eq(site)]
        prompt, token = pd.Index(self.prompts["prompt_id"]).get_indexer(rows["prompt_id"]), rows["token"].to_numpy(int)
        values = np.full((len(self.prompts), 1 + int(self.table["token"].max())), missing)
        values[prompt, token] = rows[column]
        return values


def load_trajectory(run: Run) -> Trajectories | None:
    """Return what was measured along a run's replies, or ``None`` when that was not measured.

    Raises:
        RunError: when it is damaged, of other prompts, or lacks tokens or sites.
    """
    stored = read_addition(run, TrajectoryManifest)
    if stored is None:
        return None
    table, manifest = stored
    ids = table["prompt_id"].drop_duplicates()
    rows = run.prompts.reset_index().set_index("prompt_id")["index"].reindex(ids)
    fault = "is of other prompts" if rows.isna().any() or table.empty else ""
    by_prompt = table.groupby("prompt_id", sort=False)
    if not fault and (table["token"].max() > manifest.reply_tokens or by_prompt["reply"].nunique().gt(1).any()):
        fault = "has more tokens than were asked for, or two replies of a prompt"
    if not fault:
        # Every token that is there is there at every site, once, and no token is missing before it.
        expected = (1 + by_prompt["token"].max()) * run.n_sites
        if table.duplicated(["prompt_id", "token", "site"]).any() or (by_prompt.size() != expected).any():
            fault = "lacks tokens or sites, or has some twice"
    if fault:
        raise RunError(f"run {run.run_id!r}: trajectory.parquet {fault}; measure it again")
    replies = table.drop_duplicates("prompt_id")["reply"].map(_REPLIES).to_numpy()
    return Trajectories(table, manifest, run.prompts.loc[rows.to_numpy(int)].assign(reply=replies))


def curves(measured: Trajectories, site: int) -> pd.DataFrame:
    """Return one row per cell of label and reply and token: ``label, reply, token, n``, the mean and its 95 % interval.

    A mean is of the replies that last to the token, as long as half of the cell's do, of :data:`FEWEST` groups: of
    those that are left when most have ended, it would be another kind of reply's. Prompts are redrawn, whole groups.
    """
    values = measured.projections(site)
    known, groups = np.isfinite(values), prompt_groups(measured.prompts)
    counts = _counts(measured)
    rows = []
    for label in LABELS:
        for reply in (REFUSED, ANSWERED):
            inside = _cell(measured, label, reply)
            for token in range(_lasts_to(known, inside, groups) + 1):
                here = inside & known[:, token]
                weights = counts * here
                with np.errstate(invalid="ignore", divide="ignore"):
                    means = weights @ np.where(here, values[:, token], 0.0) / weights.sum(axis=1)
                low, high = interval(means[1:], means[0])
                ends = {"projection": means[0], "projection_low": low, "projection_high": high}
                rows.append({"label": label, "reply": reply, "token": token, "n": int(here.sum()), **ends})
    columns = ["label", "reply", "token", "n", "projection", "projection_low", "projection_high"]
    return pd.DataFrame(rows, columns=columns)


def gaps(measured: Trajectories, site: int) -> pd.DataFrame:
    """Return how far the labels lie apart along a reply, among prompts with which the model does the same.

    Returns:
        One row per reply and place, of :data:`WINDOWS`: ``reply, where, to_token, n_harmful, n_harmless, gap`` as
        Cohen's d with its 95 % interval, and ``gap_change`` from the place before with an interval that holds for all
        changes at once. It is of replies that last to ``to_token``, the last to which half of those of either label do,
        the same at all places; the first and the last tokens are a quarter of that each, and the gap there is the mean
        of their gaps.
    """
    values = measured.projections(site)
    known, counts, groups = np.isfinite(values), _counts(measured), prompt_groups(measured.prompts)
    rows: list[dict[str, object]] = []
    draws_of: list[np.ndarray] = []
    n_groups: list[int] = []
    for reply in (REFUSED, ANSWERED):
        cells = {label: _cell(measured, label, reply) for label in LABELS}
        last = min(_lasts_to(known, inside, groups) for inside in cells.values())
        if last < SHORTEST:
            continue
        harmful, harmless = (cells[label] & known[:, last] for label in LABELS)
        window = last // SHORTEST
        lasting = np.where(known[:, last, None], values[:, : last + 1], 0.0)
        stages = [range(1), range(1, 1 + window), range(last + 1 - window, last + 1)]
        # (1 + draw, token). Of one token each: a mean of several has less noise, and its d is larger by that alone.
        per_token = {
            token: weighted_d(np.broadcast_to(lasting[:, token], counts.shape), counts * harmful, counts * harmless)
            for token in sorted({token for stage in stages for token in stage})
        }
        own = np.stack([np.mean([per_token[token] for token in stage], axis=0) for stage in stages], axis=1)
        draws_of.append(np.diff(own, axis=1))
        both = harmful | harmless
        n_groups += [fewest_groups(harmful[both], groups[both])] * draws_of[-1].shape[1]
        for where, d in zip(WINDOWS, own.T, strict=True):
            low, high = interval(d[1:], d[0])
            sizes = {"to_token": last, "n_harmful": int(harmful.sum()), "n_harmless": int(harmless.sum())}
            rows.append({"reply": reply, "where": where, **sizes, "gap": d[0], "gap_low": low, "gap_high": high})
    columns = ["reply", "where", "to_token", "n_harmful", "n_harmless", "gap", "gap_low", "gap_high"]
    table = pd.DataFrame(rows, columns=columns).assign(gap_change=np.nan, gap_change_low=np.nan, gap_change_high=np.nan)
    if draws_of:
        changes = np.concatenate(draws_of, axis=1)
        # One that does not exist would leave the others without a draw.
        exist, margin = np.isfinite(changes[0]), np.full(changes.shape[1], np.nan)
        margin[exist] = simultaneous_margin(changes[1:, exist], changes[0, exist], np.array(n_groups)[exist])
        later = table["where"].ne(WINDOWS[0])
        table.loc[later, "gap_change"] = changes[0]
        table.loc[later, "gap_change_low"] = changes[0] - margin
        table.loc[later, "gap_change_high"] = changes[0] + margin
    return table


def _lasts_to(known: np.ndarray, inside: np.ndarray, groups: np.ndarray) -> int:
    """Return the last token to which half of a cell's replies last, of :data:`FEWEST` groups; -1 where there is none.

    Args:
        known: ``(prompt, token)`` bool, whether a reply lasts to it.
        inside: ``(prompt,)`` bool, the cell.
        groups: ``(prompt,)``.
    """
    lasting = pd.DataFrame(known[inside])
    enough = lasting.sum().ge(inside.sum() / 2) & lasting.groupby(groups[inside]).any().sum().ge(FEWEST)
    return int(enough.sum()) - 1


def what_happens(run: Run, measured: Trajectories, site: int) -> str:
    """Say whether harmful prompts stay above harmless ones along replies that do the same, and whether that changes."""
    if not run.directions.unit_direction[site].any():
        return f"At {run.site_label(site)} there is no direction."
    table = gaps(measured, site)
    if table.empty:
        return (
            f"At {run.site_label(site)} nothing can be said: it takes harmful prompts of {FEWEST} quartets, pairs or "
            f"single prompts, and harmless ones of as many, that the model refuses, or answers, in {SHORTEST} tokens."
        )
    sentences = []
    for reply, rows in table.groupby("reply", sort=False):
        if not np.isfinite(rows[["gap", "gap_low", "gap_high"]].to_numpy(float)).all():
            sentences.append(f"Of the prompts that are {reply} nothing can be said: at some token all project alike.")
            continue
        first, begin, last = (row for _, row in rows.iterrows())
        sentences.append(
            f"Of the prompts that are {reply}, {first['n_harmful']} harmful ones project d {_spelt(first)} "
            f"{first['n_harmless']} harmless ones at {WINDOWS[0]}, and {_spelt(last)} them over {WINDOWS[2]}, up to "
            f"token {last['to_token']}: the gap {_changed(first, begin)} when the reply begins, and "
            f"{_changed(begin, last)} along it."
        )
    fitted = " The direction was fitted on these prompts: the gap is in-sample." if measured.manifest.fitted else ""
    return f"At {run.site_label(site)}: {' '.join(sentences)}{fitted}"


def _spelt(row: pd.Series) -> str:
    if row["gap"] < 0:
        return f"{-row['gap']:.2f} ({-row['gap_high']:.2f} to {-row['gap_low']:.2f}) below"
    return f"{row['gap']:.2f} ({row['gap_low']:.2f} to {row['gap_high']:.2f}) above"


def _changed(before: pd.Series, row: pd.Series) -> str:
    if row["gap_change_low"] <= 0 <= row["gap_change_high"]:
        return "is not shown to change"
    by = f"({row['gap_change']:+.2f}, {row['gap_change_low']:+.2f} to {row['gap_change_high']:+.2f})"
    # Where harmless prompts may lie above, it is not known whether the labels move together or apart.
    rises, falls = ("rises", "falls") if before["gap_low"] > 0 else ("moves up", "moves down")
    return f"{rises if row['gap_change'] > 0 else falls} {by}"


def thinking_share(measured: Trajectories) -> float:
    """Return the share of replies of which some token belongs to a thought."""
    return float(measured.thought().any(axis=1).mean())


def _cell(measured: Trajectories, label: str, reply: str) -> np.ndarray:
    inside: np.ndarray = (measured.prompts["label"].eq(label) & measured.prompts["reply"].eq(reply)).to_numpy()
    return inside


def _counts(measured: Trajectories) -> np.ndarray:
    """Return ``(1 + draw, prompt)`` multiplicities of redrawn prompts, whole groups; every prompt once in the first."""
    is_harmful = measured.prompts["label"].eq("harmful").to_numpy()
    rng = np.random.default_rng([measured.manifest.seed, 6])
    counts = bootstrap_counts(is_harmful, prompt_groups(measured.prompts), DRAWS, rng)
    return np.vstack([np.ones(len(is_harmful)), counts])
