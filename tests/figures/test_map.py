"""The map of a run's prompts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import HOSTILE, N_LAYERS, save_large_run

from refusal_core.exploration.planes import COMPONENTS, DIRECTION, PLANES, plane_of
from refusal_core.figures import map as figures
from refusal_core.figures.style import GREY, LABEL_COLOUR
from refusal_core.runs.store import open_run


def drawn(run, values, name=COMPONENTS, **options):
    return figures.prompt_map(run, plane_of(run, name), name, 1, values, **options)


def ids_of(trace):
    return list(trace.customdata)


@pytest.mark.parametrize("name", PLANES)
def test_every_prompt_lies_where_its_plane_has_it_at_every_layer(run, name):
    figure, plane = drawn(run, run.prompts["label"], name, sources=run.transfer_sources), plane_of(run, name)
    rows = pd.Series(run.prompts.index, index=run.prompts["prompt_id"])
    assert sorted(prompt_id for trace in figure.data for prompt_id in ids_of(trace)) == sorted(rows.index)
    for site, frame in enumerate(figure.frames):
        for still, moved in zip(figure.data, frame.data, strict=True):
            expected = plane.points[rows[ids_of(still)], site]
            np.testing.assert_allclose(np.column_stack([moved.x, moved.y]), expected, rtol=1e-5)
            low, high = frame.layout.xaxis.range
            assert low <= min(moved.x) <= max(moved.x) <= high
        assert f"{100 * plane.shares[site]:.0f} %" in frame.layout.title.text


def test_labels_have_the_colours_that_they_have_everywhere(run):
    figure = drawn(run, run.prompts["label"], sources=["borderline"])
    assert {trace.name: trace.marker.color for trace in figure.data} == LABEL_COLOUR
    labels = run.prompts.set_index("prompt_id")["label"]
    assert all(set(labels[ids_of(trace)]) == {trace.name} for trace in figure.data)


def test_values_that_are_told_apart_have_looks_of_their_own_and_the_others_are_grey(run):
    values = pd.Series([f"value {min(row, 25)}" for row in run.prompts.index], name="of the file")
    values[3] = None
    looks = {trace.name: (trace.marker.color, trace.marker.symbol) for trace in drawn(run, values).data}
    assert len(looks) == 20
    assert looks.pop("other values") == looks.pop("none") == (GREY, "circle")
    assert len(set(looks.values())) == 18


def test_a_value_that_is_named_as_the_rest_is_one_of_them(run):
    values = pd.Series(["none" if row % 2 else None for row in run.prompts.index], name="of the file")
    figure = drawn(run, values)
    assert sum(len(ids_of(trace)) for trace in figure.data) == run.rows().sum()


def test_numbers_have_a_scale_that_no_extreme_decides(run):
    values = run.prompts["refusal_log_odds"].copy()
    values[0] = 1e6
    (trace,) = drawn(run, values).data
    assert trace.marker.cmax < 100
    assert "refusal_log_odds: 1e+06" in trace.text[0]


def test_chosen_prompts_are_ringed_where_they_are(run):
    figure = drawn(run, run.prompts["label"], DIRECTION, chosen=(2, 5, len(run.prompts) - 1))
    rings = figure.data[-1]
    assert rings.name == "selected"
    # The last row is of a transfer set that is not drawn.
    points = plane_of(run, DIRECTION).points[[2, 5]]
    for site, frame in enumerate(figure.frames):
        np.testing.assert_allclose(np.column_stack([frame.data[-1].x, frame.data[-1].y]), points[:, site], rtol=1e-5)


def test_prompts_and_values_are_no_markup(run):
    values = pd.Series([HOSTILE[0] if row % 2 else "a" for row in run.prompts.index], name=HOSTILE[0])
    assert "<script>" not in drawn(run, values).to_json()


@pytest.mark.slow
def test_of_many_prompts_an_even_choice_is_drawn(tmp_path):
    run = open_run(save_large_run(tmp_path, 5000, 79), tmp_path)
    rows = figures.drawn_rows(run)
    assert len(rows) == figures.MOST_PLACES // 80
    fitted = np.flatnonzero(run.rows())
    assert set(rows) <= set(fitted)
    assert np.diff(np.searchsorted(fitted, rows)).max() <= 2 * len(fitted) / len(rows)
    figure = drawn(run, run.prompts["label"], framed=False)
    assert len(json.dumps(figure.to_plotly_json(), default=str)) < 4_000_000


def test_the_histogram_counts_all_and_the_selected(run):
    projection, rows = run.projections[:, N_LAYERS], np.flatnonzero(run.rows())
    figure = figures.projections_histogram(run, projection, rows, rows[:7], N_LAYERS)
    assert {bar.name: sum(bar.y) for bar in figure.data} == {"all": len(rows), "selected": 7}
    none = figures.projections_histogram(run, projection, rows, rows[:0], N_LAYERS)
    assert [bar.name for bar in none.data] == ["all"]
