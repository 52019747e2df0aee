from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.exploration.outliers import prompts_at
from refusal_core.exploration.separation import separation

SITE = 3


def planted(apart: float, count: int, seed: int, pairs: bool = False) -> pd.DataFrame:
    """Prompts of a transfer set whose labels' means are a known number of standard deviations apart."""
    rng = np.random.default_rng(seed)
    harmful = np.arange(2 * count) % 2 == 0
    return pd.DataFrame(
        {
            "prompt_id": [f"{place:012x}" for place in range(2 * count)],
            "label": np.where(harmful, "harmful", "harmless"),
            "source": "planted",
            "pair_id": [f"{place // 2}" if pairs else None for place in range(2 * count)],
            "fitted": False,
            "projection": rng.normal(size=2 * count) + apart * harmful,
            "projection_crossfit": np.nan,
        }
    )


def test_the_contrast_set_has_the_run_s_cross_fitted_numbers(run):
    prompts = prompts_at(run, SITE)
    told = separation(prompts[prompts["fitted"]])
    assert told.crossfitted
    values = {label: run.projections_crossfit[run.rows(label), SITE] for label in ("harmful", "harmless")}
    assert told.d[0] == pytest.approx(cohens_d(*values.values()))
    assert told.auroc[0] == pytest.approx(auroc(*values.values()))
    # The run's own number is a mean over repeated folds, and these are the means of their projections.
    assert told.d[0] == pytest.approx(run.layer_stats["crossfit_d"][SITE], rel=0.1)
    for label in ("harmful", "harmless"):
        assert told.means[label][0] == pytest.approx(run.layer_stats[f"{label}_projection_mean"][SITE])
    for point, low, high in (told.d, told.auroc, *told.means.values()):
        assert low < point < high or low <= point == high


def test_a_transfer_set_is_told_by_the_run_s_direction_and_grey_prompts_count_for_nothing(run):
    prompts = prompts_at(run, SITE)
    borderline = prompts[prompts["source"].eq("borderline")]
    told = separation(borderline)
    values = {label: borderline.loc[borderline["label"].eq(label), "projection"] for label in ("harmful", "harmless")}
    assert not told.crossfitted
    assert borderline["label"].eq("grey").any()
    assert told.counts == {label: len(of_label) for label, of_label in values.items()}
    assert told.d[0] == pytest.approx(cohens_d(*(of_label.to_numpy() for of_label in values.values())))
    assert told.auroc[0] == pytest.approx(auroc(*(of_label.to_numpy() for of_label in values.values())))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    told = [separation(planted(1.0, 40, seed)) for seed in range(60)]
    assert sum(one.d[1] <= 1.0 <= one.d[2] for one in told) >= 51
    assert sum(one.means["harmful"][1] <= 1.0 <= one.means["harmful"][2] for one in told) >= 51
    assert sum(one.d[1] > 0 for one in told) >= 51


def test_nothing_and_one_label_and_single_prompts_have_no_intervals():
    prompts = planted(1.0, 5, 0)
    assert np.isnan(separation(prompts.iloc[:0]).d).all()
    alone = separation(prompts[prompts["label"].eq("harmful")])
    assert alone.counts == {"harmful": 5, "harmless": 0}
    assert np.isnan([*alone.d, *alone.auroc, *alone.means["harmless"]]).all()
    assert np.isfinite(alone.means["harmful"]).all()
    pair = separation(prompts.iloc[:2])
    assert np.isfinite(pair.means["harmful"][0])
    assert np.isnan(pair.means["harmful"][1:]).all()


def test_25_000_prompts_are_told_within_a_second():
    import time

    prompts = planted(1.0, 12_500, 0, pairs=True)
    begun = time.process_time()
    told = separation(prompts)
    assert time.process_time() - begun < 1.5
    assert told.d[2] - told.d[1] < 0.1
