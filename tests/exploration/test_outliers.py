from __future__ import annotations

import numpy as np
import pytest

from refusal_core.exploration.outliers import (
    derived_band,
    in_band,
    nearest_prompts,
    prompts_at,
    row_of,
    standardised,
    twin_of,
)


def test_the_band_holds_the_prompts_between_its_ends(run):
    site = 3
    low, high = derived_band(run, site)
    found = in_band(prompts_at(run, site), (low, high))
    inside = (run.projections[:, site] >= low) & (run.projections[:, site] <= high)
    assert len(found) == inside.sum() > 0
    assert set(found.index) == set(np.flatnonzero(inside))
    assert found["projection"].is_monotonic_increasing


def test_the_derived_band_lies_between_the_labels_tails(run):
    for site in range(run.n_sites):
        harmful, harmless = run.projections[run.rows("harmful"), site], run.projections[run.rows("harmless"), site]
        expected = sorted((np.percentile(harmful, 5), np.percentile(harmless, 95)))
        assert derived_band(run, site) == pytest.approx(expected)


def test_the_percentile_is_among_the_other_label(run):
    site = 4
    found = in_band(prompts_at(run, site), (-np.inf, np.inf))
    for row in found.index:
        label = run.prompts["label"][row]
        if label == "grey":
            assert np.isnan(found["percentile_in_other"][row])
            continue
        other = run.projections[run.rows("harmless" if label == "harmful" else "harmful"), site]
        expected = 100 * (other < run.projections[row, site]).mean()
        assert found["percentile_in_other"][row] == pytest.approx(expected)


def test_twins_are_the_other_half_of_a_pair(run):
    for row in np.flatnonzero(run.rows()):
        twin = twin_of(run, int(row))
        assert run.prompts["pair_id"][twin] == run.prompts["pair_id"][row]
        assert run.prompts["label"][twin] != run.prompts["label"][row]
        assert twin_of(run, twin) == row
    assert twin_of(run, len(run.prompts) - 1) is None


def test_the_standard_scale_puts_the_means_half_a_d_from_zero(run):
    values = standardised(run, run.projections[run.rows("harmful")])
    np.testing.assert_allclose(values.mean(axis=0), run.layer_stats["in_sample_d"] / 2, atol=1e-9)


def test_the_nearest_prompt_to_a_course_is_its_own(run):
    assert nearest_prompts(run, run.projections[7], 3).index[0] == 7
    found = nearest_prompts(run, run.projections[7], 3, leave_out=7)
    assert 7 not in found.index
    assert found["distance"].is_monotonic_increasing
    scale = standardised(run, run.projections)
    by_hand = np.sqrt(((scale - scale[7]) ** 2).mean(axis=1))
    assert found.index[0] == np.argsort(by_hand)[1]


def test_prompts_are_found_by_id_and_strangers_are_not(run):
    assert row_of(run, run.prompts["prompt_id"][5]) == 5
    assert row_of(run, "0" * 12) is None
    assert row_of(run, None) is None
