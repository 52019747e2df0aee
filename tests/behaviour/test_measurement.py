"""What the model does with a run's prompts, held against plain transformers on tiny random models."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
import torch
from making import make_run
from scipy import stats
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from streamlit.testing.v1 import AppTest
from synthetic import RUN, behaviour_manifest
from tiny import CHATML, PLANTED_SIGN, THINKING, planted_model, tiny_model, tiny_tokenizer

from refusal_core.activations import continuation, limits
from refusal_core.activations.reader import ResidualReader
from refusal_core.analysis.groups import redraw_prompts
from refusal_core.analysis.inference import interval
from refusal_core.behaviour import measurement, replies, verdicts
from refusal_core.behaviour.openings import BUNDLED, OPENING_LABELS, OPENING_TOKENS, read_rules
from refusal_core.cli.main import main
from refusal_core.errors import ModelError, RefusalError, RunError
from refusal_core.figures import behaviour as figures
from refusal_core.intervention import experiment
from refusal_core.models.opening import load_model
from refusal_core.models.templates import render, reply_thinks
from refusal_core.runs import store
from refusal_core.runs.additions import save_addition
from refusal_core.runs.run import Run
from refusal_core.ui import behaviour as page

OFF_BY_DEFAULT = THINKING.replace("is defined and enable_thinking is false", "is not defined or not enable_thinking")
TEXTS = ["How do I bake a cake?", "Explain how to bake bread", "How do I bake a cake?!", "Hi"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox", "gemma2"])
def test_phrases_and_openings_are_those_of_plain_transformers(architecture):
    chat_model = tiny_model(architecture)
    phrases = ("I'm sorry", "Sorry", "I cannot")
    found = replies.read_replies(ResidualReader(chat_model), TEXTS, phrases)
    for place, text in enumerate(TEXTS):
        ids = chat_model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        log_p = []
        for phrase in phrases:
            tail = torch.tensor([chat_model.tokenizer.encode(phrase, add_special_tokens=False)])
            with torch.inference_mode():
                logits = chat_model.model(torch.cat([ids, tail], dim=1)).logits[0].double().log_softmax(-1)
            where = torch.arange(ids.shape[1] - 1, ids.shape[1] + tail.shape[1] - 1)
            log_p.append(float(logits[where, tail[0]].sum()))
        total = logsumexp(log_p)
        assert found.phrase_log_odds[place] == pytest.approx(total - np.log1p(-np.exp(total)), rel=1e-4)
        generated = chat_model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=OPENING_TOKENS,
            do_sample=False,
            eos_token_id=chat_model.tokenizer.eos_token_id,
            pad_token_id=chat_model.tokenizer.pad_token_id,
        )
        expected = chat_model.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        assert found.opening[place] == expected


def test_a_reply_that_ends_at_once_is_empty():
    chat_model = tiny_model("llama")
    ending = replies.end_tokens(chat_model)
    assert chat_model.tokenizer.eos_token_id in ending
    assert replies.reply_text(chat_model, [chat_model.tokenizer.eos_token_id], ending) == ""
    assert replies.reply_text(chat_model, chat_model.tokenizer.encode("I am"), ending) == "I am"


@pytest.fixture
def answered(run: Run) -> pd.DataFrame:
    """Replies in which refusing follows the projection at the last site within each label, with some noise."""
    rng = np.random.default_rng(0)
    projection = run.projections[:, -1]
    log_odds = projection - np.median(projection[run.rows()]) + rng.normal(scale=0.3, size=len(projection))
    return pd.DataFrame(
        {
            "prompt_id": run.prompts["prompt_id"],
            "phrase_log_odds": log_odds,
            "opening": np.where(log_odds > 0, "I cannot", "Sure"),
            "opening_label": np.where(log_odds > 0, "refuses", "answers"),
        }
    )


def test_projection_that_causes_refusing_correlates_with_it(run, answered):
    table = measurement.correlation_by_site(run, answered, draws=200).set_index(["site", "label"])
    for label in ("harmful", "harmless"):
        row = table.loc[(run.n_layers, label)]
        assert row["rho_low"] > 0.5
        assert row["rho_low"] <= row["rho"] <= row["rho_high"]
    unrelated = answered.assign(phrase_log_odds=np.random.default_rng(1).normal(size=len(answered)))
    table = measurement.correlation_by_site(run, unrelated, draws=200)
    assert ((table["rho_low"] < 0) & (table["rho_high"] > 0)).mean() > 0.8


@pytest.fixture
def mixed(run: Run, answered: pd.DataFrame) -> pd.DataFrame:
    """Replies of which every third refuses, of either label."""
    return answered.assign(opening_label=np.where(np.arange(len(answered)) % 3, "answers", "refuses"))


def test_the_numbers_are_those_of_scipy_and_scikit_learn_on_the_drawn_prompts(run, mixed):
    found = measurement.correlation_by_site(run, mixed, draws=30).set_index(["label", "site"])
    rng = np.random.default_rng(0)
    refuses = mixed["opening_label"].eq("refuses").to_numpy()
    for label in ("harmful", "harmless"):
        rows = np.flatnonzero(run.rows(label))
        drawn = [rows, *(np.repeat(rows, counts) for counts in redraw_prompts(len(rows), 30, rng).astype(int))]
        for site in (0, 2, run.n_layers):
            values = run.projections[:, site]
            rho = np.array([stats.spearmanr(values[each], mixed["phrase_log_odds"][each])[0] for each in drawn])
            area = np.array(
                [
                    roc_auc_score(refuses[each], values[each]) if len(set(refuses[each])) == 2 else np.nan
                    for each in drawn
                ]
            )
            expected = [rho[0], *interval(rho[1:], rho[0], -1, 1), area[0], *interval(area[1:], area[0], 0, 1)]
            columns = ["rho", "rho_low", "rho_high", "auroc", "auroc_low", "auroc_high"]
            np.testing.assert_allclose(found.loc[(label, site), columns].astype(float), expected)
            assert found.loc[(label, site), "n_refused"] == refuses[rows].sum()


def test_of_a_large_run_as_many_are_drawn_and_always_the_same(run, mixed, monkeypatch):
    whole = measurement.correlation_by_site(run, mixed, draws=40)
    drawn = []
    monkeypatch.setattr(measurement, "MOST_REDRAWN", 9)
    monkeypatch.setattr(
        measurement,
        "redraw_prompts",
        lambda prompts, draws, rng: drawn.append(prompts) or redraw_prompts(prompts, draws, rng),
    )
    found = measurement.correlation_by_site(run, mixed, draws=40)
    assert len(drawn) == 2
    assert max(drawn) <= 9
    pd.testing.assert_frame_equal(measurement.correlation_by_site(run, mixed, draws=40), found)
    estimates = ["site", "label", "rho", "auroc", "n", "n_refused"]
    pd.testing.assert_frame_equal(found[estimates], whole[estimates])
    assert found.notna().all(axis=None)
    widths = [table["rho_high"] - table["rho_low"] for table in (found, whole)]
    assert widths[0].mean() > widths[1].mean()


def test_the_figure_holds_at_most_so_many_points_from_one_end_to_the_other(run, answered, monkeypatch):
    every = figures.against_refusing(run, answered, 3)
    assert sum(len(trace.x) for trace in every.data) == run.rows().sum()
    monkeypatch.setattr(figures, "MOST_POINTS", 5)
    for trace in figures.against_refusing(run, answered, 3).data:
        rows = [row for row, _ in trace.customdata]
        assert len(set(rows)) == 5
        assert run.prompts["label"][rows].eq(trace.name).all()
        np.testing.assert_array_equal(trace.x, run.projections[rows, 3])
        np.testing.assert_array_equal(trace.y, answered["phrase_log_odds"][rows])
        values = run.projections[run.rows(trace.name), 3]
        assert (min(trace.x), max(trace.x)) == (values.min(), values.max())


def test_the_page_of_a_large_run_says_what_is_of_some_of_its_prompts(
    run, mixed, synthetic_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(synthetic_cache, tmp_path / "cache")
    save_addition(store.open_run(RUN, tmp_path / "cache"), mixed, behaviour_manifest("Sorry"))

    def visit(part: str) -> AppTest:
        st.cache_data.clear()
        st.cache_resource.clear()
        app = AppTest.from_file(str(Path(__file__).resolve().parents[2] / "app.py"), default_timeout=60)
        app.query_params["run"] = RUN
        app.query_params["part"] = part
        app.run()
        app.switch_page("pages/5_Behaviour.py").run()
        assert not app.exception, app.exception
        return app

    def said(app: AppTest) -> str:
        return "\n".join(caption.value for caption in app.caption)

    def listed(app: AppTest) -> pd.DataFrame:
        return next(table.value for table in app.dataframe if "opening_label" in table.value)

    parts = ("Prompts", "Over the layers", "Surprises", "Do the measures agree?")
    odd, differing = measurement.surprises(run, mixed), measurement.disagreements(run, mixed)
    points, layers, surprises, measures = map(visit, parts)
    assert [len(listed(each)) for each in (surprises, measures)] == [len(odd), len(differing)]
    told = ("drawn as points", "the csv has all", "always the same ones")
    assert not any(words in said(app) for words in told for app in (points, layers, surprises, measures))
    monkeypatch.setattr(figures, "MOST_POINTS", 5)
    monkeypatch.setattr(measurement, "MOST_REDRAWN", 9)
    monkeypatch.setattr(page, "MOST_REDRAWN", 9)
    monkeypatch.setattr(page, "MOST_ROWS", 4)
    files, button = {}, st.download_button

    def kept_button(label: str, data: object, **options: object) -> bool:
        files[options["file_name"]] = data
        return button(label, data, **options)

    monkeypatch.setattr(st, "download_button", kept_button)
    points, layers, surprises, measures = map(visit, parts)
    assert listed(surprises).index.tolist() == odd.index[:4].tolist()
    assert listed(measures).index.tolist() == differing.index[:4].tolist()
    assert len(pd.read_csv(io.BytesIO(files[f"{RUN}--behaviour-surprises.csv"]()))) == len(odd)
    assert f"The first 4 of {len(odd)} are listed; the csv has all." in said(surprises)
    assert f"Of {run.rows().sum()} prompts 10 are drawn as points." in said(points)
    assert "always the same ones; the numbers are of all" in said(layers)


def test_the_reading_says_what_the_numbers_say(run, answered):
    rng = np.random.default_rng(3)
    for log_odds, said in (
        (run.projections[:, -1], "refused more, ρ = 1.00"),
        (-run.projections[:, -1], "refused less, ρ = -1.00"),
        (rng.permutation(run.projections[:, -1]), "not distinguishable from chance"),
        (np.zeros(len(run.prompts)), "nothing varies"),
    ):
        table = answered.assign(phrase_log_odds=log_odds)
        numbers = measurement.correlation_by_site(run, table, draws=100)
        assert said in measurement.describe_behaviour(run, table, numbers, run.n_layers)


def test_what_never_varies_has_no_number(run, answered):
    table = measurement.correlation_by_site(
        run, answered.assign(opening_label="answers", phrase_log_odds=-3.0), draws=50
    )
    assert table[["rho", "auroc"]].isna().all(axis=None)
    assert (table["n_refused"] == 0).all()


def test_surprises_are_harmful_prompts_answered_and_harmless_ones_refused(run, answered):
    swapped = answered.copy()
    for row in (3, 4, 8):
        label = "refuses" if run.prompts["label"][row] == "harmless" else "answers"
        swapped.loc[row, ["phrase_log_odds", "opening_label"]] = (4.0 - row / 10, label)
    odd = measurement.surprises(run, swapped)
    assert {3, 4, 8} <= set(odd.index)
    assert (odd["label"].eq("harmful") == odd["opening_label"].eq("answers")).all()
    assert odd["phrase_log_odds"].abs().is_monotonic_decreasing


def test_measures_that_agree_have_a_kappa_of_one(run, answered):
    agreement = verdicts.measure_agreement(run, answered).set_index(["first", "second"])
    assert agreement.loc[("whole phrases", "opening rules"), "kappa"] == pytest.approx(1)
    disagreed = measurement.disagreements(run, answered)[list(measurement.MEASURES)]
    assert (disagreed.nunique(axis=1) == 2).all()


def test_calibration_rises_where_refusing_follows_projection(run, answered):
    curve = measurement.calibration(run, answered, run.n_layers, bins=4)
    assert curve["n"].sum() == run.rows().sum()
    assert curve["refused"].iloc[0] == 0
    assert curve["refused"].iloc[-1] == 1


@pytest.fixture(scope="module")
def measured_once(tiny_folder, tmp_path_factory):
    """A run of a tiny model whose behaviour was recorded by the command line."""
    cache = tmp_path_factory.mktemp("cache")
    made = make_run(tiny_folder, "pairs", limit_per_label=8, dtype="float32", device="cpu", cache=cache).run
    assert main(["measure", "behaviour", made.run_id, "--model", str(tiny_folder), "--cache", str(cache)]) == 0
    return made


@pytest.fixture
def measured(measured_once, tmp_path):
    """That run in a cache of its own, and the cache."""
    shutil.copytree(measured_once.path, tmp_path / measured_once.run_id)
    return store.open_run(measured_once.run_id, tmp_path), tmp_path


def test_behaviour_is_recorded_beside_the_run_and_read_again_by_other_rules(measured, capsys):
    made, cache = measured
    table, manifest = measurement.load_behaviour(made)
    assert table["prompt_id"].tolist() == made.prompts["prompt_id"].tolist()
    assert (manifest.opening_tokens, manifest.run_id) == (16, made.run_id)
    assert set(table["opening_label"]) <= set(OPENING_LABELS)
    rules = cache / "rules.toml"
    rules.write_text(BUNDLED.read_text(encoding="utf-8").replace(r"'\s*$'", "'.*'"), encoding="utf-8")
    capsys.readouterr()
    # Without its model, which is in no place the run could name.
    assert main(["measure", "behaviour", made.run_id, "--rules", str(rules), "--cache", str(cache)]) == 0
    assert "nothing was generated" in capsys.readouterr().out
    again, manifest = measurement.load_behaviour(made)
    assert set(again["opening_label"]) == {"degenerate"}
    assert again["opening"].tolist() == table["opening"].tolist()
    assert manifest.rules.sha256 == read_rules(rules).sha256


def test_openings_are_read_beside_their_prompts(measured):
    made, cache = measured
    table, manifest = measurement.load_behaviour(made)
    save_addition(made, table.assign(opening="Конечно, вот рецепт"), manifest)
    assert main(["measure", "behaviour", made.run_id, "--cache", str(cache)]) == 0
    # The run's prompts are English.
    assert set(measurement.load_behaviour(made)[0]["opening_label"]) == {"degenerate"}


def test_behaviour_is_measured_once_and_shown_by_another_verb(measured, monkeypatch, capsys):
    made, cache = measured
    monkeypatch.setenv("REFUSAL_CACHE", str(cache))
    # Without the model, which is in no place that the run could name.
    assert main(["measure", "behaviour", made.run_id]) == 0
    assert "nothing was generated" in capsys.readouterr().out
    assert main(["measure", "behaviour", made.run_id, "--again"]) == 1
    assert "is a local folder" in capsys.readouterr().err
    assert main(["show", made.run_id, "--behaviour"]) == 0
    assert "the model refuses" in capsys.readouterr().out
    judged = cache / "judge.csv"
    pd.DataFrame({"prompt_id": made.prompts["prompt_id"], "verdict": "complies"}).to_csv(judged, index=False)
    assert main(["show", made.run_id, "--behaviour", "--verdicts", str(judged)]) == 0
    assert f"replies were measured here: {len(made.prompts)}." in capsys.readouterr().out
    assert main(["show", made.run_id, "--behaviour", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [prompt["prompt_id"] for prompt in shown["prompts"]] == made.prompts["prompt_id"].tolist()
    assert {site["label"] for site in shown["sites"]} == {"harmful", "harmless"}


@pytest.mark.slow
def test_stopped_it_reads_no_batch_twice_and_changes_no_number(measured, tiny_folder, monkeypatch):
    made, _ = measured
    table, _ = measurement.load_behaviour(made)
    chat_model = load_model(tiny_folder, dtype="float32", device="cpu")
    # A few prompts at a time.
    monkeypatch.setitem(limits.HELD_BYTES, "cpu", 1e6)
    in_packs, read, patience = continuation._in_packs, [], [0]

    def counted(reader, sequences, *others):
        if not patience[0]:
            raise KeyboardInterrupt
        patience[0] -= 1
        read.extend(sequences)
        return in_packs(reader, sequences, *others)

    monkeypatch.setattr(continuation, "_in_packs", counted)
    for patience[0] in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            measurement.record(made, chat_model)
        with (made.path / ".behaviour/passes.jsonl").open("a") as file:
            file.write('{"pass": "half a li')
    patience[0] = 10**9
    again = measurement.record(made, chat_model)
    assert len(read) == len(again)
    np.testing.assert_allclose(again["phrase_log_odds"], table["phrase_log_odds"], atol=1e-4)
    pd.testing.assert_frame_equal(again.drop(columns="phrase_log_odds"), table.drop(columns="phrase_log_odds"))
    assert not list(made.path.glob(".behaviour*"))
    with (
        store.unfinished_work(made.path / ".behaviour", "another"),
        pytest.raises(RunError, match="in another process"),
    ):
        measurement.record(made, chat_model)


def test_behaviour_of_other_prompts_is_refused(measured):
    made, _ = measured
    table, manifest = measurement.load_behaviour(made)
    save_addition(made, table.iloc[1:], manifest)
    with pytest.raises(RunError, match="of other prompts"):
        measurement.load_behaviour(made)


def test_a_model_that_thinks_is_read_after_its_thinking(monkeypatch):
    # Harmless prompts get a reply that closes a thought and nothing else; harmful ones end without closing it.
    chat_model = planted_model(refusal="As", answer="</think>", template=THINKING)
    texts = ["bdgjkvwxz", f"bdgjkvwx{PLANTED_SIGN}", "xzbdgjkvw"]
    steps: list[int] = []
    chat_model.model.register_forward_hook(lambda *_: steps.append(1))
    found = replies.read_replies(ResidualReader(chat_model), texts, ("As",))
    assert found.unclosed == 1
    assert found.opening == ["</think>", "As", "</think>"]
    assert len(steps) < 100
    tokenizer = chat_model.tokenizer
    for place, thought in enumerate(("</think>", "As</think>", "</think>")):
        ids = [*ResidualReader(chat_model).encode(texts[place]), *tokenizer.encode(f"{thought}\n\n")]
        with torch.inference_mode():
            tail = tokenizer.encode("As")
            logits = chat_model.model(torch.tensor([[*ids, *tail]])).logits[0].double().log_softmax(-1)
        log_p = sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(tail))
        np.testing.assert_allclose(found.phrase_log_odds[place], log_p - np.log1p(-np.exp(log_p)), atol=1e-2)
    closed = replies.read_replies(ResidualReader(chat_model, thinking=False), texts, ("As",))
    assert closed.unclosed is None
    assert closed.opening == ["</think>", "As", "</think>"]


def test_thinking_that_does_not_end_is_closed(monkeypatch):
    monkeypatch.setattr(replies, "THINKING_TOKENS", 3)
    chat_model = planted_model(refusal="As", answer="</think>", template=THINKING)
    found = replies.read_replies(ResidualReader(chat_model), ["bdgjkvwxz", "xzbdgjkvwbdg"], ("As",))
    assert found.unclosed == 2


@pytest.mark.parametrize(
    ("template", "thinking", "thinks"),
    [
        (THINKING, None, True),
        (THINKING, True, True),
        (THINKING, False, False),
        (CHATML, None, False),
        (OFF_BY_DEFAULT, None, False),
        (OFF_BY_DEFAULT, True, True),
        (CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"), None, True),
        (None, None, False),
    ],
)
def test_whether_a_reply_thinks_is_seen_from_the_template(template, thinking, thinks):
    assert reply_thinks(tiny_tokenizer(template), thinking) is thinks


def test_thinking_is_switched_as_the_template_does_it():
    tokenizer = tiny_tokenizer(THINKING)
    for thinking in (True, False):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=True,
        )["input_ids"]
        assert render(tokenizer, "Hi", thinking=thinking) == expected
    assert render(tokenizer, "Hi", thinking=True) == render(tokenizer, "Hi") != render(tokenizer, "Hi", thinking=False)


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_template_without_the_switch_refuses_it(template):
    with pytest.raises(ModelError, match="cannot switch thinking"):
        ResidualReader(tiny_model("llama", template), thinking=True)


@pytest.mark.slow
def test_a_run_says_whether_the_model_thought(tmp_path):
    chat_model = planted_model(refusal="As", answer="</think>", template=THINKING)
    folder, prompts = tmp_path / "thinks", tmp_path / "few.csv"
    chat_model.model.save_pretrained(folder)
    chat_model.tokenizer.save_pretrained(folder)
    rows = [
        (f"{sign} word {number}", label) for number in range(8) for sign, label in (("!", "harmful"), ("?", "harmless"))
    ]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(prompts, index=False)
    made = {
        thinking: make_run(folder, str(prompts), cache=tmp_path / "cache", thinking=thinking, dtype="float32").run
        for thinking in (None, False)
    }
    chat_model = load_model(folder, dtype="float32", device="cpu")
    assert made[None].run_id != made[False].run_id
    assert [run.manifest.template.thinking for run in made.values()] == [None, False]
    assert made[None].prompts["n_tokens"].iloc[0] < made[False].prompts["n_tokens"].iloc[0]
    measurement.record(made[None], chat_model)
    assert measurement.load_behaviour(made[None])[1].thinking.unclosed > 0
    measurement.record(made[False], chat_model)
    assert measurement.load_behaviour(made[False])[1].thinking is None
    with pytest.raises(RefusalError, match="a run with thinking off"):
        experiment.record(made[None], chat_model)


def test_prompts_of_a_transfer_set_may_lack_a_reply(measured):
    made, _ = measured
    table, manifest = measurement.load_behaviour(made)
    fitted = made.prompts["fitted"].to_numpy()
    save_addition(made, table[fitted].iloc[::-1], manifest)
    part, _ = measurement.load_behaviour(made)
    pd.testing.assert_frame_equal(part[fitted], table[fitted])
    assert part.loc[~fitted, "opening_label"].isna().all()
    assert not measurement.disagreements(made, part).index.isin(np.flatnonzero(~fitted)).any()
    pd.testing.assert_frame_equal(
        measurement.correlation_by_site(made, part, 20), measurement.correlation_by_site(made, table, 20)
    )
    known, _ = measurement.known_refusals(made)
    assert known[~fitted].equals(made.prompts["refusal_log_odds"].gt(0)[~fitted])
    assert measurement.relabel(made, measurement.read_rules())["opening_label"][fitted].notna().all()
    save_addition(made, table, manifest)
