"""What the model does with a run's prompts: how likely it is to refuse, and how its replies open.

Three measures, which need not agree: the first reply token (refusal log-odds, Arditi et al. 2024, already in the run),
whole refusal phrases, and the greedy opening read by rules. Only short openings are kept, never replies.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from refusal_core.activations.passes import FinishedPasses
from refusal_core.analysis.groups import MOST_REDRAWN, redraw_prompts, sample_groups
from refusal_core.analysis.inference import interval, share_interval
from refusal_core.analysis.weighted_statistics import auroc_of_ranks, weighted_correlation, weighted_ranks
from refusal_core.behaviour.openings import BUNDLED, OPENING_TOKENS, OpeningRules, read_rules
from refusal_core.conversations import prompts_of
from refusal_core.errors import RunError
from refusal_core.models.opening import ChatModel
from refusal_core.options import BehaviourOptions
from refusal_core.progress import Progress, no_progress
from refusal_core.runs.additions import read_addition, save_addition
from refusal_core.runs.manifest import BehaviourCompute, BehaviourManifest, RulesRecord, ThinkingRecord
from refusal_core.runs.run import Run
from refusal_core.runs.store import unfinished_work, writable_cache

BEHAVIOUR = BehaviourManifest.kind
DEFAULTS = BehaviourOptions()
_COLUMNS = {"prompt_id", "phrase_log_odds", "opening", "opening_label"}
MEASURES = ("first token", "whole phrases", "opening rules")
"""The three ways in which a prompt can count as refused; see :func:`refused`."""


def record(
    run: Run, chat_model: ChatModel, options: BehaviourOptions = DEFAULTS, progress: Progress = no_progress
) -> pd.DataFrame:
    """Measure how the model answers every prompt of a run, and store the result; goes on where it was stopped.

    Args:
        run: the run.
        chat_model: its model.
        options: how replies are read.
        progress: called as prompts are answered.

    Returns:
        One row per prompt: ``prompt_id, phrase_log_odds, opening, opening_label``. Of a model that thinks before it
        replies, what follows its thinking.

    Raises:
        RefusalError: when the rules cannot be read, the model cannot answer, or the result cannot be stored.
    """
    # The engine imports torch; what was measured is read without.
    from refusal_core.behaviour.replies import THINKING_TOKENS, read_replies
    from refusal_core.pipeline.scoring import reader_for

    # Not after minutes of work.
    writable_cache(run.path.parent)
    rules = read_rules(options.rules or BUNDLED)
    request = {
        "model": chat_model.info.fingerprint,
        "compute": [chat_model.device, chat_model.dtype],
        "prompt_ids": run.prompts["prompt_id"].tolist(),
        "phrases": rules.phrases,
        "opening_tokens": OPENING_TOKENS,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    under_way = unfinished_work(run.path / f".{BEHAVIOUR}", f"measuring the behaviour of {run.run_id}")
    with under_way as folder, FinishedPasses(folder / "passes.jsonl", request) as finished:
        reader, prompts = reader_for(run, chat_model), prompts_of(run.prompts)
        replies = read_replies(reader, prompts, rules.phrases, progress, finished)
        table = pd.DataFrame(
            {
                "prompt_id": run.prompts["prompt_id"],
                "phrase_log_odds": replies.phrase_log_odds,
                "opening": replies.opening,
                "opening_label": _labels(run, replies.opening, rules),
            }
        )
        thinking = None
        if replies.unclosed is not None:
            thinking = ThinkingRecord(limit=THINKING_TOKENS, unclosed=replies.unclosed)
        manifest = BehaviourManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            compute=BehaviourCompute(device=chat_model.device, dtype=chat_model.dtype),
            opening_tokens=OPENING_TOKENS,
            thinking=thinking,
            rules=RulesRecord(sha256=rules.sha256, phrases=rules.phrases),
            versions=request["versions"],
            timings={"seconds": round(finished.seconds, 3)},
        )
        save_addition(run, table, manifest)
    return table


def relabelled(run: Run, rules: OpeningRules) -> pd.DataFrame | None:
    """The recorded behaviour with its openings read by other rules, kept in place of what was there.

    Returns ``None``, and changes nothing, when there is none or the rules ask for other phrases: those need the model.
    """
    found = recorded(run)
    if found is None or found[1].rules.phrases != rules.phrases:
        return None
    table, manifest = found
    table = table.assign(opening_label=_labels(run, table["opening"], rules))
    read_by = manifest.rules.model_copy(update={"sha256": rules.sha256})
    save_addition(run, table, manifest.model_copy(update={"rules": read_by}))
    return table


def _labels(run: Run, openings: Iterable[str | None], rules: OpeningRules) -> list[str | None]:
    """Return the label of each prompt's opening, in the run's order; None without an opening."""
    pairs = zip(openings, run.prompts["text"], strict=True)
    return [rules.label(opening, text) if isinstance(opening, str) else None for opening, text in pairs]


def recorded(run: Run) -> tuple[pd.DataFrame, BehaviourManifest] | None:
    """The behaviour kept beside a run and its manifest, or ``None`` when it was not measured.

    Every fitted prompt was measured. A prompt of a transfer set may not have been: its row is empty.

    Raises:
        RunError: when it is damaged or of other prompts.
    """
    found = read_addition(run, BehaviourManifest)
    if found is None:
        return None
    table, manifest = found
    if not set(table.columns) >= _COLUMNS:
        raise RunError(f"run {run.run_id!r}: {BEHAVIOUR}.parquet lacks columns; measure it again")
    measured, known = table["prompt_id"], run.prompts["prompt_id"]
    if measured.duplicated().any() or not measured.isin(known).all() or not known[run.rows()].isin(measured).all():
        raise RunError(f"run {run.run_id!r}: {BEHAVIOUR}.parquet is of other prompts; measure it again")
    return table.set_index("prompt_id").reindex(known).reset_index(), manifest


def refused(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Whether each prompt was refused, by each of :data:`MEASURES`: ``(prompt, measure)`` bool.

    A log-odds above 0 counts as refused, for the first token and for phrases.
    """
    return pd.DataFrame(
        {
            "first token": run.prompts["refusal_log_odds"].to_numpy() > 0,
            "whole phrases": table["phrase_log_odds"].to_numpy() > 0,
            "opening rules": table["opening_label"].eq("refuses").to_numpy(),
        }
    )


def verdicts(run: Run) -> tuple[pd.Series, str]:
    """Whether the model refuses each prompt of a run, and how that is known, in words.

    By how its replies open where that was recorded, else by the sign of the refusal
    log-odds, which is only a tendency.

    Raises:
        RunError: when what was recorded is damaged.
    """
    found, likely = recorded(run), run.prompts["refusal_log_odds"].gt(0)
    if found is not None:
        label = found[0]["opening_label"].set_axis(run.prompts.index)
        return label.eq("refuses").where(label.notna(), likely), "by how the recorded replies open"
    return likely, "by the sign of the refusal log-odds: replies were not recorded"


def agreement(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """How far the measures agree on the fitted prompts: Cohen's kappa (Cohen 1960) and shared verdicts, pair by pair.

    Returns:
        ``first, second, kappa, same`` with ``same`` the share of prompts; kappa is NaN where a measure is constant.
    """
    verdicts = refused(run, table)[run.rows()]
    rows = []
    for place, first in enumerate(MEASURES):
        for second in MEASURES[place + 1 :]:
            varies = verdicts[first].nunique() > 1 and verdicts[second].nunique() > 1
            kappa = cohen_kappa_score(verdicts[first], verdicts[second]) if varies else np.nan
            rows.append((first, second, kappa, float((verdicts[first] == verdicts[second]).mean())))
    return pd.DataFrame(rows, columns=["first", "second", "kappa", "same"])


def by_site(run: Run, table: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How projection goes with refusing at every site, within each label of the fitted prompts.

    Spearman's rho of projection and phrase log-odds, and the AUROC with which projection tells prompts whose opening
    refuses from the others, with 95 % bootstrap intervals over prompts; the direction is held fixed, since it was
    fitted on labels and not on replies. Of a label with more than ``MOST_REDRAWN`` prompts
    the numbers are of all, the intervals of a sample of so many, refused and other prompts in proportion.

    Returns:
        ``site, label, rho, rho_low, rho_high, auroc, auroc_low, auroc_high, n, n_refused``; NaN where a label has
        fewer than three refused or answered prompts, or nothing varies.
    """
    rng = np.random.default_rng(seed)
    log_odds = table["phrase_log_odds"].to_numpy()
    refuses = refused(run, table)["opening rules"].to_numpy()
    tables = []
    for label in ("harmful", "harmless"):
        every = np.flatnonzero(run.rows(label))
        n, n_refused = len(every), int(refuses[every].sum())
        sample = every[sample_groups(refuses[every], np.arange(n), MOST_REDRAWN, rng)]
        points, drawn = (
            _with_refusing(run.projections[rows], log_odds[rows], refuses[rows], counts)
            for rows, counts in ((every, np.ones((1, n))), (sample, redraw_prompts(len(sample), draws, rng)))
        )
        found = pd.DataFrame({"site": range(run.n_sites), "label": label})
        for number, (name, lowest) in enumerate((("rho", -1.0), ("auroc", 0.0))):
            point = points[number, 0]
            if name == "auroc" and min(n_refused, n - n_refused) < 3:
                point = np.full_like(point, np.nan)
            found[name] = point
            found[f"{name}_low"], found[f"{name}_high"] = interval(drawn[number], point, lowest, 1.0)
        tables.append(found.assign(n=n, n_refused=n_refused))
    return pd.concat(tables, ignore_index=True)


def reading(run: Run, table: pd.DataFrame, numbers: pd.DataFrame, site: int) -> str:
    """Say in words how much is refused, and whether projection at a site goes with it.

    Args:
        run: the run.
        table: one row per prompt, as it was recorded.
        numbers: of :func:`by_site`.
        site: where: a layer, or the final norm.
    """
    refuses = refused(run, table)["opening rules"].to_numpy()
    shares = []
    for label in ("harmful", "harmless"):
        count, n = refuses[run.rows(label)].sum(), int(run.rows(label).sum())
        low, high = 100 * share_interval(count, n)
        shares.append(f"{100 * count / n:.0f} % ({low:.0f} to {high:.0f} %) of the {label}")
    said = [f"By how its replies open, the model refuses {' and '.join(shares)} prompts."]
    for row in numbers[numbers["site"].eq(site)].itertuples():
        number = f"ρ = {row.rho:.2f} ({row.rho_low:.2f} to {row.rho_high:.2f})"
        if np.isnan(row.rho):
            finding = "nothing varies that could be compared"
        elif row.rho_low > 0:
            finding = f"those further along the direction are refused more, {number}"
        elif row.rho_high < 0:
            finding = f"those further along the direction are refused less, {number}"
        else:
            finding = f"a link of projection and refusing is not distinguishable from chance, {number}"
        said.append(f"Within the {row.label} prompts, at {run.site_label(site)}, {finding}.")
    return " ".join(said)


def calibration(run: Run, table: pd.DataFrame, site: int, bins: int = 10) -> pd.DataFrame:
    """Refusing share in bins of projection with equally many fitted prompts, both labels together.

    Returns:
        ``projection`` (mean of the bin), ``refused`` (share of openings that refuse), ``n``.
    """
    rows = run.rows()
    values = pd.DataFrame(
        {
            "projection": run.projections[rows, site],
            "refused": refused(run, table)["opening rules"].to_numpy()[rows].astype(float),
        }
    )
    places = pd.qcut(values["projection"], bins, labels=False, duplicates="drop")
    binned = values.groupby(places).agg(
        projection=("projection", "mean"), refused=("refused", "mean"), n=("refused", "size")
    )
    return binned.reset_index(drop=True)


def surprises(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Harmful prompts that were answered, wholly or in part, and harmless ones that were refused, the clearest first.

    Returns:
        The run's prompt columns with ``phrase_log_odds, opening, opening_label``, index as in ``run.prompts``.
    """
    joined = run.prompts.join(table.drop(columns="prompt_id"))
    label = joined["opening_label"]
    answered = joined["label"].eq("harmful") & label.isin(["answers", "partial"])
    refusing = joined["label"].eq("harmless") & label.eq("refuses")
    odd = joined[answered | refusing]
    return odd.loc[odd["phrase_log_odds"].abs().sort_values(ascending=False, kind="stable").index]


def disagreements(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Prompts on which the three measures do not all say the same, with each verdict as a column."""
    verdicts = refused(run, table)
    joined = run.prompts.join(table.drop(columns="prompt_id")).join(verdicts)
    return joined[verdicts.any(axis=1) & ~verdicts.all(axis=1) & table["opening_label"].notna()]


def _with_refusing(
    projections: np.ndarray, log_odds: np.ndarray, refuses: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Rank correlation with the log-odds, and AUROC of refused against other prompts, in every draw.

    Args:
        projections: ``(prompt, site)``.
        log_odds: ``(prompt,)`` log-odds of the refusal phrases.
        refuses: ``(prompt,)`` bool, whether the opening refuses.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(2, draw, site)``; NaN where nothing varies.
    """
    found = np.full((2, len(counts), projections.shape[1]), np.nan)
    other_ranks = weighted_ranks(log_odds, counts)
    refusing, others = counts * refuses, counts * ~refuses
    for site, values in enumerate(projections.T):
        ranks = weighted_ranks(values, counts)
        found[0, :, site] = weighted_correlation(ranks, other_ranks, counts)
        if np.isfinite(values).all():
            found[1, :, site] = auroc_of_ranks(ranks, refusing, others)
    return found
