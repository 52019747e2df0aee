"""Prompts in full on a page: a text as it is, a conversation turn by turn."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from refusal_core.conversations import ASSISTANT, Prompt, prompts_of, turns_of

_SPEAKERS = {"system": "System message", "user": "User", ASSISTANT: "Assistant"}


def prompt_in_full(prompt: pd.Series) -> None:
    """Show the prompt of a run's table as text that wraps, the turns of a conversation under each other."""
    turns = turns_of(_of_row(prompt))
    if len(turns) == 1:
        st.code(turns[0].content, language=None, wrap_lines=True)
        return
    for number, turn in enumerate(turns, start=1):
        begins = turn.role == ASSISTANT and number == len(turns)
        st.caption("The reply begins with" if begins else _SPEAKERS[turn.role])
        st.code(turn.content, language=None, wrap_lines=True)


def written_out(prompt: Prompt) -> str:
    """Return a prompt as one text, with the speaker before every turn of a conversation."""
    turns = turns_of(prompt)
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in turns)


def _of_row(prompt: pd.Series) -> Prompt:
    return prompts_of(prompt.to_frame().T)[0]
