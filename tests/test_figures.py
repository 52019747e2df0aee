from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from refusal_core import effects, intervention
from refusal_core.evidence import Evidence
from refusal_core.figures import evidence as evidence_figures
from refusal_core.figures import intervention as intervention_figures
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram, token_strip
from refusal_core.figures.layers import scrubber, separation, three_questions
from refusal_core.figures.style import safe
from refusal_core.findings import QUESTIONS
from refusal_core.published import published_table
from refusal_core.report import report_html


@pytest.fixture
def evidence(run) -> Evidence:
    return Evidence.from_tables(run.evidence_tables())


def test_the_scrubber_has_a_frame_a_site_that_counts_every_prompt(run):
    figure = scrubber(run, 2)
    assert [frame.name for frame in figure.frames] == [str(site) for site in range(run.n_sites)]
    assert [step.label for step in figure.layout.sliders[0].steps] == [*map(str, range(run.n_layers)), "norm"]
    for frame in figure.frames:
        bars = [trace for trace in frame.data if trace.type == "bar"]
        assert {bar.name: int(np.sum(bar.y)) for bar in bars} == {"harmful": 16, "harmless": 16}
    assert figure.layout.sliders[0].active == 2
    np.testing.assert_array_equal(figure.data[0].y, figure.frames[2].data[0].y)


def test_the_scrubber_marks_the_means_where_they_are(run):
    for site, frame in enumerate(scrubber(run, 0).frames):
        means = {trace.name: trace.x[0] for trace in frame.data if trace.name.endswith(" mean")}
        assert means["harmful mean"] == pytest.approx(run.layer_stats["harmful_mean"][site])
        assert means["harmless mean"] == pytest.approx(run.layer_stats["harmless_mean"][site])


def test_transfer_sets_are_drawn_on_demand(run):
    drawn = {trace.name for trace in scrubber(run, 0, ["borderline"]).frames[1].data}
    assert {"borderline, harmful", "borderline, harmless", "borderline, grey"} <= drawn
    assert not any("borderline" in trace.name for trace in scrubber(run, 0).frames[1].data)


def test_the_published_curve_ends_at_the_final_norm(run):
    figure = three_questions(run, 0, published_table())
    published = next(trace for trace in figure.data if "published" in trace.name)
    assert published.x[-1] == pytest.approx(run.n_layers)
    assert published.y[18] == pytest.approx(9.055)
    assert len(separation(run, 0, published_table()).data) == 2


def test_histograms_count_every_fitted_prompt(run):
    figure = histogram(run, 3, band=(0.0, 1.0))
    assert [int(np.sum(bar.y)) for bar in figure.data] == [16, 16]
    assert figure.layout.dragmode == "select"


def test_hostile_prompts_are_escaped_wherever_plotly_reads_html(run):
    lines = [Course(text, run.projections[0], safe(text), "#000000") for text in run.prompts["text"]]
    drawn = courses(run, lines).to_json() + token_strip(["<b>", "\n"], np.array([1.0, 2.0]), run, 0).to_json()
    for raw in ("<script>", "<img", "<b>"):
        assert raw not in json.loads(json.dumps(drawn)).replace("\\u003c", "<")
    assert "&lt;script&gt;" in drawn.replace("\\u0026", "&")


def test_long_prompts_are_cut_in_hover_text():
    assert len(safe("word " * 50_000)) < 400


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_a_figure(run, evidence, name):
    assert evidence_figures.FIGURES[name](run, evidence, 4).data


def test_the_overview_marks_the_onset(run, evidence):
    annotations = [note.text for note in evidence_figures.overview(run, evidence, 4).layout.annotations]
    assert any(note.startswith("onset: layer") for note in annotations)


def test_the_report_is_whole_and_escaped(run, evidence):
    page = report_html(run, evidence)
    assert page.count("<html") == 1
    assert "<script src" not in page
    assert "<script>document.title" not in page
    assert all(question.replace("'", "&#x27;") in page for question in QUESTIONS.values())


def test_the_report_has_the_replies_where_they_were_measured(run, evidence):
    replies = pd.DataFrame(
        {
            "prompt_id": run.prompts["prompt_id"],
            "phrase_log_odds": run.projections[:, -1],
            "opening": "<b>I cannot",
            "opening_label": "refuses",
        }
    )
    page = report_html(run, evidence, replies)
    assert "refuses 100% of the harmful and 100% of the harmless prompts" in page
    assert "<b>I cannot" not in page.replace("\\u003c", "<")
    assert "What the model does" not in report_html(run, evidence)


def test_prompts_cannot_name_numbers_of_a_hover_template():
    assert "%{" not in safe("a %{y} b %%{customdata} <b>")


def test_names_of_sets_are_escaped(run, evidence):
    renamed = evidence.transfer.assign(source=evidence.transfer["source"].replace("borderline", "<b>x</b>"))
    figure = evidence_figures.harm(run, dataclasses.replace(evidence, transfer=renamed), 2)
    assert "<b>x" not in figure.to_json()


@pytest.fixture
def summary(planted_run) -> pd.DataFrame:
    return effects.summarise(planted_run, intervention.recorded(planted_run)[0])


def test_a_sweep_is_drawn_beside_the_band_of_its_controls(planted_run, summary):
    for sweep, (edit, label, measure, _) in intervention_figures.SWEEPS.items():
        controls, _, line = intervention_figures.over_layers(planted_run, summary, sweep).data
        expected = effects.over_layers(summary, edit, label)
        np.testing.assert_array_equal(line.x, range(planted_run.n_layers))
        np.testing.assert_array_equal(line.y, expected[measure])
        np.testing.assert_array_equal(controls.x[::3], expected["site"])
        np.testing.assert_array_equal(np.array(controls.y[1::3], float), expected[f"{measure}_band_high"])


def test_doses_go_through_the_model_as_it_is(planted_run, summary):
    chosen = effects.published_choice(planted_run, intervention.recorded(planted_run)[0])
    figure = intervention_figures.doses(planted_run, summary, int(chosen["read_at"]), int(chosen["position"]))
    harmful = next(trace for trace in figure.data if trace.name == "harmful")
    plain = effects.select(summary, "none", "harmful")["log_odds"].iloc[0]
    assert dict(zip(harmful.x, harmful.y, strict=True))[0.0] == plain


def test_the_chosen_candidate_is_the_one_marked(planted_run):
    table = intervention.recorded(planted_run)[0]
    candidates, chosen = effects.candidates(planted_run, table), effects.published_choice(planted_run, table)
    marked = intervention_figures.choice(planted_run, candidates, chosen).data[-1]
    assert (marked.x[0], marked.y[0]) == (chosen["read_at"], chosen["bypass"])
    assert intervention_figures.choice(planted_run, candidates, None).data[-1].name.startswith("token")


def test_the_report_says_what_interventions_found(planted_run):
    found = Evidence.from_tables(planted_run.evidence_tables())
    with_them = report_html(planted_run, found, None, intervention.recorded(planted_run))
    assert "The published rule chooses" in with_them
    assert "The published rule chooses" not in report_html(planted_run, found)
