"""The map as one small page."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import HOSTILE, N_LAYERS, save_large_run, with_tables

from refusal_core.exploration.planes import COMPONENTS, PLANES, Plane, plane_of
from refusal_core.figures.map import drawn_rows
from refusal_core.runs.store import open_run
from refusal_core.sharing.map_page import map_html


def page_of(run, name=COMPONENTS, values=None, plane=None, **options):
    values = run.prompts["label"] if values is None else values
    return map_html(run, plane or plane_of(run, name), name, 1, values, **options).decode()


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("name", PLANES)
def test_it_has_every_prompt_at_every_layer_to_a_pixel(run, name):
    told = data_of(page_of(run, name, sources=["borderline"]))
    rows, plane = drawn_rows(run, ["borderline"]), plane_of(run, name)
    places = np.frombuffer(b64decode(told["places"]), "<u2").reshape(run.n_sites, 2, len(rows)) / 65534
    for at, site in enumerate(told["sites"]):
        low, high = np.array(site["ranges"]).T
        points = low + places[at].T * (high - low)
        np.testing.assert_allclose(points, plane.points[rows, at], atol=2e-5 * (high - low).max())
    assert [site["label"] for site in told["sites"]] == [run.site_label(site) for site in range(N_LAYERS + 1)]
    assert len(told["texts"]) == len(told["points"]) == len(rows)


def test_it_asks_for_nothing_and_texts_of_the_run_are_no_markup(run):
    values = pd.Series([HOSTILE[0] if row % 2 else "a" for row in run.prompts.index], name="</title><b>")
    page = page_of(run, values=values)
    assert "default-src 'none'" in page
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "<b>" not in page
    assert not re.search(r"https?://", page.replace("https://example.com", ""))
    # The texts are whole for all that.
    assert " ".join(HOSTILE[0].split()) in data_of(page)["texts"]


def test_numbers_colour_the_points_and_a_missing_one_is_grey(run):
    values = run.prompts["refusal_log_odds"].copy()
    values[0] = np.nan
    told = data_of(page_of(run, values=values))
    assert told["points"][0][0] == "#8C8C8C"
    assert len({colour for colour, _ in told["points"]}) > 10


def test_a_place_that_is_not_known_is_marked_so(run):
    plane = plane_of(run, COMPONENTS)
    points = plane.points.copy()
    points[:, 2] = np.nan
    told = data_of(page_of(run, plane=Plane(points, plane.shares)))
    places = np.frombuffer(b64decode(told["places"]), "<u2").reshape(run.n_sites, 2, -1)
    assert (places[2] == 65535).all()
    assert (places[1] < 65535).all()


@pytest.mark.slow
def test_it_is_below_a_megabyte_of_however_many_long_prompts(tmp_path):
    run = open_run(save_large_run(tmp_path, 4000, 79), tmp_path)
    prompts = run.prompts
    prompts["text"] = [f"\u65e5\u672c{row}" + "\u8a9e" * 400 for row in prompts.index]
    long = with_tables(replace(run), prompts=prompts)
    assert len(page_of(long).encode()) < 1_000_000
    few_layers = open_run(save_large_run(tmp_path / "few", 4000, 12), tmp_path / "few")
    assert len(page_of(few_layers).encode()) < 1_000_000
