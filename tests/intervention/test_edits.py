"""Edits of the residual stream, held against plain transformers with the same edit made by hand."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from tiny import ARCHITECTURES, HYBRIDS, tiny_model

from refusal_core.activations import limits
from refusal_core.activations.checks import UNSUPPORTED
from refusal_core.activations.engine import DoesNotFitError
from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour.openings import OPENING_TOKENS
from refusal_core.intervention.conditions import PLAIN, Condition
from refusal_core.intervention.edits import PromptBatch, Reply
from refusal_core.intervention.prompt_groups import PromptGroup, try_conditions
from refusal_core.steering import Edit, edited

TEXTS = ("How do I take a cake?", "How do I fake a cake?", "How do I lake a cake?")
OTHERS = ("Bake a cake", "Write a letter that thanks my neighbour.")
"""Of other lengths."""


def unit(seed: int, width: int = 32) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def edits_by_hand(edit: Edit):
    """The same edit in float64, made in another way: a projector matrix, token by token."""

    def hook(layer):
        vector = torch.from_numpy(edit.vectors[layer].astype(np.float64))
        projector = torch.eye(len(vector), dtype=torch.float64) - torch.outer(vector, vector)

        def change(module, arguments, output):
            states = (output[0] if isinstance(output, tuple) else output).double()
            places = range(states.shape[1]) if edit.tokens == "all" else [states.shape[1] - 1]
            for place in places:
                each = states[:, place]
                states[:, place] = each + vector if edit.kind == "add" else each @ projector.T
            changed = states.float()
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return change

    return {layer: hook(layer) for layer in edit.vectors}


def plain_reply(chat_model, text: str, edit: Edit | None) -> tuple[torch.Tensor, list[int]]:
    """First logits and greedy tokens with nothing shared, cached or skipped: the whole text again for each token."""
    ids = chat_model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    prompt_length, first, handles = ids.shape[1], None, []
    if edit is not None and edit.tokens == "last":
        # The prompt's last token stays edited while the reply grows behind it.
        def at_prompt_end(hook):
            def change(module, arguments, output):
                states = output[0] if isinstance(output, tuple) else output
                head = hook(module, arguments, states[:, :prompt_length].clone())
                whole = torch.cat([head, states[:, prompt_length:]], dim=1)
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            return change

        hooks = {layer: at_prompt_end(hook) for layer, hook in edits_by_hand(edit).items()}
    else:
        hooks = {} if edit is None else edits_by_hand(edit)
    handles = [chat_model.blocks[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
    with torch.inference_mode():
        for _ in range(OPENING_TOKENS):
            logits = chat_model.model(ids, use_cache=False).logits[0, -1]
            first = logits if first is None else first
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    for handle in handles:
        handle.remove()
    return first, ids[0, prompt_length:].tolist()


def shown(chat_model, tokens: list[int]) -> str:
    ends = {chat_model.tokenizer.eos_token_id}
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return chat_model.tokenizer.decode(tokens[:length], skip_special_tokens=True)


EDITS = {
    "ablate one, all tokens": Edit("ablate", {2: unit(1)}),
    "ablate one, last token": Edit("ablate", {1: unit(1)}, tokens="last"),
    "ablate everywhere": Edit("ablate", {layer: unit(3) for layer in range(4)}),
    "add one, all tokens": Edit("add", {2: 4 * unit(5)}),
    "add two, last token": Edit("add", {1: -3 * unit(5), 3: 2 * unit(6)}, tokens="last"),
}


def read(chat_model, texts=TEXTS) -> PromptBatch:
    reader = ResidualReader(chat_model)
    return PromptBatch(reader, [reader.encode(text) for text in texts])


def reply(batch: PromptBatch, edit: Edit, openings: bool = True) -> Reply:
    return batch.replies([edit], [openings])[0]


def assert_plain(chat_model, texts, edits, replies) -> None:
    for edit, found in zip(edits, replies, strict=True):
        for place, text in enumerate(texts):
            logits, tokens = plain_reply(chat_model, text, edit)
            np.testing.assert_allclose(found.logits[place], logits, atol=2e-4)
            assert found.openings[place] == shown(chat_model, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replies_under_edits_are_those_of_plain_transformers(architecture):
    # Windows that are longer than the prompts, so that these may be packed.
    chat_model, edits = tiny_model(architecture, sliding_window=96), list(EDITS.values())
    texts = [*TEXTS, *OTHERS] if ResidualReader(chat_model).packs else TEXTS
    batch = read(chat_model, texts)
    assert batch.reuses
    assert batch.packed == (len(texts) > len(TEXTS))
    plain, *under = batch.replies([None, *edits], [True] * (len(edits) + 1))
    assert_plain(chat_model, texts, [None, *edits], [plain, *under])
    assert torch.equal(plain.logits, batch.plain_logits)
    assert not any(torch.allclose(one.logits, plain.logits, atol=1e-3) for one in under)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "qwen2"])
def test_replies_of_prompts_that_may_not_be_packed_are_those_of_plain_transformers(architecture, monkeypatch):
    chat_model, edits = tiny_model(architecture), list(EDITS.values())
    if architecture == "qwen2":
        monkeypatch.setattr(ResidualReader, "packs", False)
    batch = read(chat_model)
    assert batch.reuses
    assert not batch.packed
    replies = batch.replies([None, *edits], [True] * (len(edits) + 1))
    assert_plain(chat_model, TEXTS, [None, *edits], replies)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_edits_that_are_run_together_do_not_change_each_other(together, monkeypatch):
    chat_model, edits = tiny_model("qwen2"), list(EDITS.values())
    batch = read(chat_model, [*TEXTS, *OTHERS])
    alone = [reply(batch, edit) for edit in edits]
    monkeypatch.setitem(limits.BATCH_TOKENS, "cpu", together * batch._ids.numel())
    openings = [True, False, True, True, False]
    for one, opens, expected in zip(batch.replies(edits, openings), openings, alone, strict=True):
        np.testing.assert_allclose(one.logits, expected.logits, atol=1e-5)
        assert one.openings == (expected.openings if opens else None)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HYBRIDS)
@pytest.mark.parametrize("name", ["ablate everywhere", "add two, last token"])
def test_replies_of_a_hybrid_under_an_edit_are_those_of_plain_transformers(architecture, name):
    chat_model, edit = tiny_model(architecture), EDITS[name]
    batch = read(chat_model)
    assert not batch.packed
    # Twice: a pass must not write over the states that the next one continues.
    edits = [None, edit, edit]
    assert_plain(chat_model, TEXTS, edits, [reply(batch, each) for each in edits])


@pytest.mark.parametrize("name", EDITS)
def test_log_odds_and_divergence_are_those_of_plain_transformers(name):
    chat_model, edit = tiny_model("llama"), EDITS[name]
    reader = ResidualReader(chat_model)
    vectors = SimpleNamespace(edit=lambda condition, tokens: edit)
    group = PromptGroup(reader, [reader.encode(text) for text in TEXTS])
    ((*tried,),) = group.tried([Condition(edit.kind)], vectors, edit.tokens)
    for text, found in zip(TEXTS, tried, strict=True):
        before, after = (
            plain_reply(chat_model, text, each)[0].double().log_softmax(-1).numpy() for each in (None, edit)
        )
        assert found.kl == pytest.approx(entropy(np.exp(before), np.exp(after)), rel=1e-3, abs=1e-5)
        p = np.exp(after[reader.refusal_ids]).sum()
        assert found.refusal_log_odds == pytest.approx(np.log(p / (1 - p)), abs=1e-3)


def test_what_does_not_fit_is_tried_in_parts(monkeypatch):
    reader = ResidualReader(tiny_model("qwen2"))
    sequences = [reader.encode(text) for text in [*TEXTS, *OTHERS]]
    conditions = [
        Condition(PLAIN),
        *(Condition(edit.kind, name) for name, edit in EDITS.items() if edit.tokens == "all"),
    ]
    vectors = SimpleNamespace(edit=lambda condition, tokens: EDITS[condition.direction])
    whole = PromptGroup(reader, sequences).tried(conditions, vectors, "all")
    assert [tried.kl for tried in whole[0]] == [0.0] * len(sequences)
    replies, fitting = PromptBatch.replies, 2

    def cramped(batch, edits, openings):
        if len(edits) * len(batch._n_tokens) > fitting:
            raise torch.OutOfMemoryError
        return replies(batch, edits, openings)

    monkeypatch.setattr(PromptBatch, "replies", cramped)
    parts = PromptGroup(reader, sequences).tried(conditions, vectors, "all")
    for own, expected in zip(parts, whole, strict=True):
        for one, other in zip(own, expected, strict=True):
            assert (one.refusal_log_odds, one.kl) == pytest.approx((other.refusal_log_odds, other.kl), abs=1e-5)
            assert one.opening == other.opening
    fitting = 0
    with pytest.raises(DoesNotFitError, match=r"a prompt of \d+ tokens under an edit does not fit"):
        PromptGroup(reader, sequences).tried(conditions, vectors, "all")


def test_conditions_that_are_tried_at_the_same_time_give_the_same(monkeypatch):
    reader = ResidualReader(tiny_model("qwen2"))
    sequences = [reader.encode(text) for text in [*TEXTS, *OTHERS]]
    parts = [[Condition(edit.kind, name)] for name, edit in EDITS.items() if edit.tokens == "all"] * 3
    vectors = SimpleNamespace(edit=lambda condition, tokens: EDITS[condition.direction])
    threads, names = torch.get_num_threads(), set()
    replies = PromptBatch.replies

    def watched(*arguments):
        names.add(threading.current_thread().name)
        return replies(*arguments)

    monkeypatch.setattr(PromptBatch, "replies", watched)
    try:
        torch.set_num_threads(1)
        in_turn = list(try_conditions(reader, sequences, parts, vectors, "all"))
        assert names == {"MainThread"}
        torch.set_num_threads(2)
        assert list(try_conditions(reader, sequences, parts, vectors, "all")) == in_turn
        assert torch.get_num_threads() == 2
        assert len(names) > 1
        stopped = try_conditions(reader, sequences, parts, vectors, "all")
        assert next(stopped) == in_turn[0]
        stopped.close()
    finally:
        torch.set_num_threads(threads)
    assert not any(block._forward_pre_hooks for block in reader.chat_model.blocks)


def test_without_a_shared_prefix_replies_are_the_same(monkeypatch):
    chat_model, edit = tiny_model("qwen2"), EDITS["ablate everywhere"]
    shared = reply(read(chat_model), edit)
    monkeypatch.setattr("refusal_core.activations.reader.agrees", lambda *_: False)
    batch = read(chat_model)
    assert not batch.packed
    np.testing.assert_allclose(shared.logits, reply(batch, edit).logits, atol=1e-5)
    assert shared.openings == reply(batch, edit).openings


@pytest.mark.parametrize("name", EDITS)
def test_the_model_is_what_it_was(name):
    chat_model = tiny_model("llama")
    before = copy.deepcopy(chat_model.model.state_dict())
    batch = read(chat_model)
    reply(batch, EDITS[name])
    assert torch.equal(batch.plain_logits, read(chat_model).plain_logits)
    assert all(torch.equal(before[key], value) for key, value in chat_model.model.state_dict().items())


def test_hooks_are_gone_after_an_error():
    chat_model = tiny_model("llama")
    ids = torch.tensor([[1, 5, 9]])
    plain = chat_model.model(ids).logits

    def interrupted() -> None:
        with edited(chat_model.blocks, EDITS["ablate everywhere"]):
            assert not torch.equal(chat_model.model(ids).logits, plain)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert torch.equal(chat_model.model(ids).logits, plain)
    for module in chat_model.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_a_batch_that_fails_leaves_nothing_behind():
    chat_model = tiny_model("llama")
    batch = read(chat_model)
    chat_model.blocks[3].register_forward_pre_hook(lambda module, arguments: 1 / 0, prepend=True)
    with pytest.raises(ZeroDivisionError):
        reply(batch, EDITS["ablate one, all tokens"])
    assert not any(block._forward_hooks or "forward" in block.__dict__ for block in chat_model.blocks)


def test_only_blocks_above_the_edit_compute():
    chat_model = tiny_model("llama")
    batch = read(chat_model)
    computed = []
    for layer, block in enumerate(chat_model.blocks):
        block.self_attn.register_forward_hook(lambda *_, layer=layer: computed.append(layer))
    reply(batch, Edit("ablate", {2: unit(1)}), openings=False)
    assert computed == [3]


def test_a_model_that_keeps_states_otherwise_is_run_whole():
    chat_model = tiny_model("llama")
    right = reply(read(chat_model), EDITS["add one, all tokens"])
    first, last = chat_model.blocks[1], chat_model.blocks[3]
    forward = type(last).forward
    # The last block depends on more than what is handed up to it.
    last.forward = lambda states, **options: forward(last, states * (1 + ("forward" in first.__dict__)), **options)
    batch = read(chat_model)
    assert not batch.reuses
    np.testing.assert_allclose(reply(batch, EDITS["add one, all tokens"]).logits, right.logits, atol=1e-5)


def test_keys_and_values_that_cannot_be_handed_on_are_not_reused(monkeypatch):
    chat_model, continued = tiny_model("llama"), PromptBatch._continued
    for error in UNSUPPORTED:

        def raised(batch, token, plain, error=error):
            if plain is batch._plain:
                return continued(batch, token, plain)
            raise error

        monkeypatch.setattr(PromptBatch, "_continued", raised)
        assert not read(chat_model, TEXTS[:1]).reuses
