"""How replies begin: the probability of whole refusal phrases, and short greedy openings; no replies are written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refusal_core.activations.continuation import Continuations, Ends, continue_prompts
from refusal_core.activations.passes import FinishedPasses
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.token_tree import TokenTree
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.conversations import Prompt, prefix_of
from refusal_core.errors import ModelError
from refusal_core.models.opening import ChatModel
from refusal_core.models.templates import opens_thought, reply_thinks, thinking_marks
from refusal_core.progress import Progress, no_progress

MEASURING = "reading replies (prompts)"
THINKING = "thinking (prompts)"

THINKING_TOKENS = 1024
"""The longest thinking that is waited for; a longer one is closed where it is."""

_OPENS_WITHIN = 16
"""Tokens within which a thought begins, where there is one and the template does not open it."""


@dataclass(frozen=True, eq=False)
class Replies:
    """How replies to some prompts begin, in the prompts' order.

    Attributes:
        phrase_log_odds: ``(prompt,)`` float64, log-odds that the reply opens with one of the phrases, see
            :meth:`.TokenTree.log_odds`.
        opening: the first :data:`OPENING_TOKENS` tokens of the greedy reply, as text; of a model that thinks first, of
            what follows its thinking, which is not kept.
        unclosed: how many prompts' thinking was longer than :data:`THINKING_TOKENS`, or ended without being closed;
            ``None`` for a model that does not think first.
    """

    phrase_log_odds: np.ndarray
    opening: list[str]
    unclosed: int | None = None


def read_replies(
    reader: ResidualReader,
    prompts: Sequence[Prompt],
    phrases: Sequence[str],
    progress: Progress = no_progress,
    finished: FinishedPasses | None = None,
) -> Replies:
    """Measure how the replies to prompts begin.

    Args:
        reader: reads the prompts.
        prompts: texts or conversations; a reply goes on with what a conversation makes it begin with.
        phrases: how refusals open; none may begin with another.
        progress: called with ``(MEASURING, prompts done, prompts)``, and with ``THINKING`` before.
        finished: batches of the same request that are finished, and a place for more; ``None`` to keep none. Thinking
            is not among them.
    """
    model = reader.chat_model
    sequences = [reader.encode(prompt, with_prefix=True) for prompt in prompts]
    unclosed = None
    if reply_thinks(model.tokenizer, reader.thinking):
        # A reply that is begun already has no thinking before it.
        thinking = [row for row, prompt in enumerate(prompts) if not prefix_of(prompt)]
        thought, unclosed = _after_thinking(reader, [sequences[row] for row in thinking], progress)
        for row, ids in zip(thinking, thought, strict=True):
            sequences[row] = ids
    tree = TokenTree([model.tokenizer.encode(phrase, add_special_tokens=False) for phrase in phrases])
    ending = end_tokens(model)
    log_odds, opening = np.empty(len(prompts)), [""] * len(prompts)

    def ends(tokens: list[int]) -> bool:
        return tokens[-1] in ending

    for part in continued(reader, sequences, tree, OPENING_TOKENS, ends, progress, finished=finished):
        log_odds[part.rows] = part.log_odds
        for row, tokens in zip(part.rows.tolist(), part.tokens, strict=True):
            opening[row] = reply_text(model, tokens, ending)
    return Replies(log_odds, opening, unclosed)


def continued(
    reader: ResidualReader,
    sequences: list[list[int]],
    tree: TokenTree,
    n_tokens: int,
    ends: Ends,
    progress: Progress,
    stage: str = MEASURING,
    finished: FinishedPasses | None = None,
) -> Iterator[Continuations]:
    """Continue prompts, see :func:`.continue_prompts`, and keep what is finished."""

    def known(rows: np.ndarray) -> Continuations | None:
        found = finished.get(f"{stage} {rows.tolist()}") if finished is not None else None
        if found is None:
            return None
        return Continuations(rows, np.array([own["log_odds"] for own in found]), [own["tokens"] for own in found])

    done, started = 0, time.perf_counter()
    progress(stage, 0, len(sequences))
    for part in continue_prompts(reader, sequences, tree, n_tokens, ends, known):
        name = f"{stage} {part.rows.tolist()}"
        if finished is not None and finished.get(name) is None:
            kept = [
                {"log_odds": log_odds, "tokens": tokens}
                for log_odds, tokens in zip(part.log_odds.tolist(), part.tokens, strict=True)
            ]
            finished.add(name, kept, round(time.perf_counter() - started, 3))
        done, started = done + len(part.rows), time.perf_counter()
        progress(stage, done, len(sequences))
        yield part


def _after_thinking(
    reader: ResidualReader, sequences: list[list[int]], progress: Progress
) -> tuple[list[list[int]], int]:
    """Return each prompt with the model's own thinking behind it, greedy and closed, and how many had to be closed.

    Raises:
        ModelError: for a model whose way to mark its thinking is not known.
    """
    tokenizer = reader.chat_model.tokenizer
    marks = thinking_marks(tokenizer)
    if marks is None:
        raise ModelError(
            f"{reader.chat_model.info.name} thinks before it replies, and marks that in a way that is not known: its "
            "replies can be read with thinking off alone."
        )
    close = tokenizer.encode(marks.closing, add_special_tokens=False)
    between = tokenizer.encode(marks.reply, add_special_tokens=False)
    # A model that thinks by its own choice may as well reply at once.
    may_not_think = marks.always and not opens_thought(tokenizer, reader.thinking)
    ending = end_tokens(reader.chat_model)
    thought: list[list[int]] = [[] for _ in sequences]

    def closed(tokens: list[int]) -> bool:
        # The mark may be several tokens long.
        return marks.closing in tokenizer.decode(tokens[-len(marks.closing) :])

    def unopened(tokens: list[int]) -> bool:
        started = len(tokens) >= _OPENS_WITHIN or tokens[-1] in ending
        return may_not_think and started and marks.opening.rstrip() not in tokenizer.decode(tokens)

    def ends(tokens: list[int]) -> bool:
        return tokens[-1] in ending or closed(tokens) or unopened(tokens)

    n_unclosed, nothing = 0, TokenTree([])
    # What a model thinks is not kept on disk, not even until the work is done.
    for part in continued(reader, sequences, nothing, THINKING_TOKENS, ends, progress, THINKING):
        for row, tokens in zip(part.rows.tolist(), part.tokens, strict=True):
            if not closed(tokens) and unopened(tokens):
                # Some models mark that a reply begins where there is no thought: what they say is behind that.
                text = str(tokenizer.decode(tokens))
                begun = next((mark for mark in (marks.none, marks.reply) if mark and text.startswith(mark)), "")
                thought[row] = tokenizer.encode(begun, add_special_tokens=False)
                continue
            own = tokens[:-1] if tokens[-1] in ending and not closed(tokens) else tokens
            thought[row] = [*own, *(() if closed(own) else close), *between]
            n_unclosed += not closed(own)
    return [[*ids, *own] for ids, own in zip(sequences, thought, strict=True)], n_unclosed


def reply_text(chat_model: ChatModel, tokens: list[int], ending: set[int]) -> str:
    """Return a reply as text, without the token that ends it."""
    own = tokens[:-1] if tokens and tokens[-1] in ending else tokens
    return str(chat_model.tokenizer.decode(own, skip_special_tokens=True))


def end_tokens(chat_model: ChatModel) -> set[int]:
    """Return the tokens that end a reply: the model's own and the tokenizer's."""
    own = chat_model.model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {token for token in [*listed, chat_model.tokenizer.eos_token_id] if token is not None}
