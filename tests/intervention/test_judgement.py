"""What steering moves: a model that judges by one direction and refuses by another is told apart as it was planted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from making import make_run
from plain import plain_states
from synthetic import behaviour_manifest, save_judgement
from tiny import PLANTED_LAYER, PLANTED_SIGN, REFUSED_SIGN, planted_judge, planted_model, tiny_model

from refusal_core.activations import limits
from refusal_core.activations.passes import FinishedPasses
from refusal_core.activations.reader import ResidualReader
from refusal_core.activations.refusal_tokens import answer_token_ids
from refusal_core.analysis.controls import control_direction
from refusal_core.errors import RefusalError, RunError
from refusal_core.intervention import judgement, judgement_effects
from refusal_core.intervention.conditions import ABLATE, ADD, PLAIN
from refusal_core.models.opening import load_model
from refusal_core.models.templates import render
from refusal_core.options import JudgementOptions
from refusal_core.progress import no_progress
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.additions import save_addition
from refusal_core.runs.store import open_run

PER_CELL = 14
OPTIONS = JudgementOptions(limit_per_label=8, random_directions=8, layer=PLANTED_LAYER, source="prompts")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("judge") / "judge", planted_judge()
    for part in (made.model, made.tokenizer):
        part.save_pretrained(folder)
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def asked(judge, tmp_path_factory):
    """A run of a model that judges by one sign and refuses by another, each on half of the prompts with the other."""
    folder = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(0)
    rows = [
        ("".join(rng.choice(list("bdgjkvwxz"), 20)) + sign + done, label)
        for _ in range(PER_CELL)
        for sign, label in ((PLANTED_SIGN, "harmful"), ("?", "harmless"))
        for done in (REFUSED_SIGN, "%")
    ]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "prompts.csv", index=False)
    run = make_run(judge.info.path, folder / "prompts.csv", cache=folder, transfer=(), dtype="float32").run
    refuses = np.where(run.prompts["text"].str.contains(REFUSED_SIGN), "refuses", "answers")
    replies = run.prompts[["prompt_id"]].assign(phrase_log_odds=0.0, opening="", opening_label=refuses)
    save_addition(run, replies, behaviour_manifest("I cannot"))
    judgement.record(run, judge, OPTIONS)
    return run


@pytest.mark.slow
def test_the_planted_directions_of_harm_and_refusal_are_told_apart(asked):
    measured = judgement.load_judgement(asked)
    summary = judgement_effects.summarise(asked, measured)
    assert judgement_effects.separation(asked, measured)[1] > 0.5
    by = summary.set_index(["edit", "direction", "label", "outcome"]).sort_index()
    for where in ("t_inst", "t_post"):
        for edit, label, sign in ((ADD, "harmless", 1), (ABLATE, "harmful", -1)):
            harm, refusal = (by.loc[(edit, f"{what} at {where}", label)] for what in ("harm", "refusal"))
            assert sign * harm.loc["judgement", "moved"] > 1
            assert abs(harm.loc["refusing", "moved"]) < 0.4
            assert abs(refusal.loc["judgement", "moved"]) < 0.4
    # The planted refusing shows at the last token alone.
    assert by.loc[(ADD, "refusal at t_post", "harmless", "refusing"), "moved"] > 1
    said = judgement_effects.headline(asked, measured, summary)
    assert "along harm, the judgement is shown to move in 4 of 4 edits" in said
    assert "and refusing more than the judgement in 0; along refusal" in said
    lines = judgement_effects.reading(asked, measured, summary)
    (line,) = [line for line in lines if line.startswith("Added once, refusal at t_post")]
    assert "moves refusing (" in line
    assert "is not shown to move the judgement (" in line
    assert "; refusing more" in line


@pytest.mark.slow
def test_unsteered_numbers_are_those_of_plain_passes(asked, judge):
    table, manifest = judgement.load_judgement(asked)
    assert manifest.replies.counts["harmful_refused"] + manifest.replies.counts["harmful_answered"] == 2 * PER_CELL - 8
    row = table[table["edit"].eq(PLAIN)].iloc[3]
    prompt = asked.prompts.set_index("prompt_id").loc[row["prompt_id"]]
    assert row["refusal_log_odds"] == pytest.approx(prompt["refusal_log_odds"], abs=1e-3)
    answered = []
    for question, column in zip(judgement.QUESTIONS, ("harmful_log_odds", "harmless_log_odds"), strict=True):
        ids = render(judge.tokenizer, question.replace("{request}", prompt["text"]))
        with torch.inference_mode():
            p = judge.model(torch.tensor([ids])).logits[0, -1].double().softmax(dim=0)
        yes, no = (p[tokens].sum() for tokens in answer_token_ids(judge.tokenizer))
        assert row[column] == pytest.approx(float(torch.log(yes / no)), abs=1e-4)
        answered.append(float(yes + no))
    assert row["answered"] == pytest.approx(np.mean(answered), rel=1e-3)


@pytest.mark.slow
def test_stopped_it_goes_on_where_it_was(asked, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PARALLEL", 1)
    shutil.copytree(asked.path, tmp_path / asked.run_id)
    run, done, added, add = open_run(asked.run_id, tmp_path), [], [], FinishedPasses.add
    monkeypatch.setattr(FinishedPasses, "add", lambda kept, name, *found: [added.append(name), add(kept, name, *found)])

    def stop(stage, so_far, total):
        if stage == judgement.JUDGING and 0 < so_far < total:
            done.append(so_far)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judgement.record(run, judge, OPTIONS, stop)
    stages = []
    again = judgement.record(run, judge, OPTIONS, lambda stage, *_: stages.append(stage))
    assert done
    # The directions were kept as well.
    assert set(stages) == {judgement.JUDGING}
    assert len(added) == len(set(added))
    before = judgement.load_judgement(asked)[0]
    pd.testing.assert_frame_equal(again, before, check_exact=False, atol=1e-4)
    assert not (run.path / ".judgement").exists()


def test_prompts_of_a_group_that_is_asked_about_are_not_fitted_on(run):
    groups, rows = prompt_groups(run.prompts), np.arange(8)
    fitted = judgement._other_rows(run, rows)
    assert not set(groups[fitted]) & set(groups[rows])
    assert len(fitted) == run.rows().sum() - 8
    with pytest.raises(RefusalError, match="none are left to fit"):
        judgement._other_rows(run, np.flatnonzero(run.rows()))


def test_controls_share_nothing_with_any_of_several_found_directions():
    rng = np.random.default_rng(0)
    hidden, labels = rng.normal(size=(40, 12)), np.arange(40) % 2 == 0
    found = rng.normal(size=(3, 12))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    drawn = control_direction("covariance 1", hidden, labels, found, np.random.default_rng(1))
    np.testing.assert_allclose(found @ drawn, 0, atol=1e-6)
    assert np.linalg.norm(drawn) == pytest.approx(1)


def test_a_layer_that_the_model_lacks_and_a_tokenizer_that_cannot_answer_are_refused(run, monkeypatch):
    with pytest.raises(RefusalError, match="expected a layer from 0 to 5, got 6"):
        judgement.record(run, None, JudgementOptions(layer=6))
    tokenizer = planted_model().tokenizer
    monkeypatch.setattr(tokenizer, "encode", lambda text, **_: [7])
    with pytest.raises(RefusalError, match="begins Yes and No with the same token"):
        answer_token_ids(tokenizer)


def test_of_a_prompt_whose_end_is_merged_with_the_template_the_merged_token_is_read():
    chat_model = tiny_model("qwen2", "{% for m in messages %}{{ m.content }}o you\n\n{% endfor %}")
    reader, texts = ResidualReader(chat_model), ["a", "I d", "Zebra h", "x"]
    ends = [-1 - reader.n_closing(reader.encode(text)) for text in texts]
    assert len(set(ends)) > 1
    run = SimpleNamespace(
        prompts=pd.DataFrame({"text": texts, "label": ["harmful", "harmless"] * 2}),
        directions=SimpleNamespace(unit_direction=np.zeros((5, 32))),
        n_layers=4,
    )
    read = judgement._read_vectors(
        run, reader, np.arange(4), None, 2, JudgementOptions(random_directions=2), no_progress
    )
    for where, places in (("t_inst", ends), ("t_post", [-1] * 4)):
        tokens = [len(reader.encode(text)) + place for text, place in zip(texts, places, strict=True)]
        states = [plain_states(chat_model, text, token)[2] for text, token in zip(texts, tokens, strict=True)]
        difference = states[0] + states[2] - states[1] - states[3]
        np.testing.assert_allclose(read[f"harm at {where}"][2], difference / np.linalg.norm(difference), atol=1e-4)


def test_a_run_at_another_read_position_is_refused_before_anything_is_asked_of_the_model(run):
    with pytest.raises(RunError, match=r"judgement: expected a run at t_post.*at t_inst"):
        judgement.record(replace(run, position=-3, read_at="t_inst"), None, JudgementOptions())


@pytest.fixture
def own(run, tmp_path):
    shutil.copytree(run.path, tmp_path / run.run_id)
    return open_run(run.run_id, tmp_path)


def summarised(run) -> tuple[judgement.Measured, pd.DataFrame]:
    measured = judgement.load_judgement(run)
    return measured, judgement_effects.summarise(run, measured, draws=99)


@pytest.mark.parametrize(("moved", "said"), [((5.0, 0.0), "the judgement more"), ((0.0, 5.0), "refusing more")])
def test_what_moves_more_is_said_and_a_push_towards_yes_is_no_judgement(own, moved, said):
    save_judgement(own, {"refusal at t_post": moved})
    measured, summary = summarised(own)
    lines = judgement_effects.reading(own, measured, summary)
    told = {line.split(" (")[0]: line for line in lines if "refusal at t_post" in line}
    assert len(told) == 2
    assert all(f"; {said} (" in line for line in told.values())
    others = [line for line in lines if "refusal at t_post" not in line]
    assert len(others) == 6
    assert all("is not shown to move the judgement (" in line and " or refusing (" in line for line in others)
    # Both answers moved alike.
    table, manifest = measured
    steered = table["edit"].eq(ADD) * 9.0
    pushed = {name: table[name] + steered for name in ("harmful_log_odds", "harmless_log_odds")}
    save_addition(own, table.assign(**pushed), manifest)
    np.testing.assert_allclose(summarised(own)[1]["moved"], summary["moved"], atol=1e-9)


def test_of_directions_that_do_what_controls_do_hardly_anything_is_said(own):
    claims = 0
    for seed in range(30):
        save_judgement(own, {}, seed=seed)
        summary = summarised(own)[1]
        asked_for = summary[summary["label"].eq(summary["edit"].map(judgement_effects.ASKED))]
        claims += asked_for[asked_for["outcome"].ne("difference")].apply(judgement_effects.is_effect, axis=1).any()
    # At 2.5 %, more than 3 of 30 have a probability of 0.7 %.
    assert claims <= 3


def test_a_model_that_does_not_tell_the_labels_apart_is_not_read(own):
    save_judgement(own, {"harm at t_inst": (5.0, 5.0)}, apart=0.0)
    measured, summary = summarised(own)
    said = judgement_effects.headline(own, measured, summary)
    assert "is not shown to tell the labels apart" in said
    assert "along harm, refusing is shown to move in 2 of 4 edits" in said
    assert not any("the judgement" in line for line in judgement_effects.reading(own, measured, summary))


def test_too_few_controls_or_prompts_say_nothing(own):
    save_judgement(own, {"harm at t_inst": (5.0, 5.0)}, controls=3)
    measured, summary = summarised(own)
    assert "takes 3 controls of a kind" in judgement_effects.headline(own, measured, summary)
    assert judgement_effects.reading(own, measured, summary) == []
    save_judgement(own, {})
    table, manifest = judgement.load_judgement(own)
    save_addition(own, table[table["prompt_id"].isin(table["prompt_id"].unique()[:14])], manifest)
    measured, summary = summarised(own)
    assert "and here are 7" in judgement_effects.headline(own, measured, summary)


def test_tables_that_lack_or_repeat_rows_or_are_of_other_prompts_are_refused(own):
    save_judgement(own, {})
    table, manifest = judgement.load_judgement(own)
    for broken, update, message in (
        (table[1:], {}, "lacks rows"),
        (pd.concat([table, table[:1]]), {}, "twice"),
        (table[table["direction"].ne("harm at t_inst")], {}, None),
        (table[~table["direction"].isin(judgement.HARMS)], {}, "lacks directions"),
        (table[table["edit"].ne(PLAIN)], {}, "lacks rows"),
        (table.assign(direction=table["direction"].replace("isotropic 1", "mine")), {}, "lacks rows"),
        (table.assign(prompt_id="0" * 12), {}, "other prompts"),
        (table, {"layer": 6}, "other layers"),
        (table.assign(answered=1.5), {}, "answered"),
        (table.assign(harmful_log_odds=np.inf), {}, "harmful_log_odds"),
    ):
        save_addition(own, broken, manifest.model_copy(update=update))
        if message is None:
            assert judgement.load_judgement(own) is not None
            continue
        with pytest.raises(RunError, match=message):
            judgement.load_judgement(own)
