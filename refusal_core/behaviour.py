"""What the model does with a run's prompts: how likely it is to refuse, and how its replies open.

Three measures, which need not agree: the first reply token (refusal log-odds, Arditi et al. 2024, already in the run),
whole refusal phrases, and the greedy opening read by rules. Only short openings are kept, never replies.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import cohen_kappa_score
from transformers import Cache

from refusal_core.activations import BATCH_TOKENS, ResidualReader, batches
from refusal_core.errors import RunError
from refusal_core.models import ChatModel
from refusal_core.openings import OpeningRules
from refusal_core.progress import Progress, no_progress
from refusal_core.resampling import draw_auroc, draw_correlation, draw_ranks, interval
from refusal_core.runs import Run, read_addition, save_addition

OPENING_TOKENS = 16
"""The longest opening that is ever generated, kept or shown."""

MEASURING = "reading replies (prompts)"
BEHAVIOUR = "behaviour"
MEASURES = ("first token", "whole phrases", "opening rules")
"""The three ways in which a prompt can count as refused; see :func:`refused`."""


@dataclass(frozen=True, eq=False)
class Replies:
    """How replies to some prompts begin, in the prompts' order.

    Attributes:
        phrase_log_odds: ``(prompt,)`` float64, see :func:`phrase_log_odds`.
        opening: the first :data:`OPENING_TOKENS` tokens of the greedy reply, as text.
    """

    phrase_log_odds: np.ndarray
    opening: list[str]


def read_replies(
    reader: ResidualReader,
    texts: Sequence[str],
    phrases: Sequence[str],
    progress: Progress = no_progress,
) -> Replies:
    """Measure how the replies to prompts begin; prompts of one length are read together, without padding."""
    model = reader.chat_model
    sequences = [reader.encode(text) for text in texts]
    lengths = np.array([len(ids) for ids in sequences])
    encoded = [model.tokenizer.encode(phrase, add_special_tokens=False) for phrase in phrases]
    log_odds, opening = np.empty(len(texts)), [""] * len(texts)
    done = 0
    progress(MEASURING, 0, len(texts))
    # The keys and values of whole prompts are kept, and once more for each phrase.
    for rows in batches(lengths, 0, BATCH_TOKENS[torch.device(model.device).type]):
        with torch.inference_mode():
            logits, cache = reader.open_reply([sequences[row] for row in rows])
            log_odds[rows] = phrase_log_odds(model, logits, cache, encoded)
            for row, text in zip(rows, greedy_openings(model, logits, cache), strict=True):
                opening[row] = text
        done += len(rows)
        progress(MEASURING, done, len(texts))
    return Replies(log_odds, opening)


def phrase_log_odds(
    chat_model: ChatModel, logits: torch.Tensor, cache: Cache, phrases: Sequence[Sequence[int]]
) -> np.ndarray:
    """Log-odds that the reply opens with one of several whole phrases: ``log P - log(1 - P)``.

    ``P`` is the sum over phrases of the product of their tokens' probabilities, each given the prompt and the tokens
    before it. No phrase may begin with another.

    Args:
        logits: ``(prompt, vocabulary)`` at the first reply token.
        cache: keys and values of the prompts; left as it is.
        phrases: token ids of each phrase.

    Returns:
        ``(prompt,)`` float64, natural logarithm.
    """
    first = logits.log_softmax(dim=-1)[:, [phrase[0] for phrase in phrases]].double()
    total = []
    for length in sorted({len(phrase) for phrase in phrases}):
        chosen = [place for place, phrase in enumerate(phrases) if len(phrase) == length]
        log_p = first[:, chosen]
        if length > 1:
            alike = torch.tensor([phrases[place] for place in chosen], device=logits.device)
            continued = copy.deepcopy(cache)
            continued.batch_repeat_interleave(len(chosen))
            given = alike.repeat(len(logits), 1)
            later = chat_model.model(given[:, :-1], past_key_values=continued, use_cache=True).logits.float()
            log_p = log_p + _log_probability(later, given[:, 1:]).sum(dim=-1).view(len(logits), len(chosen))
        total.append(log_p)
    log_p = torch.cat(total, dim=1).logsumexp(dim=1).clamp(max=-1e-12)
    return (log_p - torch.log(-torch.expm1(log_p))).cpu().numpy()


def greedy_openings(chat_model: ChatModel, logits: torch.Tensor, cache: Cache) -> list[str]:
    """The likeliest reply, token by token, up to its end or :data:`OPENING_TOKENS` tokens.

    Args:
        logits: ``(prompt, vocabulary)`` at the first reply token.
        cache: keys and values of the prompts; continued in place.
    """
    ends = _end_tokens(chat_model)
    token = logits.argmax(dim=-1)
    tokens = [token]
    for _ in range(OPENING_TOKENS - 1):
        logits = chat_model.model(token[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        token = logits.argmax(dim=-1)
        tokens.append(token)
    openings = []
    for ids in torch.stack(tokens, dim=1).tolist():
        length = next((place for place, token_id in enumerate(ids) if token_id in ends), len(ids))
        openings.append(str(chat_model.tokenizer.decode(ids[:length], skip_special_tokens=True)))
    return openings


def measure(chat_model: ChatModel, run: Run, rules: OpeningRules, progress: Progress = no_progress) -> pd.DataFrame:
    """How the model answers every prompt of a run.

    Returns:
        One row a prompt: ``prompt_id, phrase_log_odds, opening, opening_label``.
    """
    reader = ResidualReader(chat_model, run.manifest["template"]["system_prompt"])
    replies = read_replies(reader, run.prompts["text"].tolist(), rules.phrases, progress)
    return pd.DataFrame(
        {
            "prompt_id": run.prompts["prompt_id"],
            "phrase_log_odds": replies.phrase_log_odds,
            "opening": replies.opening,
            "opening_label": [rules.label(opening) for opening in replies.opening],
        }
    )


def record(run: Run, chat_model: ChatModel, rules: OpeningRules, progress: Progress = no_progress) -> pd.DataFrame:
    """Measure a run's behaviour and keep it beside the run."""
    started = time.perf_counter()
    table = measure(chat_model, run, rules, progress)
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "compute": {"device": chat_model.device, "dtype": chat_model.dtype},
        "opening_tokens": OPENING_TOKENS,
        "rules": {"sha256": rules.sha256, "phrases": list(rules.phrases)},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "timings": {"seconds": round(time.perf_counter() - started, 3)},
    }
    save_addition(run, BEHAVIOUR, table, manifest)
    return table


def recorded(run: Run) -> tuple[pd.DataFrame, dict] | None:
    """The behaviour kept beside a run and its manifest, or ``None`` when it was not measured.

    Raises:
        RunError: when it is damaged or of other prompts.
    """
    found = read_addition(run, BEHAVIOUR)
    if found is not None and found[0]["prompt_id"].tolist() != run.prompts["prompt_id"].tolist():
        raise RunError(f"run {run.run_id!r}: {BEHAVIOUR}.parquet is of other prompts; measure it again")
    return found


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
    fitted on labels and not on replies.

    Returns:
        ``site, label, rho, rho_low, rho_high, auroc, auroc_low, auroc_high, n, n_refused``; NaN where a label has
        fewer than three refused or answered prompts, or nothing varies.
    """
    rng = np.random.default_rng(seed)
    log_odds = table["phrase_log_odds"].to_numpy()
    refuses = refused(run, table)["opening rules"].to_numpy()
    rows = []
    for label in ("harmful", "harmless"):
        chosen = run.rows(label)
        n, n_refused = int(chosen.sum()), int(refuses[chosen].sum())
        counts = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=draws)])
        other_ranks = draw_ranks(np.broadcast_to(log_odds[chosen], counts.shape), counts)
        for site in range(run.n_sites):
            values = np.broadcast_to(run.projections[chosen, site], counts.shape)
            rho = draw_correlation(draw_ranks(values, counts), other_ranks, counts)
            area = np.full(len(counts), np.nan)
            if min(n_refused, n - n_refused) >= 3:
                area = draw_auroc(values, counts * refuses[chosen], counts * ~refuses[chosen])
            rows.append(
                (
                    site,
                    label,
                    rho[0],
                    *interval(rho[1:], rho[0], -1.0, 1.0),
                    area[0],
                    *interval(area[1:], area[0], 0.0, 1.0),
                    n,
                    n_refused,
                )
            )
    columns = ["site", "label", "rho", "rho_low", "rho_high", "auroc", "auroc_low", "auroc_high", "n", "n_refused"]
    return pd.DataFrame(rows, columns=columns)


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
    """Harmful prompts that were answered and harmless ones that were refused, the clearest first.

    Returns:
        The run's prompt columns with ``phrase_log_odds, opening, opening_label``, index as in ``run.prompts``.
    """
    joined = run.prompts.join(table.drop(columns="prompt_id"))
    label = joined["opening_label"]
    answered = joined["label"].eq("harmful") & label.eq("answers")
    refusing = joined["label"].eq("harmless") & label.eq("refuses")
    odd = joined[answered | refusing]
    return odd.loc[odd["phrase_log_odds"].abs().sort_values(ascending=False, kind="stable").index]


def disagreements(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Prompts on which the three measures do not all say the same, with each verdict as a column."""
    verdicts = refused(run, table)
    joined = run.prompts.join(table.drop(columns="prompt_id")).join(verdicts)
    return joined[verdicts.nunique(axis=1).gt(1)]


def _log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of tokens ``(row, position)`` under logits ``(row, position, vocabulary)``, float64."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    return (chosen - logits.logsumexp(dim=-1)).double()


def _end_tokens(chat_model: ChatModel) -> set[int]:
    """Tokens that end a reply: the model's own and the tokenizer's."""
    own = chat_model.model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {token for token in [*listed, chat_model.tokenizer.eos_token_id] if token is not None}
