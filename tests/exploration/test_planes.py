"""The planes in which a run's prompts are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from synthetic import N_LAYERS, RUN, WIDTH, save_synthetic_run, synthetic_prompts

from refusal_core.exploration.planes import COMPONENTS, DIRECTION, PLANES, plane_of
from refusal_core.runs.store import open_run


@pytest.fixture(scope="module")
def hidden():
    """Two clusters, the labels, which stand further apart from layer to layer."""
    prompts = synthetic_prompts()
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(len(prompts), N_LAYERS + 1, WIDTH)) * np.linspace(2, 0.5, WIDTH)
    side = prompts["label"].map({"harmful": 1.0, "harmless": -1.0, "grey": 0.0}).to_numpy()
    hidden[..., 5] -= side[:, None] * np.linspace(0, 9, N_LAYERS + 1)
    return hidden


@pytest.fixture(scope="module")
def run(hidden, tmp_path_factory):
    cache = tmp_path_factory.mktemp("planes")
    save_synthetic_run(hidden, synthetic_prompts(), cache)
    return open_run(RUN, cache)


def test_the_principal_plane_is_scikit_learn_s_but_for_a_turn(run, hidden):
    plane, fitted = plane_of(run, COMPONENTS), run.rows()
    for site in range(run.n_sites):
        components = PCA(2).fit(hidden[fitted, site])
        expected = components.transform(hidden[:, site])
        assert plane.shares[site] == pytest.approx(components.explained_variance_ratio_.sum(), rel=1e-4)
        # A turn keeps all inner products.
        found = plane.points[:, site]
        scale = np.abs(expected @ expected.T).max()
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4 * scale)


@pytest.mark.parametrize("name", PLANES)
def test_two_planted_clusters_lie_apart_with_the_harmful_one_on_the_right(run, name):
    plane, best = plane_of(run, name), run.best_site()
    known = run.prompts["label"].ne("grey") & run.prompts["fitted"]
    labels, points = run.prompts["label"][known], plane.points[known.to_numpy()]
    assert silhouette_score(points[:, best], labels) > 0.6
    assert abs(silhouette_score(points[:, 0], labels)) < 0.1
    means = [points[labels.eq(label).to_numpy(), best, 0].mean() for label in ("harmful", "harmless")]
    assert means[0] > 0 > means[1]


def test_no_plane_lies_nearer_to_the_one_before_when_it_is_mirrored_or_turned(run):
    fitted = run.rows()
    for name, moves in (
        (COMPONENTS, [np.diag([1, -1]), np.diag([-1, 1]), -np.eye(2), np.array([[0, 1], [1, 0]])]),
        (DIRECTION, [np.diag([1, -1])]),
    ):
        points = plane_of(run, name).points[fitted]
        for site in range(1, run.n_sites):
            before, now = points[:, site - 1], points[:, site]
            nearest = ((now - before) ** 2).sum()
            assert all(((now @ move - before) ** 2).sum() >= nearest - 1e-9 for move in moves)


def test_the_direction_s_plane_has_held_out_projections_and_what_is_orthogonal_to_it(run, hidden):
    plane, fitted = plane_of(run, DIRECTION), run.rows()
    np.testing.assert_allclose(plane.points[fitted, :, 0], run.projections_crossfit[fitted])
    site = run.best_site()
    stats = run.layer_stats.loc[site]
    midpoint = (stats["harmful_projection_mean"] + stats["harmless_projection_mean"]) / 2
    np.testing.assert_allclose(plane.points[~fitted, site, 0], run.projections[~fitted, site] - midpoint)
    direction = run.directions.unit_direction[site].astype(float)
    left = hidden[:, site] - np.outer(hidden[:, site] @ direction, direction)
    expected = PCA(1).fit(left[fitted]).transform(left)[:, 0]
    assert abs(np.corrcoef(plane.points[:, site, 1], expected)[0, 1]) > 0.97
    total = hidden[fitted, site].var(axis=0).sum()
    held = (hidden[fitted, site] @ direction).var() + expected[fitted].var()
    assert plane.shares[site] == pytest.approx(held / total, abs=0.01)


def test_a_layer_at_which_activations_do_not_vary_has_no_plane(hidden, tmp_path):
    constant = hidden.copy()
    constant[:, 2] = 1.0
    save_synthetic_run(constant, synthetic_prompts(), tmp_path)
    run = open_run(RUN, tmp_path)
    for name in PLANES:
        plane = plane_of(run, name)
        assert np.isnan(plane.shares[2])
        assert np.isnan(plane.points[:, 2]).any(axis=1).all()
        assert np.isfinite(plane.points[:, [0, 1, 3, N_LAYERS]]).all()
