"""How replies begin: the probability of whole refusal phrases, and short greedy openings; no replies are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Cache

from refusal_core.activations.continuation import continue_prompts, greedy_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.token_tree import TokenTree
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.models.opening import ChatModel
from refusal_core.models.templates import THINK_CLOSE, reply_thinks
from refusal_core.progress import Progress, no_progress

MEASURING = "reading replies (prompts)"
THINKING = "thinking (prompts)"

THINKING_TOKENS = 1024
"""The longest thinking that is waited for; a longer one is closed where it is."""

_MARK_TOKENS = len(THINK_CLOSE)


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
    texts: Sequence[str],
    phrases: Sequence[str],
    progress: Progress = no_progress,
) -> Replies:
    """Measure how the replies to prompts begin.

    Args:
        reader: reads the prompts.
        texts: the prompts.
        phrases: how refusals open; none may begin with another.
        progress: called with ``(MEASURING, prompts done, prompts)``, and with ``THINKING`` before.
    """
    model = reader.chat_model
    sequences = [reader.encode(text) for text in texts]
    unclosed = None
    if reply_thinks(model.tokenizer, reader.thinking):
        sequences, unclosed = _after_thinking(reader, sequences, progress)
    tree = TokenTree([model.tokenizer.encode(phrase, add_special_tokens=False) for phrase in phrases])
    end_tokens = _end_tokens(model)
    log_odds, opening = np.empty(len(texts)), [""] * len(texts)
    done = 0
    progress(MEASURING, 0, len(texts))
    for part in continue_prompts(reader, sequences, tree, OPENING_TOKENS, lambda tokens: tokens[-1] in end_tokens):
        log_odds[part.rows] = part.log_odds
        for row, tokens in zip(part.rows.tolist(), part.tokens, strict=True):
            opening[row] = _decoded(model, tokens, end_tokens)
        done += len(part.rows)
        progress(MEASURING, done, len(texts))
    return Replies(log_odds, opening, unclosed)


def greedy_openings(chat_model: ChatModel, logits: torch.Tensor, cache: Cache) -> list[str]:
    """Return the likeliest replies, token by token, up to their end or :data:`OPENING_TOKENS` tokens.

    Args:
        chat_model: the model that has read the prompts.
        logits: ``(prompt, vocabulary)`` at the first reply token.
        cache: keys and values of the prompts; continued in place.
    """
    end_tokens = _end_tokens(chat_model)
    written = greedy_tokens(chat_model, logits, cache, OPENING_TOKENS, lambda tokens: tokens[-1] in end_tokens)
    return [_decoded(chat_model, tokens, end_tokens) for tokens in written]


def _after_thinking(
    reader: ResidualReader, sequences: list[list[int]], progress: Progress
) -> tuple[list[list[int]], int]:
    """Return each prompt with the model's own thinking behind it, greedy and closed, and how many had to be closed."""
    tokenizer = reader.chat_model.tokenizer
    close = tokenizer.encode(THINK_CLOSE, add_special_tokens=False)
    between = tokenizer.encode("\n\n", add_special_tokens=False)
    end_tokens = _end_tokens(reader.chat_model)
    thought: list[list[int]] = [[] for _ in sequences]

    def closed(tokens: list[int]) -> bool:
        # The mark may be several tokens long.
        return THINK_CLOSE in tokenizer.decode(tokens[-_MARK_TOKENS:])

    def ends(tokens: list[int]) -> bool:
        return tokens[-1] in end_tokens or closed(tokens)

    n_unclosed = done = 0
    progress(THINKING, 0, len(sequences))
    for part in continue_prompts(reader, sequences, TokenTree([]), THINKING_TOKENS, ends):
        for row, tokens in zip(part.rows.tolist(), part.tokens, strict=True):
            own = tokens[:-1] if tokens[-1] in end_tokens else tokens
            thought[row] = own if closed(own) else [*own, *close]
            n_unclosed += not closed(own)
        done += len(part.rows)
        progress(THINKING, done, len(sequences))
    return [[*ids, *own, *between] for ids, own in zip(sequences, thought, strict=True)], n_unclosed


def _decoded(chat_model: ChatModel, tokens: list[int], end_tokens: set[int]) -> str:
    """Return a reply as text, without the token that ends it."""
    own = tokens[:-1] if tokens[-1] in end_tokens else tokens
    return str(chat_model.tokenizer.decode(own, skip_special_tokens=True))


def _end_tokens(chat_model: ChatModel) -> set[int]:
    """Tokens that end a reply: the model's own and the tokenizer's."""
    own = chat_model.model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {token for token in [*listed, chat_model.tokenizer.eos_token_id] if token is not None}
