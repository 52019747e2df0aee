"""Runs of format 1 open with the numbers that are in their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from refusal_core.intervention.experiment import load_interventions
from refusal_core.runs import store
from refusal_core.runs.manifest import FORMAT_VERSION
from refusal_core.runs.migrations import migrated_manifest
from refusal_core.runs.run import Run

FORMER = Path(__file__).parent / "format_1"
(RUN,) = (path.parent.name for path in FORMER.glob("*/manifest.json"))
RENAMED = {"in_sample_d": "cohens_d", "in_sample_auroc": "auroc", "mean_crossings": "overlap_count"}


@pytest.fixture
def former() -> Run:
    return store.open_run(RUN, FORMER)


def test_the_run_is_of_format_1():
    assert json.loads((FORMER / RUN / "manifest.json").read_text())["format_version"] == 1


def test_projections_and_directions_are_those_on_disk_bit_for_bit(former):
    long = pd.read_parquet(former.path / "projections.parquet")
    for name, ours in (("projection", former.projections), ("projection_crossfit", former.projections_crossfit)):
        np.testing.assert_array_equal(ours.ravel(), long[name].to_numpy(), strict=True)
    for name, values in load_file(former.path / "directions.safetensors").items():
        np.testing.assert_array_equal(getattr(former.directions, name), values, strict=True)
    pd.testing.assert_frame_equal(former.prompts, pd.read_parquet(former.path / "prompts.parquet"))


def test_statistics_of_layers_have_new_names_and_the_same_numbers(former):
    before, after = pd.read_parquet(former.path / "layer_stats.parquet"), former.layer_stats
    for column in after:
        earlier = RENAMED.get(column, column.replace("_projection_", "_"))
        np.testing.assert_array_equal(after[column].to_numpy(), before[earlier].to_numpy())
    # What went is in what stayed.
    left_out = set(before) - {RENAMED.get(column, column.replace("_projection_", "_")) for column in after}
    assert left_out == {"harmful_mean_proj", "harmless_mean_proj", "mean_separation", "p_value"}
    for label in ("harmful", "harmless"):
        np.testing.assert_array_equal(before[f"{label}_mean_proj"], after[f"{label}_projection_mean"])
    apart = after["harmful_projection_mean"] - after["harmless_projection_mean"]
    np.testing.assert_array_equal(before["mean_separation"], apart)


def test_evidence_is_that_on_disk(former):
    renamed = {"onset": "detectable_from"}
    stored = {path.stem.removeprefix("evidence_"): path for path in former.path.glob("evidence_*.parquet")}
    tables = former.evidence.to_tables()
    for name, path in stored.items():
        pd.testing.assert_frame_equal(tables.pop(renamed.get(name, name)), pd.read_parquet(path))
    # What was not measured then.
    assert all(table.empty for table in tables.values())


def test_opening_leaves_the_files_as_they_are(former):
    before = {path.name: path.stat().st_mtime_ns for path in former.path.iterdir()}
    assert former.manifest.format_version == FORMAT_VERSION
    assert store.verify_run(former.run_id, FORMER)
    assert {path.name: path.stat().st_mtime_ns for path in former.path.iterdir()} == before


@pytest.mark.parametrize(("bits", "load_in"), [(None, None), (8, "8bit"), (4, "4bit")])
@pytest.mark.parametrize("version", [1, 2])
def test_bits_per_weight_are_named_as_the_option(bits, load_in, version):
    content = {"compute": {"dtype": "float32", "quantise": bits}}
    assert migrated_manifest(content, version)["compute"] == {"dtype": "float32", "load_in": load_in}
    assert content["compute"]["quantise"] == bits


def test_the_prompts_per_label_of_interventions_are_named_as_the_option():
    name = next(path.parent.name for path in FORMER.glob("*/intervention.json"))
    stored = json.loads((FORMER / name / "intervention.json").read_text())
    _, manifest = load_interventions(store.open_run(name, FORMER))
    assert manifest.prompts.limit_per_label == stored["prompts"]["limit"]


def test_a_borrowed_template_says_its_source(tmp_path):
    (tmp_path / RUN).mkdir()
    for path in (FORMER / RUN).iterdir():
        (tmp_path / RUN / path.name).write_bytes(path.read_bytes())
    file = tmp_path / RUN / "manifest.json"
    content = json.loads(file.read_text())
    content["template"]["borrowed"] = {"from": "another", "text": "{{ messages }}"}
    file.write_text(json.dumps(content))
    borrowed = store.open_run(RUN, tmp_path).manifest.template.borrowed
    assert borrowed is not None
    assert (borrowed.source, borrowed.text) == ("another", "{{ messages }}")


def test_the_layers_of_an_edit_were_text_and_are_numbers():
    stored = list(FORMER.glob("*/intervention.parquet"))
    assert stored
    for path in stored:
        before = pd.read_parquet(path)
        after, _ = load_interventions(store.open_run(path.parent.name, FORMER))
        assert [",".join(map(str, layers)) for layers in after["layers"]] == before["layers"].tolist()
        assert {type(layer) for layers in after["layers"] for layer in layers} == {int}
