"""Conversations as chat data sets have them, and the one prompt that each of them comes to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from refusal_core.conversations import USER, Conversation, Turn

_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_UNREAD_ROLES = ("tool", "function", "ipython")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
_PREFIX_KEYS = ("prefix", "prefill", "partial")
"""How interfaces mark an assistant's turn that the model is to go on with (Mistral, DeepSeek; Kimi)."""
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")


class NotAConversationError(ValueError):
    """Says what is wrong with a conversation."""


def is_conversation(value: object) -> bool:
    """Return whether a value is a list of messages, each with a role and a content."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _is_message(turn) for turn in value)
    )


def is_transcript(text: str) -> bool:
    """Return whether a text is a conversation written out as HH-RLHF does: ``Human: …`` and ``Assistant: …``."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def parse_conversation(value: object) -> tuple[Conversation, int]:
    """Return the conversation in a cell: messages, a list of user turns, JSON of either, or a transcript.

    An assistant's turn at the end is how the reply is made to begin where it is marked so, and else a reply.

    Returns:
        The conversation, and how many turns after the user's last one are replies to it and not a part of it.

    Raises:
        NotAConversationError: when it is none, or has no user turn.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        value = [{"role": USER, "content": turn} for turn in value]
    if not isinstance(value, list) or not is_conversation(value):
        raise NotAConversationError(
            f"expected messages, each with a role (user, assistant or system) and a content, found {value!r:.60}"
        )
    last = max((place for place, message in enumerate(value) if _role(message) == USER), default=None)
    if last is None:
        said = ", ".join(str(message[_of(message, _ROLE_KEYS)]) for message in value[:5])
        raise NotAConversationError(f"expected a turn of the user, found {said}")
    # What comes after it, a reply or a call of a tool, is not read.
    *before, text = (_turn(message) for message in value[: last + 1])
    after = value[last + 1 :]
    begun = len(after) == 1 and any(after[0].get(key) is True for key in _PREFIX_KEYS)
    prefix = _turn(after[0]).content if begun else ""
    return Conversation(text.content, tuple(before), prefix), 0 if begun else len(after)


def looks_like_messages(text: str) -> bool:
    """Return whether a text is a list of messages, in JSON or as Python writes it."""
    return re.match(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""", text) is not None


def _from_text(text: str) -> object:
    if is_transcript(text):
        roles_and_turns = _TURN.split(text)[1:]
        pairs = zip(roles_and_turns[::2], roles_and_turns[1::2], strict=True)
        return [{"role": role.lower(), "content": content.strip()} for role, content in pairs]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotAConversationError(
            f"expected messages as JSON, found {text.strip()!r:.60}; export the column as JSON"
        ) from None


def _role(message: dict[str, Any]) -> str | None:
    return _ROLES.get(str(message[_of(message, _ROLE_KEYS)]).strip().lower())


def _turn(message: dict[str, Any]) -> Turn:
    said, role = message[_of(message, _ROLE_KEYS)], _role(message)
    if role is None:
        raise NotAConversationError(f"expected turns of the user, the assistant or the system, found {said!r:.40}")
    return Turn(role, _content(message[_of(message, _CONTENT_KEYS)]))


def _content(value: object) -> str:
    """Return the text of a message, which may come in parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, Sequence) else [value]
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise NotAConversationError(f"expected text in every message, found {part!r:.60}")
        texts.append(text)
    return "".join(texts)


def _is_message(turn: dict[str, Any]) -> bool:
    role = turn.get(_of(turn, _ROLE_KEYS))
    return (
        isinstance(role, str) and role.strip().lower() in {*_ROLES, *_UNREAD_ROLES} and bool(_of(turn, _CONTENT_KEYS))
    )


def _of(message: dict[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if key in message), "")
