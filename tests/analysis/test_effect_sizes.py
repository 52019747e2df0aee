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


def test_the_plausible_band_lies_between_the_labels_inner_percentiles():
    harmful, harmless = np.linspace(10, 20, 101), np.linspace(0, 15, 101)
    # 5 % of harmful projections lie below 10.5, 5 % of harmless ones above 14.25.
    assert effect_sizes.plausible_band(harmful, harmless) == pytest.approx((10.5, 14.25))
    # Of labels that are apart it is the gap between them.
    low, high = effect_sizes.plausible_band(np.column_stack([harmful + 10, harmful]), np.column_stack([harmless] * 2))
    np.testing.assert_allclose([low, high], [[14.25, 10.5], [20.5, 14.25]])


def test_every_number_of_a_layer_is_that_of_its_definition():
    labels = np.array([True] * 4 + [False] * 3)
    projections = np.array([2.0, 5.0, 6.0, 7.0, 0.0, 1.0, 2.5])[:, None] * [1.0, 2.0, -1.0]
    table = effect_sizes.layer_statistics(projections, labels, np.array([0.5, 1.5, 2.5]))
    row = table.loc[1]
    assert table["magnitude"].tolist() == [0.5, 1.5, 2.5]
    assert table["site"].tolist() == [0, 1, 2]
    assert table["layer"].tolist()[:2] == [0, 1]
    assert (row["harmful_projection_mean"], row["harmless_projection_mean"]) == pytest.approx((10, 7 / 3))
    assert (row["harmful_projection_min"], row["harmless_projection_min"]) == (4, 0)
    assert (row["harmful_projection_max"], row["harmless_projection_max"]) == (14, 5)
    assert (row["harmful_projection_range"], row["harmless_projection_range"]) == (10, 5)
    stds = 2 * np.std([2, 5, 6, 7]), 2 * np.std([0, 1, 2.5])
    assert (row["harmful_projection_std"], row["harmless_projection_std"]) == pytest.approx(stds)
    # Harmful 4 lies within 0 … 5 and harmless 5 within 4 … 14; none lies beyond the other label's mean.
    assert (row["mean_crossings"], row["range_overlap"]) == (0, 2)
    assert table.loc[2, "in_sample_d"] == pytest.approx(-table.loc[0, "in_sample_d"])
    assert table.loc[2, "in_sample_auroc"] == pytest.approx(1 - table.loc[0, "in_sample_auroc"])
    assert row["in_sample_auroc"] == pytest.approx(11 / 12)


@pytest.mark.parametrize(
    ("distance", "n", "valid"), [(3.0, 20, True), (3.0, 4, False), (0.45, 400, False), (-3.0, 20, True)]
)
def test_the_published_criterion_wants_a_small_p_and_a_large_d(distance, n, valid):
    noise = np.tile([-1.0, 1.0], n // 2)
    labels = np.arange(2 * n) < n
    projections = np.concatenate([noise + distance, noise])[:, None]
    row = effect_sizes.layer_statistics(projections, labels, np.ones(1)).loc[0]
    assert abs(row["in_sample_d"]) == pytest.approx(abs(distance))
    assert (row["log10_p"] < -2) == (n > 4)
    assert row["valid"] == valid


def test_effect_sizes_of_too_little_do_not_exist():
    one, none = np.array([1.0]), np.array([])
    assert np.isnan(effect_sizes.hedges_g(one, np.array([])))
    assert np.isnan(effect_sizes.hedges_g(one, one))
    assert np.isnan(effect_sizes.auroc(one, none))
    assert np.isnan(effect_sizes.auroc(none, one))
    assert np.isnan(effect_sizes.log10_p(float("nan"), 5))
    assert effect_sizes.hedges_g(np.array([1.0, 2.0]), one) == pytest.approx(
        0.5 / np.sqrt(0.5) * (1 - 3 / 3), abs=1e-12
    )


def test_a_spread_of_rounding_is_none():
    rounding = 1e6 + np.array([0, 1e-10, 0, 1e-10])
    assert np.isnan(effect_sizes.cohens_d(rounding + 1, rounding))
    assert np.isnan(effect_sizes.hedges_g(rounding + 1, rounding))
    small = np.array([0.0, 1e-6, 0.0, 1e-6])
    assert effect_sizes.cohens_d(small + 1e-6, small) == pytest.approx(2)
    assert effect_sizes.hedges_g(small + 1e-6, small) == pytest.approx(2 * np.sqrt(3 / 4) * (1 - 3 / 23))
