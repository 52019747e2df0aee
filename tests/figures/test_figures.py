from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import plotly.io
import pytest
from synthetic import changed, with_tables

from refusal_core.evidence.answers import QUESTIONS
from refusal_core.exploration import comparison
from refusal_core.exploration.outliers import in_band, prompts_at
from refusal_core.exploration.planes import COMPONENTS, plane_of
from refusal_core.exploration.published import published_table
from refusal_core.figures import comparison as comparison_figures
from refusal_core.figures import evidence as evidence_figures
from refusal_core.figures import intervention as intervention_figures
from refusal_core.figures import outliers as figures_of_outliers
from refusal_core.figures import style
from refusal_core.figures.courses import Course, courses
from refusal_core.figures.histograms import histogram
from refusal_core.figures.layers import SUMMARIES, eight_layers, separation, three_questions
from refusal_core.figures.panels import AXES, LEVELS, PANELS, POINTS, SYMBOLS, linked
from refusal_core.figures.plotly_internals import serialise_once
from refusal_core.figures.style import move_mark, safe
from refusal_core.figures.tokens import COLOURS_END, END_OF_PROMPT, token_heatmap
from refusal_core.intervention import effects, experiment
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.sharing.report import report_html


@pytest.fixture
def evidence(run) -> Evidence:
    return run.evidence


def traces_of(figure, place: int, kind: str, name: str | None = None) -> list:
    """Traces of a kind as a frame leaves them, on the ``place``-th pair of axes."""
    axis = "x" if place == 1 else f"x{place}"
    return [i for i, t in enumerate(figure.data) if t.type == kind and t.xaxis == axis and name in (None, t.name)]


def test_the_panels_have_a_frame_a_site_that_counts_every_prompt(run):
    figure = linked(run, 2)
    assert [frame.name for frame in figure.frames] == [str(site) for site in range(run.n_sites)]
    assert [step.label for step in figure.layout.sliders[0].steps] == [*map(str, range(run.n_layers)), "norm"]
    bars = traces_of(figure, 1, "bar")
    for site, frame in enumerate(figure.frames):
        for place in bars:
            bar, label = frame.data[place], figure.data[place].name
            edges = np.concatenate([bar.x, bar.x[-1:] + bar.width]).astype(float)
            values = run.projections[run.rows(label), site]
            edges[[0, -1]] = min(edges[0], values.min()), max(edges[-1], values.max())
            assert int(np.sum(bar.y)) == 16
            np.testing.assert_array_equal(np.cumsum(bar.y), [(values <= edge).sum() for edge in edges[1:]])
    assert figure.layout.sliders[0].active == 2
    np.testing.assert_array_equal(figure.data[0].y, figure.frames[2].data[0].y)


def test_a_bar_says_its_own_edges(run):
    bar = linked(run, 0).frames[3].data[0]
    np.testing.assert_allclose(np.asarray(bar.hovertext, dtype=float)[:-1], bar.x[1:])
    assert float(bar.hovertext[-1]) == pytest.approx(bar.x[-1] + bar.width, rel=1e-5)


def test_the_panels_mark_the_means_where_they_are(run):
    figure = linked(run, 0, ["histogram"])
    names = [trace.name for trace in figure.data]
    for site, frame in enumerate(figure.frames):
        for label in ("harmful", "harmless"):
            mean = frame.data[names.index(f"{label} mean")].x[0]
            assert mean == pytest.approx(run.layer_stats[f"{label}_projection_mean"][site])


def test_cumulative_curves_rise_to_all_prompts(run):
    figure = linked(run, 0, ["cumulative"])
    for site, frame in enumerate(figure.frames):
        for trace, curve in zip(figure.data, frame.data, strict=True):
            values = run.projections[run.rows(trace.name), site]
            assert curve.y[-1] == 1.0
            assert (np.diff(curve.y) >= 0).all()
            assert (np.diff(curve.x) >= 0).all()
            for x, y in zip(curve.x[1:], curve.y[1:], strict=True):
                assert y == pytest.approx((values <= x + 1e-5).mean())


def test_boxes_are_numpy_s_quartiles_and_whiskers_end_at_prompts(run):
    figure = linked(run, 0, ["box"])
    for site, frame in enumerate(figure.frames):
        for place in traces_of(figure, 1, "box"):
            box, values = frame.data[place], run.projections[run.rows(figure.data[place].name), site]
            np.testing.assert_allclose(
                [box.q1[0], box.median[0], box.q3[0]], np.percentile(values, [25, 50, 75]), rtol=1e-6
            )
            assert {box.lowerfence[0], box.upperfence[0]} <= set(values.tolist())


def test_sorted_prompts_stand_at_their_rank_and_keep_their_row(run):
    figure = linked(run, 0, ["sorted"])
    points = [place for place, trace in enumerate(figure.data) if trace.mode == "markers"]
    for site, frame in enumerate(figure.frames):
        for place in points:
            values = run.projections[run.rows(figure.data[place].name), site]
            rows = [row for (row,) in figure.data[place].customdata]
            np.testing.assert_allclose(frame.data[place].y, run.projections[rows, site], rtol=1e-5)
            for row, rank in zip(rows, frame.data[place].x, strict=True):
                assert rank == (values < run.projections[row, site]).sum() + 1


def test_the_same_axes_hold_every_layer(run):
    for axes in AXES:
        frames = linked(run, 0, axes=axes).frames
        ranges = {tuple(frame.layout.xaxis.range) for frame in frames}
        assert (len(ranges) == 1) == (axes != "own")
    scaled = linked(run, 0, ["histogram"], axes="standardised")
    names = [trace.name for trace in scaled.data]
    for site, frame in enumerate(scaled.frames):
        apart = frame.data[names.index("harmful mean")].x[0] - frame.data[names.index("harmless mean")].x[0]
        assert apart == pytest.approx(run.layer_stats["in_sample_d"][site])


@pytest.mark.parametrize("panel", PANELS)
def test_pinned_prompts_are_marked_where_they_project(run, panel):
    rows = np.flatnonzero(run.rows())[[3, 20]]
    plain, pinned = linked(run, 1, [panel]), linked(run, 1, [panel], followed=rows)
    marks = [
        place for place, trace in enumerate(pinned.data) if trace.type == "scatter" and trace.marker.symbol in SYMBOLS
    ]
    assert len(marks) == len(rows) == len(pinned.data) - len(plain.data)
    for site, frame in enumerate(pinned.frames):
        for row, place in zip(rows, marks, strict=True):
            if panel == "map":
                expected = plane_of(run, COMPONENTS).points[row, site]
                np.testing.assert_allclose([frame.data[place].x[0], frame.data[place].y[0]], expected, rtol=1e-5)
            else:
                along = frame.data[place].y if panel == "sorted" else frame.data[place].x
                assert along[-1] == pytest.approx(run.projections[row, site], rel=1e-5)


def test_the_map_has_every_label_s_prompts_in_the_principal_plane(run):
    figure = linked(run, 0, ["map"])
    points = plane_of(run, COMPONENTS).points
    assert {trace.name for trace in figure.data} == {"harmful", "harmless"}
    for site, frame in enumerate(figure.frames):
        for shown, trace in zip(figure.data, frame.data, strict=True):
            rows = [row for (row,) in shown.customdata]
            assert set(run.prompts["label"][rows]) == {shown.name}
            np.testing.assert_allclose(np.column_stack([trace.x, trace.y]), points[rows, site], rtol=1e-5)
            low, high = frame.layout.xaxis.range
            assert low <= min(trace.x) <= max(trace.x) <= high


def test_transfer_sets_are_drawn_on_demand(run):
    drawn = {trace.name for trace in linked(run, 0, sources=["borderline"]).data}
    assert {"borderline, harmful", "borderline, harmless", "borderline, grey"} <= drawn
    assert not any("borderline" in trace.name for trace in linked(run, 0).data)


def test_a_step_of_a_page_s_slider_is_one_update_to_what_the_frame_shows(run):
    options = {"sources": ["borderline"], "followed": (3,)}
    saved, shown = (json.loads(linked(run, 1, framed=framed, **options).to_json()) for framed in (True, False))
    assert "frames" not in shown
    assert shown["data"] == saved["data"]
    steps = shown["layout"]["sliders"][0]["steps"]
    assert {step["method"] for step in steps} == {"update"}
    for frame, step in zip(saved["frames"], steps, strict=True):
        changed, layout, places = step["args"]
        for each, place in enumerate(places):
            still = saved["data"][place]
            told = {name: values[each] for name, values in changed.items()}
            # Plotly removes what it is told to set to null.
            assert not {name for name, value in told.items() if value is None} & still.keys()
            assert still | {name: value for name, value in told.items() if value is not None} == (
                still | frame["data"][each]
            )
        assert layout["title.text"] == frame["layout"]["title"]["text"]
        assert layout["shapes"] == frame["layout"]["shapes"]
        ranges = {name: axis["range"] for name, axis in frame["layout"].items() if "axis" in name}
        assert {name: layout[f"{name}.range"] for name in ranges} == ranges


@pytest.mark.parametrize("panel", PANELS)
def test_each_panel_stands_alone_and_stacked(run, panel):
    assert linked(run, 0, [panel]).data
    assert linked(run, 0, stacked=True).layout.xaxis.domain == (0.0, 1.0)


def test_a_run_of_25_000_prompts_is_a_figure_of_less_than_two_megabytes(run):
    rng = np.random.default_rng(0)
    count, sites = 25_000, 29
    label = np.where(np.arange(count) % 2, "harmful", "harmless")
    prompts = pd.DataFrame(
        {
            "prompt_id": [f"{place:012x}" for place in range(count)],
            "text": [f"prompt {place} " + "words " * 40 for place in range(count)],
            "label": label,
            "source": "big",
            "fitted": True,
        }
    )
    projections = rng.normal(size=(count, sites)) + 2 * (label == "harmful")[:, None]
    stats = pd.concat([run.layer_stats] * 5, ignore_index=True)[:sites].assign(
        **{f"{name}_projection_mean": projections[label == name].mean(axis=0) for name in ("harmful", "harmless")}
    )
    big = with_tables(
        run, prompts=prompts, projections=projections, projections_crossfit=projections, layer_stats=stats
    )
    for axes in AXES:
        figure = linked(big, 0, axes=axes, followed=(5, 6))
        assert len(figure.to_json()) < 2_000_000
        assert len(linked(big, 0, axes=axes, followed=(5, 6), framed=False).to_json()) < 2_000_000
        points = [trace for trace in figure.data if trace.type == "scatter" and trace.customdata is not None]
        assert all(len(trace.customdata) <= POINTS + 2 * sites for trace in points if trace.mode == "markers")
        curves = [trace for trace in figure.data if trace.type == "scatter" and trace.line.shape == "hv"]
        assert len(curves) == 2
        assert all(len(trace.y) == LEVELS + 1 for trace in curves)
        extreme = int(np.flatnonzero(label == "harmful")[projections[label == "harmful", 7].argmax()])
        assert any([extreme] in list(map(list, trace.customdata)) for trace in points)


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_report_s_curves_stand_beside_the_published_ones(run, name):
    plain, published = SUMMARIES[name](run, 2), SUMMARIES[name](run, 2, published_table())
    assert len(published.data) > len(plain.data)
    assert len(plain.data[0].x) == run.n_sites


def test_eight_layers_count_every_prompt_from_the_first_to_the_last(run):
    figure = eight_layers(run)
    assert figure.layout.annotations[0].text == run.site_label(0)
    assert figure.layout.annotations[-1].text == "final norm"
    assert {int(np.sum(bar.y)) for bar in figure.data} == {16}


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


OF_EVIDENCE = {
    name: lambda run, evidence, site, drawn=drawn: drawn(run, evidence, site)
    for name, drawn in evidence_figures.OVER_LAYERS.items()
}
OF_LAYERS = {
    f"{drawn.__name__}{', published' if table else ''}": lambda run, evidence, site, drawn=drawn, table=table: drawn(
        run, site, published_table() if table else None
    )
    for drawn in (three_questions, *SUMMARIES.values())
    for table in (False, True)
}


@pytest.mark.parametrize("drawn", [*OF_EVIDENCE.values(), *OF_LAYERS.values()], ids=[*OF_EVIDENCE, *OF_LAYERS])
def test_a_figure_over_the_layers_differs_by_its_mark_alone(run, evidence, drawn):
    moved = move_mark(drawn(run, evidence, 1), 4)
    assert moved.to_json() == drawn(run, evidence, 4).to_json()
    assert moved.to_json() != drawn(run, evidence, 1).to_json()
    sent = serialise_once(drawn(run, evidence, 1))
    assert move_mark(sent, 4).to_json() == moved.to_json()
    assert sent.to_json() != move_mark(sent, 2).to_json()


def test_a_figure_that_is_serialised_once_is_made_ready_once(run, monkeypatch):
    figure = serialise_once(linked(run, 1))
    assert figure.to_json() == linked(run, 1).to_json()
    made = []
    monkeypatch.setattr("plotly.basedatatypes.convert_to_base64", made.append)
    plotly.io.to_json(figure)
    assert not made
    plotly.io.to_json(linked(run, 1))
    assert made


def heatmap_of(run, tokens, site=2):
    """A prompt whose tokens project as the run's first prompts do, and which ends as the next one does."""
    return token_heatmap(run, tokens, run.projections[: len(tokens)], run.projections[len(tokens)], site)


def test_the_heat_map_shows_every_token_at_every_layer_and_ends_where_the_direction_is_read(run):
    tokens = ["How", " do", " I", "\n"]
    drawn = heatmap_of(run, tokens).data[0]
    raw = run.projections[: len(tokens) + 1]
    spread = np.sqrt(
        (run.layer_stats["harmful_projection_std"] ** 2 + run.layer_stats["harmless_projection_std"] ** 2) / 2
    ).to_numpy()
    middle = ((run.layer_stats["harmful_projection_mean"] + run.layer_stats["harmless_projection_mean"]) / 2).to_numpy()
    np.testing.assert_allclose(drawn.z, (raw - middle) / spread, atol=1e-3)
    assert (drawn.zmin, drawn.zmax) == (-COLOURS_END, COLOURS_END)
    hovered = drawn.customdata
    assert [float(value) for value in hovered[1, :, 0]] == pytest.approx(raw[1], rel=1e-3)
    assert hovered[:, 0, 1].tolist() == ["How", "␣do", "␣I", "⏎", END_OF_PROMPT]
    assert hovered[0, :, 2].tolist() == [run.site_label(site) for site in range(run.n_sites)]


def test_the_heat_map_grows_with_the_prompt_and_takes_one_without_tokens(run):
    heights = [heatmap_of(run, ["x"] * count).layout.height for count in (0, 1, 40)]
    assert heights[0] < heights[1] < heights[2]
    assert heatmap_of(run, []).data[0].z.shape == (1, run.n_sites)


def test_hostile_prompts_are_escaped_wherever_plotly_reads_html(run):
    lines = [Course(text, run.projections[0], safe(text), "#000000") for text in run.prompts["text"]]
    drawn = courses(run, lines).to_json() + heatmap_of(run, ["<b>", "\n<script>"]).to_json()
    for raw in ("<script>", "<img", "<b>"):
        assert raw not in json.loads(json.dumps(drawn)).replace("\\u003c", "<")
    assert "&lt;script&gt;" in drawn.replace("\\u0026", "&")


def test_long_prompts_are_cut_in_hover_text():
    assert len(safe("word " * 50_000)) < 400


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_a_figure(run, evidence, name):
    assert evidence_figures.FIGURES[name](run, evidence, 4).data


def test_the_overview_has_one_axis_a_quantity(run, evidence):
    figure = evidence_figures.overview(run, evidence, 4)
    assert {trace.yaxis for trace in figure.data} <= {None, "y"}
    assert not any("refusing" in (trace.name or "") for trace in figure.data)


def test_the_overview_marks_from_where_harm_is_detectable(run, evidence):
    annotations = [note.text for note in evidence_figures.overview(run, evidence, 4).layout.annotations]
    assert any(note.startswith("detectable from: layer") for note in annotations)


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
    assert "refuses 100 % (79 to 100 %) of the harmful and 100 % (79 to 100 %) of the harmless prompts" in page
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
    return effects.summarise(planted_run, experiment.load_interventions(planted_run)[0])


def test_a_sweep_is_drawn_beside_the_band_of_its_controls(planted_run, summary):
    for sweep, (edit, label, measure, _) in intervention_figures.SWEEPS.items():
        controls, _, line = intervention_figures.over_layers(planted_run, summary, sweep).data
        expected = effects.over_layers(summary, edit, label)
        np.testing.assert_array_equal(line.x, range(planted_run.n_layers))
        np.testing.assert_array_equal(line.y, expected[measure])
        np.testing.assert_array_equal(controls.x[::3], expected["site"])
        np.testing.assert_array_equal(np.array(controls.y[1::3], float), expected[f"{measure}_band_high"])


def test_doses_go_through_the_model_as_it_is(planted_run, summary):
    chosen = effects.published_choice(planted_run, experiment.load_interventions(planted_run)[0])
    figure = intervention_figures.doses(planted_run, summary, int(chosen["read_at"]), int(chosen["position"]))
    harmful = next(trace for trace in figure.data if trace.name == "harmful")
    plain = effects.select(summary, "none", "harmful")["log_odds"].iloc[0]
    assert dict(zip(harmful.x, harmful.y, strict=True))[0.0] == plain


def test_the_chosen_candidate_is_the_one_marked(planted_run):
    table = experiment.load_interventions(planted_run)[0]
    candidates, chosen = effects.candidates(planted_run, table), effects.published_choice(planted_run, table)
    marked = intervention_figures.choice(planted_run, candidates, chosen).data[-1]
    assert (marked.x[0], marked.y[0]) == (chosen["read_at"], chosen["bypass"])
    assert intervention_figures.choice(planted_run, candidates, None).data[-1].name.startswith("token")


def test_the_report_says_what_interventions_found(planted_run):
    found = planted_run.evidence
    with_them = report_html(planted_run, found, None, experiment.load_interventions(planted_run))
    assert "The published rule chooses" in with_them
    assert "The published rule chooses" not in report_html(planted_run, found)


@pytest.fixture
def compared(run) -> list[comparison_figures.Side]:
    """A run beside itself under a hostile name."""
    return comparison_figures.sides([run, run], ["pairs · tiny", "<img src=x>"])


def test_every_run_has_a_look_of_its_own_and_controls_are_grey(run):
    base = changed(run, template={"sha256": None})
    looks = comparison_figures.sides([run, run, base, run, run], ["a", "b", "c", "d", "e"])
    for look in ("letter", "dash", "symbol", "colour"):
        assert len({getattr(side, look) for side in looks}) == 5
    assert [side.colour == style.GREY for side in looks] == [False, False, True, False, False]


def test_runs_are_drawn_over_relative_depth_with_the_final_norm_apart(compared, evidence):
    table = comparison.numbers_over_depth(compared[0].run, evidence)
    figure = comparison_figures.over_depth(compared, [table] * 2, [evidence, None])
    for place, number in enumerate(comparison.NUMBERS):
        panel = [trace for trace in figure.data if trace.yaxis == ("y" if place == 0 else f"y{place + 1}")]
        lines = [trace for trace in panel if trace.mode == "lines+markers"]
        norms = [trace for trace in panel if trace.mode == "markers" and trace.legendgroup]
        assert len(lines) == 2
        # One legend, of the first panel, for all.
        assert [line.showlegend for line in lines] == [place == 0] * 2
        for line, norm in zip(lines, norms, strict=True):
            np.testing.assert_allclose(line.x, table["depth"].iloc[:-1])
            np.testing.assert_allclose(line.y, table[number].iloc[:-1])
            assert norm.x[0] > 1
            assert norm.y[0] == table[number].iloc[-1]
    assert sum(trace.marker.symbol == "star" for trace in figure.data) == 1
    assert "<img" not in figure.to_json()


def test_rank_figures_show_the_matrix(compared):
    run = compared[0].run
    shared = comparison.shared_prompts(run, run)
    matrix = comparison.rank_matrix(shared)
    heat = comparison_figures.move_square(comparison_figures.rank_heat(shared, matrix, "AB"), 2, 3)
    np.testing.assert_array_equal(heat.data[0].z, matrix)
    assert (heat.data[1].x[0], heat.data[1].y[0]) == (3, 2)
    curve = comparison_figures.rank_over_depth(compared, [matrix], "both")
    line = next(trace for trace in curve.data if trace.mode == "lines+markers")
    np.testing.assert_array_equal(line.y, np.diag(matrix)[:-1])


def test_prompts_and_categories_are_drawn_for_every_run_that_has_them(compared):
    run = compared[0].run
    course = comparison_figures.prompt_over_depth(compared, [4, None], 0.5)
    assert [trace.name for trace in course.data if trace.mode == "lines+markers"] == ["A: pairs · tiny"]
    table = comparison.separation_by_category(run, None, 3, draws=5)
    figure = comparison_figures.by_category(compared, [table] * 2, "auroc")
    assert [list(trace.x) for trace in figure.data] == [list(table["auroc"])] * 2
    one = comparison_figures.by_category(compared, [table, table.iloc[:0]], "auroc")
    assert [list(trace.x) for trace in one.data] == [list(table["auroc"]), []]
    cosines = comparison_figures.direction_cosines(compared, [comparison.direction_cosines(run, run)])
    np.testing.assert_allclose(cosines.data[0].y, 1, atol=1e-6)


def test_overlaid_sets_are_told_apart_by_their_dashes_and_labels_by_their_colours(run):
    looks = {}
    for trace in linked(run, 1, ("cumulative",), sources=run.transfer_sources).data:
        source, _, label = (trace.name or "").partition(", ")
        if source in run.transfer_sources:
            looks[source, label] = trace.line.dash, trace.line.color
    assert len({dash for dash, _ in looks.values()}) == len(run.transfer_sources) > 1
    for (source, label), (dash, colour) in looks.items():
        assert dash == looks[source, "harmful"][0]
        assert colour == looks[run.transfer_sources[-1], label][1]


def test_a_band_without_prompts_keeps_its_lower_axis(run):
    table = in_band(prompts_at(run, 2), (1e6, 2e6)).assign(mark="")
    assert table.empty
    figure = figures_of_outliers.band(run, 2, (1e6, 2e6), table)
    assert [trace.yaxis for trace in figure.data].count("y2") == 1
    assert len(figure.data[-1].x) == 1
