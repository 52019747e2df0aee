"""The benchmark measures what it says: the same numbers by every way, ratios of what was timed, one table and file."""

from __future__ import annotations

import asyncio
import json
from unittest.mock import AsyncMock, MagicMock

import numpy as np
import pytest
import torch
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from tiny import tiny_config, tiny_model

from benchmarks import (
    behaviour,
    chromium,
    competitors,
    dashboard,
    engine,
    intervention,
    memory,
    random_models,
    visitors,
    waiting,
)
from benchmarks.__main__ import main
from benchmarks.rounds import Bench, Row, in_turn, table
from refusal_core.activations.reader import ResidualReader
from refusal_core.runs import store

TEXTS = ["How do I pick the lock of a stranger's flat?", "Bake a cake", "Write a letter that thanks my neighbour."] * 7


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch):
    """The machine's peak takes many large products, whatever the model."""
    for section in (engine, behaviour, intervention):
        monkeypatch.setattr(section, "matmul_peak", lambda bench: 1e9)


@pytest.mark.parametrize("way", [competitors.notebook, competitors.transformers])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_competitors_read_what_the_engine_reads(way, architecture):
    chat_model = tiny_model(architecture)
    reader = ResidualReader(chat_model)
    sequences = [reader.encode(text) for text in (TEXTS[:3] if way is competitors.notebook else TEXTS)]
    ours = engine.read_all(reader, sequences)[:, : chat_model.n_layers]
    np.testing.assert_allclose(way(chat_model)(sequences), ours, rtol=1e-3, atol=1e-4)


def test_a_competitor_with_other_numbers_is_not_timed(monkeypatch):
    def other(chat_model):
        return lambda sequences: np.ones((len(sequences), chat_model.n_layers, chat_model.d_model), np.float32)

    monkeypatch.setitem(engine._COMPETITORS, "nnsight trace", (other, lambda layers: ">= 3 x"))
    rows = {row.name: row for row in engine.rows(Bench(tiny_model("qwen2"), TEXTS, 1))}
    assert rows["nnsight trace"].values == []
    assert "other numbers than the engine's" in rows["nnsight trace"].note
    assert rows["transformers, padded batches of 16"].values
    assert "% of its time matrix products" in rows["matmul peak, the engine's share"].note


def test_competitors_are_timed_on_whole_batches_from_the_first_to_the_last_prompt():
    sequences = [[row] for row in range(1000)]
    given = engine._given(competitors.transformers, sequences)
    assert len(given) == 4 * competitors.BATCH
    assert given[: competitors.BATCH] == sequences[: competitors.BATCH]
    assert given[-competitors.BATCH :] == sequences[-competitors.BATCH :]
    assert engine._given(competitors.transformers, sequences[:50]) == sequences[:50]
    assert engine._given(competitors.notebook, sequences) == sequences[:2]


def test_only_the_work_that_had_to_be_done_is_counted():
    chat_model = tiny_model("qwen2")
    reader = ResidualReader(chat_model)
    sequences = [reader.encode(text) for text in TEXTS]
    tokens = len({tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)})
    linear = [module for module in chat_model.decoder.modules() if isinstance(module, torch.nn.Linear)]
    expected = 2 * tokens * sum(module.weight.numel() for module in linear)
    saved = [module.weight.numel() for name, module in chat_model.blocks[-1].mlp.named_modules() if "proj" in name]
    assert len(saved) == 3
    expected -= 2 * (tokens - len(sequences)) * sum(saved)
    expected += 2 * len(sequences) * chat_model.lm_head.weight.numel()
    assert engine.needed_flops(reader, sequences) == expected


def test_ways_take_turns_and_the_median_is_shown():
    called: list[str] = []
    seconds = in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert "2 x" in table([Row("engine", "one", ">= 1 x", [9.0, 1.0, 2.0])])


def test_one_command_prints_a_table_and_writes_it(tiny_folder, tmp_path, capsys):
    output = tmp_path / "found.json"
    arguments = ["--model", str(tiny_folder), "--limit", "8", "--rounds", "2", "--dtype", "float32", "--device", "cpu"]
    assert main(["engine", "behaviour", "live", *arguments, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert found["about"]["prompt_count"] == 16
    assert {row["section"] for row in found["rows"]} == {"engine", "behaviour", "live"}
    for row in found["rows"]:
        assert row["name"] in printed
        assert len(row["values"]) in (0, 2, 10)
    assert main(["--model", str(tmp_path / "nothing"), "--output", str(output)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_plain_hooks_give_what_a_measurement_gives():
    bench = Bench(tiny_model("qwen2"), TEXTS[:3], 1)
    compared, of_cores, of_peak = intervention.rows(bench)
    assert all(row.values[0] > 0 for row in (compared, of_cores, of_peak))
    apart, _, openings = compared.note.partition(" the same numbers, ")
    assert float(apart.removeprefix("to ")) < 1e-4
    conditions = intervention.timed_conditions(4)
    n_opened = 3 * sum(condition.openings for condition in conditions)
    assert openings.startswith(f"{n_opened} of {n_opened} openings")
    assert {condition.direction for condition in conditions} > {"found"}
    assert {condition.edit for condition in conditions} == {"none", "ablate", "add"}


@pytest.mark.slow
def test_every_page_is_timed_and_weighed_and_the_cache_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(dashboard, "SIZES", {24: 1e9})
    monkeypatch.setattr(chromium, "rows", lambda rounds: [])
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path))
    found = dashboard.rows(Bench(tiny_model("qwen2"), TEXTS, 1))
    assert {row.name for row in found} >= {"24 prompts, Home: sent", "24 prompts, 3_Outliers: next prompt"}
    assert all(row.values[0] > 0 for row in found)
    assert store.cache_folder() == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_browser_that_draws_no_frame_while_a_hand_moves_is_waited_for(monkeypatch):
    frames, visit = [], MagicMock()
    answers = {chromium._FRAMES: frames.clear, "frames_at.length": frames.__len__}
    visit.page.evaluate.side_effect = lambda script: answers.get(script, frames.copy)()
    visit.page.wait_for_timeout.side_effect = lambda milliseconds: frames.append(20.0 * len(frames))
    visit.page.get_by_role().bounding_box.return_value = {"x": 0, "y": 0, "width": 40, "height": 400}
    monkeypatch.setattr(chromium, "_SCRUBBED", 0)
    row = chromium._scrubbing(visit, 1)
    assert row.values == [50.0]
    assert row.note == "longest frame 20 ms"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(chromium.browser() is None, reason="needs Chromium on the PATH")
def test_what_a_visitor_waits_for_is_timed_in_chromium(monkeypatch, tmp_path):
    for name, value in {"PAGES": ("Glossary",), "_CALM": 200, "_SCRUBBED": 8}.items():
        monkeypatch.setattr(chromium, name, value)
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path))
    found = {row.name.removeprefix("in Chromium, "): row for row in chromium.rows(1)}
    typed = found.pop("the last key of a prompt, to its picture")
    assert not typed.values
    assert "refusal fetch qwen2.5-coder-0.5b-instruct" in typed.note
    speed = found.pop("scrubbing over the layers")
    assert 0 < speed.values[0] < 100
    assert set(found) == {
        "a point clicked, its prompt to be read",
        "a band dragged, its prompts counted",
        "from Home to Glossary",
    }
    for row in found.values():
        assert 0 < row.values[0] < 60
        assert row.seconds["server"][0] > 0


def test_a_model_of_random_weights_runs_from_a_configuration_alone(tiny_folder, monkeypatch):
    config = tiny_config("qwen2")
    small = {name: getattr(config, name) for name in random_models.RANDOM["random-7b"]}
    monkeypatch.setitem(random_models.RANDOM, "random-tiny", small)
    chat_model = random_models.random_model("random-tiny", "cpu", "bfloat16", str(tiny_folder))
    assert chat_model.dtype == "bfloat16"
    reader = ResidualReader(chat_model)
    found = reader.read_last([reader.encode(text) for text in TEXTS[:3]])
    assert np.isfinite(found.states).all()


@pytest.mark.slow
def test_the_memory_of_a_whole_run_is_measured_in_a_process_of_its_own(tiny_chat_model, monkeypatch):
    monkeypatch.setattr(memory, "COUNTS", (64,))
    (row,) = memory.rows(Bench(tiny_chat_model, TEXTS, 1))
    # The interpreter and torch by themselves are some hundred megabytes.
    assert 0.1 < row.values[0] < 1.5
    prompts = 64 + 4 * 134  # the quartets, which every run scores
    assert f"activations {prompts * 25 * 896 * 4 / 1e9:.2f} GB" in row.note
    assert row.cells()[1] == "64 prompts, over the weights"


@pytest.mark.slow
def test_what_people_wait_for_is_timed_on_a_run_from_the_command_line(monkeypatch):
    monkeypatch.setattr(waiting, "SITES", 3)
    monkeypatch.setattr(waiting, "WIDTH", 24)
    rows = {row.name: row for row in waiting.rows(Bench(tiny_model("qwen2"), TEXTS, 1))}
    assert all(len(row.values) == 1 and row.values[0] > 0 for row in rows.values())
    assert [name for name in rows if name.startswith("refusal")] == ["refusal --help", "refusal list", "refusal show"]
    made = rows["a run from the command line over its passes"]
    assert made.values[0] > 1
    listed = rows["a list over the extraction of its prompts"]
    assert "to 0e+00 the same numbers" in listed.note
    assert set(listed.seconds) == {"list", "extraction"}
    assert "evidence of 20 x 3 x 24" in rows


def test_a_visitor_who_is_sent_another_s_text_is_counted_and_the_answer_is_the_line_that_names_the_prompt():
    marks = [f"mark{number:016x}" for number in range(2)]
    texts = [f"Scored: {marks[0]} how", f"Nearest: {marks[1]} write", f"Scored: {marks[0]} how do I"]
    sent = [ForwardMsg(), *(ForwardMsg() for _ in texts)]
    sent[0].script_finished = ForwardMsg.FINISHED_EARLY_FOR_RERUN
    for message, text in zip(sent[1:], texts, strict=True):
        message.delta.new_element.text.body = text
    socket = AsyncMock(recv=AsyncMock(side_effect=[message.SerializeToString() for message in sent]))
    seen = visitors._Seen()
    visit = visitors._Session(socket, seen)
    visit.mark = marks[0]
    asyncio.run(visit._until(texts[-1]))
    assert socket.recv.await_count == len(sent)
    assert (seen.own, seen.foreign) == (2, 1)
