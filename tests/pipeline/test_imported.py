"""Other people's directions: a run on imported vectors has the same evidence, scores and interventions as our own."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from making import make_run
from pydantic import ValidationError
from safetensors.numpy import save_file
from synthetic import intervene
from tiny import PLANTED_LAYER, READING_LAYER

from refusal_core.cli.main import main
from refusal_core.errors import RefusalError, RunError
from refusal_core.evidence.findings import verdict
from refusal_core.figures import intervention as figures
from refusal_core.intervention import effects, experiment
from refusal_core.intervention.conditions import ABLATE, FOUND, OWN
from refusal_core.pipeline.imported import import_direction
from refusal_core.pipeline.refit import refit
from refusal_core.pipeline.scoring import load_model_for, score
from refusal_core.runs import store
from refusal_core.runs.manifest import ACTIVATIONS, DIRECTIONS, DirectionRecord
from refusal_core.runs.run import Run
from refusal_core.sharing.card import card_html
from refusal_core.sharing.report import report_html


@pytest.fixture(scope="module")
def parent(tiny_folder, tmp_path_factory) -> Run:
    cache = tmp_path_factory.mktemp("cache")
    return make_run(
        tiny_folder, "pairs", cache=cache, limit_per_label=12, keep_activations=True, dtype="float32", device="cpu"
    ).run


def write_blocks(path: Path, run: Run, *layers: int) -> Path:
    """The run's own directions of some layers, twice as long, as another program names them."""
    unit = run.directions.unit_direction
    save_file({f"direction.{layer}": 2 * unit[layer] for layer in layers}, path)
    return path


@pytest.fixture(scope="module")
def imported(parent, tmp_path_factory) -> Run:
    path = write_blocks(tmp_path_factory.mktemp("file") / "theirs.safetensors", parent, 0, 2)
    return import_direction(parent, path, "blocks").run


def test_the_vectors_take_the_place_of_the_fitted_directions(parent, imported):
    for site in range(parent.n_sites):
        if site in (0, 2):
            np.testing.assert_allclose(imported.projections[:, site], parent.projections[:, site], atol=1e-4)
            ours, theirs = (run.layer_stats.set_index("site").loc[site] for run in (parent, imported))
            for name in ("in_sample_d", "in_sample_auroc", "mean_crossings", "magnitude"):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
            # Nothing is held out of a direction that was not fitted on it.
            assert theirs["crossfit_d"] == pytest.approx(theirs["in_sample_d"])
        else:
            assert not imported.directions.unit_direction[site].any()
            assert imported.layer_stats["crossfit_d"].isna()[site]
    assert imported.best_site() in (0, 2)


def test_the_manifest_says_where_they_came_from(parent, imported):
    record = imported.manifest.direction
    assert (record.file, record.numbering, record.sites) == ("theirs.safetensors", "blocks", (0, 2))
    assert (record.parent, record.activations) == (parent.run_id, "stored")
    assert len(record.sha256) == 64
    assert imported.manifest.prompts == parent.manifest.prompts
    assert parent.manifest.direction is None
    # Nothing was loaded or extracted.
    assert parent.manifest.timings is not None
    assert imported.manifest.timings is None
    assert "made from these prompts is not known here" in imported.imported
    assert parent.imported == ""


def test_the_same_file_finds_the_same_run_and_another_numbering_another(parent, imported, tmp_path):
    path = write_blocks(tmp_path / "renamed.safetensors", parent, 0, 2)
    again = import_direction(parent, path, "blocks")
    assert again.cached
    assert again.run.run_id == imported.run_id
    other = import_direction(parent, path, "block-inputs")
    assert not other.cached
    assert other.run.manifest.direction.sites == (1,)


@pytest.mark.slow
def test_without_stored_activations_the_model_reads_the_prompts_again(parent, imported, tiny_folder, tmp_path):
    bare = make_run(
        tiny_folder, "pairs", cache=tmp_path / "cache", limit_per_label=12, dtype="float32", device="cpu"
    ).run
    assert ACTIVATIONS not in bare.manifest.files
    path = write_blocks(tmp_path / "theirs.safetensors", parent, 0, 2)
    again = import_direction(bare, path, "blocks", model=tiny_folder, device="cpu").run
    assert again.manifest.direction.activations == "extracted again"
    np.testing.assert_allclose(again.projections, imported.projections, atol=1e-4)


def test_a_prompt_is_scored_on_the_vectors(parent, imported, tiny_folder):
    found = score(load_model_for(imported, tiny_folder), imported, [imported.prompts["text"][3]])[0].projection
    np.testing.assert_allclose(found, imported.projections[3], atol=1e-4)


def test_words_and_figures_say_that_it_was_imported(imported):
    report = report_html(imported, imported.evidence)
    assert "theirs.safetensors" in report
    said = report[report.rindex("<h1>") :]
    assert "cross-fitted d is" not in said
    assert "imported" in card_html(imported)
    assert "in-sample" not in card_html(imported)


def test_leaving_out_prompts_is_refused(imported):
    with pytest.raises(RunError, match="was imported, so leaving out prompts does not change it"):
        refit(imported, imported.prompts["prompt_id"][:1].tolist())


@pytest.mark.slow
def test_an_import_into_a_refit_is_no_refit(parent, tiny_folder, tmp_path):
    again = refit(parent, parent.prompts["prompt_id"][:1].tolist()).run
    assert again.manifest.refit is not None
    file = write_blocks(tmp_path / "theirs.safetensors", parent, 1)
    assert import_direction(again, file, "blocks", model=tiny_folder).run.manifest.refit is None


@pytest.mark.parametrize(("entry", "value"), [("numbering", "\x1b[2J"), ("sha256", "\x1b[2J"), ("sha256", "0" * 63)])
def test_a_stranger_s_manifest_puts_nothing_else_on_the_terminal(imported, entry, value):
    record = imported.manifest.direction
    assert DirectionRecord.model_validate_json(record.to_json()) == record
    with pytest.raises(ValidationError, match=entry):
        DirectionRecord.model_validate_json(json.dumps(json.loads(record.to_json()) | {entry: value}))


def test_a_run_s_own_directions_are_not_put_to_the_prompts_they_were_fitted_on(parent):
    with pytest.raises(RefusalError, match="fitted on its own prompts"):
        import_direction(parent, parent.path / DIRECTIONS)


def test_vectors_of_another_model_are_refused_and_nothing_is_left(parent, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((parent.n_layers, 999)))
    before = sorted(path.name for path in parent.path.parent.iterdir())
    with pytest.raises(RefusalError, match="width 999"):
        import_direction(parent, tmp_path / "wide.npy", "blocks")
    assert sorted(path.name for path in parent.path.parent.iterdir()) == before


@pytest.mark.slow
def test_interventions_with_a_planted_direction_find_its_layer_and_one_across_it_removes_no_refusal(
    planted_run, planted_folder, tmp_path
):
    """The direction that makes the planted model refuse is imported; then one that has nothing to do with it."""
    unit = planted_run.directions.unit_direction
    causes = unit[PLANTED_LAYER]
    across = np.random.default_rng(0).normal(size=len(causes))
    across -= (across @ causes) * causes
    swept = {}
    for name, vector in (("causes", causes), ("across", across)):
        np.save(tmp_path / f"{name}.npy", np.tile(vector, (planted_run.n_layers, 1)).astype(np.float32))
        run = import_direction(planted_run, tmp_path / f"{name}.npy", "blocks", model=planted_folder).run
        table = intervene(run, planted_folder)
        assert set(table.loc[table["direction"].eq(FOUND), "position"]) == {-1}
        swept[name] = effects.over_layers(effects.summarise(run, table), ABLATE, "harmful")
    found = [int(row["site"]) for _, row in swept["causes"].iterrows() if effects.verdict(row) == effects.EFFECT]
    between = slice(PLANTED_LAYER, READING_LAYER)
    assert set(range(planted_run.n_layers)[between]) <= set(found)
    assert swept["causes"]["refuses"].iloc[between].eq(0).all()
    assert swept["across"]["refuses"].eq(1).all()
    assert swept["across"]["change"].abs().max() < 0.1 * swept["causes"]["change"].iloc[between].abs().min()


@pytest.mark.slow
def test_layers_without_a_vector_are_not_edited(planted_run, planted_folder, tmp_path):
    unit = planted_run.directions.unit_direction
    last = planted_run.n_layers - 1
    # The last layer is no candidate of the published rule.
    for layers in ((PLANTED_LAYER,), (last,), (1, PLANTED_LAYER)):
        file = tmp_path / f"{layers}.safetensors"
        save_file({f"direction.{layer}": unit[layer] for layer in layers}, file)
        run = import_direction(planted_run, file, "blocks", model=planted_folder).run
        table = intervene(run, planted_folder)
        assert {at[0] for at in table["layers"] if len(at) == 1} == set(layers)
        assert set(table["read_at"]) - {OWN} == set(layers)
        own = {at for at in table.loc[table["read_at"].eq(OWN), "layers"] if at}
        assert own == {layers}
        stored, manifest = experiment.load_interventions(run)
        assert len(stored) == len(table)
        assert manifest.controls.layers == layers
        summary = effects.summarise(run, table)
        said = [effects.headline(run, summary), *effects.reading(run, table, summary)]
        assert not any("nan" in sentence for sentence in said)
        assert f"controls at layers {', '.join(map(str, layers))}:" in said[0]
        for sweep in figures.SWEEPS:
            figures.over_layers(run, summary, sweep)
        figures.choice(run, effects.candidates(run, table), effects.published_choice(run, table))


@pytest.mark.slow
def test_the_final_norm_alone_has_words_and_nothing_to_edit(planted_run, planted_folder, tmp_path, capsys):
    norm = planted_run.n_layers
    planted_run.directions[norm].save(tmp_path / "norm.safetensors")
    run = import_direction(planted_run, tmp_path / "norm.safetensors", model=planted_folder).run
    assert main(["show", run.run_id, "--cache", str(run.path.parent)]) == 0
    assert "no layer has a direction that could be tested" in capsys.readouterr().out
    assert "nan" not in verdict(run.evidence)
    with pytest.raises(RefusalError, match=r"no layer of .* has a direction"):
        intervene(run, planted_folder)


@pytest.mark.slow
def test_the_command_line_imports_and_says_so(parent, tmp_path, capsys):
    path = write_blocks(tmp_path / "cli.safetensors", parent, 1)
    cache = ["--cache", str(parent.path.parent)]
    assert main(["import-direction", str(path), "--run", parent.run_id, "--layers", "blocks", *cache]) == 0
    said = capsys.readouterr().out
    run_id = said.splitlines()[-1]
    assert "cli.safetensors" in said
    assert "made from these prompts is not known here" in said
    assert "new prompts" not in said
    assert main(["evidence", run_id, *cache]) == 0
    said = capsys.readouterr().out
    assert "The direction was imported; whether it was made from these prompts is not known here" in said
    assert main(["verify", run_id, *cache]) == 0
    capsys.readouterr()
    assert main(["import-direction", str(path), "--run", parent.run_id, *cache]) == 1
    assert "choose a numbering" in capsys.readouterr().err
    assert main(["import-direction", str(tmp_path / "x.pt"), "--run", parent.run_id, *cache]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    # What is read here was read before where memory and time are limited.
    refuse = mock.Mock(side_effect=RefusalError("more memory or time than it may"))
    with mock.patch("refusal_core.children.in_child", refuse):
        assert main(["import-direction", str(path), "--run", parent.run_id, "--layers", "blocks", *cache]) == 1
    assert "more memory or time" in capsys.readouterr().err


def test_the_shipped_and_older_runs_know_nothing_of_imports(parent):
    content = json.loads((parent.path / "manifest.json").read_text())
    del content["direction"]
    (parent.path / "manifest.json").write_text(json.dumps(content))
    assert not store.open_run(parent.run_id, parent.path.parent).directions.imported
