from __future__ import annotations

import numpy as np
import pytest
from planted import labels_and_groups
from scipy import stats

from refusal_core.analysis import geometry
from refusal_core.analysis.effect_sizes import cohens_d
from refusal_core.analysis.gram import gram_matrices, gram_matrix
from refusal_core.analysis.projections import contrast_weights


@pytest.fixture
def space() -> tuple[np.ndarray, np.ndarray]:
    """Activations of 40 contrast prompts and 20 others, and the labels of the first."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(60, 30)) * np.linspace(0.2, 3, 30) + 40, np.arange(40) % 2 == 0


def test_dimension_share_and_cosine_are_those_of_the_covariance(space):
    hidden, labels = space
    contrast = hidden[:40]
    gram, weights = gram_matrix(contrast), contrast_weights(labels[None], ~labels[None])
    unit = contrast[labels].mean(axis=0) - contrast[~labels].mean(axis=0)
    unit /= np.linalg.norm(unit)
    covariance = np.cov(contrast.T, ddof=0)
    eigenvalues = np.linalg.eigvalsh(covariance)
    effective = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert geometry.effective_dimension(gram) == pytest.approx(effective, rel=1e-9)
    share = unit @ covariance @ unit / np.trace(covariance)
    assert geometry.variance_share(gram, weights[0]) == pytest.approx(share, rel=1e-9)
    other = np.random.default_rng(2).random((1, 40))
    other -= other.mean()
    direct = other[0] @ contrast @ unit / np.linalg.norm(other[0] @ contrast)
    assert geometry.cosine(gram, weights, other)[0] == pytest.approx(direct, abs=1e-9)


def test_components_are_those_of_the_singular_value_decomposition(space):
    hidden, _ = space
    grams = gram_matrices(hidden, np.arange(60) < 40)
    components = geometry.principal_components(grams[:40, :40], 3)
    centred = hidden - hidden[:40].mean(axis=0)
    _, singular, axes = np.linalg.svd(centred[:40], full_matrices=False)
    np.testing.assert_allclose(np.abs(components.scores[:, :3]), np.abs(centred[:40] @ axes[:3].T), atol=1e-9)
    others = components.project(grams[:40, 40:], 3)
    np.testing.assert_allclose(np.abs(others), np.abs(centred[40:] @ axes[:3].T), atol=1e-9)
    np.testing.assert_allclose(components.shares[:3], (singular**2 / (singular**2).sum())[:3])
    largest = np.abs(components.vectors[:, :3]).argmax(axis=0)
    assert (components.vectors[largest, range(3)] > 0).all()


def test_constant_activations_have_no_components_dimension_share_or_cosine():
    nothing, weights = np.zeros((6, 6)), np.array([1, -1, 1, -1, 1, -1]) / 3
    assert len(geometry.principal_components(nothing, 3).values) == 0
    assert np.isnan(geometry.effective_dimension(nothing))
    assert np.isnan(geometry.variance_share(nothing, weights))
    assert np.isnan(geometry.cosine(nothing, weights[None], weights[None])).all()
    assert np.isnan(geometry.silhouette(nothing, weights > 0))


def test_the_silhouette_is_that_of_the_distances_by_hand():
    points = np.array([0.0, 1.0, 4.0, 6.0, 11.0])
    labels = np.array([True, True, False, False, False])
    # Own label and other: 1 and 7, 1 and 6, 4.5 and 3.5, 3.5 and 5.5, 6 and 10.5.
    widths = [6 / 7, 5 / 6, -1 / 4.5, 2 / 5.5, 4.5 / 10.5]
    assert geometry.silhouette(gram_matrix(points[:, None]), labels) == pytest.approx(np.mean(widths), abs=1e-12)
    # A lone prompt of its label counts 0: distances to the own and the other label are 4.5 and 6, 3.5 and 5, 6 and 10.
    alone = geometry.silhouette(gram_matrix(points[1:, None] - 1), labels[1:])
    assert alone == pytest.approx(np.mean([0, (3 - 4.5) / 4.5, (5 - 3.5) / 5, (10 - 6) / 10]), abs=1e-12)


@pytest.mark.parametrize("labels", [[True, False], [True] * 4, [False] * 4], ids=["two prompts", "harmful", "harmless"])
def test_there_is_no_silhouette_without_two_labels_and_three_prompts(labels):
    points = np.arange(len(labels), dtype=float)[:, None]
    assert np.isnan(geometry.silhouette(gram_matrix(points), np.array(labels)))


def test_a_geometric_median_that_falls_on_a_prompt_is_that_prompt():
    # Four corners and the middle: the point with the least summed distance is the middle one.
    points = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]])
    weights = geometry.geometric_median_weights(points @ points.T)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights @ points, [0, 0], atol=1e-6)
    assert weights[4] > 0.99


def test_heretics_columns_are_those_of_means_and_geometric_medians():
    rng = np.random.default_rng(2)
    labels, _ = labels_and_groups(50)
    hidden = rng.normal(size=(50, 6)) + labels[:, None] * 0.5 + 3
    hidden[0] += 100
    mean = hidden.mean(axis=0)
    gram = gram_matrix(hidden)
    columns = geometry.residual_geometry(gram, (hidden - mean) @ mean, float(mean @ mean), labels)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def geometric_median(points):
        point = points.mean(axis=0)
        for _ in range(2000):
            weights = 1 / np.linalg.norm(points - point, axis=1)
            point = weights @ points / weights.sum()
        return point

    for star, centre in (("", lambda points: points.mean(axis=0)), ("*", geometric_median)):
        good, bad = centre(hidden[~labels]), centre(hidden[labels])
        expected = {
            f"S(g{star},b{star})": cosine(good, bad),
            f"S(g{star},r{star})": cosine(good, bad - good),
            f"S(b{star},r{star})": cosine(bad, bad - good),
            f"|g{star}|": np.linalg.norm(good),
            f"|b{star}|": np.linalg.norm(bad),
            f"|r{star}|": np.linalg.norm(bad - good),
        }
        for name, value in expected.items():
            assert columns[name] == pytest.approx(value, abs=1e-5 if star else 1e-9), name


def test_random_directions_of_the_gram_matrix_are_those_of_the_whole_space():
    rng = np.random.default_rng(5)
    labels, _ = labels_and_groups(40)
    hidden = rng.normal(size=(40, 60)) * np.linspace(0.05, 4, 60) + labels[:, None] * np.linspace(2, 0, 60)
    found = geometry.random_direction_d(geometry.principal_components(gram_matrix(hidden), 3), labels, 3000, rng)
    centred = hidden - hidden.mean(axis=0)
    isotropic = rng.normal(size=(3000, 60))
    of_covariance = rng.normal(size=(3000, 40)) @ centred
    for kind, directions in (("isotropic", isotropic), ("covariance", of_covariance)):
        direct = [abs(cohens_d(*(centred[rows] @ v for rows in (labels, ~labels)))) for v in directions]
        assert stats.ks_2samp(found[kind], direct).pvalue > 0.001, kind
    assert len(found["component"]) == 39
