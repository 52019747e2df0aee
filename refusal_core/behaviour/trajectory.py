"""Follows the projection on a run's direction along the model's own replies, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refusal_core.behaviour.chosen import chosen_prompts
from refusal_core.behaviour.openings import OPENING_TOKENS, read_rules
from refusal_core.conversations import prompts_of
from refusal_core.models.opening import ChatModel
from refusal_core.models.templates import opens_thought, thinking_marks
from refusal_core.options import TrajectoryOptions
from refusal_core.pipeline.scoring import reader_for
from refusal_core.pipeline.steps import origins
from refusal_core.progress import Progress, no_progress
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import BehaviourCompute, InterventionPrompts, InterventionRules, TrajectoryManifest
from refusal_core.runs.run import Run
from refusal_core.runs.store import writable_cache

if TYPE_CHECKING:
    # The engine imports torch; what was measured is read without.
    from refusal_core.activations.reader import ResidualReader

FOLLOWING = "following replies (prompts)"
DEFAULTS = TrajectoryOptions()


def record(
    run: Run, chat_model: ChatModel, options: TrajectoryOptions = DEFAULTS, progress: Progress = no_progress
) -> pd.DataFrame:
    """Let the model reply to some of a run's prompts, project each token of the replies, and store the projections.

    Replies are greedy. They are written first and then read, prompt and reply in one pass; no text is stored.

    Args:
        run: the run.
        chat_model: its model.
        options: which prompts, and how far.
        progress: called as replies are written and read.

    Returns:
        One row per prompt, token and site: ``prompt_id, reply, token, thought, site, projection``. Token 0 is the
        prompt's last one, where the reply begins; the token that ends a reply is not among them. ``reply`` is how the
        reply's opening is read by the bundled rules, missing where it opens within a thought; ``thought`` says of a
        token whether it belongs to one.

    Raises:
        RefusalError: when the model is not the run's, or cannot reply, or the result cannot be stored.
    """
    from refusal_core.activations.token_tree import TokenTree
    from refusal_core.behaviour.replies import continued, end_tokens, reply_text

    # Not after minutes of work.
    run.check_own_position(TrajectoryManifest.kind)
    writable_cache(run.path.parent)
    reader, ending = reader_for(run, chat_model), end_tokens(chat_model)
    rules, began = read_rules(), time.monotonic()
    rows = chosen_prompts(run, options.limit_per_label, options.source)
    table = run.prompts.iloc[rows]
    sequences = [reader.encode(prompt, with_prefix=True) for prompt in prompts_of(table)]
    replies: list[list[int]] = [[] for _ in sequences]
    parts = continued(
        reader, sequences, TokenTree([]), options.reply_tokens, lambda tokens: tokens[-1] in ending, progress
    )
    for part in parts:
        for row, tokens in zip(part.rows.tolist(), part.tokens, strict=True):
            replies[row] = tokens[:-1] if tokens[-1] in ending else tokens
    thoughts = [_thought(reader, tokens) for tokens in replies]
    # By prompt: batches come in any order.
    tables: dict[int, pd.DataFrame] = {}
    for row, states in _followed(reader, sequences, replies, table, progress):
        # (token, site).
        projections = run.directions.project(states)
        n_tokens, n_sites = projections.shape
        opening = replies[row][:OPENING_TOKENS]
        said = None if any(thoughts[row][: len(opening)]) else reply_text(chat_model, opening, ending)
        tables[row] = pd.DataFrame(
            {
                "prompt_id": table["prompt_id"].iloc[row],
                "reply": None if said is None else rules.label(said, table["text"].iloc[row]),
                "token": np.repeat(np.arange(n_tokens), n_sites),
                "thought": np.repeat([False, *thoughts[row]], n_sites),
                "site": np.tile(np.arange(n_sites), n_tokens),
                "projection": projections.ravel().astype(np.float32),
            }
        )
    measured = pd.concat([tables[row] for row in sorted(tables)], ignore_index=True)
    measured["reply"] = measured["reply"].astype(object).where(measured["reply"].notna(), None)
    manifest = TrajectoryManifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        compute=BehaviourCompute(device=chat_model.device, dtype=chat_model.dtype),
        prompts=InterventionPrompts(source=str(table["source"].iloc[0]), limit_per_label=options.limit_per_label),
        fitted=bool(table["fitted"].any()),
        reply_tokens=options.reply_tokens,
        seed=run.manifest.compute.seed,
        rules=InterventionRules(sha256=rules.sha256),
        versions={name: version(name) for name in ("torch", "transformers")},
        timings={"seconds": round(time.monotonic() - began, 3)},
    )
    save_addition(run, measured, manifest)
    return measured


def _followed(
    reader: ResidualReader,
    sequences: list[list[int]],
    replies: list[list[int]],
    table: pd.DataFrame,
    progress: Progress,
) -> Iterator[tuple[int, np.ndarray]]:
    """Read prompts with their replies behind them, those with replies of one length together.

    Args:
        reader: reads them.
        sequences: token ids of each prompt.
        replies: token ids of each reply.
        table: of the prompts, named in errors.
        progress: called as prompts are read.

    Yields:
        The place of a prompt, and its states ``(token, site, d_model)`` at its last token and at each of the reply.
    """
    from refusal_core.activations.checks import check_finite
    from refusal_core.activations.engine import in_process

    names, texts = origins(table), table["text"].tolist()
    batches: list[tuple[np.ndarray, int]] = []
    for length in sorted({len(tokens) for tokens in replies}):
        alike = np.array([row for row, tokens in enumerate(replies) if len(tokens) == length])
        whole = [[*sequences[row], *replies[row]] for row in alike]
        limit = reader.balanced_token_limit(whole)
        batches += [(alike[part], length + 1) for part in reader.batches(whole, limit)]
    jobs = (
        ([[*sequences[row], *replies[row]] for row in rows], [names[row] for row in rows], last)
        for rows, last in batches
    )
    done = 0
    progress(FOLLOWING, 0, len(sequences))
    for number, batch in in_process(reader, jobs):
        rows, last = batches[number]
        check_finite(batch.states, batch.log_odds, [(names[row], texts[row]) for row in rows], reader.chat_model)
        states = batch.states.reshape(len(rows), len(reader.sites), last, -1)
        for place, row in enumerate(rows.tolist()):
            yield row, states[place].transpose(1, 0, 2)
        done += len(rows)
        progress(FOLLOWING, done, len(sequences))


def _thought(reader: ResidualReader, tokens: list[int]) -> list[bool]:
    """Return of every token of a reply whether it belongs to a thought, the marks around it included."""
    tokenizer = reader.chat_model.tokenizer
    marks = thinking_marks(tokenizer)
    if marks is None:
        return [False] * len(tokens)
    inside, found = opens_thought(tokenizer, reader.thinking), []
    for end in range(1, len(tokens) + 1):
        said = str(tokenizer.decode(tokens[:end]))
        opened = inside or marks.opening.strip() in said
        # The token that closes it is the thought's last.
        found.append(opened and marks.closing not in str(tokenizer.decode(tokens[: end - 1])))
    return found
