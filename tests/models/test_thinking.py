"""Thinking: how models mark it is recognised from the template, closed on request, and read past."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import CHATML, planted_model, tiny_model, tiny_tokenizer

from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour.replies import read_replies
from refusal_core.errors import ModelError
from refusal_core.models.templates import closed_thought, render, reply_thinks, thinking_marks

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


def test_a_model_that_may_think_and_does_not_is_read_at_once():
    chat_model = planted_model(refusal="As", answer="Sure", template=MAGISTRAL)
    plain = planted_model(refusal="As", answer="Sure", template=CHATML)
    found, expected = (read_replies(ResidualReader(model), ["bdgjkvwxz"], ("As",)) for model in (chat_model, plain))
    assert found.opening == expected.opening
    assert found.phrase_log_odds == pytest.approx(expected.phrase_log_odds, abs=1e-3)
    assert found.unclosed == 0


def test_thinking_that_is_switched_but_not_marked_in_a_known_way_is_said():
    text = CHATML.replace(START, "{% if enable_thinking is false %}{{ 'Be quick.' }}{% endif %}" + START)
    with pytest.raises(
        ModelError, match="marks that in a way that is not known: its replies can be read with thinking"
    ):
        read_replies(ResidualReader(planted_model(template=text)), ["bdgjkvwxz"], ("As",))
