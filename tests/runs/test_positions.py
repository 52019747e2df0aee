"""A run at its read positions: what is planted at one is what the run shows there, and nowhere else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from synthetic import RUN, save_positions

from refusal_core.errors import RunError
from refusal_core.exploration.trajectory import load_trajectory
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run


@pytest.fixture(scope="module")
def run(synthetic_cache, tmp_path_factory) -> Run:
    """A run in which harm is read at t_inst alone, at the final norm, along the first axis."""
    cache = tmp_path_factory.mktemp("positions")
    shutil.copytree(synthetic_cache / RUN, cache / RUN)
    run = open_run(RUN, cache)
    save_positions(run)
    return run


def test_a_run_shows_at_a_position_what_is_planted_there(run):
    assert run.positions == {"t_inst": "t_inst", "-2": "<|im_end|>", "t_post": "t_post"}
    at = run.at("t_inst")
    assert (at.run_id, at.read_at, at.position) == (f"{RUN}@t_inst", "t_inst", -3)
    assert abs(at.directions.unit_direction[-1, 0]) > 0.9
    assert abs(run.at("-2").directions.unit_direction[-1, 0]) < 0.8
    harmful, harmless = (at.projections[at.rows(label), -1].mean() for label in ("harmful", "harmless"))
    assert harmful - harmless > 5
    assert at.layer_stats["crossfit_d"].iloc[-1] > 2 > run.at("-2").layer_stats["crossfit_d"].iloc[-1]
    for name in ("t_inst", "-2"):
        view = run.at(name)
        np.testing.assert_array_equal(view.evidence.sites["crossfit_d"], view.layer_stats["crossfit_d"])
        assert view.projections.shape == run.projections.shape
        assert view.prompts.equals(run.prompts)
    assert not np.allclose(at.evidence.sites["crossfit_d"], run.evidence.sites["crossfit_d"])


def test_at_its_own_position_it_is_the_run_itself(run, synthetic_cache):
    assert run.at("t_post") is run
    back = run.at("t_inst").at("t_post")
    np.testing.assert_array_equal(back.projections, run.projections)
    bare = open_run(RUN, synthetic_cache)
    assert bare.positions == {"t_post": "t_post"}
    assert bare.at("t_post") is bare
    with pytest.raises(RunError, match=r"measured at \(t_post\), got 't_inst'"):
        bare.at("t_inst")


def test_what_is_known_of_the_runs_own_direction_is_not_known_of_another(run):
    at = run.at("t_inst")
    assert at.load_activations() is None
    assert load_trajectory(at) is None
    with pytest.raises(ValueError, match="read-only"):
        at.projections[0] = 0
