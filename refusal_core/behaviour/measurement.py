"""What the model does with a run's prompts: how likely it is to refuse, and how its replies open.

Three measures, which need not agree: the first reply token (refusal log-odds, Arditi et al. 2024, already in the run),
whole refusal phrases, and the greedy opening read by rules. Only short openings are stored, never replies.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pandas as pd

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
from refusal_core.prompts.labels import LABELS
from refusal_core.runs.additions import read_addition, save_addition
from refusal_core.runs.manifest import BehaviourCompute, BehaviourManifest, RulesRecord, ThinkingRecord
from refusal_core.runs.run import Run
from refusal_core.runs.store import unfinished_work, writable_cache

BEHAVIOUR = BehaviourManifest.kind
DEFAULTS = BehaviourOptions()
MEASURES = ("first token", "whole phrases", "opening rules")
"""The three ways in which a prompt can count as refused; see :func:`refusals_by_measure`."""


def record(
    run: Run, chat_model: ChatModel, options: BehaviourOptions = DEFAULTS, progress: Progress = no_progress
) -> pd.DataFrame:
    """Measure how the model answers the prompts of a run, and store the result; continues where it was stopped.

    Args:
        run: the run.
        chat_model: its model.
        options: how replies are read.
        progress: called as prompts are answered.

    Returns:
        One row per prompt: ``prompt_id, phrase_log_odds, opening, opening_label``. Of a model that thinks before it
        replies, what follows its thinking.

    Raises:
        RefusalError: when the rules cannot be read, the model is not the run's or cannot answer, or the result cannot
            be stored.
    """
    # The engine imports torch; what was measured is read without.
    from refusal_core.behaviour.replies import THINKING_TOKENS, read_replies
    from refusal_core.pipeline.scoring import reader_for

    # Not after minutes of work.
    writable_cache(run.path.parent)
    rules = read_rules(options.rules or BUNDLED)
    reader, prompts = reader_for(run, chat_model), prompts_of(run.prompts)
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


def relabel(run: Run, rules: OpeningRules) -> pd.DataFrame | None:
    """Read the openings of the stored behaviour by other rules, store the result and return it.

    Returns ``None``, and changes nothing, when there is none or the rules have other phrases: those need the model.
    """
    stored = load_behaviour(run)
    if stored is None or stored[1].rules.phrases != rules.phrases:
        return None
    table, manifest = stored
    table = table.assign(opening_label=_labels(run, table["opening"], rules))
    new_rules = manifest.rules.model_copy(update={"sha256": rules.sha256})
    save_addition(run, table, manifest.model_copy(update={"rules": new_rules}))
    return table


def _labels(run: Run, openings: Iterable[str | None], rules: OpeningRules) -> list[str | None]:
    """Return the labels of the prompts' openings, in the run's order; None without an opening."""
    pairs = zip(openings, run.prompts["text"], strict=True)
    return [rules.label(opening, text) if isinstance(opening, str) else None for opening, text in pairs]


def load_behaviour(run: Run) -> tuple[pd.DataFrame, BehaviourManifest] | None:
    """Return the behaviour that was measured on a run and its manifest, or ``None`` when it was not measured.

    Every fitted prompt was measured. A prompt of a transfer set may not have been: its row is empty.

    Raises:
        RunError: when it is damaged or of other prompts.
    """
    stored = read_addition(run, BehaviourManifest)
    if stored is None:
        return None
    table, manifest = stored
    measured, known = table["prompt_id"], run.prompts["prompt_id"]
    if measured.duplicated().any() or not measured.isin(known).all() or not known[run.rows()].isin(measured).all():
        raise RunError(f"run {run.run_id!r}: {BEHAVIOUR}.parquet is of other prompts; measure it again")
    return table.set_index("prompt_id").reindex(known).reset_index(), manifest


def refusals_by_measure(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return whether a prompt was refused by each of :data:`MEASURES`, ``(prompt, measure)`` bool.

    A log-odds above 0 counts as refused, for the first token and for phrases.
    """
    return pd.DataFrame(
        {
            "first token": run.prompts["refusal_log_odds"].to_numpy() > 0,
            "whole phrases": table["phrase_log_odds"].to_numpy() > 0,
            "opening rules": table["opening_label"].eq("refuses").to_numpy(),
        }
    )


def known_refusals(run: Run) -> tuple[pd.Series, str]:
    """Return which prompts the model refuses, as bool per prompt, and how that is known, in words.

    It is known by how the replies open where that was measured, else by the sign of the refusal log-odds, which is only
    a tendency.

    Raises:
        RunError: when the stored behaviour is damaged.
    """
    stored, likely = load_behaviour(run), run.prompts["refusal_log_odds"].gt(0)
    if stored is not None:
        label = stored[0]["opening_label"].set_axis(run.prompts.index)
        return label.eq("refuses").where(label.notna(), likely), "by how the recorded replies open"
    return likely, "by the sign of the refusal log-odds: replies were not recorded"


def correlation_by_site(run: Run, table: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return how projection goes with refusing at every site, within the labels of the fitted prompts.

    The numbers are Spearman's rho of projection and phrase log-odds, and the AUROC with which projection separates
    prompts whose opening refuses from the others, with 95 % bootstrap intervals over prompts; the direction is held
    fixed, since it was fitted on labels and not on replies. For a label with more than ``MOST_REDRAWN`` prompts the
    intervals come from a sample of that size, refused and other prompts in proportion.

    Returns:
        ``site, label, rho, rho_low, rho_high, auroc, auroc_low, auroc_high, n, n_refused``; NaN where a label has
        fewer than three refused or answered prompts, or nothing varies.
    """
    rng = np.random.default_rng(seed)
    log_odds = table["phrase_log_odds"].to_numpy()
    refuses = refusals_by_measure(run, table)["opening rules"].to_numpy()
    tables = []
    for label in LABELS:
        all_rows = np.flatnonzero(run.rows(label))
        n, n_refused = len(all_rows), int(refuses[all_rows].sum())
        sample = all_rows[sample_groups(refuses[all_rows], np.arange(n), MOST_REDRAWN, rng)]
        points, drawn = (
            _correlate_with_refusing(run.projections[rows], log_odds[rows], refuses[rows], counts)
            for rows, counts in ((all_rows, np.ones((1, n))), (sample, redraw_prompts(len(sample), draws, rng)))
        )
        numbers = pd.DataFrame({"site": range(run.n_sites), "label": label})
        for number, (name, lowest) in enumerate((("rho", -1.0), ("auroc", 0.0))):
            point = points[number, 0]
            if name == "auroc" and min(n_refused, n - n_refused) < 3:
                point = np.full_like(point, np.nan)
            numbers[name] = point
            numbers[f"{name}_low"], numbers[f"{name}_high"] = interval(drawn[number], point, lowest, 1.0)
        tables.append(numbers.assign(n=n, n_refused=n_refused))
    return pd.concat(tables, ignore_index=True)


def describe_behaviour(run: Run, table: pd.DataFrame, numbers: pd.DataFrame, site: int) -> str:
    """Say how much is refused, and whether projection at a site goes with it.

    Args:
        run: the run.
        table: one row per prompt, as it was recorded.
        numbers: of :func:`correlation_by_site`.
        site: a layer, or the final norm.
    """
    refuses = refusals_by_measure(run, table)["opening rules"].to_numpy()
    shares = []
    for label in LABELS:
        count, n = refuses[run.rows(label)].sum(), int(run.rows(label).sum())
        low, high = 100 * share_interval(count, n)
        shares.append(f"{100 * count / n:.0f} % ({low:.0f} to {high:.0f} %) of the {label}")
    sentences = [f"By how its replies open, the model refuses {' and '.join(shares)} prompts."]
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
        sentences.append(f"Within the {row.label} prompts, at {run.site_label(site)}, {finding}.")
    return " ".join(sentences)


def calibration(run: Run, table: pd.DataFrame, site: int, bins: int = 10) -> pd.DataFrame:
    """Return the share of refused prompts in bins of projection with equally many fitted prompts of both labels.

    Returns:
        ``projection`` (mean of the bin), ``refused`` (share of openings that refuse), ``n``.
    """
    rows = run.rows()
    values = pd.DataFrame(
        {
            "projection": run.projections[rows, site],
            "refused": refusals_by_measure(run, table)["opening rules"].to_numpy()[rows].astype(float),
        }
    )
    places = pd.qcut(values["projection"], bins, labels=False, duplicates="drop")
    binned = values.groupby(places).agg(
        projection=("projection", "mean"), refused=("refused", "mean"), n=("refused", "size")
    )
    return binned.reset_index(drop=True)


def surprises(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return harmful prompts that were answered, fully or in part, and harmless ones that were refused, clearest first.

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
    """Return the prompts on which the three measures disagree, with their verdicts as columns."""
    verdicts = refusals_by_measure(run, table)
    joined = run.prompts.join(table.drop(columns="prompt_id")).join(verdicts)
    return joined[verdicts.any(axis=1) & ~verdicts.all(axis=1) & table["opening_label"].notna()]


def _correlate_with_refusing(
    projections: np.ndarray, log_odds: np.ndarray, refuses: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return the rank correlation with the log-odds, and the AUROC of refused against other prompts, in every draw.

    Args:
        projections: ``(prompt, site)``.
        log_odds: ``(prompt,)`` log-odds of the refusal phrases.
        refuses: ``(prompt,)`` bool, whether the opening refuses.
        counts: ``(draw, prompt)`` multiplicities.

    Returns:
        ``(2, draw, site)``; NaN where nothing varies.
    """
    numbers = np.full((2, len(counts), projections.shape[1]), np.nan)
    other_ranks = weighted_ranks(log_odds, counts)
    refusing, others = counts * refuses, counts * ~refuses
    for site, values in enumerate(projections.T):
        ranks = weighted_ranks(values, counts)
        numbers[0, :, site] = weighted_correlation(ranks, other_ranks, counts)
        if np.isfinite(values).all():
            numbers[1, :, site] = auroc_of_ranks(ranks, refusing, others)
    return numbers
