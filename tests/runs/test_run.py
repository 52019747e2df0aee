"""An opened run: its best site, one table of everything, and nothing in it that can be changed by accident."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import refusal_core as rc
from refusal_core.runs.run import Run


def with_held_out(run: Run, crossfit_d: list[float]) -> Run:
    stats = run.layer_stats.assign(crossfit_d=crossfit_d)
    return dataclasses.replace(run, tables=dataclasses.replace(run.tables, layer_stats=stats))


def test_the_best_site_is_the_layer_with_the_highest_cross_fitted_d(run):
    n = run.n_layers
    rising = [float(site) for site in range(n + 1)]
    # The final norm is higher, and nothing can be edited there.
    assert with_held_out(run, rising).best_site() == n - 1
    assert with_held_out(run, [-1.0, 5.0, 5.0, *rising[3:n], 99.0]).best_site() == 1
    assert with_held_out(run, [np.nan, 0.5, *[np.nan] * (n - 1)]).best_site() == 1
    assert with_held_out(run, [np.nan] * (n + 1)).best_site() == 0
    # Neither what was fitted nor the transfer sets have a say.
    other = run.layer_stats.assign(crossfit_d=rising, probe_d=rising[::-1], in_sample_d=rising[::-1])
    changed = dataclasses.replace(run, tables=dataclasses.replace(run.tables, layer_stats=other))
    assert changed.best_site() == n - 1


def test_one_table_has_every_prompt_at_every_site(run):
    table = run.to_dataframe()
    assert len(table) == len(run.prompts) * run.n_sites
    row, site = 5, 2
    one = table[table["prompt_id"].eq(run.prompts["prompt_id"][row]) & table["site"].eq(site)]
    assert one["projection"].tolist() == [run.projections[row, site]]
    assert one["text"].tolist() == [run.prompts["text"][row]]
    np.testing.assert_array_equal(table["projection_crossfit"], run.projections_crossfit.ravel())


def test_what_a_run_hands_out_cannot_change_it(run):
    for handed_out in (lambda: run.prompts, lambda: run.layer_stats, lambda: run.evidence.sites):
        before = handed_out().copy()
        changed = handed_out()
        changed.iloc[:, 0] = changed.iloc[0, 0]
        changed["added"] = 1
        assert handed_out().equals(before)
    for array in (run.projections, run.projections_crossfit, run.directions.unit_direction):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.run_id = "another"


def test_a_run_says_what_it_is_in_one_line(run):
    assert repr(run).startswith(f"<Run {run.run_id}: {run.n_layers} layers, ")
    assert "\n" not in repr(run)


def test_its_card_has_the_verdict_and_three_curves_and_escapes_what_a_stranger_wrote(run):
    card = run._repr_html_()
    assert card.count("<polyline") == 3
    assert "d over the layers: in-sample, cross-fitted, matched pairs" in card
    hostile = run.manifest.model_copy(
        update={"model": run.manifest.model.model_copy(update={"name": "<script>alert(1)</script>"})}
    )
    shown = dataclasses.replace(run, manifest=hostile)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_the_front_door_opens_it(run, monkeypatch):
    assert rc.open_run(run.run_id, run.path.parent).run_id == run.run_id
