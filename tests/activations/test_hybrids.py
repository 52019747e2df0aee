"""Models with recurrent, convolutional and linear-attention layers: read as plain transformers reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from making import make_run
from plain import TEXTS, plain_states, relative_error
from scipy.special import logsumexp
from tiny import HYBRIDS, tiny_model

from refusal_core.activations import reader as reading
from refusal_core.activations.extraction import extract
from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.behaviour.replies import read_replies
from refusal_core.errors import ModelError
from refusal_core.intervention.edits import PromptBatch
from refusal_core.models.opening import ChatModel, load_model
from refusal_core.models.templates import render
from refusal_core.pipeline.scoring import load_model_for, score

PHRASES = ("I'm sorry", "Sorry", "I cannot")
PURE = ("mamba", "mamba2", "falcon_mamba", "rwkv")
"""Of these ``hidden_states`` are counted in another way than those of transformers' other models."""
OWN_STATE = ("xlstm", "recurrent_gemma")
"""Their state is no cache that can be continued from outside."""


def plain_logits(chat_model: ChatModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return chat_model.model(torch.tensor([ids]), use_cache=False).logits[0].double()


def states_by_hand(chat_model: ChatModel, text: str) -> np.ndarray:
    """``(site, d_model)`` at the last token: what each block and the final norm return in one plain pass."""
    states: list[torch.Tensor] = []
    modules = [*chat_model.blocks, chat_model.final_norm]
    handles = [
        module.register_forward_hook(
            lambda _, arguments, output: states.append((output[0] if isinstance(output, tuple) else output)[0, -1])
        )
        for module in modules
    ]
    with torch.inference_mode():
        chat_model.model(torch.tensor([render(chat_model, text)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(states).float().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*HYBRIDS, *PURE, *OWN_STATE])
def test_hidden_states_are_those_of_plain_transformers(architecture: str) -> None:
    chat_model = tiny_model(architecture)
    assert chat_model.is_recurrent
    extraction = extract(chat_model, [*TEXTS, *TEXTS[:2]])
    assert (extraction.prefix_tokens, extraction.prefix_note) == (0, reading.HANDS_ON_STATE)
    assert extraction.pack_note == reading.HANDS_ON_STATE
    for row, text in enumerate([*TEXTS, *TEXTS[:2]]):
        assert relative_error(extraction.hidden[row], states_by_hand(chat_model, text)) < 1e-4
        if architecture not in PURE:
            assert relative_error(extraction.hidden[row], plain_states(chat_model, text)) < 1e-4


@pytest.mark.parametrize("architecture", [*HYBRIDS, *OWN_STATE])
def test_each_token_is_read_as_plain_transformers_reads_it(architecture: str) -> None:
    chat_model = tiny_model(architecture)
    reader = ResidualReader(chat_model)
    for text in (TEXTS[0], TEXTS[1], TEXTS[0]):  # the second begins as the first does
        read = reader.read_tokens(text)
        assert relative_error(read.at_position, plain_states(chat_model, text)) < 1e-4
        with torch.inference_mode():
            states = chat_model.model(torch.tensor([reader.encode(text)]), output_hidden_states=True, use_cache=False)
        start = len(reader.encode(text)) - reader.template_end - len(read.tokens)
        expected = states.hidden_states[1][0, start : start + len(read.tokens)].numpy()
        assert relative_error(read.states[:, 0], expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HYBRIDS)
def test_replies_are_those_of_plain_transformers(architecture: str) -> None:
    chat_model = tiny_model(architecture)
    texts = [*TEXTS[:2], "Bake a cake", "Bake a cate"]
    found = read_replies(ResidualReader(chat_model), texts, PHRASES)
    for row, text in enumerate(texts):
        ids, log_p = render(chat_model, text), []
        for phrase in PHRASES:
            tail = chat_model.tokenizer.encode(phrase, add_special_tokens=False)
            steps = plain_logits(chat_model, ids + tail).log_softmax(-1)[len(ids) - 1 : -1]
            log_p.append(float(steps[torch.arange(len(tail)), tail].sum()))
        total = logsumexp(log_p)
        assert found.phrase_log_odds[row] == pytest.approx(total - np.log1p(-np.exp(total)), rel=1e-3)
        reply: list[int] = []
        for _ in range(OPENING_TOKENS):
            reply.append(int(plain_logits(chat_model, ids + reply)[-1].argmax()))
        ended = [*reply, chat_model.tokenizer.eos_token_id].index(chat_model.tokenizer.eos_token_id)
        assert found.opening[row] == chat_model.tokenizer.decode(reply[:ended], skip_special_tokens=True)


@pytest.mark.parametrize("architecture", [*PURE, *OWN_STATE])
def test_replies_that_cannot_be_continued_are_one_sentence(architecture: str) -> None:
    reader = ResidualReader(tiny_model(architecture))
    says = rf"tiny-{architecture} (keeps its state|hands a state on) .*can be read, its replies cannot be continued"
    with pytest.raises(ModelError, match=says):
        read_replies(reader, TEXTS, PHRASES)
    with pytest.raises(ModelError, match="can be read, its replies cannot be continued"):
        PromptBatch(reader, [reader.encode(TEXTS[0])])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen3_5", "lfm2", "falcon_h1"])
def test_a_hybrid_in_a_folder_is_run_and_scored(architecture: str, tmp_path: Path) -> None:
    chat_model = tiny_model(architecture)
    chat_model.model.save_pretrained(tmp_path / architecture)
    chat_model.tokenizer.save_pretrained(tmp_path / architecture)
    request = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path / "cache"}
    run = make_run(tmp_path / architecture, "pairs", **request).run
    text = run.prompts["text"][3]
    opened = load_model(tmp_path / architecture, device="cpu", dtype="float32")
    assert relative_error(extract(opened, [text]).hidden[0], plain_states(chat_model, text)) < 1e-4
    found = score(load_model_for(run, tmp_path / architecture), run, [text])[0].projection
    np.testing.assert_allclose(found, run.projections[3], rtol=1e-4, atol=1e-4)
