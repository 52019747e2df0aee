"""What is taken away from a run: the zip, the pictures, and code that uses the directions elsewhere."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import runpy
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_run
from safetensors.numpy import load_file
from synthetic import SHIPPED_CACHE, changed
from tiny import THINKING, WIDE, tiny_model, write_tiny_gguf

from refusal_core.cli.main import main
from refusal_core.figures.study import pictures
from refusal_core.models.fetching import fetch
from refusal_core.models.identity import identify
from refusal_core.models.known import KNOWN
from refusal_core.pipeline.scoring import load_model_for, score
from refusal_core.runs.manifest import BorrowedTemplate
from refusal_core.runs.run import Run
from refusal_core.runs.run_files import DIRECTIONS
from refusal_core.runs.store import open_run
from refusal_core.sharing import rendering
from refusal_core.sharing.export import VALIDATION_COLUMNS, VARIANCE_COLUMNS, export_zip, published_layers
from refusal_core.sharing.snippets import PROMPT, transformer_lens_snippet, transformers_snippet
from refusal_core.sites import transformer_lens_name

with_browser = pytest.mark.skipif(
    not rendering.browser_found(), reason="needs Chrome or Chromium (Debian: apt-get install chromium)"
)
TABLES = {"validation_results.csv", "variance_by_layer.csv", "top10_layers.csv", "summary.json"}


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return make_run(tiny_folder, "pairs", limit_per_label=8, dtype="float32", device="cpu", cache=cache).run


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


@pytest.mark.slow
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
    assert main(["report", run.run_id, str(tmp_path / "out"), "--cache", str(synthetic_cache)]) == 0
    assert "without the pictures: PNG and SVG are drawn by a headless Chrome" in capsys.readouterr().err
    assert (tmp_path / "out" / "validation_results.csv").is_file()


DATED = THINKING.replace(
    "You are a tiny model.",
    "Today is {{ strftime_now('%d %B') if strftime_now is defined else 'unknown' }}, {{ strftime_now( \"%Y's\" ) }}.",
)
SHIPPED = sorted(path.parent.name for path in SHIPPED_CACHE.glob("*/manifest.json"))


def working_folder(run: Run, folder: Path, model: Path) -> Path:
    """A folder with the run's directions and its model, as the snippets look for them."""
    folder.mkdir()
    shutil.copy(run.path / DIRECTIONS, folder)
    (folder / model.name).symlink_to(model)
    return folder


def printed(snippet: str, folder: Path, monkeypatch, capsys) -> float:
    """What a snippet prints when it is run, as it is, in a folder."""
    monkeypatch.chdir(folder)
    (folder / "snippet.py").write_text(snippet)
    runpy.run_path(str(folder / "snippet.py"))
    return float(capsys.readouterr().out)


def projections(run: Run, model: Path | None) -> np.ndarray:
    """The prompt's projections as the dashboard scores it."""
    return score(load_model_for(run, model, device="cpu"), run, [PROMPT])[0].projection


def borrowing(run: Run, text: str, **template: object) -> Run:
    """The run as if it had been made with a borrowed template."""
    borrowed = BorrowedTemplate(source="another", text=text)
    return changed(
        run, template={"borrowed": borrowed, "sha256": hashlib.sha256(text.encode()).hexdigest(), **template}
    )


def test_the_transformers_snippet_gives_the_run_s_own_projection(made, tiny_folder, tmp_path, monkeypatch, capsys):
    expected = projections(made, tiny_folder)
    folder = working_folder(made, tmp_path / "here", tiny_folder)
    for site in (0, made.n_layers - 1, made.n_layers):
        found = printed(transformers_snippet(made, site), folder, monkeypatch, capsys)
        assert found == pytest.approx(expected[site], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_snippet_has_the_run_s_borrowed_template_day_thinking_and_system_prompt(
    made, tiny_folder, thinking, tmp_path, monkeypatch, capsys
):
    site = made.n_layers - 1
    plain = projections(made, tiny_folder)[site]
    folder = working_folder(made, tmp_path / "here", tiny_folder)
    for options in ({"system_prompt": None}, {"system_prompt": "Be kind."}, {"system_prompt": ""}):
        run = borrowing(made, DATED, day="2026-01-31", thinking=thinking, default_system_prompt="Today is", **options)
        expected = projections(run, tiny_folder)[site]
        assert abs(expected - plain) > 0.01
        found = printed(transformers_snippet(run, site), folder, monkeypatch, capsys)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_snippet_of_a_base_model_uses_no_template(made, tiny_folder, tmp_path, monkeypatch, capsys):
    run = changed(made, template={"sha256": None})
    folder = working_folder(run, tmp_path / "here", tiny_folder)
    assert "chat_template" not in transformers_snippet(run, 1)
    expected = projections(made, tiny_folder)[1]
    assert printed(transformers_snippet(run, 1), folder, monkeypatch, capsys) != pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [{"dtype": "bfloat16"}, {"load_in": "8bit"}, {"load_in": "4bit"}])
def test_a_snippet_opens_the_model_as_the_run_did(compute, tmp_path, monkeypatch, capsys):
    if "load_in" in compute:
        pytest.importorskip("bitsandbytes")
        # A snippet is plain transformers, which leaves it to bitsandbytes whether it rounds to bfloat16.
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    wide = tiny_model("qwen2", **WIDE)
    wide.model.save_pretrained(tmp_path / "tiny")
    wide.tokenizer.save_pretrained(tmp_path / "tiny")
    options = {"limit_per_label": 8, "dtype": "float32", "device": "cpu", "cache": tmp_path / "cache"} | compute
    run = make_run(tmp_path / "tiny", "pairs", **options).run
    folder = working_folder(run, tmp_path / "here", tmp_path / "tiny")
    site = run.n_layers - 1
    expected = projections(run, tmp_path / "tiny")[site]
    assert printed(transformers_snippet(run, site), folder, monkeypatch, capsys) == pytest.approx(expected, rel=0.02)


def test_an_empty_system_prompt_adds_nothing_where_the_template_has_none(run):
    assert "system" not in transformers_snippet(changed(run, template={"system_prompt": ""}), 1)
    given = changed(run, template={"system_prompt": "", "default_system_prompt": "Be kind."})
    assert '{"role": "system", "content": \'\'}' in transformers_snippet(given, 1)


def test_a_snippet_opens_a_gguf_file(made, tmp_path, monkeypatch, capsys):
    gguf = tmp_path / "tiny.gguf"
    write_tiny_gguf(gguf, packed=True)
    run = changed(made, model=dataclasses.asdict(identify(gguf)))
    folder = working_folder(run, tmp_path / "here", gguf)
    expected = projections(run, gguf)
    found = printed(transformers_snippet(run, 1), folder, monkeypatch, capsys)
    assert found == pytest.approx(expected[1], rel=1e-4, abs=1e-4)


def test_a_snippet_of_a_hub_model_names_its_commit(run):
    hub = changed(run, model={"source": "hub", "name": "org/model", "revision": "c" * 40})
    for snippet in (transformers_snippet(hub, 1), transformer_lens_snippet(hub, 1)):
        assert "name = 'org/model'\n" in snippet
        assert snippet.count(f"(name, revision='{'c' * 40}'") == 2
    pictured = changed(hub, model={"architecture": "Gemma3ForConditionalGeneration"})
    assert "AutoModelForImageTextToText.from_pretrained" in transformers_snippet(pictured, 1)


@pytest.mark.parametrize("name", KNOWN)
def test_a_snippet_of_a_fetched_model_opens_its_folder(name, made, tiny_folder, tmp_path, monkeypatch, capsys):
    run = changed(made, model={"source": "fetched", "name": name, "quantisation": "Q4_K_M"})
    monkeypatch.setenv("HOME", str(tmp_path))
    for models in (tmp_path / "models", tmp_path.parent / f"{tmp_path.name}-models"):
        models.mkdir()
        (models / name).symlink_to(tiny_folder)
        monkeypatch.setenv("REFUSAL_MODELS", str(models))
        snippet = transformers_snippet(run, 1)
        assert f"`refusal fetch {name}` makes the folder" in snippet
        assert "dequantised" in snippet
        assert (KNOWN[name].hub_repo or KNOWN[name].quantisation) in snippet
        assert str(tmp_path) + "/" not in snippet
        folder = tmp_path / f"{models.name}-run"
        folder.mkdir()
        shutil.copy(run.path / DIRECTIONS, folder)
        expected = projections(made, tiny_folder)[1]
        assert printed(snippet, folder, monkeypatch, capsys) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_published_columns_of_a_run_of_format_1_are_those_of_its_file_bit_for_bit():
    former = Path(__file__).resolve().parents[1] / "runs" / "format_1"
    (folder,) = (path.parent for path in former.glob("*/manifest.json"))
    stored = pd.read_parquet(folder / "layer_stats.parquet")
    run = open_run(folder.name, former)
    written = published_layers(run)
    stored = stored[stored["site"].ne(run.n_layers - 1)].reset_index(drop=True)
    for column in {*VALIDATION_COLUMNS, *VARIANCE_COLUMNS} - {"layer"}:
        np.testing.assert_array_equal(written[column].to_numpy(), stored[column].to_numpy())


@pytest.mark.parametrize("shipped", SHIPPED)
def test_the_snippets_of_a_shipped_run_name_where_its_model_is(shipped):
    run = open_run(shipped, SHIPPED_CACHE)
    known = KNOWN[run.model_name]
    for snippet in (transformers_snippet(run, 1), transformer_lens_snippet(run, 1)):
        compile(snippet, "snippet", "exec")
        (line,) = [line for line in snippet.splitlines() if line.startswith("name = ")]
        call = ast.parse(line).body[0].value
        assert call.func.id == "expanduser"
        assert Path(call.args[0].value).expanduser() == known.folder
        wanted = [known.hub_repo, known.hub_file] if known.hub_repo else [f"a {known.quantisation} GGUF file"]
        assert all(name in snippet for name in wanted)


@pytest.mark.real
@pytest.mark.parametrize("shipped", [name for name in SHIPPED if "0.5b" in name])
def test_the_snippet_of_a_shipped_run_gives_its_projection(shipped, tmp_path, monkeypatch, capsys):
    run = open_run(shipped, SHIPPED_CACHE)
    fetch(run.model_name)
    expected = projections(run, None)
    shutil.copy(run.path / DIRECTIONS, tmp_path)
    for site in (run.n_layers - 1, run.n_layers):
        found = printed(transformers_snippet(run, site), tmp_path, monkeypatch, capsys)
        assert found == pytest.approx(expected[site], rel=1e-3)


@pytest.mark.slow
def test_the_transformer_lens_snippet_gives_the_run_s_own_projection(made, tiny_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformer_lens", reason="comes with the extra benchmarks")
    folder = working_folder(made, tmp_path / "here", tiny_folder)
    for run in (made, borrowing(made, DATED, day="2026-01-31"), changed(made, compute={"dtype": "bfloat16"})):
        expected = projections(run, tiny_folder)
        for site in (0, run.n_layers - 1, run.n_layers):
            found = printed(transformer_lens_snippet(run, site), folder, monkeypatch, capsys)
            # TransformerLens rounds to bfloat16 elsewhere than transformers does; the error is one of the state, which
            # is as long at every site, and not of its projection alone.
            close = 1e-3 if run.manifest.compute.dtype == "float32" else 0.05 * abs(expected).max()
            assert found == pytest.approx(expected[site], rel=1e-3, abs=close)


def test_snippets_say_where_other_libraries_keep_the_site(run):
    for site in range(run.n_sites):
        name = transformer_lens_name(site, run.n_layers)
        assert f"hook = {name!r}" in transformer_lens_snippet(run, site)
        compile(transformer_lens_snippet(run, site), "snippet", "exec")
    assert f"hidden_states[{3 + 1}]" in transformers_snippet(run, 3)
    assert "hidden_states has no entry" in transformers_snippet(run, run.n_layers - 1)


@pytest.mark.parametrize("source", ["fetched", "hub", "folder", "gguf"])
def test_hostile_text_stays_a_string_in_a_snippet(run, source):
    text = "'\"\"\"\n__import__('os').system('x')#"
    hostile = borrowing(run, text, system_prompt=text)
    hostile = changed(hostile, model={"source": source, "name": text, "revision": text, "architecture": text})
    for snippet in (transformers_snippet(hostile, 1), transformer_lens_snippet(hostile, 1)):
        assert not any(line.startswith("__import__") for line in snippet.splitlines())
        assert "__import__" in snippet
        assert {"__import__", "system"}.isdisjoint(compile(snippet, "snippet", "exec").co_names)


def test_the_directions_in_the_zip_are_the_run_s(run, monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    with zipfile.ZipFile(BytesIO(export_zip(run, 2))) as archive:
        archive.extract(f"{run.run_id}/directions.safetensors", tmp_path)
    loaded = load_file(tmp_path / run.run_id / "directions.safetensors")
    np.testing.assert_allclose(np.linalg.norm(loaded["unit_direction"], axis=1), 1, rtol=1e-5)
