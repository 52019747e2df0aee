"""What a direction leaves of the components, and planes that are turned to one another."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from refusal_core.analysis.planes import residual_component, turned

N, WIDTH = 60, 12


@pytest.fixture
def hidden():
    """Activations of which three components hold nearly all, and a direction that is none of them."""
    rng = np.random.default_rng(0)
    spread = np.array([9.0, 5.0, 3.0, *[0.02] * (WIDTH - 3)])
    return rng.normal(size=(N, WIDTH)) * spread @ ortho_group.rvs(WIDTH, random_state=1)


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("where", ["between components", "a component", "anywhere"])
def test_the_residual_s_component_is_scikit_learn_s(hidden, where):
    fitted = np.arange(N) < 50
    components = PCA(3).fit(hidden[fitted])
    direction = {
        "between components": unit(components.components_.T @ [0.6, 0.7, 0.3]),
        "a component": components.components_[0],
        "anywhere": unit(np.random.default_rng(2).normal(size=WIDTH)),
    }[where]
    left = hidden - np.outer(hidden @ direction, direction)
    expected = PCA(1).fit(left[fitted]).transform(left)[:, 0]
    found = residual_component(components.transform(hidden), hidden @ direction + 7.0, fitted)
    sign = np.sign(found @ expected)
    np.testing.assert_allclose(found * sign, expected, atol=0.01 * np.abs(expected).max())


def test_nothing_is_left_of_activations_along_the_direction():
    scores = np.random.default_rng(0).normal(size=(N, 1))
    scores -= scores.mean()
    found = residual_component(np.column_stack([scores, np.full((N, 2), np.nan)]), scores[:, 0], np.ones(N, dtype=bool))
    np.testing.assert_allclose(found, 0, atol=1e-9)


def clouds(rng, sites, turn):
    """A cloud that changes little from site to site, and is turned or mirrored anew at each."""
    cloud = rng.normal(size=(N, 2)) * [4.0, 1.5]
    cloud -= cloud.mean(axis=0)
    return np.stack([(cloud + 0.01 * site) @ turn(site) for site in range(sites)], axis=1)


def test_planes_that_differ_by_a_turn_come_to_lie_on_one_another():
    points = clouds(np.random.default_rng(0), 6, lambda site: ortho_group.rvs(2, random_state=site))
    points -= points.mean(axis=0)
    found = turned(points, np.ones(N, dtype=bool), start=3)
    np.testing.assert_array_equal(found[:, 3], points[:, 3])
    np.testing.assert_allclose(found, np.repeat(found[:, [3]], 6, axis=1), atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(found[:10, None] - found[None, :10], axis=3),
        np.linalg.norm(points[:10, None] - points[None, :10], axis=3),
    )


def test_the_last_axis_alone_is_mirrored():
    points = clouds(np.random.default_rng(0), 5, lambda site: np.diag([1.0, (-1.0) ** site]))
    found = turned(points, np.ones(N, dtype=bool), start=0, axes=1)
    np.testing.assert_array_equal(found[..., 0], points[..., 0])
    assert all(found[:, site, 1] @ found[:, 0, 1] > 0 for site in range(5))


def test_a_site_without_a_plane_is_passed_over():
    points = clouds(np.random.default_rng(0), 4, lambda site: np.diag([(-1.0) ** (site // 2), 1.0]))
    points[:, 1] = np.nan
    found = turned(points, np.ones(N, dtype=bool), start=0)
    assert np.isnan(found[:, 1]).all()
    assert found[:, 2, 0] @ found[:, 0, 0] > 0
