"""How replies begin: the probability of whole refusal phrases, and short greedy openings; no replies are written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Cache

from refusal_core.activations.limits import BATCH_TOKENS, device_type
from refusal_core.activations.packing import group_by_length
from refusal_core.activations.reader import ResidualReader
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
        phrase_log_odds: ``(prompt,)`` float64, see :func:`phrase_log_odds`.
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
    """Measure how the replies to prompts begin; prompts of one length are read together, without padding."""
    model = reader.chat_model
    sequences = [reader.encode(text) for text in texts]
    unclosed = None
    if reply_thinks(model.tokenizer, reader.thinking):
        sequences, unclosed = _after_thinking(reader, sequences, progress)
    lengths = np.array([len(ids) for ids in sequences])
    encoded = [model.tokenizer.encode(phrase, add_special_tokens=False) for phrase in phrases]
    log_odds, opening = np.empty(len(texts)), [""] * len(texts)
    done = 0
    progress(MEASURING, 0, len(texts))
    # A token more costs all weights to be read once, for many prompts as for one, so batches are large here.
    for rows in group_by_length(lengths, 0, 4 * BATCH_TOKENS[device_type(model)]):
        with torch.inference_mode():
            logits, cache = reader.open_reply([sequences[row] for row in rows])
            log_odds[rows] = phrase_log_odds(model, logits, cache, encoded)
            for row, text in zip(rows, greedy_openings(model, logits, cache), strict=True):
                opening[row] = text
        done += len(rows)
        progress(MEASURING, done, len(texts))
    return Replies(log_odds, opening, unclosed)


def phrase_log_odds(
    chat_model: ChatModel, logits: torch.Tensor, cache: Cache, phrases: Sequence[Sequence[int]]
) -> np.ndarray:
    """Log-odds that the reply opens with one of several whole phrases: ``log P - log(1 - P)``.

    ``P`` is the sum over phrases of the product of their tokens' probabilities, each given the prompt and the tokens
    before it. No phrase may begin with another.

    Args:
        chat_model: the model.
        logits: ``(prompt, vocabulary)`` at the first reply token.
        cache: keys and values of the prompts; left as it is.
        phrases: token ids of each phrase.

    Returns:
        ``(prompt,)`` float64, natural logarithm.
    """
    wanted = {tuple(phrase[: place + 1]) for phrase in phrases for place in range(len(phrase))}
    step = dict(_log_probability((), logits, wanted))
    # Phrases share beginnings: each is run once, the longest with all that it begins with.
    beginnings = {opening[:-1] for opening in wanted} - {()}
    longest = {one for one in beginnings if not any(one != other and other[: len(one)] == one for other in beginnings)}
    for length in sorted({len(one) for one in longest}):
        alike = sorted(one for one in longest if len(one) == length)
        continued = copy.deepcopy(cache)
        continued.batch_repeat_interleave(len(alike))
        given = torch.tensor(alike, device=logits.device).repeat(len(logits), 1)
        later = chat_model.model(given, past_key_values=continued, use_cache=True).logits.float()
        later = later.view(len(logits), len(alike), length, -1)
        for which, one in enumerate(alike):
            for place in range(length):
                step |= dict(_log_probability(one[: place + 1], later[:, which, place], wanted))
    whole = [
        torch.stack([step[tuple(phrase[: place + 1])] for place in range(len(phrase))]).sum(dim=0) for phrase in phrases
    ]
    log_p = torch.stack(whole).logsumexp(dim=0).clamp(max=-1e-12)
    return (log_p - torch.log(-torch.expm1(log_p))).cpu().numpy()


def greedy_openings(chat_model: ChatModel, logits: torch.Tensor, cache: Cache) -> list[str]:
    """The likeliest reply, token by token, up to its end or :data:`OPENING_TOKENS` tokens.

    Args:
        chat_model: the model.
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


def _after_thinking(
    reader: ResidualReader, sequences: list[list[int]], progress: Progress
) -> tuple[list[list[int]], int]:
    """Each prompt with the model's own thinking behind it, greedy and closed, and how many had to be closed."""
    model = reader.chat_model
    close = model.tokenizer.encode(THINK_CLOSE, add_special_tokens=False)
    between = model.tokenizer.encode("\n\n", add_special_tokens=False)
    thought: list[list[int]] = [[] for _ in sequences]
    lengths = np.array([len(ids) for ids in sequences])
    unclosed: list[int] = []
    ends = _end_tokens(model)
    done = 0
    progress(THINKING, 0, len(sequences))
    # Room for what is thought, whose keys and values come on top.
    for rows in group_by_length(lengths + THINKING_TOKENS, 0, 4 * BATCH_TOKENS[device_type(model)]):
        waiting = set(rows.tolist())
        with torch.inference_mode():
            logits, cache = reader.open_reply([sequences[row] for row in rows])
            for _ in range(THINKING_TOKENS):
                token = logits.argmax(dim=-1)
                for row, token_id in zip(rows.tolist(), token.tolist(), strict=True):
                    if row in waiting and token_id in ends:
                        waiting.discard(row)
                        unclosed.append(row)
                    elif row in waiting:
                        thought[row].append(token_id)
                        # The mark may be several tokens long.
                        if THINK_CLOSE in model.tokenizer.decode(thought[row][-_MARK_TOKENS:]):
                            waiting.discard(row)
                if not waiting:
                    break
                output = model.model(token[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
                logits = output.logits[:, -1]
        unclosed += sorted(waiting)
        done += len(rows)
        progress(THINKING, done, len(sequences))
    for row in unclosed:
        thought[row] += close
    return [[*ids, *own, *between] for ids, own in zip(sequences, thought, strict=True)], len(unclosed)


def _log_probability(
    beginning: tuple[int, ...], logits: torch.Tensor, wanted: set[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Every wanted continuation of a beginning by one token, and that token's log-probability ``(prompt,)`` float64.

    Args:
        beginning: the keys and values after the prompts.
        logits: ``(prompt, vocabulary)`` after the beginning.
        wanted: the tokens whose probability is asked for.
    """
    total = logits.logsumexp(dim=-1)
    for opening in wanted:
        if opening[:-1] == beginning:
            yield opening, (logits[:, opening[-1]] - total).double()


def _end_tokens(chat_model: ChatModel) -> set[int]:
    """Tokens that end a reply: the model's own and the tokenizer's."""
    own = chat_model.model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {token for token in [*listed, chat_model.tokenizer.eos_token_id] if token is not None}
