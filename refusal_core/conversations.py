"""Conversations: a user's last turn with what was said before it, and how the reply to it is made to begin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refusal_core.errors import PromptError

if TYPE_CHECKING:
    import pandas as pd

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
COLUMN = "conversation"
"""Column of a table of prompts that has the whole conversation as JSON, missing where the text is all of it."""


@dataclass(frozen=True)
class Turn:
    """What one side says: ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A conversation up to where the model is to go on.

    Attributes:
        text: the user's last turn.
        before: the turns before it.
        prefix: how the reply to it is made to begin.
    """

    text: str
    before: tuple[Turn, ...] = ()
    prefix: str = ""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, the beginning of the reply among them."""
        reply = (Turn(ASSISTANT, self.prefix),) if self.prefix else ()
        return (*self.before, Turn(USER, self.text), *reply)

    @property
    def words(self) -> str:
        """What is said in all turns."""
        return "\n\n".join(turn.content for turn in self.turns)

    @property
    def is_single(self) -> bool:
        """Whether the user's turn is all there is."""
        return not self.before and not self.prefix

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as chat interfaces take them."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]

    def to_json(self) -> str:
        """Return the messages as JSON; see :meth:`from_json`."""
        return json.dumps(self.messages, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Read messages, of which the last may be the beginning of a reply.

        Raises:
            PromptError: when they are not such messages.
        """
        try:
            turns = [Turn(_role(message["role"]), _content(message["content"])) for message in json.loads(text)]
            prefix = turns.pop().content if turns[-1].role == ASSISTANT else ""
            if turns[-1].role != USER:
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise PromptError(f"expected a conversation as a list of messages in JSON, found {text!r:.60}") from error
        return cls(turns[-1].content, tuple(turns[:-1]), prefix)


Prompt = str | Conversation
"""What is put to a model: the text of a user's turn, or a conversation."""


def text_of(prompt: Prompt) -> str:
    """Return the user's last turn."""
    return prompt if isinstance(prompt, str) else prompt.text


def prefix_of(prompt: Prompt) -> str:
    """Return how the reply is made to begin; empty for a text."""
    return "" if isinstance(prompt, str) else prompt.prefix


def words_of(prompt: Prompt) -> str:
    """Return all that is said, which is what a text model may go by."""
    return prompt if isinstance(prompt, str) else prompt.words


def turns_of(prompt: Prompt) -> tuple[Turn, ...]:
    """Return all turns: of a text, the user's."""
    return (Turn(USER, prompt),) if isinstance(prompt, str) else prompt.turns


def prompts_of(table: pd.DataFrame) -> list[Prompt]:
    """Return the prompts of a table: its texts, and conversations where it has them."""
    texts: list[Prompt] = [str(text) for text in table["text"]]
    if COLUMN not in table:
        return texts
    return [
        Conversation.from_json(cell) if isinstance(cell, str) else text
        for text, cell in zip(texts, table[COLUMN], strict=True)
    ]


def _role(value: Any) -> str:
    if value not in ROLES:
        raise ValueError
    return str(value)


def _content(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
