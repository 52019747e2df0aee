"""Columns of the users' own files: kept with the run, filtered and coloured by."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from making import make_run

from refusal_core.errors import RunError
from refusal_core.exploration.outliers import prompts_at
from refusal_core.figures import outliers as figures
from refusal_core.figures.style import LINE_COLOURS
from refusal_core.runs import store
from refusal_core.runs.run_files import extra_columns


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_folder):
    """A run on a file with columns of its own."""
    folder = tmp_path_factory.mktemp("extra")
    rows = [
        {
            "text": f"What is {n}?",
            "label": "harmful" if n % 2 else "harmless",
            "annotator": "anna" if n < 8 else "ben",
            "score": n / 4,
            "seen": None,
            "tags": ["a", "b"],
        }
        for n in range(24)
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return make_run(tiny_folder, path, cache=folder / "cache", dtype="float32", device="cpu").run


def test_further_columns_stay_with_the_run(made):
    fitted = made.extra[made.rows()]
    assert list(made.extra.columns) == ["annotator", "score", "tags"]
    assert fitted["annotator"].value_counts().to_dict() == {"ben": 16, "anna": 8}
    assert fitted["score"].iloc[1] == "0.25"
    assert fitted["tags"].iloc[0] == '["a", "b"]'
    assert made.extra[~made.rows()].isna().all(axis=None)


def test_a_run_of_a_bundled_set_has_none(tiny_run):
    assert tiny_run.extra.empty
    assert "extra" not in tiny_run.prompts


@pytest.mark.parametrize("cell", ["[]", '{"a": 1}', '{"a": {"b": "c"}}', "{"])
def test_what_is_no_object_of_texts_is_refused(cell):
    with pytest.raises(ValueError, match=r"further columns|Expecting"):
        extra_columns(pd.DataFrame({"extra": [cell]}))


def test_a_run_with_such_a_table_is_broken_by_name(made, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    folder = cache / made.run_id
    folder.mkdir(parents=True)
    for file in made.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    prompts = made.prompts.assign(extra="[]")
    prompts.to_parquet(folder / "prompts.parquet", index=False)
    with pytest.raises(RunError):
        store.open_run(made.run_id, cache)


def test_points_are_coloured_by_a_column(made):
    site = made.best_site()
    found = prompts_at(made, site).assign(mark="")
    figure = figures.band(made, site, (-1, 1), found, groups=made.extra["annotator"])
    colours = {
        (colour, text.rpartition("<br>")[2])
        for trace in figure.data
        if trace.yaxis == "y2" and isinstance(trace.marker.color, tuple)
        for colour, text in zip(trace.marker.color, trace.text, strict=True)
    }
    assert {(LINE_COLOURS[0], "ben"), (LINE_COLOURS[1], "anna")} <= colours
    assert {trace.name for trace in figure.data} >= {"ben", "anna"}
