from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.inference import auroc_interval
from refusal_core.exploration.outliers import prompts_at
from refusal_core.exploration.separation import separation
from refusal_core.ui.outliers import separation_in_words

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
    prompts = planted(1.0, 10, 0)
    assert np.isnan(separation(prompts.iloc[:0]).d).all()
    alone = separation(prompts[prompts["label"].eq("harmful")])
    assert alone.counts == {"harmful": 10, "harmless": 0}
    assert np.isnan([*alone.d, *alone.auroc, *alone.means["harmless"]]).all()
    assert np.isfinite(alone.means["harmful"]).all()
    pair = separation(prompts.iloc[:2])
    assert np.isfinite(pair.means["harmful"][0])
    assert np.isnan(pair.means["harmful"][1:]).all()


@pytest.mark.parametrize("pairs", [False, True])
def test_fewer_than_8_prompts_of_a_label_have_no_interval_and_say_so(pairs):
    for count in (2, 7):
        told = separation(planted(3.0, count, 0, pairs))
        assert told.few
        assert np.isfinite([told.d[0], told.auroc[0]]).all()
        assert np.isnan([*told.d[1:], *told.auroc[1:], *told.means["harmful"][1:]]).all()
        assert separation_in_words(told).endswith("fewer than 8 prompts of a label, too few for an interval")
    told = separation(planted(9.0, 8, 0, pairs))
    assert not told.few
    assert np.isfinite(told.d).all()
    # Every bootstrap draw of such prompts is separated, too.
    assert told.auroc[0] == told.auroc[2] == 1
    assert told.auroc[1] < 0.9
    assert "too few" not in separation_in_words(told)


@pytest.mark.parametrize("count", [10, 20])
@pytest.mark.parametrize("apart", [0.0, 3.0])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_interval_of_an_auroc_covers_it_and_is_never_of_zero_width(count, apart, pairs):
    truth, rng = norm.cdf(apart / np.sqrt(2)), np.random.default_rng(0)
    covered, n_lists = 0, 1000
    for _ in range(n_lists):
        # What twins have in common moves both.
        common = rng.normal(size=count) if pairs else 0.0
        area = auroc(
            rng.normal(size=count) + common + apart * (np.sqrt(2) if pairs else 1), rng.normal(size=count) + common
        )
        low, high = auroc_interval(area, count, count)
        assert 0 <= low <= area <= high <= 1
        assert high - low > 0.05
        covered += low <= truth <= high
    assert covered >= 0.92 * n_lists


def test_the_interval_of_an_auroc_is_newcombe_s():
    for area, n_harmful, n_harmless in ((1.0, 10, 10), (0.8, 12, 30), (0.5, 20, 20), (0.0, 9, 8)):
        low, high = auroc_interval(area, n_harmful, n_harmless)
        more = (n_harmful + n_harmless) / 2 - 1
        for end in {low, high} - {0.0, 1.0}:
            spread = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end)))
            assert abs(area - end) == pytest.approx(1.959964 * np.sqrt(spread / (n_harmful * n_harmless)), rel=1e-5)
        assert auroc_interval(1 - area, n_harmful, n_harmless) == pytest.approx((1 - high, 1 - low))
    assert auroc_interval(1.0, 10, 10)[1] == 1
    assert auroc_interval(0.0, 10, 10)[0] == 0


def test_pairs_count_once_in_the_interval_of_an_auroc():
    prompts = planted(1.0, 20, 0)
    twice = pd.concat([prompts, prompts]).assign(pair_id=[*prompts["prompt_id"], *prompts["prompt_id"]])
    assert separation(twice).auroc == pytest.approx(separation(prompts).auroc)


def test_25_000_prompts_are_told_within_a_second():
    import time

    prompts = planted(1.0, 12_500, 0, pairs=True)
    begun = time.process_time()
    told = separation(prompts)
    assert time.process_time() - begun < 1.5
    assert told.d[2] - told.d[1] < 0.1
