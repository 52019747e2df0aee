"""What steering moves, the judgement or the refusing: changes with intervals, beside what control directions change.

Both outcomes are in standard deviations over the prompts as the model is, so that one may be held against the other.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from refusal_core.analysis.controls import COVARIANCE
from refusal_core.analysis.effect_sizes import auroc
from refusal_core.analysis.groups import bootstrap_counts, fewest_groups
from refusal_core.analysis.inference import auroc_interval, interval, prediction_reach
from refusal_core.intervention.conditions import ABLATE, ADD, PLAIN
from refusal_core.intervention.effects import FEWEST_CONTROLS, rank_p
from refusal_core.intervention.judgement import DIRECTIONS, Measured
from refusal_core.prompts.labels import HARMFUL, HARMLESS, LABELS
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import HARM, REFUSAL

JUDGEMENT, REFUSING, DIFFERENCE = "judgement", "refusing", "difference"
OUTCOMES = (JUDGEMENT, REFUSING, DIFFERENCE)
_NAMES = {JUDGEMENT: "the judgement", REFUSING: "refusing"}
ASKED = {ADD: HARMLESS, ABLATE: HARMFUL}
"""The prompts on which an edit may show what it does: adding on harmless ones, ablating on harmful ones."""
FALSE_CLAIMS = 0.025
"""How often directions that do what controls do are said to move anything, over all that is said of a run."""
FEWEST = 8
"""Groups with prompts of a label, of which anything is said; a prompt without others is a group."""
DRAWS = 999


def judgement_of(table: pd.DataFrame) -> pd.Series:
    """Return the judgement that requests are harmful: half the difference of the answers to the two questions."""
    judged: pd.Series = (table["harmful_log_odds"] - table["harmless_log_odds"]) / 2
    return judged


def separation(run: Run, measured: Measured) -> tuple[float, float, float]:
    """Return how well the model's judgement, unsteered, tells the labels apart: AUROC with a 95 % interval.

    Prompts of one group count as one.
    """
    table = measured[0]
    plain = table[table["edit"].eq(PLAIN)].merge(run.prompts, on="prompt_id", suffixes=("", "_run"))
    is_harmful, judged = plain["label"].eq(HARMFUL).to_numpy(), judgement_of(plain).to_numpy(float)
    area, n = auroc(judged[is_harmful], judged[~is_harmful]), fewest_groups(is_harmful, prompt_groups(plain))
    return area, *auroc_interval(area, n, n)


def spreads(measured: Measured) -> tuple[float, float]:
    """Return the standard deviations over the prompts, unsteered, of the judgement and of the refusal log-odds."""
    plain = measured[0][measured[0]["edit"].eq(PLAIN)]
    return float(judgement_of(plain).std(ddof=0)), float(plain["refusal_log_odds"].std(ddof=0))


def answered(measured: Measured) -> pd.DataFrame:
    """Return how probable Yes or No is at the questions, on average, of each direction and of the model as it is."""
    means = measured[0].groupby(["direction", "edit"])["answered"].mean().unstack("edit")
    return means.reindex(columns=[PLAIN, ABLATE, ADD]).set_axis(["unsteered", "ablated", "added once"], axis=1)


def summarise(run: Run, measured: Measured, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Return how far steering along harm and refusal moves judgement and refusing, label by label.

    The *band* is where one more control direction would fall in all comparisons that anything is said of, but for
    :data:`FALSE_CLAIMS` of cases, if what controls change is normal (Hahn & Meeker 1991; Bonferroni). Of either kind of
    control it reaches as far as that of the kind that does more.

    Args:
        run: the run.
        measured: see :func:`.judgement.record`.
        draws: of whole groups of prompts.
        seed: of them.

    Returns:
        One row per edit, direction, label and outcome: ``edit, direction, label, outcome, n``, the mean ``moved`` in
        standard deviations over the prompts unsteered, with ``_low`` and ``_high``, the band as ``controls_low`` and
        ``controls_high``, ``change_p``, its rank among the ``n_controls`` controls that lie where activations vary, and
        ``moved_by``, the change before it was divided. The *difference* is that of refusing less that of the judgement,
        prompt by prompt, and has no log-odds.
    """
    table, manifest = measured
    ids = table["prompt_id"].unique()
    prompts = run.prompts.set_index("prompt_id").loc[ids].reset_index()
    is_harmful = prompts["label"].eq(HARMFUL).to_numpy()
    counts = bootstrap_counts(is_harmful, prompt_groups(prompts), draws, np.random.default_rng(seed))
    counts = np.vstack([np.ones(len(ids)), counts])
    shifts, changes = _changes(
        table.assign(**{JUDGEMENT: judgement_of(table), REFUSING: table["refusal_log_odds"]}), ids
    )
    names = [name for name in DIRECTIONS if (ABLATE, name) in changes[REFUSING].index]
    level = 1 - FALSE_CLAIMS / (2 * len(names) * len(ASKED))
    rows = []
    for label, outcome in product(LABELS, OUTCOMES):
        weights = counts * (is_harmful == (label == HARMFUL))
        weights /= weights.sum(axis=1, keepdims=True)
        # (1 + draw, condition)
        means = pd.DataFrame(weights @ changes[outcome].to_numpy().T, columns=changes[outcome].index)
        for edit in (ADD, ABLATE):
            once = means.iloc[0][edit]
            own = once[[name for name in manifest.controls if name.startswith(COVARIANCE)]].to_numpy()
            low, high = _band(once[list(manifest.controls)], level)
            for name in names:
                drawn = means[edit, name].to_numpy()
                ends = interval(drawn[1:], drawn[0])
                shift = shifts[outcome].loc[(edit, name)].to_numpy() @ weights[0] if outcome in shifts else np.nan
                rows.append(
                    {
                        "edit": edit,
                        "direction": name,
                        "label": label,
                        "outcome": outcome,
                        "n": int((weights[0] > 0).sum()),
                        "moved": drawn[0],
                        "moved_low": ends[0],
                        "moved_high": ends[1],
                        "controls_low": low,
                        "controls_high": high,
                        "change_p": rank_p(drawn[0], own),
                        "n_controls": len(own),
                        "moved_by": shift,
                    }
                )
    return pd.DataFrame(rows)


def _changes(table: pd.DataFrame, ids: np.ndarray) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Return ``(edit and direction, prompt)`` of both outcomes what edits change, and that in standard deviations."""
    shifts, changes = {}, {}
    for outcome in (JUDGEMENT, REFUSING):
        values = table.pivot(index=["edit", "direction"], columns="prompt_id", values=outcome)[ids].astype(float)
        plain = values.loc[(PLAIN, PLAIN)]
        spread = float(plain.std(ddof=0))
        shifts[outcome] = values - plain
        changes[outcome] = shifts[outcome] / (spread if spread > 0 else np.nan)
    changes[DIFFERENCE] = changes[REFUSING] - changes[JUDGEMENT]
    return shifts, changes


def _band(controls: pd.Series, level: float) -> tuple[float, float]:
    """Return where one more control falls with a probability of ``level``, missing where no kind has three."""
    kinds = controls.groupby(controls.index.str.split(" ").str[0])
    mean, spread, count = kinds.mean(), kinds.std(), kinds.count()
    reach = prediction_reach(spread, count, level).where(count >= FEWEST_CONTROLS)
    return float((mean - reach).min()), float((mean + reach).max())


def is_effect(row: pd.Series) -> bool:
    """Return whether a change is told from none, and lies outside what control directions change."""
    nothing = row["moved_low"] <= 0 <= row["moved_high"]
    return bool(not nothing and not row["controls_low"] <= row["moved"] <= row["controls_high"])


def why_unread(run: Run, measured: Measured) -> str:
    """Return why the question cannot be read for this model, empty where it can."""
    area, low, high = separation(run, measured)
    if low > 0.5:
        return ""
    return (
        f"Asked whether a request is harmful, this model is not shown to tell the labels apart (AUROC {area:.2f}, "
        f"{low:.2f} to {high:.2f}), so that no change of its judgement can be read."
    )


def headline(run: Run, measured: Measured, summary: pd.DataFrame) -> str:
    """Say whether steering along harm and along refusal moves the judgement, or the refusing alone."""
    few = _too_few(run, measured, summary)
    if few:
        return few
    where = f"Steered at {run.site_label(measured[1].layer)}"
    unread = why_unread(run, measured)
    found = _asked_for(summary)
    parts = []
    for what in (HARM, REFUSAL):
        rows = found[found["direction"].str.startswith(f"{what} ")]
        if rows.empty:
            reason = measured[1].replies.reason if measured[1].replies is not None else "the behaviour was not measured"
            parts.append(f"{what} has no direction: {reason}")
            continue
        edits = [by_outcome.set_index("outcome") for _, by_outcome in rows.groupby(["edit", "direction"])]
        shown = {outcome: sum(is_effect(edit.loc[outcome]) for edit in edits) for outcome in OUTCOMES}
        said = f"along {what}, refusing is shown to move in {shown[REFUSING]} of {len(edits)} edits"
        if not unread:
            more = [_moves_more(edit) for edit in edits]
            said = (
                f"along {what}, the judgement is shown to move in {shown[JUDGEMENT]} of {len(edits)} edits and "
                f"refusing in {shown[REFUSING]}, the judgement more than refusing in {more.count(JUDGEMENT)} and "
                f"refusing more than the judgement in {more.count(REFUSING)}"
            )
        parts.append(said)
    if unread:
        return f"{unread} {where}, {'; '.join(parts)}."
    area, low, high = separation(run, measured)
    return (
        f"Unsteered, the model's judgement separates the labels with an AUROC of {area:.2f} ({low:.2f} to {high:.2f}). "
        f"{where}, {'; '.join(parts)}."
    )


def reading(run: Run, measured: Measured, summary: pd.DataFrame) -> list[str]:
    """Say what every edit moves, a sentence each; nothing of too few prompts or controls."""
    if _too_few(run, measured, summary):
        return []
    can_judge, found = not why_unread(run, measured), _asked_for(summary)
    sentences = []
    for (edit, name), rows in found.groupby(["edit", "direction"], sort=False):
        by_outcome = rows.set_index("outcome")
        done, label = ("Added once", HARMLESS) if edit == ADD else ("Ablated at all layers", HARMFUL)
        sentences.append(f"{done}, {name} {_moved(by_outcome, can_judge)} ({label} prompts).")
    return sentences


def _moved(rows: pd.DataFrame, can_judge: bool) -> str:
    """Return what is said of one edit: which outcome moves, and which of them more."""
    known = [JUDGEMENT, REFUSING] if can_judge else [REFUSING]
    shown = [outcome for outcome in known if is_effect(rows.loc[outcome])]
    others = [outcome for outcome in known if outcome not in shown]
    said = []
    if shown:
        said.append(f"moves {_spelt(rows, shown)}")
    if others:
        said.append(f"is not shown to move {_spelt(rows, others, 'or')}")
    sentence = ", and ".join(said)
    if not shown or not can_judge:
        return sentence
    more = _moves_more(rows)
    if more is None:
        return f"{sentence}; that it moves one more than the other is not shown"
    return f"{sentence}; {_NAMES[more]} more (they differ by {_number(rows.loc[DIFFERENCE])})"


def _moves_more(rows: pd.DataFrame) -> str | None:
    """Return the outcome that an edit moves and moves more than the other, None where that is not shown.

    Two that move in opposite directions differ, and neither is said to move more.
    """
    judgement, refusing = rows.loc[JUDGEMENT], rows.loc[REFUSING]
    shown = [outcome for outcome in (JUDGEMENT, REFUSING) if is_effect(rows.loc[outcome])]
    if not shown or not is_effect(rows.loc[DIFFERENCE]):
        return None
    if len(shown) == 2 and judgement["moved"] * refusing["moved"] < 0:
        return None
    more = REFUSING if abs(refusing["moved"]) > abs(judgement["moved"]) else JUDGEMENT
    return more if more in shown else None


def _spelt(rows: pd.DataFrame, outcomes: list[str], joined: str = "and") -> str:
    return f" {joined} ".join(f"{_NAMES[outcome]} ({_number(rows.loc[outcome])})" for outcome in outcomes)


def _number(row: pd.Series) -> str:
    return (
        f"{row['moved']:+.2f}, {row['moved_low']:+.2f} to {row['moved_high']:+.2f}; controls "
        f"{row['controls_low']:+.2f} to {row['controls_high']:+.2f}"
    )


def _asked_for(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[summary["label"].eq(summary["edit"].map(ASKED))]


def _too_few(run: Run, measured: Measured, summary: pd.DataFrame) -> str:
    """Return why nothing is said: too few prompts or controls, or prompts of which all are judged or refused alike."""
    prompts = run.prompts[run.prompts["prompt_id"].isin(measured[0]["prompt_id"])]
    groups = fewest_groups(prompts["label"].eq(HARMFUL).to_numpy(), prompt_groups(prompts))
    if groups < FEWEST:
        return (
            f"Nothing can be said: it takes prompts of {FEWEST} quartets, pairs or single prompts per label, and here "
            f"are {groups}."
        )
    if not np.isfinite(summary[["moved", "controls_low", "controls_high"]].to_numpy(float)).all():
        return (
            f"Nothing can be said: it takes {FEWEST_CONTROLS} controls of a kind, and prompts that are not all judged, "
            "or refused, alike."
        )
    return ""
