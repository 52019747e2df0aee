"""What is taken away from a run: the zip, the pictures, and code that uses the directions elsewhere."""

from __future__ import annotations

import dataclasses
import runpy
import zipfile
from io import BytesIO

import numpy as np
import pytest
from safetensors.numpy import load_file

from refusal_core import pipeline, rendering
from refusal_core.__main__ import main
from refusal_core.export import export_zip
from refusal_core.figures.study import pictures
from refusal_core.scoring import load_model_for, score
from refusal_core.sites import transformer_lens_name
from refusal_core.snippets import PROMPT, transformer_lens_snippet, transformers_snippet

with_browser = pytest.mark.skipif(
    not rendering.browser_found(), reason="needs Chrome or Chromium (Debian: apt-get install chromium)"
)
TABLES = {"validation_results.csv", "variance_by_layer.csv", "top10_layers.csv", "summary.json"}


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return pipeline.run(tiny_folder, "pairs", limit=8, dtype="float32", device="cpu", cache=cache).run


def names_in(packed: bytes, run) -> set[str]:
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        assert archive.testzip() is None
        return {name.removeprefix(f"{run.run_id}/") for name in archive.namelist()}


def test_every_layer_has_its_histogram_under_the_study_s_name(run):
    named = pictures(run)
    last = run.n_layers - 1
    assert {"direction_analysis", "projection_distributions", "progressive_distributions"} <= set(named)
    assert {f"layer_distributions/layer_{layer:02d}_histogram" for layer in range(run.n_layers)} <= set(named)
    assert named[f"layer_distributions/layer_{last:02d}_histogram"][1] == str(run.n_layers)
    assert {frame for name, (_, frame) in named.items() if "/" in name} == set(map(str, range(run.n_sites)))


@with_browser
def test_the_zip_has_the_report_s_files_and_all_pictures(run):
    names = names_in(export_zip(run, 2), run)
    assert names >= TABLES | {f"{name}.png" for name in pictures(run)} | {"directions.safetensors", "report.html"}
    assert "pictures.txt" not in names


def test_without_a_browser_all_else_is_there_and_one_sentence_says_why(
    run, synthetic_cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    names = names_in(export_zip(run, 2), run)
    assert names >= TABLES | {"pictures.txt", "directions.safetensors"}
    assert not any(name.endswith(".png") for name in names)
    assert main(["export", run.run_id, str(tmp_path / "out"), "--cache", str(synthetic_cache)]) == 0
    assert "without the pictures: PNG and SVG are drawn by a headless Chrome" in capsys.readouterr().err
    assert (tmp_path / "out" / "validation_results.csv").is_file()


def test_the_transformers_snippet_gives_the_run_s_own_projection(made, tiny_folder, tmp_path, monkeypatch, capsys):
    expected = score(load_model_for(made, str(tiny_folder)), made, [PROMPT])[0].projection
    monkeypatch.chdir(made.path)
    for site in (0, made.n_layers - 1, made.n_layers):
        snippet = transformers_snippet(made, site).replace(repr(made.model_name), repr(str(tiny_folder)))
        (tmp_path / "snippet.py").write_text(snippet)
        runpy.run_path(str(tmp_path / "snippet.py"))
        assert float(capsys.readouterr().out) == pytest.approx(expected[site], rel=1e-4, abs=1e-4)


def test_snippets_say_where_other_libraries_keep_the_site(run):
    for site in range(run.n_sites):
        assert repr(transformer_lens_name(site, run.n_layers)) in transformer_lens_snippet(run, site)
        compile(transformer_lens_snippet(run, site), "snippet", "exec")
    assert f"hidden_states[{3 + 1}]" in transformers_snippet(run, 3)
    assert "hidden_states has no entry" in transformers_snippet(run, run.n_layers - 1)


def test_a_hostile_name_stays_a_string_in_a_snippet(run):
    name = "'\"\"\"\n__import__('os').system('x')#"
    manifest = run.manifest | {"model": run.manifest["model"] | {"name": name}}
    manifest["template"] = manifest["template"] | {"system_prompt": name}
    hostile = dataclasses.replace(run, manifest=manifest)
    for snippet in (transformers_snippet(hostile, 1), transformer_lens_snippet(hostile, 1)):
        assert snippet.count(repr(name)) == 2
        assert "\n__import__" not in snippet
        compile(snippet, "snippet", "exec")


def test_the_directions_in_the_zip_are_the_run_s(run, monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    with zipfile.ZipFile(BytesIO(export_zip(run, 2))) as archive:
        archive.extract(f"{run.run_id}/directions.safetensors", tmp_path)
    loaded = load_file(tmp_path / run.run_id / "directions.safetensors")
    np.testing.assert_allclose(np.linalg.norm(loaded["unit_direction"], axis=1), 1, rtol=1e-5)
