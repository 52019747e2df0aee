from __future__ import annotations

import json

import pytest

from refusal_core.conversations import Conversation, Turn, prompts_of
from refusal_core.errors import PromptError
from refusal_core.prompts.conversations import NotAConversationError, is_conversation, parse_conversation
from refusal_core.prompts.reading import read_prompts
from refusal_core.prompts.sets import load_contrast_set

USER, REPLY = {"role": "user", "content": "Ask."}, {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("value", "conversation", "n_after"),
    [
        ([USER], Conversation("Ask."), 0),
        ([USER, REPLY], Conversation("Ask."), 1),
        ([USER, {**REPLY, "prefix": True}], Conversation("Ask.", prefix="No."), 0),
        ([USER, REPLY, {**REPLY, "prefix": True}], Conversation("Ask."), 2),
        ([USER, REPLY, {"role": "tool", "content": "x"}], Conversation("Ask."), 2),
        ([SYSTEM, USER], Conversation("Ask.", (Turn("system", "Be brief."),)), 0),
        ([{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "No."}], Conversation("Ask."), 1),
        (["One?", "Two?"], Conversation("Two?", (Turn("user", "One?"),)), 0),
        ([USER, REPLY, USER], Conversation("Ask.", (Turn("user", "Ask."), Turn("assistant", "No."))), 0),
        (json.dumps([USER]), Conversation("Ask."), 0),
        ("\n\nHuman: Ask.\n\nTwice.\n\nAssistant: No.", Conversation("Ask.\n\nTwice."), 1),
        (
            "\n\nHuman: One?\n\nAssistant: No.\n\nHuman: Two?\n\nAssistant: No.",
            Conversation("Two?", (Turn("user", "One?"), Turn("assistant", "No."))),
            1,
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "sk."}]}],
            Conversation("Ask."),
            0,
        ),
    ],
)
def test_a_conversation_ends_with_its_last_user_turn_or_the_beginning_of_the_reply(value, conversation, n_after):
    assert parse_conversation(value) == (conversation, n_after)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([REPLY], "expected a turn of the user, found assistant"),
        (
            [{"role": "tool", "content": "x"}, USER],
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


def test_a_conversation_is_read_with_its_system_message_and_its_earlier_turns():
    rows = [{"messages": turns} for turns in ([USER], [SYSTEM, USER], [USER, REPLY, USER], [USER, REPLY])]
    found = read_prompts(lines(rows), "chat.jsonl")
    assert prompts_of(found.table) == [
        "Ask.",
        Conversation("Ask.", (Turn("system", "Be brief."),)),
        Conversation("Ask.", (Turn("user", "Ask."), Turn("assistant", "No."))),
        "Ask.",
    ]
    assert found.report.left_out == ()
    assert found.report.notes == (
        "replies after the user's turn are left out, in 1 conversations",
        "prompts with a system message: 1",
        "prompts with turns before the user's last one: 1",
    )


def test_a_system_message_and_the_beginning_of_the_reply_may_have_columns_of_their_own():
    rows = [
        {"system_prompt": "Be brief.", "question": "One?", "prefill": "Sure"},
        {"system_prompt": "", "question": "Two?", "prefill": None},
    ]
    found = read_prompts(lines(rows), "a.jsonl")
    assert prompts_of(found.table) == [Conversation("One?", (Turn("system", "Be brief."),), "Sure"), "Two?"]
    assert found.report.text_columns == ("question", "system_prompt", "prefill")
    assert found.list.columns.tolist() == ["text", "conversation"]


def test_a_column_of_numbers_is_no_beginning_of_a_reply():
    found = read_prompts(lines([{"prefix": 43, "text": "Ask."}]), "a.jsonl")
    assert prompts_of(found.table) == ["Ask."]
    assert found.report.other_columns == ("prefix",)


def test_a_column_per_label_shares_the_row_s_system_message():
    rows = [{"system": "Be brief.", "harmful": "Pick a lock.", "harmless": "Bake a cake."}] * 2
    system = (Turn("system", "Be brief."),)
    assert prompts_of(read_prompts(lines(rows), "a.jsonl").table)[:2] == [
        Conversation("Pick a lock.", system),
        Conversation("Bake a cake.", system),
    ]


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation("Ask."),
        Conversation("Ask.", (Turn("system", "Kürze."), Turn("user", "\n"), Turn("assistant", ""))),
        Conversation("Ask.", prefix=" Sure, "),
    ],
)
def test_a_conversation_comes_back_from_json(conversation):
    assert Conversation.from_json(conversation.to_json()) == conversation


@pytest.mark.parametrize(
    "text", ["", "7", "[]", "{}", "null", '[{"role": "user"}]', '[{"role": "tool", "content": "x"}]', "[" * 100_000]
)
def test_json_that_is_no_conversation_is_said(text):
    with pytest.raises(PromptError, match="expected a conversation as a list of messages"):
        Conversation.from_json(text)


def test_one_text_under_two_system_messages_is_two_prompts(tmp_path):
    rows = [
        {"system": system, "text": f"Ask {number}.", "label": label}
        for number in range(8)
        for system, label in (("Be evil.", "harmful"), ("Be kind.", "harmless"))
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(rows))
    prompts = load_contrast_set(str(path))
    assert prompts.table["prompt_id"].is_unique
    path.write_bytes(lines([*rows, rows[3]]))
    with pytest.raises(PromptError, match="row 17: the text of row 4 again"):
        load_contrast_set(str(path))
    path.write_bytes(lines([row | {"system": "Be quick."} if row["label"] == "harmful" else row for row in rows]))
    assert load_contrast_set(str(path)).sha256 != prompts.sha256


def test_what_all_prompts_have_before_them_makes_no_twins(tmp_path):
    path = tmp_path / "a.jsonl"
    system = "You are a helpful assistant that answers in one sentence, politely and without any doubt."
    asked = (*((f"Pick lock {n}.", "harmful") for n in range(8)), *((f"Bake cake {n}.", "harmless") for n in range(8)))
    path.write_bytes(lines([{"system": system, "text": text, "label": label} for text, label in asked]))
    assert load_contrast_set(str(path)).n_detected_pairs == 0
    path.write_bytes(lines([{"turns": [text * 3, "Go on."], "label": label} for text, label in asked]))
    assert load_contrast_set(str(path)).n_detected_pairs == 0


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
