from __future__ import annotations

import json

import pytest

from refusal_core.errors import PromptError
from refusal_core.prompts.conversations import (
    Conversation,
    NotAConversationError,
    Turn,
    is_conversation,
    parse_conversation,
)
from refusal_core.prompts.reading import read_prompts

USER, REPLY = {"role": "user", "content": "Ask."}, {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("value", "conversation"),
    [
        ([USER], Conversation("Ask.")),
        ([USER, REPLY], Conversation("Ask.", n_after=1)),
        ([SYSTEM, USER], Conversation("Ask.", (Turn("system", "Be brief."),))),
        ([{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "No."}], Conversation("Ask.", n_after=1)),
        (["One?", "Two?"], Conversation("Two?", (Turn("user", "One?"),))),
        ([USER, REPLY, USER], Conversation("Ask.", (Turn("user", "Ask."), Turn("assistant", "No.")))),
        (json.dumps([USER]), Conversation("Ask.")),
        ("\n\nHuman: Ask.\n\nTwice.\n\nAssistant: No.", Conversation("Ask.\n\nTwice.", n_after=1)),
        (
            "\n\nHuman: One?\n\nAssistant: No.\n\nHuman: Two?\n\nAssistant: No.",
            Conversation("Two?", (Turn("user", "One?"), Turn("assistant", "No.")), 1),
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "sk."}]}],
            Conversation("Ask."),
        ),
    ],
)
def test_a_conversation_ends_with_its_last_user_turn(value, conversation):
    assert parse_conversation(value) == conversation


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([REPLY], "expected a turn of the user, found assistant"),
        (
            [USER, {"role": "tool", "content": "x"}],
            "expected turns of the user, the assistant or the system, found 'tool'",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "expected text in every message"),
        ([1], "expected messages, each with a role"),
        ("Hello", "expected messages as JSON"),
        (7, "expected messages, each with a role"),
    ],
)
def test_what_is_no_conversation_is_said(value, message):
    with pytest.raises(NotAConversationError, match=message):
        parse_conversation(value)


def test_rows_that_only_look_like_messages_are_none():
    assert not is_conversation([{"from": "alice@example.org", "text": "Dinner?"}])
    assert not is_conversation([])
    assert not is_conversation("Hello")


def lines(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def test_what_is_not_supported_yet_is_left_out_and_said():
    rows = [{"messages": turns} for turns in ([USER], [SYSTEM, USER], [USER, REPLY, USER], [USER, REPLY])]
    report = read_prompts(lines(rows), "chat.jsonl").report
    assert report.n_prompts == 2
    assert [str(left_out) for left_out in report.left_out] == [
        "1 row with a system message of its own, which is not supported yet: row 2",
        "1 row with turns before the user's last one, which are not supported yet: row 3",
    ]


def test_a_system_message_in_a_column_of_its_own_is_not_dropped():
    rows = [{"system_prompt": "Be brief.", "question": "One?"}, {"system_prompt": "", "question": "Two?"}]
    report = read_prompts(lines(rows), "a.jsonl").report
    assert report.n_prompts == 1
    assert report.left_out[0].places == ("row 1",)


def test_one_conversation_is_one_prompt():
    assert read_prompts(json.dumps([USER, REPLY]).encode(), "chat.json").table["text"].tolist() == ["Ask."]


@pytest.mark.parametrize("cell", [str([USER]), "[{'from': 'human', 'value': 'Ask.'}]"])
def test_messages_as_python_writes_them_are_never_scored_as_text(cell):
    with pytest.raises(PromptError, match=r"a\.json, row 1: .*JSON.*export the column as JSON"):
        read_prompts(json.dumps([{"text": cell, "label": 1}]).encode(), "a.json")


def test_a_broken_conversation_is_named_by_its_row():
    with pytest.raises(PromptError, match=r"^a\.jsonl, row 2: expected a turn of the user"):
        read_prompts(lines([{"messages": [USER]}, {"messages": [REPLY]}]), "a.jsonl")


def test_an_empty_conversation_is_a_row_without_a_text():
    report = read_prompts(lines([{"messages": [USER]}, {"messages": []}, {"messages": [USER]}]), "a.jsonl").report
    assert report.left_out[0].reason == "without a text"


def test_a_text_column_counts_before_a_conversation():
    rows = [{"prompt": "Ask.", "messages": [SYSTEM, USER]}]
    assert read_prompts(lines(rows), "a.jsonl").report.text_columns == ("prompt",)
