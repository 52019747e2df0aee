"""The figures of a labelled list."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import N_LAYERS

from refusal_core.analysis.effect_sizes import auroc
from refusal_core.figures import transfer


@pytest.fixture
def listed():
    rng = np.random.default_rng(0)
    labels = np.repeat(["harmful", "harmless", "grey"], [20, 30, 2])
    return rng.normal(size=len(labels)).round(1) + 1.5 * (labels == "harmful"), labels


def test_the_area_under_the_curve_is_the_auroc(listed):
    values, labels = (of[listed[1] != "grey"] for of in listed)
    curve = transfer.roc(values, labels).data[0]
    area = np.trapezoid(curve.y, curve.x)
    assert area == pytest.approx(auroc(values[labels == "harmful"], values[labels == "harmless"]))


def test_every_prompt_of_a_label_is_counted_once(run, listed):
    figure = transfer.by_label(run, N_LAYERS, *listed)
    assert {bar.name: sum(bar.y) for bar in figure.data} == {"harmful": 20, "harmless": 30}
    assert "final norm" in figure.layout.xaxis.title.text
