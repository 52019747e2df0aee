"""Thinking: how models mark it is recognised from the template, closed on request, and read past."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from making import make_run
from tiny import CHATML, planted_model, tiny_model, tiny_tokenizer

from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour.replies import read_replies
from refusal_core.behaviour.trajectory import _thought
from refusal_core.errors import ModelError
from refusal_core.models.templates import closed_thought, put_reasoning_effort, render, reply_thinks, thinking_marks
from refusal_core.models.thinking import marks_in
from refusal_core.pipeline.scoring import load_model_for, score
from refusal_core.sharing.snippets import transformers_snippet

START = "{% if add_generation_prompt %}<|im_start|>assistant\n"


def template(opened: str = "", strips: str = "") -> str:
    """A template whose generation prompt opens something, and that names marks where it renders earlier replies."""
    return CHATML.replace(START, START + opened) + ("{# " + strips + " #}" if strips else "")


HARMONY = template(strips="<|channel|>analysis<|message|> <|end|>")
MAGISTRAL = template(strips="[THINK] [/THINK]")
SEED = template(strips="<seed:think> </seed:think>")
COHERE = template(strips="<|START_THINKING|> <|END_THINKING|>")
R1 = template(opened="<think>\n")
GEMMA_OFF = template(opened="<|channel>thought\n<channel|>")
GEMMA_ON = template(opened="<|channel>thought\n")
STRIPS = template(strips="content.split('</think>') <think>")
THOUGHT = template(opened="<thought>")


@pytest.mark.parametrize(
    ("text", "closing", "thinks", "closed"),
    [
        (HARMONY, "<|end|>", True, "<|channel|>final<|message|>"),
        (MAGISTRAL, "[/THINK]", True, "[THINK][/THINK]"),
        (SEED, "</seed:think>", True, "<seed:think></seed:think>"),
        (COHERE, "<|END_THINKING|>", True, "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>"),
        (R1, "</think>", True, "</think>\n\n"),
        (GEMMA_ON, "<channel|>", True, "<channel|>"),
        (GEMMA_OFF, "<channel|>", False, ""),
        (THOUGHT, "</thought>", True, "</thought>\n\n"),
        (STRIPS, "</think>", False, ""),
        (CHATML, None, False, ""),
    ],
)
def test_marks_are_recognised_and_a_thought_is_closed_on_request(text, closing, thinks, closed):
    tokenizer = tiny_tokenizer(text)
    marks = thinking_marks(tokenizer)
    assert (marks and marks.closing) == closing
    assert reply_thinks(tokenizer, None) is thinks
    assert closed_thought(tokenizer, False) == closed
    assert closed_thought(tokenizer, None) == ""
    assert not reply_thinks(tokenizer, False)
    assert (
        tokenizer.decode(render(tokenizer, "Hi", thinking=False)) == tokenizer.decode(render(tokenizer, "Hi")) + closed
    )


@pytest.mark.parametrize("text", [STRIPS, CHATML, GEMMA_OFF])
def test_thinking_that_there_is_not_cannot_be_switched(text):
    with pytest.raises(ModelError, match="cannot switch thinking"):
        ResidualReader(tiny_model("llama", text), thinking=False)


def test_a_reply_is_read_after_the_thought_of_whatever_marks():
    """Harmless prompts get a reply that closes the thought at once; what follows is what a plain pass gives."""
    for text, closing, between in ((R1, "</think>", "\n\n"), (GEMMA_ON, "<channel|>", "")):
        chat_model = planted_model(refusal="As", answer=closing, template=text)
        found = read_replies(ResidualReader(chat_model), ["bdgjkvwxz"], ("As",))
        assert found.unclosed == 0
        tokenizer = chat_model.tokenizer
        ids = [*render(tokenizer, "bdgjkvwxz"), *tokenizer.encode(f"{closing}{between}")]
        tail = tokenizer.encode("As")
        with torch.inference_mode():
            logits = chat_model.model(torch.tensor([[*ids, *tail]])).logits[0].double().log_softmax(-1)
        log_p = sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(tail))
        np.testing.assert_allclose(found.phrase_log_odds[0], log_p - np.log1p(-np.exp(log_p)), atol=1e-2)


@pytest.mark.parametrize(
    ("text", "reply", "thought"),
    [
        # The template opens the thought, or the model does; without marks, or with no thought, there is none.
        (R1, "As a</think>Sure", "As a</think>"),
        (R1, "As a", "As a"),
        (MAGISTRAL, "[THINK]As a[/THINK]Sure", "[THINK]As a[/THINK]"),
        (MAGISTRAL, "Sure", ""),
        (CHATML, "<think>As a</think>Sure", ""),
    ],
)
def test_the_tokens_of_a_thought_are_those_up_to_the_mark_that_closes_it(text, reply, thought):
    tokenizer = tiny_tokenizer(text)
    tokenizer.add_tokens(["[THINK]", "[/THINK]"])
    tokens = tokenizer.encode(reply, add_special_tokens=False)
    reader = SimpleNamespace(chat_model=SimpleNamespace(tokenizer=tokenizer), thinking=None)
    inside = _thought(reader, tokens)
    assert tokenizer.decode([token for token, within in zip(tokens, inside, strict=True) if within]) == thought


def test_a_model_that_may_think_and_does_not_is_read_at_once():
    chat_model = planted_model(refusal="As", answer="Sure", template=MAGISTRAL)
    plain = planted_model(refusal="As", answer="Sure", template=CHATML)
    found, expected = (read_replies(ResidualReader(model), ["bdgjkvwxz"], ("As",)) for model in (chat_model, plain))
    assert found.opening == expected.opening
    assert found.phrase_log_odds == pytest.approx(expected.phrase_log_odds, abs=1e-3)
    assert found.unclosed == 0


def test_a_reply_that_is_marked_as_one_without_a_thought_is_read_behind_its_mark(monkeypatch):
    begun = "Sure"
    marks = replace(marks_in(MAGISTRAL), none=begun)
    monkeypatch.setattr("refusal_core.behaviour.replies.thinking_marks", lambda tokenizer: marks)
    chat_model = planted_model(refusal="As", answer=begun, template=MAGISTRAL)
    found = read_replies(ResidualReader(chat_model), ["bdgjkvwxz"], ("As",))
    tokenizer = chat_model.tokenizer
    ids, tail = [*render(tokenizer, "bdgjkvwxz"), *tokenizer.encode(begun)], tokenizer.encode("As")
    with torch.inference_mode():
        logits = chat_model.model(torch.tensor([[*ids, *tail]])).logits[0].double().log_softmax(-1)
    log_p = sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(tail))
    np.testing.assert_allclose(found.phrase_log_odds[0], log_p - np.log1p(-np.exp(log_p)), atol=1e-2)
    assert not found.opening[0].startswith(begun)


def test_thinking_that_is_switched_but_not_marked_in_a_known_way_is_said():
    text = CHATML.replace(START, "{% if enable_thinking is false %}{{ 'Be quick.' }}{% endif %}" + START)
    with pytest.raises(
        ModelError, match="marks that in a way that is not known: its replies can be read with thinking"
    ):
        read_replies(ResidualReader(planted_model(template=text)), ["bdgjkvwxz"], ("As",))


EFFORT = (
    "{%- macro system() -%}{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "Reasoning: {{ reasoning_effort }}{%- endmacro -%}<|im_start|>system\n{{ system() }}<|im_end|>\n" + CHATML
)
"""As gpt-oss has it: read inside a macro, with a value of its own where it is not given."""


def test_the_template_asks_for_the_effort_as_if_it_were_given_each_time():
    given = tiny_tokenizer(EFFORT)
    messages = [{"role": "user", "content": "Bake a cake"}]
    plain = given.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = given.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, reasoning_effort="low", return_dict=False
    )
    assert "Reasoning: medium" in plain
    assert expected == plain.replace("medium", "low")
    put_reasoning_effort(given, "low")
    assert given.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert given.decode(render(given, "Bake a cake")) == given.decode(given.encode(expected))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CHATML, "has no setting of a reasoning effort"),
        ("{% if reasoning_effort == 'low' %}{{ raise_exception('not low') }}{% endif %}" + CHATML, "not low"),
    ],
)
def test_an_effort_that_a_template_does_not_take_is_refused(text, says):
    with pytest.raises(ModelError, match=says):
        put_reasoning_effort(tiny_tokenizer(text), "low")


@pytest.mark.slow
def test_a_run_with_an_effort_is_another_run_and_is_scored_with_it(tmp_path):
    chat_model = tiny_model("llama", EFFORT)
    chat_model.model.save_pretrained(tmp_path / "model")
    chat_model.tokenizer.save_pretrained(tmp_path / "model")
    options = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path / "cache"}
    plain = make_run(tmp_path / "model", **options).run
    low = make_run(tmp_path / "model", reasoning_effort="low", **options).run
    assert low.run_id != plain.run_id
    assert low.manifest.template.reasoning_effort == "low"
    assert plain.manifest.template.reasoning_effort is None
    assert not np.allclose(low.projections, plain.projections, atol=1e-3)
    found = score(load_model_for(low, tmp_path / "model"), low, [low.prompts["text"][3]])[0].projection
    np.testing.assert_allclose(found, low.projections[3], atol=1e-4)
    with pytest.raises(ModelError, match="template"):
        score(load_model_for(plain, tmp_path / "model"), low, ["Bake a cake"])
    assert "reasoning_effort='low'" in transformers_snippet(low, 1)
