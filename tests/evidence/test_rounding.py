"""Where rounding is as large as what is measured: the error is that of rounded activations, and the site is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import changed, with_tables

from refusal_core.analysis.directions import Directions, fit_directions
from refusal_core.evidence.findings import notes
from refusal_core.evidence.rounding import MOST, coarse_sites, describe_rounding, rounding_error
from refusal_core.runs.run import Run

PROMPTS, WIDTH = 4000, 48


def fitted(hidden: np.ndarray) -> Directions:
    is_harmful = np.arange(len(hidden)) % 2 == 0
    return fit_directions(hidden, is_harmful, np.ones(len(hidden), bool))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_error_is_that_of_rounded_activations(dtype: str) -> None:
    rng = np.random.default_rng(0)
    common = np.concatenate([rng.normal(scale=20, size=WIDTH - 1), [0.0]])
    hidden = (common + rng.normal(scale=0.4, size=(PROMPTS, 1, WIDTH))).astype(np.float32)
    hidden[::2, :, : WIDTH // 2] += 0.3
    directions = fitted(hidden)
    rounded = torch.from_numpy(hidden).to(getattr(torch, dtype)).float().numpy()
    measured = directions.project(rounded - hidden)[:, 0].std()
    assert rounding_error(directions, dtype)[0] == pytest.approx(measured, rel=0.2)
    assert rounding_error(directions, "float32")[0] < measured / 1000


def test_a_site_of_small_differences_on_a_large_mean_is_named(run: Run) -> None:
    spread = run.layer_stats["harmless_projection_std"].to_numpy()
    means = {name: getattr(run.directions, name).copy() for name in ("harmful_mean", "harmless_mean")}
    for mean in means.values():  # as large as makes one rounding a quarter of the spread, at every coordinate
        mean[3] = np.sqrt(12) * spread[3] * 2**7 / 4
    coarse = with_tables(run, directions=replace(run.directions, **means))
    low = changed(coarse, compute={"dtype": "bfloat16"})
    assert coarse_sites(low) == [3]
    assert notes(low)[-1] == describe_rounding(low)
    assert describe_rounding(low).startswith("At layer 3 of 6 the prompts differ so little that bfloat16 is too coarse")
    assert f"{100 * MOST:.1f} %" in describe_rounding(low)
    assert describe_rounding(changed(coarse, compute={"dtype": "float32"})) == ""
