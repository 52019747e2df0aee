from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from refusal_core.analysis import effect_sizes
from refusal_core.exploration.published import published_table


def test_published_t_follows_from_published_d():
    table = published_table()
    for d, t in zip(table["in_sample_d"], table["t_statistic"], strict=True):
        # The published d is rounded to half precision.
        assert d * np.sqrt(255 / 2) == pytest.approx(t, rel=2e-3)


def test_published_p_values_come_out_where_they_had_not_underflowed():
    for t, p in published_table()[["t_statistic", "p_value"]].to_numpy():
        if p > 1e-300:
            assert effect_sizes.log10_p(t, 510) == pytest.approx(np.log10(p), abs=1e-3)


def test_log10_p_where_float64_underflows():
    assert effect_sizes.log10_p(102.2505, 510) == pytest.approx(-341.2152283646486, abs=1e-9)


def test_log10_p_is_continuous_where_the_formula_changes():
    # p passes 1e-280 between these two values of t.
    t = np.linspace(75.6, 76.2, 40)
    steps = np.diff([effect_sizes.log10_p(value, 510) for value in t])
    assert effect_sizes.log10_p(t[0], 510) > -280 > effect_sizes.log10_p(t[-1], 510)
    assert np.ptp(steps) < 1e-3


def test_layer_statistics_agree_with_scipy_and_the_definitions():
    rng = np.random.default_rng(0)
    labels = np.arange(60) < 25
    projections = rng.normal(size=(60, 2)) + labels[:, None] * [1.0, 3.0]
    table = effect_sizes.layer_statistics(projections, labels, np.array([1.0, 3.0]))
    for site in range(2):
        harmful, harmless = projections[labels, site], projections[~labels, site]
        row = table.loc[site]
        test = stats.ttest_ind(harmful, harmless)
        assert row["t_statistic"] == pytest.approx(test.statistic)
        assert row["log10_p"] == pytest.approx(np.log10(test.pvalue))
        pooled = np.sqrt((harmful.std() ** 2 + harmless.std() ** 2) / 2)
        assert row["in_sample_d"] == pytest.approx((harmful.mean() - harmless.mean()) / pooled)
        greater = (harmful[:, None] > harmless).mean() + 0.5 * (harmful[:, None] == harmless).mean()
        assert row["in_sample_auroc"] == pytest.approx(greater)
    assert table["layer"].tolist()[0] == 0
    assert table["layer"].isna().tolist() == [False, True]


def test_hedges_g_is_the_small_sample_correction_of_the_unbiased_d():
    a, b = np.array([3.0, 4.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0])
    pooled = np.sqrt((3 * a.var(ddof=1) + 2 * b.var(ddof=1)) / 5)
    assert effect_sizes.hedges_g(a, b) == pytest.approx((a.mean() - b.mean()) / pooled * (1 - 3 / 19))


def test_two_meanings_of_overlap():
    harmful, harmless = np.array([2.0, 5.0, 6.0, 7.0]), np.array([0.0, 1.0, 2.5, 5.5])
    # Means 5 and 2.25: one harmful below 2.25, one harmless above 5.
    assert effect_sizes.mean_crossings(harmful, harmless) == 2
    # Harmful 2 and 5 lie within 0..5.5; harmless 2.5 and 5.5 within 2..7.
    assert effect_sizes.range_overlap(harmful, harmless) == 4


def test_ties_count_half():
    assert effect_sizes.auroc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5


def test_no_spread_means_no_effect_size():
    labels = np.arange(10) < 5
    table = effect_sizes.layer_statistics(np.full((10, 1), 0.1), labels, np.zeros(1))
    assert np.isnan(table.loc[0, ["in_sample_d", "t_statistic", "log10_p", "hedges_g"]].astype(float)).all()
    assert not table.loc[0, "valid"]


def test_percentiles_count_ties_half():
    np.testing.assert_allclose(effect_sizes.percentile(np.array([0, 2, 9]), np.array([1, 2, 2, 3])), [0, 50, 100])


def test_published_table_places_its_last_layer_at_the_final_norm():
    table = published_table()
    assert len(table) == 28
    assert table.loc[table["layer"] == 27, "site"].item() == 28
    assert table.loc[table["layer"] == 18, "site"].item() == 18
    assert table["in_sample_d"].idxmax() == 18
