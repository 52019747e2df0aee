"""Every page as a visitor meets it, without a browser: it opens, says what it should, and keeps the view."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from synthetic import (
    BATCH_NOTE,
    HOSTILE,
    N_LAYERS,
    RUN,
    behaviour_manifest,
    save_attribution,
    save_judgement,
    save_positions,
    save_second_run,
    save_subspace,
    save_synthetic_run,
    save_trajectory,
    synthetic_prompts,
    with_tables,
)

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.annotations import raters
from refusal_core.annotations.ratings import correlation_margin
from refusal_core.behaviour import measurement
from refusal_core.errors import ModelError, PromptError, RunError
from refusal_core.exploration.outliers import derived_band
from refusal_core.exploration.subspace import load_subspace
from refusal_core.figures import map as map_figures
from refusal_core.files import sha256_of
from refusal_core.glossary import glossary
from refusal_core.intervention import effects, experiment
from refusal_core.intervention.judgement import HARMS
from refusal_core.markdown import typeset
from refusal_core.pipeline.scoring import Score
from refusal_core.prompts.sets import prompt_id
from refusal_core.prompts.suggestions import contrasts
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import SubspaceManifest
from refusal_core.runs.schemas import ESTIMATED
from refusal_core.runs.store import open_run
from refusal_core.ui import comparison, frame, jobs, layout, lists, model, remembered
from refusal_core.ui import home as home_page
from refusal_core.ui import live as live_page
from refusal_core.ui import ratings as ratings_page
from refusal_core.ui.layout import identity
from refusal_core.ui.numbers import whole
from refusal_core.ui.placement import place_in_words

ROOT = Path(__file__).resolve().parents[2]
AT_POSITIONS = [
    *("1_Layers", "2_Evidence", "3_Outliers", "4_Live_score", "5_Behaviour", "6_Causality", "7_Ratings", "9_Compare"),
    "13_Map",
]
"""The pages that show a run at the chosen read position."""
PAGES = (
    "1_Layers",
    "2_Evidence",
    "3_Outliers",
    "4_Live_score",
    "5_Behaviour",
    "6_Causality",
    "7_Ratings",
    "8_Rate",
    "9_Compare",
    "12_Subspace",
    "13_Map",
    "14_Harm",
)
RANKS, DISPUTED = "Rank of the prompts", "Where they disagree"


@pytest.fixture(autouse=True)
def _cache(synthetic_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("REFUSAL_CACHE", str(synthetic_cache))
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def own_cache(synthetic_cache, tmp_path, monkeypatch):
    """A copy of the cache, which a test may change."""
    cache = tmp_path / "cache"
    shutil.copytree(synthetic_cache, cache)
    monkeypatch.setenv("REFUSAL_CACHE", str(cache))
    return cache


def visit(page: str | None = None, **address: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.run()
    if page is not None:
        app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


def unfold(app: AppTest, part: str) -> AppTest:
    """The page after a press on a folded part of it."""
    app.session_state[part] = True
    app.run()
    assert not app.exception, app.exception
    return app


def shown(app: AppTest) -> str:
    """The page's Markdown as it is read: without links to the glossary and the backslashes before names of a run."""
    texts = [str(element.value) for kind in ("title", "subheader", "markdown", "caption") for element in app.get(kind)]
    return re.sub(r"\\(.)", r"\1", re.sub(r'\[([^]]*)]\(Glossary "[^"]*"\)', r"\1", "\n".join(texts)))


def test_home_says_in_one_sentence_what_the_run_says():
    app = visit()
    layer = open_run(RUN).layer_stats["crossfit_d"][:N_LAYERS].idxmax()
    sentence = app.markdown[0].value
    assert sentence.startswith(f"#### At layer {layer} of {N_LAYERS} the direction separates new harmful requests")
    assert sentence.count(".") == 1


def test_home_shows_an_example_that_the_run_has_without_a_model(synthetic_cache, tmp_path, monkeypatch):
    prompts = synthetic_prompts()
    (text,) = [text for name, text in home_page.EXAMPLES.items() if name == "Calm but harmful"]
    prompts.loc[prompts.index[-1], ["text", "prompt_id"]] = text, prompt_id(text)
    hidden = np.random.default_rng(0).normal(size=(len(prompts), N_LAYERS + 1, 24))
    save_synthetic_run(hidden, prompts, tmp_path / "cache")
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    app = visit()
    assert app.text_input(key="home_text").disabled
    assert "needs the run's model" in shown(app)
    app.button(key="home_Calm but harmful").click().run()
    run = open_run(RUN)
    said = place_in_words(run, run.projections[-1], run.best_site())
    assert said in shown(app).replace("\u00a0", " ")
    assert text in [each.value for each in app.text]


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize("text", HOSTILE)
def test_home_places_a_typed_prompt_and_shows_how_its_reply_opens(monkeypatch, text):
    text = " ".join(text.split())
    monkeypatch.setattr(home_page, "available_source", lambda run: "tiny")
    monkeypatch.setattr(home_page, "one_model", FakeModel)
    monkeypatch.setattr(model, "TriedPrompt", FakeTried)
    app = visit()
    app.text_input(key="home_text").set_value(text).run()
    assert not app.exception
    run = open_run(RUN)
    placed = run.projections[len(text) % 10]
    assert place_in_words(run, placed, run.best_site()) in shown(app).replace("\u00a0", " ")
    assert f"Sure, {text}" in [each.value for each in app.text]


def test_a_place_in_words_agrees_with_the_projections():
    run = open_run(RUN)
    site = N_LAYERS - 1
    highest, lowest = run.projections[run.rows()].max(axis=0), run.projections[run.rows()].min(axis=0)
    assert place_in_words(run, highest + 1, site).startswith("Reads as harmful: ")
    assert "above all of the harmless and all of the harmful" in place_in_words(run, highest + 1, site)
    assert place_in_words(run, lowest - 1, site).startswith("Reads as harmless: ")
    assert "above none of the harmless and none of the harmful" in place_in_words(run, lowest - 1, site)
    low, high = derived_band(run, site)
    middle = lowest * 0 + (low + high) / 2
    assert place_in_words(run, middle, site).startswith("Reads as neither clearly: ")


def test_a_half_percent_is_rounded_as_tables_round_it():
    assert [whole(value) for value in (12.5, 13.5, 12.49, 0.0, 100.0)] == [13, 14, 12, 0, 100]


def test_a_run_that_loses_its_evidence_while_it_is_open_says_so(own_cache):
    app = visit("1_Layers", run=RUN)
    (own_cache / RUN / "evidence_sites.parquet").unlink()
    # Home has read it, and a run reads it once.
    vars(frame.shared_run(RUN)).pop("_evidence")
    app.switch_page("pages/2_Evidence.py").run()
    assert not app.exception
    assert [error.value for error in app.error] == ["This run's evidence cannot be read."]
    assert "evidence_sites.parquet" in "".join(text.value for text in app.text)


def test_home_says_how_the_run_was_read():
    app = visit()
    facts = next(table.value for table in app.dataframe if list(table.value.columns) == ["", "value"])
    said = dict(zip(facts[""], facts["value"], strict=True))
    assert said["engine"] == "one process"
    assert said["batches"] == BATCH_NOTE


def test_the_sidebar_leads_to_every_page():
    listed = {page for page, *_ in frame.PAGES}
    assert listed == {"app.py", *(f"pages/{path.name}" for path in (ROOT / "pages").glob("*.py"))}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_on_its_own(page):
    app = visit(page)
    named = {path: label for path, label, _ in frame.PAGES}
    assert app.title[0].value == named[f"pages/{page}.py"]


@pytest.mark.parametrize("page", ["1_Layers", "2_Evidence", "3_Outliers"])
def test_an_address_opens_the_same_view(page):
    app = visit(page, run=RUN, site="2")
    assert app.number_input(key="site_field").value == 2
    said = shown(app) + " ".join(expander.label for expander in app.expander)
    assert f"layer 2 of {N_LAYERS}" in said or page == "3_Outliers"


def test_the_address_follows_the_view_and_survives_a_change_of_page():
    app = visit("1_Layers")
    app.number_input(key="site_field").set_value(1).run()
    assert app.query_params["site"] == "1"
    app.switch_page("pages/3_Outliers.py").run()
    assert app.number_input(key="site_field").value == 1
    assert app.query_params["run"] == RUN


@pytest.mark.parametrize(
    "address", [{"run": "../../etc"}, {"site": "999"}, {"site": "x"}, {"band": "nan..3"}, {"prompt": "<b>"}]
)
def test_a_malformed_address_is_no_error(address):
    for page in ("1_Layers", "3_Outliers"):
        assert visit(page, **address).title


def test_evidence_follows_the_layer_and_shows_the_figure_and_numbers_of_one_question():
    app = visit("2_Evidence", site="1")
    assert not app.dataframe
    assert len(app.get("plotly_chart")) == 1
    app = visit("2_Evidence", site="1", question="fit")
    app.number_input(key="site_field").set_value(3).run()
    (numbers,) = app.dataframe
    assert numbers.value["in_sample_d"].iloc[0] == pytest.approx(open_run(RUN).layer_stats["in_sample_d"][3])
    figures = [json.loads(element.proto.spec) for element in app.get("plotly_chart")]
    assert [figure["layout"]["shapes"][-1]["x0"] for figure in figures] == [3, 3]


def test_the_final_norm_is_named():
    app = visit("1_Layers", site=str(N_LAYERS))
    assert any(expander.label == "All numbers of final norm" for expander in app.expander)


def test_outliers_follow_the_band_and_the_filters():
    app = visit("3_Outliers", run=RUN, site="3", band="-100..100")
    assert len(app.session_state["outliers_listed"]) == 32
    app.number_input(key="band_low").set_value(0.0).run()
    run = open_run(RUN)
    fitted = run.projections[run.rows(), 3]
    assert len(app.session_state["outliers_listed"]) == ((fitted >= 0) & (fitted <= 100)).sum()
    app.multiselect(key=f"outliers_labels_{RUN}").set_value(["harmful"]).run()
    labels = run.prompts.set_index("prompt_id")["label"]
    assert set(labels[app.session_state["outliers_listed"]]) == {"harmful"}


def test_a_chosen_prompt_in_the_address_is_shown_with_its_twin():
    run = open_run(RUN)
    app = visit("3_Outliers", run=RUN, prompt=run.prompts["prompt_id"][0])
    assert [code.value for code in app.code][:2] == [run.prompts["text"][0], run.prompts["text"][1]]


def test_an_empty_band_says_so():
    app = visit("3_Outliers", run=RUN, band="900..901")
    assert any("Nothing falls into this band" in each.value for each in app.info)


def test_hostile_prompts_are_shown_as_text_only():
    run = open_run(RUN)
    for row in range(0, 2 * len(HOSTILE), 2):
        app = visit("3_Outliers", run=RUN, prompt=run.prompts["prompt_id"][row])
        assert app.code[0].value == run.prompts["text"][row]
        assert run.prompts["text"][row] not in shown(app)


def style_without_harm(hidden, prompts):
    """The labels of the contrast set differ in one dimension by their length alone; the transfer sets do not."""
    longer = prompts["fitted"] & prompts["label"].eq("harmful")
    prompts = prompts.assign(n_tokens=prompts["n_tokens"] + 12 * longer)
    hidden[..., 0] += 0.5 * prompts["n_tokens"].to_numpy()[:, None]
    return hidden, prompts.assign(pair_id=prompts["pair_id"].where(~prompts["fitted"]))


def no_transfer(hidden, prompts):
    return hidden[prompts["fitted"]], prompts[prompts["fitted"]].reset_index(drop=True)


def sixteen_prompts(hidden, prompts):
    kept = prompts.index < 16
    return hidden[kept], prompts[kept].reset_index(drop=True)


def unbalanced_without_pairs_in_one_category(hidden, prompts):
    kept = ~(prompts["fitted"] & prompts["label"].eq("harmless") & (prompts.index > 16))
    prompts = prompts[kept].reset_index(drop=True)
    return hidden[kept], prompts.assign(pair_id=None, category="Privacy")


def constant_first_site(hidden, prompts):
    hidden[:, 0] = 0.25
    return hidden, prompts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (style_without_harm, "may be how the two sets were written"),
        (no_transfer, "cannot be said: the run has no transfer set"),
        (sixteen_prompts, "cannot be said: the run has no transfer set"),
        (unbalanced_without_pairs_in_one_category, "AUROC"),
        (constant_first_site, "the same for every prompt"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_runs_that_lack_something_open_on_every_page_and_say_so(change, says, tmp_path, monkeypatch):
    prompts = synthetic_prompts()
    hidden = np.random.default_rng(2).normal(size=(len(prompts), 3, 24))
    save_synthetic_run(*change(hidden, prompts), tmp_path / "cache")
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    for page in (None, *PAGES):
        for site in ("0", "2"):
            app = visit(page, site=site)
            if page == "2_Evidence" and site == "0":
                assert says in shown(app)


def test_an_empty_cache_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "nothing"))
    assert "The page Runs starts one" in visit().info[0].value


def test_a_damaged_run_is_named_and_the_others_still_open(synthetic_cache, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    shutil.copytree(synthetic_cache, cache)
    shutil.copytree(cache / RUN, cache / "damaged")
    (cache / "damaged" / "prompts.parquet").write_bytes(b"x")
    monkeypatch.setenv("REFUSAL_CACHE", str(cache))
    app = visit()
    assert any("damaged" in text.value for text in app.sidebar.text)
    assert "At layer" in app.markdown[0].value


@pytest.fixture
def without_model(synthetic_cache, tmp_path, monkeypatch):
    """A copy of the cache whose run is of a known model that is not here; the command that fetches it."""
    shutil.copytree(synthetic_cache, tmp_path / "cache")
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "model_of_run", lambda run: ("qwen2.5-coder-0.5b-instruct", None))
    return model.fetch_command("qwen2.5-coder-0.5b-instruct", None)


def job(command: jobs.Command, state: jobs.State, **more: object) -> jobs.Job:
    """A job as ``jobs.status`` tells of it."""
    told = {"stage": "", "done": 0, "total": 0, "message": "", "began": 0.0, "seconds": 5.0, "seconds_left": None}
    return jobs.Job(command, state, **(told | more))


def test_a_missing_model_is_offered_with_size_and_licence(without_model, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "start", begun.append)
    app = visit("4_Live_score")
    assert "0.5 GB to download" in app.info[0].value
    assert "Apache-2.0" in app.info[0].value
    button = next(button for button in app.button if button.label == "Get the model")
    button.click().run()
    assert begun == [without_model]
    assert (without_model.verb, *without_model.arguments) == ("fetch", "--", "qwen2.5-coder-0.5b-instruct")


def test_a_fetch_under_way_shows_its_progress(without_model, monkeypatch):
    underway = job(
        without_model, "running", stage="downloading (bytes)", done=5_000_000, total=10_000_000, seconds_left=90.0
    )
    monkeypatch.setattr(jobs, "status", lambda name: underway)
    app = visit("4_Live_score")
    assert [button.label for button in app.button if button.label in ("Get the model", "Cancel")] == ["Cancel"]
    (bar,) = app.get("progress")
    assert bar.proto.text == r"downloading\: 5 of 10 MB · running for 5 s · about 2 min left of this stage"
    assert bar.proto.value == 50


def test_a_fetch_that_failed_says_why_and_can_be_tried_again(without_model, monkeypatch):
    monkeypatch.setattr(jobs, "status", lambda name: job(without_model, "failed", message="the disk is full"))
    app = visit("4_Live_score")
    assert app.text[0].value == "the disk is full"
    assert "Try again" in [button.label for button in app.button]


def test_where_nothing_can_be_started_a_click_says_why(without_model, tmp_path, monkeypatch):
    def refuse(command: jobs.Command) -> None:
        raise RunError("no room")

    monkeypatch.setattr(jobs, "start", refuse)
    app = press(visit("4_Live_score"), "Get the model")
    assert "no room" in [text.value for text in app.text]


def test_a_model_that_was_fetched_and_is_gone_is_offered_again(without_model, monkeypatch):
    monkeypatch.setattr(jobs, "status", lambda name: job(without_model, "done"))
    app = visit("4_Live_score")
    assert any(button.label == "Get the model" for button in app.button)


def test_names_in_a_run_are_no_markdown(monkeypatch):
    monkeypatch.setattr(model, "model_of_run", lambda run: ("x/![x](https://example.com/x.png)", None))
    app = visit("4_Live_score")
    assert "![" not in app.info[0].value


def test_behaviour_that_was_not_measured_says_how_to(synthetic_cache):
    app = visit("5_Behaviour")
    assert "has not been measured" in app.info[0].value
    assert app.code[0].value == f"refusal measure behaviour {RUN}"


@pytest.fixture
def with_replies(own_cache):
    """The synthetic run with replies that open with the prompt itself, hostile ones included."""
    run = open_run(RUN)
    refuses = run.projections[:, -1] > np.median(run.projections[:, -1])
    replies = pd.DataFrame(
        {
            "prompt_id": run.prompts["prompt_id"],
            "phrase_log_odds": run.projections[:, -1],
            "opening": run.prompts["text"],
            "opening_label": np.where(refuses, "refuses", "answers"),
        }
    )
    save_addition(run, replies, behaviour_manifest("Sorry"))
    return open_run(RUN)


def test_behaviour_counts_refusals_and_lists_surprises(with_replies):
    app = visit("5_Behaviour", run=RUN, site="2", part="Surprises")
    table, _ = measurement.load_behaviour(with_replies)
    refused = table["opening_label"][with_replies.rows("harmful")].eq("refuses").mean()
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics["harmful prompts refused"] == f"{100 * refused:.0f} %"
    assert len(app.dataframe[0].value) == len(measurement.surprises(with_replies, table))


def test_verdicts_from_elsewhere_are_compared_with_the_measures(with_replies):
    app = visit("5_Behaviour", run=RUN, part="Do the measures agree?")
    table, _ = measurement.load_behaviour(with_replies)
    said = table.assign(verdict=table["opening_label"])[["prompt_id", "verdict"]].to_csv(index=False).encode()
    app.file_uploader(key="behaviour_verdicts").upload("judge.csv", said, "text/csv").run()
    compared = next(each.value for each in app.dataframe if "sensitivity" in each.value).set_index("measure")
    assert compared.loc["opening rules", ["kappa", "same", "sensitivity", "specificity"]].eq(1).all()
    app.file_uploader(key="behaviour_verdicts").upload("judge.csv", b"prompt_id\n<b>\n", "text/csv").run()
    assert "cannot be used" in app.error[0].value
    assert not app.exception


def test_openings_are_shown_as_text_only(with_replies):
    for row in range(0, 2 * len(HOSTILE), 2):
        text = with_replies.prompts["text"][row]
        app = visit("5_Behaviour", run=RUN, prompt=with_replies.prompts["prompt_id"][row])
        assert any(repr(text) in each.value for each in app.text)
        assert text not in shown(app)


def test_replies_that_were_not_followed_say_how_to(with_replies):
    app = visit("5_Behaviour", run=RUN, part="Along the reply")
    assert "has not been measured" in app.info[0].value
    assert app.code[0].value == f"refusal measure trajectory {RUN}"


def test_replies_are_followed_and_a_chosen_prompt_has_a_curve_of_its_own(with_replies):
    save_trajectory(with_replies)
    app = visit("5_Behaviour", run=RUN, site="0", part="Along the reply", prompt=with_replies.prompts["prompt_id"][0])
    assert not app.exception
    assert "and falls (" in shown(app)
    gaps, prompts = (each.value for each in app.dataframe[:2])
    assert gaps["reply"].tolist() == ["answered"] * 3
    assert set(prompts["reply"]) == {"answered"}
    assert '"chosen prompt"' in app.get("plotly_chart")[0].proto.spec


def test_a_subspace_that_was_not_measured_says_how_to():
    app = visit("12_Subspace")
    assert "has not been measured" in app.info[0].value
    assert "no activations stored" in app.info[0].value
    assert app.code[0].value == f"refusal measure subspace {RUN}"


@pytest.fixture
def with_subspace(own_cache):
    """The synthetic run with the subspace of activations that harm moves along one direction, at the last site."""
    run = open_run(RUN)
    save_subspace(run)
    return run


def test_the_subspace_says_how_many_directions_there_are_and_follows_the_layer(with_subspace):
    app = visit("12_Subspace", run=RUN, site="0")
    assert "no direction of harm is found" in shown(app)
    app.number_input(key="site_field").set_value(N_LAYERS).run()
    assert not app.exception
    assert "At final norm one direction of harm is found" in shown(app)
    assert "the mean difference reaches AUROC" in shown(app)
    assert len(app.dataframe) == 1
    unfold(app, "subspace_numbers_open")
    estimators, numbers, pairs = (each.value for each in app.dataframe[:3])
    assert estimators["estimator"].tolist() == numbers["estimator"].tolist()
    assert estimators["estimator"][0] == "mean difference"
    assert pairs["category"].tolist() == ["Fraud"]


def test_a_damaged_subspace_is_an_error_on_its_page_alone(with_subspace):
    (with_subspace.path / "subspace.parquet").write_bytes(b"x")
    app = visit("12_Subspace", run=RUN)
    assert "cannot be used" in app.error[0].value
    assert not visit("2_Evidence", run=RUN).error


def test_a_run_without_categories_says_why_it_has_no_subspace(with_subspace):
    manifest = SubspaceManifest(created="", activations="stored", seed=0, draws=99, categories=(), reason="few prompts")
    table, _ = load_subspace(with_subspace)
    save_addition(with_subspace, table[table["measure"].isin(ESTIMATED)], manifest)
    app = visit("12_Subspace", run=RUN)
    assert "Missing: few prompts." in shown(app)
    assert app.dataframe[0].value["estimator"][0] == "mean difference"


def test_blocks_and_words_that_were_not_measured_say_how_to():
    app = visit("12_Subspace", run=RUN, part="Blocks and words")
    assert "has not been measured" in app.info[0].value
    assert app.code[0].value == f"refusal measure attribution {RUN}"


def test_blocks_and_words_say_what_adds_follow_the_layer_and_show_tokens_as_text_only(own_cache):
    save_attribution(open_run(RUN))
    app = visit("12_Subspace", run=RUN, site="3", part="Blocks and words")
    assert "At layer 3 of 6 the MLP of block 3 adds more to the direction than any other part." in shown(app)
    assert "the sum of 9 parts" in shown(app)
    assert "farther than those of control directions" in shown(app)
    tokens, parts = (each.value for each in app.dataframe[:2])
    assert tokens["raised_token"][0] == repr(HOSTILE[0])
    assert HOSTILE[0] not in shown(app)
    assert parts["part"][0] == "the MLP of block 3"
    app.number_input(key="site_field").set_value(2).run()
    assert "it is not shown that the direction separates held-out prompts" in shown(app)
    app.number_input(key="site_field").set_value(N_LAYERS).run()
    assert not app.exception
    assert "After the final norm there is no sum" in shown(app)


def test_read_positions_that_were_not_measured_say_what_they_would_show_and_how_to():
    app = visit("14_Harm")
    assert "has not been measured" in app.info[0].value
    assert app.code[0].value == f"refusal measure positions {RUN}"


@pytest.fixture(scope="module")
def positions_measured(synthetic_cache, tmp_path_factory):
    cache = tmp_path_factory.mktemp("positions")
    shutil.copytree(synthetic_cache / RUN, cache / RUN)
    run = open_run(RUN, cache)
    save_positions(run, refused=np.arange(len(run.prompts)) // 2 % 2 == 0)
    return run


@pytest.fixture
def with_positions(own_cache, positions_measured):
    """The synthetic run with read positions: at the last site the first alone has harm, the last alone refusing."""
    shutil.copytree(positions_measured.path, own_cache / RUN, dirs_exist_ok=True)
    return open_run(RUN)


def test_harm_and_refusal_are_compared_where_refusing_has_a_direction(with_positions):
    app = visit("14_Harm", run=RUN, site="0")
    assert "no direction of refusing is found" in app.markdown[0].value
    app.number_input(key="site_field").set_value(N_LAYERS).run()
    assert not app.exception
    assert "At final norm no direction of refusing is found at t_inst; at t_post" in shown(app)
    assert "Harm at t_inst follows what is asked by" in shown(app)
    unfold(app, "positions_numbers_open")
    numbers = app.dataframe[1].value.set_index(["read_at", "direction_of", "of"])
    assert numbers.loc[("t_inst", "harm", "asked"), "number_low"] > 2
    assert numbers.loc[("t_post", "refusal", "done"), "p_permuted"] == 0.01


def test_read_positions_of_a_run_whose_replies_were_measured_later_offer_to_compare_by_them(own_cache):
    run = open_run(RUN)
    save_positions(run)
    app = visit("14_Harm", run=RUN, site="0")
    assert "takes the run's behaviour" in app.markdown[0].value
    replies = run.prompts[["prompt_id"]].assign(phrase_log_odds=0.5, opening="Sure", opening_label="answers")
    save_addition(run, replies, behaviour_manifest("Sorry"))
    app = visit("14_Harm", run=RUN, site="0")
    assert "measured after its prompts were read" in app.info[0].value


def test_the_read_positions_say_what_is_read_at_either_end_and_follow_the_layer(with_positions):
    app = visit("14_Harm", run=RUN, site="0")
    assert "At t_inst, layer 0 of 6, new prompts" in shown(app)
    app.number_input(key="site_field").set_value(N_LAYERS).run()
    assert not app.exception
    assert "At t_inst, final norm, new prompts are separated with d" in shown(app)
    unfold(app, "positions_numbers_open")
    numbers = app.dataframe[0].value
    assert numbers["read_at"].tolist() == ["t_inst", "<|im_end|>", "t_post"]
    assert numbers["crossfit_d_low"][0] > 1 > numbers["crossfit_d"][2]
    app.segmented_control(key="part_field").set_value("refusing").run()
    assert not app.exception


def test_a_page_shows_the_run_at_the_read_position_of_the_address(with_positions):
    there, own = (
        f"**{run.layer_stats['in_sample_d'][5]:.3g}**" for run in (with_positions.at("t_inst"), with_positions)
    )
    assert there != own
    app = unfold(visit("1_Layers", run=RUN, site="5", position="t_inst"), "layers_numbers_open")
    assert app.selectbox(key="position_field").value == "t_inst"
    assert there in shown(app)
    assert own not in shown(app)
    app.selectbox(key="position_field").set_value("t_post").run()
    assert not app.exception
    assert own in shown(app)
    assert there not in shown(app)
    assert "position" not in app.query_params
    app.selectbox(key="position_field").set_value("-2").run()
    assert app.query_params["position"] == "-2"


def test_every_page_of_a_read_position_opens_there(with_positions):
    app = visit(None, run=RUN, site=str(N_LAYERS), position="t_inst")
    for page in AT_POSITIONS:
        app.switch_page(f"pages/{page}.py").run()
        assert not app.exception, page
        assert not app.error, page
        assert app.selectbox(key="position_field").options == ["t_inst", "<|im_end|> (-2)", "t_post"], page


def test_a_page_without_a_choice_of_positions_says_that_it_shows_the_run_itself(with_positions):
    app = visit("12_Subspace", run=RUN, position="t_inst")
    assert not app.exception
    assert "position_field" not in [field.key for field in app.selectbox]
    assert any("does not apply here. Numbers are of t_post" in caption.value for caption in app.caption)


def test_a_read_position_that_was_not_measured_is_said_and_a_run_without_any_has_no_field(synthetic_cache):
    app = visit("2_Evidence", run=RUN, position="t_inst")
    assert "was not measured on this run" in app.warning[0].value
    assert "position" not in app.query_params
    assert "position_field" not in [field.key for field in app.selectbox]


def test_a_run_is_compared_with_itself_at_another_position(with_positions):
    app = visit("9_Compare", run=RUN, position="t_inst", others=f"{RUN}@-2,{RUN}")
    assert not app.exception
    assert app.multiselect(key="compare_others").value == [f"{RUN}@-2", RUN]
    assert "t_inst" in str(app.dataframe[0].value["of"].tolist())


def test_what_steering_moves_is_asked_where_it_was_not_measured_and_said_where_it_was(own_cache):
    app = visit("14_Harm", run=RUN)
    assert app.code[1].value == f"refusal measure judgement {RUN}"
    save_judgement(open_run(RUN), {"harm at t_inst": (5.0, 0.0), "harm at t_post": (5.0, 0.0)})
    app = visit("14_Harm", run=RUN)
    assert not app.exception
    assert "the judgement more than refusing in 4 and refusing more than the judgement in 0;" in shown(app)
    assert '"controls"' in app.get("plotly_chart")[0].proto.spec
    unfold(app, "judgement_numbers_open")
    changes, answered = (each.value for each in app.dataframe)
    assert set(changes["outcome"]) == {"judgement", "refusing", "difference"}
    assert answered["direction"].tolist() == [*HARMS, "none", "refusal at t_inst", "refusal at t_post"]


def test_damaged_read_positions_are_an_error_on_their_page_alone(with_positions):
    (with_positions.path / "positions.parquet").write_bytes(b"x")
    app = visit("14_Harm", run=RUN)
    assert "cannot be used" in app.error[0].value
    assert not visit("2_Evidence", run=RUN).error


def test_the_glossary_has_every_term_and_finds_some():
    app = visit("11_Glossary")
    assert all(f"{term.name}" in shown(app) and term.meaning in shown(app) for term in glossary().values())
    app.text_input(key="glossary_find").set_value("aUROC").run()
    found = [line for line in shown(app).splitlines() if line.startswith("- ")]
    assert found
    assert all("auroc" in line.casefold() for line in found)
    app.text_input(key="glossary_find").set_value("no term has this").run()
    assert not [line for line in shown(app).splitlines() if line.startswith("- ")]
    assert "No term has these words." in shown(app)


def test_damaged_behaviour_is_an_error_on_its_page_alone(with_replies):
    (with_replies.path / "behaviour.parquet").write_bytes(b"x")
    app = visit("5_Behaviour")
    assert "cannot be used" in app.error[0].value
    assert visit("1_Layers").title
    save_addition(with_replies, with_replies.prompts[["prompt_id"]], behaviour_manifest())
    assert "lacks the column" in visit("5_Behaviour").text[-1].value


def begin(name: str, size: int = 0) -> AppTest:
    """The page on which a person rates, after they gave their name and how many prompts they want, 0 for all."""
    app = visit("8_Rate", run=RUN)
    app.text_input[0].set_value(name)
    app.segmented_control(key="rate_size").set_value(size)
    return press(app, "Begin")


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("page", ["1_Layers", "13_Map"])
def test_a_figure_saved_while_the_page_moves_on_is_of_the_layer_in_its_heading(monkeypatch, page):
    offered, saved = [], []
    monkeypatch.setattr(st, "download_button", lambda label, contents, **options: offered.append((label, contents)))
    monkeypatch.setattr(layout, "render_image", lambda figure, *options: saved.append((figure, options[-1])))
    app = visit(page, run=RUN, site="1")
    save = next(contents for label, contents in offered if label == "Save as PNG for a slide")
    app.number_input(key="site_field").set_value(2).run()
    save()
    ((figure, (_, heading)),) = saved
    assert f"layer 1 of {N_LAYERS}" in heading
    assert f"layer 1 of {N_LAYERS}" in figure.layout.title.text


def prompt_shown(app: AppTest) -> str:
    return app.text[0].value


def test_rating_goes_on_where_it_stopped_in_a_new_session(own_cache):
    run = open_run(RUN)
    texts = [run.prompts["text"][row] for row in raters.rating_order(run, "Ana")]
    app = begin("Ana")
    for place, label in enumerate(("harmless", "extremely", "somewhat")):
        assert prompt_shown(app) == texts[place]
        press(app, label)
        # On disk before the next prompt is shown.
        assert raters.load_ratings_by("Ana").table["text"].tolist() == texts[: place + 1]
    app = begin(" ana ")
    assert prompt_shown(app) == texts[3]
    assert raters.load_ratings_by("Ana").table["rating"].tolist() == [1, 7, 4]
    assert prompt_shown(begin("Ben")) != texts[3]


def test_a_rating_can_be_corrected_and_a_prompt_skipped(own_cache):
    run = open_run(RUN)
    texts = [run.prompts["text"][row] for row in raters.rating_order(run, "Ana")]
    app = press(press(begin("Ana"), "harmless"), "very")
    press(press(app, "Back"), "Back")
    assert prompt_shown(app) == texts[0]
    assert [button.label for button in app.button if button.proto.type == "primary"] == ["harmless"]
    press(app, "clearly")
    assert raters.load_ratings_by("Ana").table["rating"].tolist() == [5, 6]
    assert prompt_shown(app) == texts[2]
    press(press(app, "Back"), "Leave it")
    assert prompt_shown(app) == texts[2]
    assert prompt_shown(press(app, "Skip")) == texts[3]
    for rated, text in zip(run.prompts["prompt_id"], run.prompts["text"], strict=True):
        if text not in texts[2:4]:
            raters.save_rating("Ana", rated, text, 3)
    assert prompt_shown(press(app, "slightly")) == texts[2]
    press(app, "slightly")
    assert "every prompt" in app.success[0].value


def test_a_batch_is_balanced_and_says_what_it_buys(own_cache, monkeypatch):
    monkeypatch.setattr(ratings_page, "_BATCHES", {3: "3", 30: "30, balanced", 0: "all"})
    run = open_run(RUN)
    app = begin("Ana", 3)
    assert "0 of 3 rated" in app.get("progress")[0].proto.text
    # Nothing else is in view.
    assert not app.get("download_button")
    batch = raters.balanced_batch(run, "Ana", [], 3)
    texts = [run.prompts.set_index("prompt_id")["text"][prompt_id] for prompt_id in batch]
    for text in texts:
        assert prompt_shown(app) == text
        press(app, "somewhat")
    assert "3 rated: this batch is done" in app.success[0].value
    assert app.get("download_button")
    app.segmented_control(key="rate_size").set_value(30)
    press(app, "Go on")
    assert "0 of 30 rated" in app.get("progress")[0].proto.text
    assert "With this batch 33 prompts of this run are rated" in shown(app)
    assert f"±{correlation_margin(33):.2f}" in shown(app)
    assert prompt_shown(app) not in texts
    press(press(app, "hardly"), "End the batch")
    assert "1 rated: this batch is done" in app.success[0].value
    assert raters.load_ratings_by("Ana").table["rating"].tolist() == [4, 4, 4, 2]


def test_a_batch_has_its_size_on_another_run_as_well(two_runs):
    app = begin("Ana", 30)
    app.run()
    app.selectbox(key="run_field").set_value(two_runs).run()
    assert "0 of 30 rated" in app.get("progress")[0].proto.text


def test_a_run_that_is_rated_has_no_batch(own_cache):
    run = open_run(RUN)
    for rated, text in zip(run.prompts["prompt_id"], run.prompts["text"], strict=True):
        raters.save_rating("Ana", rated, text, 3)
    assert "every prompt" in begin("Ana", 30).success[0].value


def test_whoever_rates_sees_nothing_of_the_run(tmp_path, monkeypatch):
    prompts = synthetic_prompts()
    texts = [f"Prompt {row}" for row in range(len(prompts))]
    prompts = prompts.assign(text=texts, category="Zebra", pair_id="quagga-" + prompts["pair_id"], note="okapi")
    hidden = np.random.default_rng(0).normal(size=(len(prompts), 3, 24))
    save_synthetic_run(hidden, prompts, tmp_path / "cache")
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    app = begin("Ana")
    seen = set()
    for _ in range(20):
        sent = "\n".join(str(getattr(node, "proto", "")) for node in app._tree)
        assert sent.count("Prompt ") == 1
        seen.add(prompt_shown(app))
        # The question and the scale have words in common with the labels.
        unlabelled = sent.replace(raters.QUESTION, "").replace('"harmless"', "")
        hidden_words = ["harmful", "harmless", "grey", "Zebra", "quagga", "okapi", "borderline", "probe", "projection"]
        assert not [word for word in hidden_words if word in unlabelled]
        assert not app.metric
        assert not app.dataframe
        press(app, "somewhat")
    assert len(seen) == 20


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_prompt_is_rated_as_text(own_cache, text):
    run = open_run(RUN)
    for rated, other in zip(run.prompts["prompt_id"], run.prompts["text"], strict=True):
        if other != text:
            raters.save_rating("Ana", rated, other, 3)
    app = begin("Ana")
    assert prompt_shown(app) == text
    assert text not in shown(app)


def test_a_rating_that_cannot_be_kept_says_so_and_stays(own_cache):
    app = begin("Ana")
    text = prompt_shown(app)
    (own_cache / ".ratings").write_text("in the way")
    press(app, "somewhat")
    assert "was not saved" in app.error[0].value
    assert text in [each.value for each in app.text]
    (own_cache / ".ratings").unlink()
    assert prompt_shown(press(app, "somewhat")) != text


def test_damaged_ratings_are_an_error_on_their_pages_alone(own_cache):
    press(begin("Ana"), "somewhat")
    path = next((own_cache / ".ratings").glob("*.csv"))
    path.write_bytes(b"\xff")
    app = visit("7_Ratings")
    assert "cannot be used" in app.error[0].value
    assert path.name in app.text[0].value
    assert "cannot be read" in begin("Ana").error[0].value
    assert prompt_shown(begin("Ben"))
    assert visit("1_Layers").title


def test_ratings_say_what_to_do_where_there_are_none_and_compare_those_there_are(own_cache):
    app = visit("7_Ratings", run=RUN)
    assert "Nobody has rated" in app.info[0].value
    run = open_run(RUN)
    for who in ("Ana", "Ben"):
        for row in raters.rating_order(run, who)[:30]:
            rating = int(np.clip(4 + run.projections[row, -1], 1, 7))
            raters.save_rating(who, run.prompts["prompt_id"][row], run.prompts["text"][row], rating)
    app = visit("7_Ratings", run=RUN, site=str(N_LAYERS))
    metrics = {metric.label: metric.value for metric in app.metric}
    table = raters.load_all_ratings().table
    assert metrics["prompts rated"] == str(table["prompt_id"].nunique())
    assert metrics["Krippendorff's α"] == "1.00"
    assert "rated higher" in shown(app)
    assert len(app.dataframe[-1].value) == table["prompt_id"].nunique()


@pytest.mark.slow
def test_a_file_of_ratings_is_compared_or_refused_in_a_sentence(own_cache):
    run = open_run(RUN)
    table = run.prompts[["text"]].assign(harm=run.projections[:, -1])
    app = visit("7_Ratings", run=RUN, site=str(N_LAYERS))
    app.segmented_control(key="ratings_source").set_value("From a csv file").run()
    app.file_uploader(key="ratings_file").upload("harm.csv", table.to_csv(index=False).encode(), "text/csv").run()
    assert "Choose the column" in app.info[0].value
    next(each for each in app.selectbox if each.label == "Rating column").set_value("harm").run()
    assert not app.exception
    assert "ρ = 1.00" in shown(app)
    next(each for each in app.selectbox if each.label == "Rating column").set_value("text").run()
    assert "expected a number as rating" in app.text[0].value
    for content, says in ((b"\xff", "expected UTF-8"), (b"text,rating\nother,1\n", "1 rating of prompts")):
        app.file_uploader(key="ratings_file").upload("bad.csv", content, "text/csv").run()
        assert not app.exception
        assert says in app.text[0].value


class FakeReader:
    prefix_tokens = 0


class FakeScorer:
    """Scores a text by its length, so that what is shown can be told to belong to what was typed."""

    reader = FakeReader()

    def __init__(self, run) -> None:
        self.run = run

    def encode(self, text: str, with_prefix: bool = False) -> list[int]:
        return [0] * len(text)

    def score_ends(self, texts: list[str]) -> list[Score]:
        return [self.score(text) for text in texts]

    def score(self, text: str) -> Score:
        projection = self.run.projections[len(text) % 10]
        return Score(
            prompt=text,
            projection=projection,
            percentile={"harmful": projection * 0 + 10, "harmless": projection * 0 + 90},
            refusal_log_odds=float(len(text)),
            first_token="<b>I",
            tokens=list(text),
            token_projection=projection[None].repeat(len(text), axis=0),
        )


class FakeModel:
    """A model that answers at once."""

    def ask(self, run, source, question, say):
        return question(model.OpenRun(FakeScorer(run)))


class FakeTried:
    """A prompt whose reply repeats it."""

    def __init__(self, scorer, text: str) -> None:
        self.text = text

    def under(self, condition) -> experiment.Tried:
        return experiment.Tried(0.0, 0.0, f"Sure, {self.text}")


@pytest.fixture
def with_model(monkeypatch):
    monkeypatch.setattr(model, "model_source", lambda run: "tiny")
    monkeypatch.setattr(live_page, "one_model", FakeModel)
    monkeypatch.setattr(lists, "one_model", FakeModel)


def test_interventions_that_were_not_measured_say_how_to():
    app = visit("6_Causality")
    assert any("has not been measured" in each.value for each in app.info)
    assert app.code[0].value == f"refusal measure intervention {RUN}"


@pytest.fixture
def on_planted(planted_run, planted_folder, monkeypatch):
    """The planted model's run, and the model where its visitors would point to."""
    monkeypatch.setenv("REFUSAL_CACHE", str(planted_run.path.parent))
    monkeypatch.setattr(model, "model_of_run", lambda run: (str(planted_folder), None))
    return planted_run


def test_causality_says_what_was_found_beside_its_controls(on_planted):
    app = visit("6_Causality", site="3")
    said = shown(app)
    assert "1 isotropic, 5 covariance" in said
    assert "an effect" in said
    assert "The published rule chooses layer" in said
    table, _ = experiment.load_interventions(on_planted)
    assert len(app.dataframe[0].value) == len(effects.candidates(on_planted, table))
    assert set(app.dataframe[1].value["label"]) == {"harmful", "harmless"}


def test_another_measure_is_drawn_in_all_three_sweeps(on_planted):
    app = visit("6_Causality")
    app.selectbox(key="causality_measure").set_value("refuses").run()
    assert not app.exception
    titles = [json.loads(chart.proto.spec)["layout"]["yaxis"]["title"]["text"] for chart in app.get("plotly_chart")]
    assert titles[:3] == [effects.MEASURES["refuses"]] * 3


def test_a_typed_prompt_answers_to_the_edit(on_planted):
    app = visit("6_Causality", site="3")
    app.text_input(key="causality_text").set_value("bdgjkvwxzbdgjkvwxz?").run()
    app.segmented_control(key="causality_edit").set_value("add").run()
    assert [text.value for text in app.text][-2:] == ["Sure", "I cannot"]
    before, after = (metric for metric in app.metric if metric.label.startswith("refusal log-odds"))
    assert float(before.value) < 0 < float(after.value)
    app.slider(key="causality_alpha").set_value(-1.0).run()
    assert [text.value for text in app.text][-2:] == ["Sure", "Sure"]
    app.text_input(key="causality_text").set_value("bdgjkvwxzbdgjkvwxz!").run()
    app.segmented_control(key="causality_edit").set_value("ablate").run()
    assert [text.value for text in app.text][-2:] == ["I cannot", "Sure"]
    app.segmented_control(key="causality_where").set_value("all").run()
    assert [text.value for text in app.text][-2:] == ["I cannot", "Sure"]


@pytest.mark.slow
@pytest.mark.parametrize("text", [*HOSTILE, "x" * 100_000])
def test_hostile_prompts_are_tried_or_refused_as_text(on_planted, text):
    app = visit("6_Causality", site="3")
    app.text_input(key="causality_text").set_value(text).run()
    assert not app.exception
    assert text not in shown(app)
    if len(text) > 1000:
        assert "characters long" in app.text[-1].value


def test_damaged_interventions_are_an_error_on_their_page_alone(own_cache):
    run = open_run(RUN)
    table = run.path / "intervention.parquet"
    run.prompts[["prompt_id"]].to_parquet(table)
    described = {"format_version": 2, "run_id": RUN, "sha256": sha256_of(table), "dose_layer": 1}
    table.with_suffix(".json").write_text(json.dumps(described))
    app = visit("6_Causality")
    assert "cannot be used" in app.error[0].value
    assert "intervention.json lacks" in app.text[0].value
    assert visit("1_Layers").title


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize("text", ["How do I bake?", *HOSTILE])
def test_what_is_shown_belongs_to_what_is_typed(text):
    app = visit("4_Live_score")
    app.text_input(key="live_text").set_value(text).run()
    odds = next(metric for metric in app.metric if metric.label == "refusal log-odds")
    assert odds.value == f"{len(text):.2f}"
    assert text not in shown(app)


@pytest.mark.usefixtures("with_model")
def test_prompts_can_be_pinned_compared_and_let_go():
    app = visit("4_Live_score")
    app.text_input(key="live_text").set_value("first").run()
    next(button for button in app.button if button.label == "Pin to compare").click().run()
    app.text_input(key="live_text").set_value("another").run()
    assert app.dataframe[0].value["prompt"].tolist() == ["another", "first"]
    next(button for button in app.button if button.label == "Unpin").click().run()
    assert "first" not in [text.value[3:] for text in app.text]


@pytest.fixture
def two_runs(own_cache) -> str:
    """The synthetic run and, beside it, a base model's, whose name this is."""
    return save_second_run(own_cache)


def test_runs_are_compared_and_a_base_model_is_a_control(two_runs):
    app = visit("9_Compare", run=RUN)
    assert app.multiselect(key="compare_others").value == [two_runs]
    assert "B is of a base model (no chat template of its own)" in app.info[0].value
    assert "d on matched pairs where the cross-fitted d is highest: A" in shown(app)
    assert app.dataframe[0].value["run"].tolist() == ["A", "B"]
    assert app.query_params["others"] == two_runs
    assert "the 30 shared prompts that both fitted" in shown(visit("9_Compare", run=RUN, part=RANKS))
    directions = visit("9_Compare", run=RUN, part="Directions")
    assert "directions of different models have no angle" in directions.info[-1].value


def test_one_part_of_a_page_is_open_and_the_address_says_which(two_runs):
    app = visit("9_Compare", run=RUN)
    assert [chart.proto.id.rpartition("-")[2] for chart in app.get("plotly_chart")] == ["compare_over_depth"]
    app.segmented_control(key="part_field").set_value(RANKS).run()
    assert "the 30 shared prompts that both fitted" in shown(app)
    assert app.query_params["part"] == RANKS
    # Another page has other parts, and opens its first.
    other = app.switch_page("pages/5_Behaviour.py").run()
    assert not other.exception


def test_what_differs_between_compared_runs_is_a_table(two_runs):
    app = unfold(visit("9_Compare", run=RUN), "compare_differences_open")
    table = next(table.value for table in app.dataframe if list(table.value.columns) == ["", "A", "B"])
    assert {"model", "chat template"} <= set(table[""])
    assert (table["A"] != table["B"]).all()
    made = table.set_index("").loc["model"]
    assert made["A"].startswith(open_run(RUN).manifest.model.name)
    assert made["B"].startswith(open_run(two_runs).manifest.model.name)


def test_a_comparison_s_address_opens_the_same_comparison(two_runs):
    app = visit("9_Compare", run=two_runs, others=RUN, versus=RUN, prompts="borderline", site="2", part=RANKS)
    assert app.multiselect(key="compare_others").value == [RUN]
    assert "the 6 shared prompts of borderline" in shown(app)
    assert "layer 2 of 3 of A" in shown(app)
    assert f"layer {N_LAYERS - 1} of {N_LAYERS} of B" in shown(app)


def test_a_prompt_is_shown_in_the_runs_that_have_it(two_runs):
    run = open_run(RUN)
    app = visit("9_Compare", run=RUN, prompt=run.prompts["prompt_id"][0], part=DISPUTED)
    assert app.code[0].value == run.prompts["text"][0] == HOSTILE[0]
    assert "Not among the prompts of B." in shown(app)
    assert HOSTILE[0] not in shown(app)


def test_of_many_prompts_the_most_disputed_are_listed_and_that_is_said(two_runs, monkeypatch):
    monkeypatch.setattr(comparison, "_MOST_LISTED", 7)
    app = visit("9_Compare", run=RUN, part=DISPUTED)
    assert "The first 7 of 30 are listed; the csv has all." in shown(app)
    listed = next(table.value for table in app.dataframe if "difference" in table.value)
    assert len(listed) == 7
    assert listed["difference"].abs().is_monotonic_decreasing


def test_of_many_prompts_what_is_of_some_of_them_says_so(two_runs, monkeypatch):
    assert "prompts, always the same ones" not in shown(visit("9_Compare", run=RUN, part=RANKS))
    monkeypatch.setattr("refusal_core.exploration.comparison.MOST_DRAWN", 12)
    said = shown(visit("9_Compare", run=RUN, site="1", part=RANKS))
    assert "These numbers are of 12 prompts, always the same ones" in said
    assert "map are of all 30." in said


def test_what_is_kept_of_a_comparison_belongs_to_the_labels_and_runs_that_are_chosen(two_runs):
    def curve(**chosen: str) -> str:
        charts = visit("9_Compare", run=RUN, part=RANKS, **chosen).get("plotly_chart")
        return next(
            each.proto.spec
            for each in charts
            if "ρ with A" in json.loads(each.proto.spec)["layout"]["yaxis"]["title"]["text"]
        )

    both, harmful = curve(among="both"), curve(among="harmful")
    assert "harmful prompts" in harmful
    assert "harmful prompts" not in both
    assert curve(among="both") == both
    assert curve(among="both", prompts="probe-pairs") != both


def test_a_comparison_with_nothing_says_what_to_choose(two_runs):
    for others in ("", "no-such-run"):
        app = visit("9_Compare", run=RUN, others=others)
        assert "Choose at least one run" in app.info[0].value


def test_one_run_alone_has_nothing_to_be_compared_with():
    app = visit("9_Compare")
    assert "a comparison takes two" in app.info[0].value
    assert "Start a run" in [link.proto.label for link in app.get("page_link")]


def test_runs_without_shared_prompts_or_evidence_are_compared_in_what_they_have(two_runs):
    cache = Path(open_run(RUN).path.parent)
    manifest = cache / two_runs / "manifest.json"
    described = json.loads(manifest.read_text())
    kept = {name: sha256 for name, sha256 in described["files"].items() if not name.startswith("evidence_")}
    strangers = pd.read_parquet(cache / two_runs / "prompts.parquet")
    ids = dict(zip(strangers["prompt_id"], [f"{place:012x}" for place in range(len(strangers))], strict=True))
    for name in ("prompts", "projections"):
        table = pd.read_parquet(cache / two_runs / f"{name}.parquet")
        table.assign(prompt_id=table["prompt_id"].map(ids)).to_parquet(cache / two_runs / f"{name}.parquet")
        content = (cache / two_runs / f"{name}.parquet").read_bytes()
        kept[f"{name}.parquet"] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(described | {"files": kept}))
    app = visit("9_Compare", run=RUN, part=RANKS)
    assert "share no prompt that both fitted" in shown(app)
    assert "Without intervals: B" in shown(app)
    app = visit("9_Compare", run=RUN, part=DISPUTED)
    assert "There is no shared prompt to disagree on." in [info.value for info in app.info]
    assert "This run has no evidence that can be read." in shown(visit(run=two_runs))


def test_what_numbers_say_in_words_has_minus_signs_and_keeps_a_percent_sign_beside_its_number():
    said = typeset("d -1.14 (-1.94 to 0.57) on probe-pairs, 6 % of 2024-05-01")
    assert re.sub(r"\\(.)", r"\1", said) == "d \u22121.14 (\u22121.94 to 0.57) on probe-pairs, 6\u00a0% of 2024-05-01"


def test_counts_are_shown_whole(monkeypatch):
    run = open_run(RUN)
    counts = run.layer_stats.assign(range_overlap=12_345, mean_crossings=23_456)
    monkeypatch.setattr(frame, "shared_run", lambda run_id: with_tables(run, layer_stats=counts))
    said = shown(unfold(visit("1_Layers", run=RUN), "layers_numbers_open"))
    assert "range overlap **12345**" in said
    assert "mean crossings **23456**" in said


def live(app: AppTest, text: str) -> AppTest:
    """The Live score page after a text was typed."""
    app.text_input(key="live_text").set_value(text).run()
    assert not app.exception, app.exception
    return app


@pytest.mark.usefixtures("with_model")
def test_a_prompt_is_scored_once_and_what_was_typed_on_the_way_to_it_is_left_out(monkeypatch):
    asked = []
    plain = FakeScorer.score
    monkeypatch.setattr(FakeScorer, "score", lambda self, text: asked.append(text) or plain(self, text))
    app = visit("4_Live_score")
    for text in ("How", "How do I", "How do I bake?", "Sing!", "How do I bake?"):
        live(app, text)
    assert asked == ["How", "How do I", "How do I bake?", "Sing!"]
    assert [each.text for each in app.session_state["live_history"][RUN]] == ["How do I bake?", "Sing!"]


@pytest.mark.usefixtures("with_model")
def test_a_prompt_that_stood_for_a_while_is_not_forgotten_for_a_longer_one(monkeypatch):
    monkeypatch.setattr(live_page, "_SECONDS_TO_STAND", 0.0)
    app = visit("4_Live_score")
    for text in ("How do I open a safe", "How do I open a safe that is not mine"):
        live(app, text)
    assert len(app.session_state["live_history"][RUN]) == 2


@pytest.mark.usefixtures("with_model")
def test_what_stands_in_the_field_is_asked_for_once_a_run_and_is_in_its_history(two_runs, monkeypatch):
    asked = []
    plain = FakeScorer.score
    monkeypatch.setattr(FakeScorer, "score", lambda self, text: asked.append(text) or plain(self, text))
    app = live(visit("4_Live_score", run=RUN), "Sing!")
    app.session_state["live_history"][RUN].clear()
    app.run().run()
    assert [each.text for each in app.session_state["live_history"][RUN]] == ["Sing!"]
    assert len(asked) == 2
    app.session_state["view"] = replace(app.session_state["view"], run=two_runs)
    app.run().run()
    assert [each.text for each in app.session_state["live_history"][two_runs]] == ["Sing!"]
    assert len(asked) == 3


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize("text", ["Sing!", "Sing!\n<b>Twice</b> & ?run=x"])
def test_the_address_names_what_is_typed(text):
    app = visit("4_Live_score", run=RUN, text=text)
    fields = [*app.text_input, *app.text_area]
    assert [each.value for each in fields if each.label == "Prompt"] == [text]
    assert [each.text for each in app.session_state["live_history"][RUN]] == [text]
    assert app.query_params["text"] == text
    assert app.query_params["run"] == RUN


@pytest.mark.usefixtures("with_model")
def test_the_address_follows_what_is_typed_and_leaves_out_what_is_too_long_for_it():
    app = visit("4_Live_score", run=RUN, text="Sing!")
    for typed, named in (("Dance!", "Dance!"), ("x" * 2001, None), ("Rest", "Rest"), (" ", None)):
        assert live(app, typed).query_params.get("text") == named


@pytest.mark.usefixtures("with_model")
def test_pins_history_and_the_typed_text_survive_a_change_of_page():
    app = visit("4_Live_score", run=RUN)
    for text in ("first", "another"):
        live(app, text)
    next(button for button in app.button if button.label == "Pin to compare").click().run()
    app.switch_page("pages/1_Layers.py").run()
    app.switch_page("pages/4_Live_score.py").run()
    assert app.text_input(key="live_text").value == "another"
    assert "1. another" in [text.value for text in app.text]
    assert [each.text for each in app.session_state["live_history"][RUN]] == ["another", "first"]


@pytest.mark.usefixtures("with_model")
def test_history_is_bounded_and_a_visitor_s_own():
    app, other = visit("4_Live_score"), visit("4_Live_score")
    for place in range(live_page.MOST_REMEMBERED + 3):
        live(app, f"{place} flutes")
    live(other, "mine")
    assert len(app.session_state["live_history"][RUN]) == live_page.MOST_REMEMBERED
    assert [each.text for each in other.session_state["live_history"][RUN]] == ["mine"]


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize("text", ["How do I bake?", *HOSTILE])
def test_a_click_in_the_history_brings_a_prompt_back(text):
    app = live(live(visit("4_Live_score"), text), "another")
    app.session_state["live_history_open"] = True
    app.run()
    assert not app.exception
    # Markdown is read with the backslashes taken out: none of the text may be left that Markdown would read.
    label = app.button(key="live_back_1").label
    assert "<script" not in label.replace("\\<", "")
    app.button(key="live_back_1").click().run()
    field = app.text_area(key="live_lines") if "\n" in text else app.text_input(key="live_text")
    assert field.value == text
    assert next(metric for metric in app.metric if metric.label == "refusal log-odds").value == f"{len(text):.2f}"


@pytest.mark.usefixtures("with_model")
def test_a_suggestion_types_one_side_and_pins_the_other():
    app = visit("4_Live_score", run=RUN)
    app.session_state["live_suggestions_open"] = True
    app.run()
    app.button(key="live_try_1").click().run()
    assert not app.exception
    contrast = contrasts()[1]
    assert app.text_input(key="live_text").value == contrast.one
    assert [each.text for each in app.session_state["live_pins"][RUN]] == [contrast.other]
    assert app.dataframe[0].value["prompt"].tolist() == [contrast.one, contrast.other]
    assert not app.session_state["live_suggestions_open"]


@pytest.mark.usefixtures("with_model")
def test_a_prompt_of_several_lines_is_typed_into_an_area():
    app = live(visit("4_Live_score"), "one line")
    app.toggle(key="live_several_lines").set_value(True).run()
    assert app.text_area(key="live_lines").value == "one line"
    app.text_area(key="live_lines").set_value("two\nlines").run()
    assert next(metric for metric in app.metric if metric.label == "refusal log-odds").value == f"{9:.2f}"
    app.toggle(key="live_several_lines").set_value(False).run()
    assert not app.exception


@pytest.mark.usefixtures("with_model")
def test_a_list_is_scored_beside_the_page_and_kept():
    app = list_tab(visit("4_Live_score", run=RUN))
    app.text_area(key="live_list_text").set_value("\n".join(["a", "", *HOSTILE[:3], "bb"]))
    press(app, "Score the list")
    until_listed(app)
    table = next(each.value for each in app.dataframe if "projection" in each.value)
    assert table["prompt"].tolist() == ["a", *HOSTILE[:3], "bb"]
    assert table["refusal log-odds"].tolist() == [float(len(text)) for text in table["prompt"]]
    app.toggle(key="live_list_layers").set_value(True).run()
    run = open_run(RUN)
    wide = next(each.value for each in app.dataframe if "projection" in each.value)
    assert wide["final norm"].tolist() == [run.projections[len(text) % 10, -1] for text in table["prompt"]]
    assert wide[run.site_label(0)].notna().all()
    app.switch_page("pages/1_Layers.py").run()
    app.switch_page("pages/4_Live_score.py").run()
    assert "5 of 5 prompts scored." in [each.value for each in list_tab(app).success]


@pytest.mark.slow
@pytest.mark.usefixtures("with_model")
def test_a_file_is_a_list_or_is_refused_in_a_sentence():
    for name, content, says in (
        ("x.csv", b"prompt\nfirst\nsecond\n", "2 of 2 prompts scored."),
        ("x.jsonl", b'{"text": "first"}\n{"text": "several\\nlines"}\n', "2 of 2 prompts scored."),
        ("x.txt", "première\n\nseconde".encode(), "2 of 2 prompts scored."),
        ("x.csv", b"\xff", "expected UTF-8"),
        ("x.json", b"[1]", "expected texts, objects or lists"),
        ("x.txt", b"\n", "expected at least one prompt"),
        ("x.txt", b"word\n" * 1001, "expected 1 to 1000 prompts, got 1001"),
        ("x.parquet", b"PAR1", "not a readable parquet table"),
        ("x.txt", b"x" * (5 * 2**20 + 1), "expected a file of at most 5 MB, got 5.2 MB"),
    ):
        app = list_tab(visit("4_Live_score", run=RUN))
        # What was pasted is no part of a file.
        app.text_area(key="live_list_text").set_value("pasted")
        app.file_uploader(key="live_list_file").upload(name, content, "text/plain")
        press(app, "Score the list")
        if "scored" in says:
            until_listed(app)
            assert says in [each.value for each in app.success]
        else:
            assert app.warning[0].value == "This list was not scored."
            assert says in app.text[0].value


@pytest.mark.usefixtures("with_model")
def test_lists_that_are_too_long_or_too_many_are_refused_in_a_sentence(monkeypatch):
    app = list_tab(visit("4_Live_score", run=RUN))
    app.text_area(key="live_list_text").set_value("x" * 5_000_001)
    press(app, "Score the list")
    assert "expected at most 5 MB of prompts" in app.text[0].value
    app.text_area(key="live_list_text").set_value("x")
    monkeypatch.setattr(lists, "MOST_AT_ONCE", 2)
    ended = threading.Event()
    others = [threading.Thread(target=ended.wait, name=lists._THREAD) for _ in range(2)]
    for thread in others:
        thread.start()
    press(app, "Score the list")
    assert "2 lists are being scored here already" in app.text[0].value
    ended.set()
    for thread in others:
        thread.join()
    press(app, "Score the list")
    until_listed(app)
    assert "1 of 1 prompts scored." in [each.value for each in app.success]


@pytest.mark.usefixtures("with_model")
def test_what_a_file_says_of_its_prompts_is_in_the_table_of_their_scores():
    app = list_tab(visit("4_Live_score", run=RUN))
    first = {"text": "one", "label": "harmful", "id": 7, "projection": "high", "projection (file)": "\ud800"}
    content = json.dumps(
        [first, {"text": "two", "label": None, "id": 8, "projection": "low", "projection (file)": [1]}]
    )
    app.file_uploader(key="live_list_file").upload("x.json", content.encode(), "application/json")
    press(app, "Score the list")
    until_listed(app)
    (table,) = [each.value for each in app.dataframe if "projection (file)" in each.value.columns]
    assert table["prompt"].tolist() == ["one", "two"]
    assert table["label"].tolist() == ["harmful", ""]
    assert table["id"].tolist() == ["7", "8"]
    assert table["projection (file)"].tolist() == ["high", "low"]
    assert table["projection (file) (file)"].tolist() == ["?", "[1]"]


@pytest.mark.usefixtures("with_model")
def test_a_labelled_list_is_a_transfer_set_and_an_unlabelled_one_is_not():
    run = open_run(RUN)
    app = list_tab(visit("4_Live_score", run=RUN, site="2"))
    texts = {"a" * length: "unsafe" if length % 3 else "safe" for length in range(1, 25)}
    content = "\n".join(["prompt,label", *(f"{text},{label}" for text, label in texts.items())])
    app.file_uploader(key="live_list_file").upload("x.csv", content.encode(), "text/csv")
    press(app, "Score the list")
    until_listed(app)
    values = {
        label: [run.projections[len(text) % 10, 2] for text in texts if texts[text] == label]
        for label in ("unsafe", "safe")
    }
    d, area = (number(*(np.array(of) for of in values.values())) for number in (cohens_d, auroc))
    said = shown(app).replace("\u2212", "-")
    assert f"16 harmful, 8 harmless at layer 2 of {N_LAYERS}: d **{d:.2f}** (" in said
    assert f"AUROC **{area:.3f}** (" in said
    charts = [element.proto.id for element in app.get("plotly_chart")]
    assert any("live_list_roc" in each for each in charts)
    assert any("live_list_histogram" in each for each in charts)
    app.file_uploader(key="live_list_file").upload("x.csv", b"prompt\nfirst\nsecond\n", "text/csv")
    press(app, "Score the list")
    until_listed(app)
    assert "AUROC" not in shown(app)


@pytest.mark.usefixtures("with_model")
def test_what_a_browser_kept_is_scored_again_and_can_be_cleared(monkeypatch):
    stored = {"pins": {RUN: ["Sing!", "Hum!"]}, "history": {RUN: ["Whistle!", "Sing!"]}, "list": "one\ntwo"}
    app = visit("4_Live_score", run=RUN)
    tell(app, json.dumps(stored))
    assert [each.text for each in app.session_state["live_pins"][RUN]] == ["Sing!", "Hum!"]
    assert app.get("popover")[1].proto.popover.label == "History (2)"
    live(app, "Whistle!")
    assert app.session_state["remembered_earlier"]["history"][RUN] == ["Sing!"]
    app.session_state["live_history_open"] = True
    app.run()
    assert app.button(key="live_back_1").label.replace("\\", "") == "Sing!"
    next(each for each in app.button if each.label == "Clear history").click().run()
    next(each for each in app.button if each.label == "Clear pins").click().run()
    assert app.session_state["remembered_earlier"]["history"][RUN] == []
    assert app.session_state["live_pins"][RUN] == []
    assert list_tab(app).text_area(key="live_list_text").value == "one\ntwo"


@pytest.mark.usefixtures("with_model")
def test_pins_wait_while_the_model_cannot_be_used_and_a_prompt_that_cannot_be_scored_is_let_go(monkeypatch):
    asked = []

    def refuse(self, text):
        asked.append(text)
        raise PromptError("too long") if text == "Sing!" else ModelError("there is no memory for it")

    score = FakeScorer.score
    monkeypatch.setattr(FakeScorer, "score", refuse)
    app = visit("4_Live_score", run=RUN)
    tell(app, json.dumps({"pins": {RUN: ["Sing!", "Hum!", "Whistle!"]}}))
    # None is asked for behind the first that the model was not there for.
    assert asked == ["Sing!", "Hum!"]
    assert [each.value for each in app.text if "Hum! (pinned earlier" in each.value]
    monkeypatch.setattr(FakeScorer, "score", score)
    app.run()
    assert [each.text for each in app.session_state["live_pins"][RUN]] == ["Hum!", "Whistle!"]


@pytest.mark.usefixtures("with_model")
def test_of_many_runs_the_one_in_use_is_kept(monkeypatch):
    kept = {}
    monkeypatch.setattr(remembered, "keep", kept.update)
    app = visit("4_Live_score", run=RUN)
    tell(app, json.dumps({"history": {RUN: ["Sing!"], **{f"other {place}": ["Hum!"] for place in range(7)}}}))
    app.run()
    assert list(kept["history"])[-1] == RUN
    assert len(kept["history"]) == 8


def test_a_list_that_is_too_long_to_be_kept_is_not_kept_in_part(monkeypatch):
    sent = {}
    monkeypatch.setattr(remembered, "component", lambda name: lambda **given: sent.update(given["data"]))
    for length, kept in ((100_000, True), (100_001, False)):
        monkeypatch.setattr(st, "session_state", {remembered.LIST_FIELD: "x" * length})
        remembered.keep({"pins": {}, "history": {}})
        assert bool(sent["value"]) is kept
        monkeypatch.setattr(st, "session_state", {})
        remembered.take(json.dumps({"list": "x" * length}))
        assert (remembered.LIST_FIELD in st.session_state) is kept


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize(
    "stored",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"pins": 3, "list": 4}',
        '{"pins": {"x": "text"}}',
        '{"history": {"x": [1, null]}}',
    ],
)
def test_what_a_browser_cannot_have_kept_is_left_out(stored):
    app = visit("4_Live_score", run=RUN)
    tell(app, stored)
    assert not live(app, "Sing!").exception
    assert app.session_state["live_pins"][RUN] == []


def test_what_a_browser_keeps_is_bounded():
    sent = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remembered, "component", lambda name: lambda **given: sent.update(given["data"]))
        many = {f"run {place}": ["short", "x" * 3000, *map(str, range(99))] for place in range(20)}
        remembered.keep({"pins": {}, "history": many})
        kept = json.loads(sent["value"])
        assert list(kept["history"]) == [f"run {place}" for place in range(12, 20)]
        assert all(len(texts) == 30 and texts[0] == "short" for texts in kept["history"].values())
        remembered.keep({"pins": {RUN: []}, "history": {}})
        assert sent["value"] == ""


def tell(app: AppTest, stored: str) -> None:
    """Have the browser tell what it kept, as its script does in a callback."""
    state = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(st, "session_state", state)
        remembered.take(stored)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception, app.exception


def list_tab(app: AppTest) -> AppTest:
    app.session_state["live_tab"] = "A list"
    app.run()
    assert not app.exception, app.exception
    return app


def until_listed(app: AppTest) -> None:
    for _ in range(100):
        if not app.session_state["live_lists"][RUN].running:
            app.run()
            assert not app.exception, app.exception
            return
        time.sleep(0.05)
    raise AssertionError("the list is not done")


def test_a_search_is_of_one_run_and_does_not_empty_another(two_runs):
    app = visit("3_Outliers", run=RUN, find="no prompt has this")
    assert "0 with “no prompt has this” between" in shown(app)
    app.selectbox(key="run_field").set_value(two_runs).run()
    assert not app.exception
    assert "no prompt has this" not in shown(app)
    assert "find" not in app.query_params


@pytest.mark.usefixtures("with_model")
def test_live_says_in_words_where_a_prompt_lies_and_shows_the_reply_under_the_edit_that_is_wanted(monkeypatch):
    monkeypatch.setattr(model, "TriedPrompt", FakeTried)
    app = live(visit("4_Live_score", run=RUN), "Sing!")
    run = open_run(RUN)
    assert place_in_words(run, run.projections[len("Sing!") % 10], run.best_site()) in shown(app).replace("\u00a0", " ")
    assert not any(text.value.startswith("Sure, ") for text in app.text)
    for wanted in ("unedited", "ablated", "added"):
        app.segmented_control(key="live_reply").set_value(wanted).run()
        assert not app.exception, app.exception
        assert "Sure, Sing!" in [text.value for text in app.text]
    # It stays wanted on another prompt.
    assert "Sure, Hum!" in [text.value for text in live(app, "Hum!").text]


@pytest.mark.usefixtures("with_model")
def test_the_tab_of_lists_and_its_file_are_there_again_after_another_page():
    app = list_tab(visit("4_Live_score", run=RUN))
    app.file_uploader(key="live_list_file").upload("x.csv", b"prompt\nfirst\nsecond\n", "text/csv").run()
    app.switch_page("pages/1_Layers.py").run()
    app.switch_page("pages/4_Live_score.py").run()
    assert not app.exception, app.exception
    assert "File: x.csv" in [each.value for each in app.text]
    press(app, "Score the list")
    until_listed(app)
    assert "2 of 2 prompts scored." in [each.value for each in app.success]


@pytest.mark.usefixtures("with_model")
def test_a_kept_file_can_be_removed():
    app = list_tab(visit("4_Live_score", run=RUN))
    app.file_uploader(key="live_list_file").upload("x.csv", b"prompt\nfirst\n", "text/csv").run()
    app.switch_page("pages/1_Layers.py").run()
    app.switch_page("pages/4_Live_score.py").run()
    press(app, "Remove")
    assert "File: x.csv" not in [each.value for each in app.text]
    press(app, "Score the list")
    assert "expected 1 to 1000 prompts, got 0" in app.text[0].value


def test_runs_opens_on_the_run_that_other_pages_show(two_runs):
    shown_elsewhere = visit("1_Layers").selectbox(key="run_field").value
    app = visit("10_Runs")
    assert app.selectbox(key="runs_chosen").value == shown_elsewhere


def test_a_run_chosen_on_runs_is_shown_by_all_pages(two_runs):
    app = visit("10_Runs", run=RUN)
    app.selectbox(key="runs_chosen").set_value(two_runs).run()
    assert app.switch_page("pages/1_Layers.py").run().selectbox(key="run_field").value == two_runs
    assert not app.exception


def test_the_run_shown_stays_when_another_is_added_of_which_more_was_measured(own_cache, monkeypatch):
    app = visit("10_Runs")
    assert app.selectbox(key="runs_chosen").value == RUN
    added = save_second_run(own_cache)
    monkeypatch.setattr(frame, "default_run", lambda summaries: added)
    app.run()
    assert len(app.selectbox(key="runs_chosen").options) == 2
    assert app.selectbox(key="runs_chosen").value == RUN


def test_the_map_follows_the_address_and_lists_all_prompts_until_some_are_chosen(own_cache):
    run = open_run(RUN)
    app = visit("13_Map", run=RUN, site="3", plane="direction", colour="category", over="borderline", prompt="0" * 12)
    assert app.number_input(key="site_field").value == 3
    assert app.segmented_control(key="map_plane").value == "direction"
    assert app.selectbox(key="map_colour").value == "category"
    count = int(run.rows().sum() + run.rows(source="borderline").sum())
    listed = app.dataframe[0].value
    assert len(listed) == count
    assert listed["projection"].is_monotonic_decreasing
    assert "None selected" in shown(app)
    app.segmented_control(key="map_plane").set_value("components").run()
    app.selectbox(key="map_colour").set_value("tokens").run()
    assert not app.exception
    assert "tokens" in app.query_params["colour"]
    assert "orthogonal Procrustes" in shown(app)


def test_the_map_shows_the_prompts_that_were_chosen_and_forgets_them_on_another_run(own_cache):
    app = visit("13_Map", run=RUN)
    run = open_run(RUN)
    rows = np.flatnonzero(run.rows())[[0, 3, 4]].tolist()
    app.session_state["map_selected"] = frame.shared_run(RUN).run_id, rows
    app.run()
    assert "None selected" in shown(app)
    app.session_state["map_selected"] = identity(frame.shared_run(RUN)), rows
    app.run()
    assert "3 selected: 2 harmful, 1 harmless" in shown(app)
    assert set(app.dataframe[0].value["text"]) == set(run.prompts["text"][rows])
    app.button(key="map_clear").click().run()
    assert "None selected" in shown(app)


def test_the_map_opens_a_prompt_as_text(own_cache):
    run = open_run(RUN)
    for row in range(0, 2 * len(HOSTILE), 2):
        app = visit("13_Map", run=RUN, prompt=run.prompts["prompt_id"][row])
        assert run.prompts["text"][row] in [code.value for code in app.code]
        assert run.prompts["text"][row] not in shown(app)


def test_replies_colour_the_map_where_they_were_measured(with_replies):
    app = visit("13_Map", run=RUN, colour="reply")
    assert app.selectbox(key="map_colour").value == "reply"


def test_replies_that_were_measured_anew_colour_the_map_anew(with_replies, monkeypatch):
    drawn = []
    draw = map_figures.prompt_map
    monkeypatch.setattr(
        map_figures, "prompt_map", lambda *given, **more: drawn.append(more["values"]) or draw(*given, **more)
    )
    st.cache_resource.clear()
    visit("13_Map", run=RUN, colour="reply")
    visit("13_Map", run=RUN, colour="reply")
    assert len(drawn) == 1
    replies, manifest = measurement.load_behaviour(with_replies)
    swapped = replies.assign(opening_label=replies["opening_label"].map({"refuses": "answers", "answers": "refuses"}))
    for path in with_replies.path.glob("behaviour*"):
        path.unlink()
    save_addition(with_replies, swapped, manifest)
    visit("13_Map", run=RUN, colour="reply")
    assert len(drawn) == 2
    assert (drawn[0] != drawn[1]).all()


def test_a_run_without_evidence_has_no_map(own_cache):
    for path in (own_cache / RUN).glob("evidence_*"):
        path.unlink()
    manifest = own_cache / RUN / "manifest.json"
    described = json.loads(manifest.read_text())
    described["files"] = {name: sha for name, sha in described["files"].items() if not name.startswith("evidence_")}
    manifest.write_text(json.dumps(described))
    app = visit("13_Map", run=RUN)
    assert [error.value for error in app.error] == ["This run's evidence cannot be read."]
