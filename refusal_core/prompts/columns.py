"""Which columns of a table hold prompts, by the names that people give them or as was chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from refusal_core.errors import PromptError
from refusal_core.prompts.labels import HARMFUL, HARMLESS, NOTHING_CHOSEN, Choice, is_label, label_word
from refusal_core.prompts.records import Records

TEXT_COLUMNS = (
    "text",
    "prompt",
    "instruction",
    "goal",
    "question",
    "query",
    "request",
    "behavior",
    "behaviour",
    "forbidden_prompt",
    "user_prompt",
    "user_input",
    "sentence",
    "input",
)
"""Names of text columns; the first that a table has counts."""
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chosen")
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
PREFIX_COLUMNS = ("prefix", "assistant_prefix", "response_prefix", "prefill", "assistant_prefill")
"""Columns that say how the reply is made to begin."""
OPPOSITE_COLUMNS = ("is_safe", "safe", "is_benign", "benign", "is_harmless", "harmless")
"""Label columns in which yes means harmless."""
LABEL_COLUMNS = (
    "label",
    "labels",
    "is_harmful",
    "harmful",
    "harm",
    "harmfulness",
    "is_unsafe",
    "unsafe",
    "is_toxic",
    "toxic",
    "toxicity",
    "is_malicious",
    "malicious",
    "prompt_harm_label",
    "prompt_label",
    "safety",
    *OPPOSITE_COLUMNS,
    "class",
)

_JOINED = ("input", "context", "contextstring", "context_string")
"""Columns that hold a part of the prompt and are joined to it."""
_AROUND_SIDE = re.compile(r"^(prompt|text|goal)_|_(prompt|text|instruction|question|request|goal|behaviou?r)s?$")
"""What names of columns say besides the label of their prompts: ``harmful_prompts``."""
_MISSING = {"", "nan", "none", "null", "<na>", "n/a"}
_MOST_NAMES = 6


def plain_name(name: str) -> str:
    """Return a column's name as names are compared: in lower case, with underscores for blanks and hyphens."""
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())


def names_texts(name: str, choice: Choice = NOTHING_CHOSEN) -> bool:
    """Return whether columns of texts are called so, or a column was chosen by that name."""
    known = plain_name(name) in {*TEXT_COLUMNS, *CONVERSATION_COLUMNS}
    return known or name.strip() in {choice.text_column, choice.label_column}


def names_labels(name: str) -> bool:
    """Return whether columns of labels are called so."""
    return plain_name(name) in LABEL_COLUMNS


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: empty, null, or what other programs write for that."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in _MISSING


def shown(value: object) -> str:
    """Return the value of a cell as errors show it."""
    return f"{value.strip() if isinstance(value, str) else value!r:.60}"


def listed(columns: Sequence[str]) -> str:
    """Return the names of columns as errors show them."""
    return ", ".join(f"{column:.40}" for column in columns[:20]) or "no columns"


def find_column(columns: Sequence[str], wanted: str | None, usual: Sequence[str], name: str, kind: str) -> str:
    """Return the column called ``wanted``, or else the first that has a usual name.

    Args:
        columns: the names that the table has.
        wanted: the name that was chosen.
        usual: names, the most usual first.
        name: what errors call the table.
        kind: what errors call the column.

    Raises:
        PromptError: when there is none.
    """
    if wanted is None:
        found = first_column(columns, usual)
        expected = f"called {', '.join(usual[:_MOST_NAMES])} or the like" if len(usual) > 1 else f"called {usual[0]}"
    else:
        found = wanted if wanted in columns else first_column(columns, (plain_name(wanted),))
        expected = f"called {wanted!r:.60}"
    if found is None:
        raise PromptError(
            f"{name}: expected a {kind} column {expected}, found {listed(columns)}; choose which is the {kind} column"
        )
    return found


def first_column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the first column that has a usual name, the most usual one first."""
    by_name = {plain_name(column): column for column in reversed(columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def paired_columns(records: Records) -> tuple[str, str] | None:
    """Return the columns of harmful and of harmless prompts where a table has a column per label."""
    sides: dict[str, list[str]] = {HARMFUL: [], HARMLESS: []}
    for column in records.columns:
        label = label_word(_AROUND_SIDE.sub("", plain_name(column)))
        if label in sides and _holds_texts(records, column):
            sides[label].append(column)
    harmful, harmless = sides[HARMFUL], sides[HARMLESS]
    return (harmful[0], harmless[0]) if len(harmful) == len(harmless) == 1 else None


def joined_column(columns: Sequence[str], text_column: str) -> str | None:
    """Return the column that holds the rest of a prompt: Alpaca's input, Dolly's context, HarmBench's ContextString."""
    found = first_column([column for column in columns if column != text_column], _JOINED)
    if found is not None and plain_name(found) == "input" and plain_name(text_column) != "instruction":
        return None
    return found


def join(text: str, rest: str, column: str) -> str:
    """Return a prompt and its rest in one, as those who made the table do.

    HarmBench puts the context first, with a line between.
    """
    return f"{rest}\n\n---\n\n{text}" if "string" in plain_name(column) else f"{text}\n\n{rest}"


def _holds_texts(records: Records, column: str) -> bool:
    cells = [cell for row in records.rows if not is_missing(cell := row.get(column))]
    return any(isinstance(cell, str) and not is_label(cell) for cell in cells)
