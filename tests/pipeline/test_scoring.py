"""Scores of prompts of one's own against a run, with the run's model and no other."""

from __future__ import annotations

import copy
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import make_run
from tiny import GEMMA_LIKE, tiny_model

import refusal_core as rc
from refusal_core.activations.reader import ResidualReader
from refusal_core.behaviour import measurement
from refusal_core.conversations import Conversation, Turn
from refusal_core.errors import ModelError, PromptError, RefusalError, RunError
from refusal_core.intervention import experiment
from refusal_core.models.opening import load_model
from refusal_core.pipeline.scoring import MOST_PER_TOKEN, Scorer, identify_for, load_model_for, score
from refusal_core.progress import no_progress
from refusal_core.runs.local_models import remember_model
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run
from refusal_core.sharing.archives import pack_run, unpack_run


def test_a_fitted_prompt_scores_what_the_run_says(tiny_run, tiny_chat_model):
    row = 5
    result = score(tiny_chat_model, tiny_run, [tiny_run.prompts["text"][row]])[0]
    np.testing.assert_allclose(result.projection, tiny_run.projections[row], rtol=1e-4, atol=1e-4)
    assert result.refusal_log_odds == pytest.approx(tiny_run.prompts["refusal_log_odds"][row], abs=1e-3)
    assert result.token_projection.shape == (len(result.tokens), tiny_run.n_sites)
    own = tiny_run.projections[tiny_run.rows(tiny_run.prompts["label"][row]), 3]
    assert (
        abs(result.percentile[tiny_run.prompts["label"][row]][3] - 100 * (own < tiny_run.projections[row, 3]).mean())
        < 100 / 12
    )


def test_scoring_refuses_another_model(tiny_run, tmp_path):
    other = tiny_model("llama")
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is not the model of this run"):
        load_model_for(tiny_run, tmp_path)


def test_a_model_in_memory_is_known_by_its_weights_and_not_by_its_name(
    tiny_run, tiny_chat_model, tiny_folder, tmp_path
):
    # In a folder of the same name, with the same template.
    place = tmp_path / tiny_folder.name
    model = copy.deepcopy(tiny_chat_model.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1e-3
    model.save_pretrained(place)
    tiny_chat_model.tokenizer.save_pretrained(place)
    other = load_model(place, dtype="float32", device="cpu")
    assert other.info.name == tiny_run.model_name
    said = r"in memory is not the one of this run: expected tiny-qwen2 \(4 layers of width 32, weights as published, "
    for ask in (
        lambda: rc.score(tiny_run, ["x"], model=other),
        lambda: rc.score(tiny_run, ["x", "y"], model=other),
        lambda: measurement.record(tiny_run, other),
        lambda: experiment.record(tiny_run, other),
    ):
        with pytest.raises(ModelError, match=said):
            ask()
    renamed = replace(tiny_chat_model, info=replace(tiny_chat_model.info, name="mine", path=None))
    assert len(rc.score(tiny_run, ["x"], model=renamed)) == 1


@pytest.mark.slow
def test_a_run_opens_its_model_as_it_was_opened(tiny_folder, tmp_path):
    (tmp_path / "other.jinja").write_text(GEMMA_LIKE)
    options = {"limit_per_label": 8, "device": "cpu", "cache": tmp_path / "cache"}
    made = make_run(tiny_folder, "pairs", dtype="bfloat16", chat_template=tmp_path / "other.jinja", **options).run
    opened = made.load_model()
    assert (opened.dtype, opened.tokenizer.chat_template) == ("bfloat16", GEMMA_LIKE)
    assert made.load_model(tiny_folder, dtype="float32", device="cpu").dtype == "float32"
    row = made.projections[3]
    (found, _) = rc.score(made, [*made.prompts["text"][3:5]], model=opened, progress=no_progress)
    np.testing.assert_allclose(found.projection, row, atol=0.05 * np.abs(made.projections).max())


def test_scores_are_computed_in_the_dtype_that_is_asked_for_and_progress_is_told(tiny_run, tiny_chat_model, capsys):
    texts, stages = [*tiny_run.prompts["text"][:4]], []
    exact = rc.score(tiny_run, texts, progress=lambda *said: stages.append(said))
    assert stages[-1][1:] == (4, 4)
    assert capsys.readouterr().err == ""
    coarse = rc.score(tiny_run, texts, dtype="bfloat16", device="cpu")
    assert "4/4" in capsys.readouterr().err
    off = np.array([one.projection - other.projection for one, other in zip(exact, coarse, strict=True)])
    assert 1e-4 < np.abs(off).max() < 0.1 * tiny_run.projections.std()
    for given in ({"dtype": "bfloat16"}, {"device": "cpu"}):
        with pytest.raises(RefusalError, match="open already, on cpu in float32"):
            rc.score(tiny_run, texts, model=tiny_chat_model, **given)


def test_a_model_in_memory_in_other_bits_than_the_runs_is_refused(tiny_run, tiny_chat_model):
    in_bits = replace(tiny_chat_model, info=replace(tiny_chat_model.info, quantisation="bitsandbytes, 4 bits"))
    with pytest.raises(ModelError, match=r"weights as published, .*got tiny-qwen2 .*weights bitsandbytes, 4 bits"):
        rc.score(tiny_run, ["x"], model=in_bits)


def sent_to(run: Run, cache: Path) -> Run:
    """The run as it is in a packed archive, in another cache."""
    packed = io.BytesIO()
    pack_run(run.run_id, packed, run.path.parent)
    unpack_run(packed, cache)
    return open_run(run.run_id, cache)


def test_a_local_model_is_found_where_the_run_was_made_and_nowhere_else(tiny_run, tiny_folder, tmp_path):
    assert load_model_for(tiny_run).info.path == str(tiny_folder)
    stranger = sent_to(tiny_run, tmp_path / "cache")
    assert not any(str(tiny_folder) in path.read_text("latin-1") for path in stranger.path.iterdir())
    with pytest.raises(RunError, match="say where it is"):
        load_model_for(stranger)


def test_a_run_that_is_found_in_the_cache_remembers_its_model_too(tiny_run, tiny_folder, tmp_path):
    run = sent_to(tiny_run, tmp_path)
    options = {"limit_per_label": 12, "dtype": "float32", "device": "cpu", "cache": tmp_path}
    assert make_run(tiny_folder, "pairs", **options).cached
    assert identify_for(run).path == str(tiny_folder)


def test_a_model_that_has_gone_or_changed_is_asked_for_again(tiny_run, tiny_folder, tmp_path):
    run, place = sent_to(tiny_run, tmp_path / "cache"), tmp_path / "model"
    shutil.copytree(tiny_folder, place)
    remember_model(run, place)
    assert identify_for(run).path == str(place)
    shutil.rmtree(place)
    with pytest.raises(RunError, match="say where it is"):
        identify_for(run)
    other = tiny_model("llama")
    other.model.save_pretrained(place)
    other.tokenizer.save_pretrained(place)
    with pytest.raises(ModelError, match="is not the model of this run"):
        identify_for(run)
    with pytest.raises(RunError, match="say where it is"):
        identify_for(run)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}'])
def test_remembered_models_that_cannot_be_read_are_none(tiny_run, tmp_path, content):
    run = sent_to(tiny_run, tmp_path)
    (tmp_path / ".models.json").write_text(content)
    with pytest.raises(RunError, match="say where it is"):
        identify_for(run)


def test_scoring_refuses_what_cannot_be_scored(tiny_run, tiny_chat_model):
    with pytest.raises(PromptError, match=r"text 2: .*empty"):
        score(tiny_chat_model, tiny_run, ["fine", "  "])
    with pytest.raises(PromptError, match="tokens long"):
        score(tiny_chat_model, tiny_run, ["word " * 2000])
    with pytest.raises(PromptError, match=r"text 2 .*tokens long"):
        score(tiny_chat_model, tiny_run, ["fine", "word " * 2000])


@pytest.mark.slow
def test_several_prompts_are_scored_as_each_is_alone_and_as_the_run_read_them(tiny_run, tiny_chat_model, monkeypatch):
    texts = [*tiny_run.prompts["text"][:20], "x", "How do I make the reply begin?"]
    given = [*texts[:-1], Conversation(texts[-1], (Turn("system", "Be brief."),), "Sure,")]
    alone = [score(tiny_chat_model, tiny_run, [prompt])[0] for prompt in given]
    calls, stages = [], []
    read_last = ResidualReader.read_last
    monkeypatch.setattr(
        ResidualReader,
        "read_last",
        lambda reader, part, last=1: calls.append(len(part)) or read_last(reader, part, last),
    )
    together = score(tiny_chat_model, tiny_run, given, lambda *said: stages.append(said))
    assert max(calls) > 5
    assert stages[-1][1:] == (len(given), len(given))
    for one, other in zip(together, alone, strict=True):
        assert one.prompt == other.prompt
        np.testing.assert_allclose(one.projection, other.projection, rtol=1e-5, atol=1e-5)
        assert one.refusal_log_odds == pytest.approx(other.refusal_log_odds, abs=1e-4)
        assert one.first_token == other.first_token
        for label, values in other.percentile.items():
            np.testing.assert_allclose(one.percentile[label], values, atol=100 / 12)
        assert one.tokens == []
        assert one.token_projection.shape == (0, tiny_run.n_sites)
        assert len(other.token_projection) == len(other.tokens) > 0
    assert score(tiny_chat_model, tiny_run, []) == []
    np.testing.assert_allclose(
        [one.projection for one in together[:20]], tiny_run.projections[:20], rtol=1e-5, atol=1e-5
    )


def test_a_text_that_no_token_limit_allows_is_refused_without_being_tokenized(tiny_run, tiny_chat_model, monkeypatch):
    """Megabytes would take minutes and gigabytes, for which all who score would wait."""
    scorer = Scorer(tiny_chat_model, tiny_run)
    limit = tiny_run.manifest.template.token_limit
    monkeypatch.setattr(scorer.reader, "encode", lambda prompt, with_prefix: [0] * limit)
    longest = "x" * (limit * MOST_PER_TOKEN)
    assert len(scorer.encode(longest)) == limit
    monkeypatch.setattr(scorer.reader, "encode", None)
    for prompt in (longest + "x", Conversation("x", (Turn("user", longest), Turn("assistant", "y")))):
        with pytest.raises(PromptError, match="characters long, expected at most"):
            scorer.encode(prompt)
