"""A refit with another estimator is a run of its own, made of the stored activations, that says what it is."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from making import make_run

from refusal_core.behaviour import positions as read_positions
from refusal_core.cli.main import main
from refusal_core.errors import RefusalError, RunError
from refusal_core.exploration import positions, refits
from refusal_core.options import ESTIMATORS, RunOptions
from refusal_core.pipeline import attribution
from refusal_core.pipeline import refit as refitting
from refusal_core.pipeline.refit import refit, refit_id
from refusal_core.pipeline.scoring import load_model_for, score
from refusal_core.runs import store
from refusal_core.runs.manifest import MANIFEST
from refusal_core.runs.run import LEFT_OUT, Run
from refusal_core.runs.schemas import ADDED, DIFFERENCE
from refusal_core.sharing.card import card_html
from refusal_core.sharing.report import report_html
from refusal_core.sharing.snippets import transformers_snippet
from refusal_core.ui.layout import facts

TITLE = ESTIMATORS["whitened"]


@pytest.fixture(scope="module")
def parent(tiny_folder, tmp_path_factory) -> Run:
    cache = tmp_path_factory.mktemp("cache")
    return make_run(
        tiny_folder, "pairs", cache=cache, limit_per_label=12, keep_activations=True, dtype="float32", device="cpu"
    ).run


@pytest.fixture(scope="module")
def whitened(parent) -> Run:
    return refit(parent, estimator="whitened").run


def test_directions_projections_and_evidence_are_those_of_the_estimator(parent, whitened):
    hidden, unit = parent.load_activations(), whitened.directions.unit_direction
    fitted, harmful = parent.rows(), parent.rows("harmful")
    for site in range(parent.n_sites):
        if not parent.directions.unit_direction[site].any():
            continue
        own = hidden[fitted, site].astype(np.float64)
        means = own[harmful[fitted]].mean(axis=0), own[~harmful[fitted]].mean(axis=0)
        within = own - np.where(harmful[fitted][:, None], *means)
        # The covariance times the direction is the difference of means, but for the ridge, which adds the direction.
        spread = within.T @ within @ unit[site].astype(np.float64)
        difference = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
        plane = np.linalg.svd(np.stack([spread, difference, unit[site]]), compute_uv=False)
        assert plane[2] < 1e-4 * plane[0]
        assert abs(difference @ unit[site]) < 0.999
        magnitude = (means[0] - means[1]) @ unit[site]
        assert whitened.directions.magnitude[site] == pytest.approx(magnitude, rel=1e-3)
    np.testing.assert_allclose(whitened.projections, whitened.directions.project(hidden))
    assert whitened.evidence.estimator == whitened.manifest.estimator == whitened.directions.estimator == "whitened"
    assert parent.manifest.estimator == "mean-difference"


def test_it_has_lineage_and_a_name_of_its_own_and_is_found_again(parent, whitened):
    record = whitened.manifest.refit
    assert (record.parent, record.left_out, record.activations) == (parent.run_id, 0, "stored")
    assert whitened.run_id not in (parent.run_id, refit_id(parent, estimator="orthogonal"))
    assert refit(parent, estimator="whitened").cached
    # Back to the original's own estimator there is nothing to refit.
    with pytest.raises(RefusalError, match="found none"):
        refit(whitened, estimator="mean-difference")
    (summary,) = [each for each in store.list_runs(parent.path.parent)[0] if each.run_id == whitened.run_id]
    assert summary.origin == f"{TITLE}, refit of {parent.run_id}"


def test_prompts_can_be_left_out_with_it_in_either_order(parent, whitened):
    out = parent.prompts.loc[parent.rows(), "prompt_id"].tolist()[:1]
    both = refit(whitened, out).run
    assert both.manifest.estimator == "whitened"
    assert both.manifest.refit.parent == parent.run_id
    assert both.run_id == refit_id(parent, out, "whitened") == refit_id(refit(parent, out).run, estimator="whitened")
    assert both.prompts["source"].eq(LEFT_OUT).sum() == 2


def test_a_run_that_is_asked_for_with_an_estimator_is_the_refit_under_another_name(
    parent, whitened, tiny_folder, tmp_path
):
    options = {"limit_per_label": 12, "dtype": "float32", "device": "cpu", "cache": tmp_path}
    made = make_run(tiny_folder, "pairs", estimator="whitened", **options).run
    assert made.manifest.estimator == "whitened"
    assert made.manifest.refit is None
    np.testing.assert_allclose(made.directions.unit_direction, whitened.directions.unit_direction, atol=1e-4)
    assert made.run_id not in (parent.run_id, whitened.run_id)


def test_an_option_that_is_not_used_changes_no_name():
    options = RunOptions(model="m")
    identity = options.identity("f", "p", [("t", "s")])
    assert "estimator" not in identity
    other = options.model_copy(update={"estimator": "whitened"}).identity("f", "p", [("t", "s")])
    assert other == identity | {"estimator": "whitened"}


def test_a_manifest_that_names_no_estimator_is_of_mean_differences(parent):
    content = json.loads((parent.path / MANIFEST).read_text())
    del content["estimator"]
    (parent.path / MANIFEST).write_text(json.dumps(content))
    again = store.open_run(parent.run_id, parent.path.parent)
    assert again.manifest.estimator == "mean-difference"
    assert again.directions.are_of_means
    assert again.estimator_note == ""


def test_a_manifest_of_an_unknown_estimator_is_refused(parent, whitened, tmp_path):
    import shutil

    shutil.copytree(whitened.path, tmp_path / whitened.run_id)
    path = tmp_path / whitened.run_id / MANIFEST
    path.write_text(path.read_text().replace('"estimator": "whitened"', '"estimator": "magic"'))
    with pytest.raises(RunError, match="estimator"):
        store.open_run(whitened.run_id, tmp_path)


def test_work_that_is_stopped_leaves_nothing_that_looks_like_a_run(parent, monkeypatch):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(refitting, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        refit(parent, estimator="pair-component")
    name = refit_id(parent, estimator="pair-component")
    assert not (parent.path.parent / name).exists()
    assert name not in {summary.run_id for summary in store.list_runs(parent.path.parent)[0]}
    monkeypatch.undo()
    assert refit(parent, estimator="pair-component").run.run_id == name


def test_wherever_the_direction_is_named_the_estimator_is(parent, whitened):
    assert f"direction ({TITLE})" in card_html(whitened)
    assert TITLE in report_html(whitened, whitened.evidence, None, None)
    assert TITLE in transformers_snippet(whitened, 1)
    assert facts(whitened)["direction"] != facts(parent)["direction"]
    for text in (card_html(parent), report_html(parent, parent.evidence, None, None), transformers_snippet(parent, 1)):
        assert TITLE not in text
    change = refits.describe_change(refits.compare(parent, whitened))
    assert f"Direction: {TITLE} in place of mean difference." in change
    assert "Left out" not in change


def test_prompts_are_scored_on_the_direction_of_the_estimator(parent, whitened, tiny_folder):
    text = parent.prompts["text"].iloc[0]
    model = load_model_for(whitened, tiny_folder, "cpu")
    (scored,) = score(model, whitened, [text])
    np.testing.assert_allclose(scored.projection, whitened.projections[0], atol=1e-3)


def test_the_command_line_refits_with_an_estimator_and_the_same_prompts(parent, whitened, capsys):
    assert main(["refit", parent.run_id, "--estimator", "whitened", "--cache", str(parent.path.parent)]) == 0
    said = capsys.readouterr().out
    assert said.strip().endswith(whitened.run_id)
    assert TITLE in said


def test_an_estimator_that_nobody_knows_is_refused(parent):
    with pytest.raises(RefusalError, match="expected an estimator"):
        refit(parent, estimator="magic")


@pytest.mark.slow
def test_read_positions_and_parts_are_those_of_the_run_s_estimator(whitened, tiny_chat_model, tmp_path, monkeypatch):
    shutil.copytree(whitened.path, tmp_path / whitened.run_id)
    run = store.open_run(whitened.run_id, tmp_path)
    read_positions.record(run, tiny_chat_model, draws=19)
    assert run.at("t_inst").directions.estimator == "whitened"
    own = positions.numbers_at(positions.load_positions(run), "crossfit_d").loc[-1]
    np.testing.assert_allclose(own, run.evidence.sites["crossfit_d"], atol=2e-3)
    monkeypatch.setattr(attribution, "FEWEST_GROUPS", 12)
    table = attribution.record(run, tiny_chat_model, draws=19, controls=9)
    whole = table[table["measure"].eq(DIFFERENCE)].set_index("site")["number"]
    parts = table[table["measure"].eq(ADDED)].groupby("site")["number"].sum()
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    crossfit = run.projections_crossfit[:, : run.n_layers]
    apart = crossfit[run.rows("harmful")].mean(axis=0) - crossfit[run.rows("harmless")].mean(axis=0)
    np.testing.assert_allclose(whole, apart[whole.index], rtol=0.25, atol=0.1)
