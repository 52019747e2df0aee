from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from refusal_core.analysis.directions import Direction, fit_directions
from refusal_core.errors import RefusalError


def planted(rng: np.random.Generator, n: int = 200, sites: int = 3, width: int = 16, shift: float = 4.0):
    labels = np.arange(2 * n) % 2 == 0
    axis = rng.normal(size=(sites, width))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    hidden = rng.normal(size=(2 * n, sites, width)) + shift * labels[:, None, None] * axis + 7.0
    return hidden.astype(np.float32), labels, axis


def test_a_planted_direction_is_recovered():
    hidden, labels, axis = planted(np.random.default_rng(0))
    directions = fit_directions(hidden, labels)
    # The mean difference carries noise of variance 2/n in each of the other width - 1 dimensions.
    expected = 1 / np.sqrt(1 + 15 * (2 / 200) / 4.0**2)
    cosine = (directions.unit_direction * axis).sum(axis=1)
    assert (np.abs(cosine - expected) < 0.01).all()
    np.testing.assert_allclose(directions.magnitude, 4.0, atol=0.4)


def test_projections_are_inner_products_with_unit_vectors():
    hidden, labels, _ = planted(np.random.default_rng(1))
    directions = fit_directions(hidden, labels)
    np.testing.assert_allclose(np.linalg.norm(directions.unit_direction, axis=1), 1, atol=1e-6)
    expected = np.einsum("psd,sd->ps", hidden.astype(float), directions.unit_direction.astype(float))
    np.testing.assert_allclose(directions.project(hidden), expected, rtol=1e-12)
    separation = directions.project(hidden[labels]).mean(0) - directions.project(hidden[~labels]).mean(0)
    np.testing.assert_allclose(separation, directions.magnitude, rtol=1e-5)


def test_constant_activations_have_no_direction():
    hidden = np.full((20, 2, 8), 3.3, dtype=np.float32)
    directions = fit_directions(hidden, np.arange(20) < 10)
    assert not directions.unit_direction.any()


@pytest.mark.parametrize("labels", [np.ones(4, bool), np.zeros(4, bool), np.ones(3, bool)])
def test_what_cannot_be_fitted_is_refused(labels):
    with pytest.raises(ValueError, match="label"):
        fit_directions(np.zeros((4, 2, 3), np.float32), labels)


def test_projecting_other_shapes_is_refused():
    hidden, labels, _ = planted(np.random.default_rng(2))
    with pytest.raises(ValueError, match=r"\(3, 16\)"):
        fit_directions(hidden, labels).project(hidden[:, :2])


def test_labels_may_be_words():
    hidden, labels, _ = planted(np.random.default_rng(3))
    by_word = fit_directions(hidden, np.where(labels, "harmful", "harmless"))
    np.testing.assert_array_equal(by_word.unit_direction, fit_directions(hidden, labels).unit_direction)
    with pytest.raises(ValueError, match="'unsafe'"):
        fit_directions(hidden, np.where(labels, "unsafe", "harmless"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_taken_as_arrays_are(dtype):
    hidden, labels, _ = planted(np.random.default_rng(6))
    states = torch.tensor(hidden, dtype=dtype, requires_grad=True)
    rounded = states.detach().double().numpy()
    expected, fitted = fit_directions(rounded, labels), np.arange(len(labels)) < 100
    for given in (states, [*states], list(states.detach())):
        directions = fit_directions(given, torch.tensor(labels))
        np.testing.assert_allclose(directions.unit_direction, expected.unit_direction, atol=1e-6)
    np.testing.assert_allclose(directions.project(states), expected.project(rounded), rtol=1e-5)
    np.testing.assert_allclose(directions[1].project(states[:, 1]), expected[1].project(rounded[:, 1]), rtol=1e-5)
    np.testing.assert_array_equal(
        fit_directions(states, torch.tensor(labels), torch.tensor(fitted)).unit_direction,
        fit_directions(rounded, labels, fitted).unit_direction,
    )
    vector = torch.zeros(16, dtype=dtype, requires_grad=True) + torch.eye(16, dtype=dtype)[3]
    assert Direction(vector, 1.0, 0, 2).vector.tolist() == np.eye(16)[3].tolist()


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels.astype(int),
        lambda labels: labels.astype(float),
        lambda labels: labels.tolist(),
        lambda labels: tuple(labels.astype(int).tolist()),
        lambda labels: torch.tensor(labels).int(),
        lambda labels: torch.tensor(labels).bfloat16(),
        lambda labels: pd.Series(np.where(labels, "harmful", "harmless")),
        lambda labels: np.where(labels, "harmful", "harmless").astype(object),
        lambda labels: ["harmful" if label else "harmless" for label in labels],
    ],
)
def test_labels_may_be_numbers_booleans_or_words_of_any_container(form):
    hidden, labels, _ = planted(np.random.default_rng(7))
    expected = fit_directions(hidden, labels).unit_direction
    np.testing.assert_array_equal(fit_directions(hidden, form(labels)).unit_direction, expected)


@pytest.mark.parametrize(
    ("activations", "labels", "fitted", "said"),
    [
        (np.zeros((4, 2, 3)), [1, -1, 1, -1], None, "true and false, or 1 and 0; got -1"),
        (np.zeros((4, 2, 3)), [0, 1, 2, 1], None, "got 2"),
        (np.zeros((4, 2, 3)), [1, 0, 1, np.nan], None, "got nan"),
        (np.zeros((4, 2, 3)), ["harmful", "grey", "harmless", "harmful"], None, "got 'grey'"),
        (np.zeros((4, 2, 3)), [[1, 0], [0, 1]], None, r"one label per prompt, got \(4, 2, 3\) and \(2, 2\)"),
        (np.zeros((4, 2, 3)), [1, 1, 1, 1], None, "both labels, and none is harmless"),
        (torch.zeros(4, 3), [1, 0, 1, 0], None, r"expected activations \(prompt, site, d_model\)"),
        (torch.zeros(4, 2, 3, dtype=torch.complex64), [1, 0, 1, 0], None, "as real numbers, got complex64"),
        ([np.zeros((2, 3)), np.zeros((1, 3))], [1, 0], None, r"of one shape, got \(1, 3\) and \(2, 3\)"),
        (np.full((4, 2, 3), np.inf), [1, 0, 1, 0], None, "among the harmful prompts' at site 0"),
        (np.zeros((4, 2, 3)), [1, 0, 1, 0], [0, 1, 2], r"one boolean per prompt \(4\) .*, got int64 of shape \(3,\)"),
    ],
)
def test_what_is_no_activation_or_label_is_said_in_one_sentence(activations, labels, fitted, said):
    with pytest.raises(RefusalError, match=said):
        fit_directions(activations, labels, fitted)


def test_one_direction_of_several_is_what_it_is_among_them():
    hidden, labels, _ = planted(np.random.default_rng(4))
    directions = fit_directions(hidden, labels)
    assert len(directions) == 3
    assert [direction.site for direction in directions] == [0, 1, 2]
    direction = directions[1]
    np.testing.assert_array_equal(direction.vector, directions.unit_direction[1])
    np.testing.assert_allclose(direction.project(hidden[:, 1]), directions.project(hidden)[:, 1], rtol=1e-12)
    assert direction.magnitude == directions.magnitude[1]
    assert directions[-1].site == 2
    assert repr(direction).startswith("Direction(layer 1 of 2, d_model=16, magnitude=")
    with pytest.raises(IndexError, match="from 0 to 2"):
        directions[3]


def test_cosines_of_known_vectors():
    first = Direction(np.array([1.0, 0, 0]), 1.0, 0, 2)
    second = Direction(np.array([0.6, 0.8, 0]), 1.0, 1, 2)
    assert first.cosine(second) == pytest.approx(0.6)
    assert np.isnan(first.cosine(Direction(np.zeros(3), 0.0, 0, 2)))
    with pytest.raises(ValueError, match="width 3, got 2"):
        first.cosine(Direction(np.array([1.0, 0]), 1.0, 0, 2))


def test_a_direction_survives_being_saved(tmp_path):
    hidden, labels, _ = planted(np.random.default_rng(5))
    direction = fit_directions(hidden, labels)[1]
    direction.save(tmp_path / "direction.safetensors")
    loaded = Direction.load(tmp_path / "direction.safetensors")
    np.testing.assert_array_equal(loaded.vector, direction.vector)
    assert (loaded.site, loaded.n_layers, loaded.magnitude) == (1, 2, direction.magnitude)
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RefusalError, match=r"other\.safetensors"):
        Direction.load(tmp_path / "other.safetensors")


def test_a_direction_cannot_be_changed_by_accident():
    direction = Direction(np.array([1.0, 0, 0]), 1.0, 0, 2)
    with pytest.raises(ValueError, match="read-only"):
        direction.vector[0] = 2.0
    with pytest.raises(ValueError, match="norm 1"):
        Direction(np.array([2.0, 0, 0]), 1.0, 0, 2)
    with pytest.raises(ValueError, match="site must be"):
        Direction(np.array([1.0, 0, 0]), 1.0, 3, 2)
