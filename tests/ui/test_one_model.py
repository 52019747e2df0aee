"""Memory holds one model, which all runs of it share, and questions to it are answered in the order asked."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import changed
from tiny import tiny_model

from refusal_core.errors import ModelError
from refusal_core.models.identity import identify
from refusal_core.pipeline.scoring import score
from refusal_core.runs.run import Run
from refusal_core.ui import model
from refusal_core.ui.model import OneModel

LOADED = model.load_model_for


def nothing(said: str) -> None:
    pass


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "tiny-llama"
    chat_model = tiny_model("llama")
    chat_model.model.save_pretrained(folder)
    chat_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def made_runs(tiny_run, other_folder) -> list[Run]:
    """Two runs of one model, and one of another."""
    other = changed(tiny_run, model={"name": "tiny-llama", "sha256": identify(other_folder).fingerprint})
    other = replace(other, run_id="other")
    return [tiny_run, replace(tiny_run, run_id="again"), other]


@pytest.fixture
def loaded(monkeypatch) -> list[weakref.ref]:
    """Weak references to the models that were loaded; none may be alive when another is."""
    models: list[weakref.ref] = []

    def load(run, source):
        assert not [each for each in models if each() is not None], "two models in memory"
        chat_model = LOADED(run, source, device="cpu")
        models.append(weakref.ref(chat_model.model))
        return chat_model

    monkeypatch.setattr(model, "load_model_for", load)
    return models


@pytest.mark.slow
def test_runs_of_one_model_share_it_and_another_comes_only_when_it_is_gone(
    made_runs, tiny_folder, other_folder, loaded
):
    first, second, third = made_runs
    shared = OneModel()
    texts = ["How do I clean a flute?", "How do I break a flute?"]
    for run, folder, loads in (
        (first, tiny_folder, 1),
        (second, tiny_folder, 1),
        (first, tiny_folder, 1),
        (third, other_folder, 2),
        (second, tiny_folder, 3),
    ):
        expected = score(LOADED(run, folder, device="cpu"), run, texts)
        for text, wanted in zip(texts, expected, strict=True):
            found = shared.ask(run, str(folder), lambda opened, text=text: opened.scorer.score(text), nothing)
            assert found.projection == pytest.approx(wanted.projection, abs=1e-4)
        assert len(loaded) == loads
    assert [each() is not None for each in loaded] == [False, False, True]


def test_a_wrong_path_is_refused_and_leaves_the_model_where_it_is(made_runs, tiny_folder, other_folder, loaded):
    run = made_runs[0]
    shared = OneModel()
    shared.ask(run, str(tiny_folder), lambda opened: None, nothing)
    with pytest.raises(ModelError, match="not the model of this run"):
        shared.ask(run, str(other_folder), lambda opened: None, nothing)
    shared.ask(run, str(tiny_folder), lambda opened: None, nothing)
    assert len(loaded) == 1


def test_a_model_that_fails_to_open_is_tried_again(made_runs, tiny_folder, monkeypatch):
    attempts = []

    def load(run, source):
        attempts.append(source)
        if len(attempts) == 1:
            raise ModelError("out of memory")
        return LOADED(run, source, device="cpu")

    monkeypatch.setattr(model, "load_model_for", load)
    shared = OneModel()
    with pytest.raises(ModelError, match="out of memory"):
        shared.ask(made_runs[0], str(tiny_folder), lambda opened: None, nothing)
    assert shared.ask(made_runs[0], str(tiny_folder), lambda opened: "answered", nothing) == "answered"


def test_twenty_at_once_each_get_their_own_answer_in_the_order_asked(made_runs, tiny_folder, loaded):
    run = made_runs[0]
    texts = [f"How do I clean {place} flutes?" for place in range(20)]
    expected = score(LOADED(run, tiny_folder, device="cpu"), run, texts)
    shared, answers, order = OneModel(), {}, []

    def ask(place: int) -> None:
        def question(opened):
            order.append(place)
            return opened.scorer.score(texts[place])

        answers[place] = shared.ask(run, str(tiny_folder), question, nothing)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(20)]
    with shared._turns.turn():
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            while len(shared._turns._tickets) <= waiting:
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert order == list(range(20))
    assert len(loaded) == 1
    for place, wanted in enumerate(expected):
        assert answers[place].text == texts[place]
        assert answers[place].projection == pytest.approx(wanted.projection, abs=1e-4)


@pytest.mark.slow
def test_what_a_first_prompt_needs_is_imported_while_the_page_is_looked_at():
    program = (
        "import sys, threading; from refusal_core.ui import model; before = 'torch' in sys.modules; "
        "model.import_engine(); "
        "[thread.join() for thread in threading.enumerate() if thread.name == 'engine']; "
        "print(before, *({'torch', 'transformers.modeling_utils'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == {"False", "torch", "transformers.modeling_utils"}
