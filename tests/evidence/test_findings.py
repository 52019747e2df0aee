"""The sentences are functions of the tables: here the tables are written by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import evaluate_run, planted_run

from refusal_core.evidence.findings import caveats, onset, overview_table, probe_source, verdict
from refusal_core.evidence.phrases import NO_DIFFERENCE
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.run import LEFT_OUT


@pytest.fixture(scope="module")
def small() -> Evidence:
    """Evidence without harm, whose tables the tests replace."""
    return evaluate_run(*planted_run(0, [0, 0]))


def with_transfer(evidence: Evidence, d: list[float], margin: float = 1.0, held: bool = True) -> Evidence:
    """The evidence with these d on the probe pairs, one per site, and cross-fitted numbers that hold or do not."""
    n_sites = len(d)
    transfer = pd.DataFrame({"site": range(n_sites), "source": "probe-pairs", "d": d, "n_pairs": 24})
    transfer = transfer.assign(d_low=transfer["d"] - margin, d_high=transfer["d"] + margin, auroc=0.75)
    low = np.nan_to_num(transfer["d_low"].to_numpy(), nan=-1)
    below = np.flatnonzero(low <= 0)
    first = 0 if not len(below) else below[-1] + 1
    row = {"measure": "d", "source": "probe-pairs", "site": first if first < n_sites else None}
    sites = evidence.sites.iloc[[0] * n_sites].reset_index(drop=True)
    return replace(
        evidence,
        transfer=transfer,
        sites=sites.assign(site=range(n_sites), crossfit_d_low=0.5 if held else -0.5),
        onset=pd.DataFrame([row | {"site_low": 0, "site_high": n_sites - 1}]).astype({"site": "Int64"}),
    )


@pytest.mark.parametrize(("n_sites", "allowed"), [(10, 1), (29, 1), (40, 2), (60, 3)])
def test_the_verdict_allows_for_as_many_stray_sites_as_chance_gives(small, n_sites, allowed):
    for stray in (allowed, allowed + 1):
        d = [0.2] * n_sites
        for site in range(stray):
            d[3 + 2 * site] = 1.5
        said = verdict(with_transfer(small, d))
        if stray == allowed:
            assert f"on probe-pairs it is {NO_DIFFERENCE}" in said
        else:
            assert f"above chance at {stray} of {n_sites} sites, but not up to the last" in said


def test_one_site_that_is_above_chance_up_to_the_last_is_no_stray_one(small):
    said = verdict(with_transfer(small, [0.2] * 28 + [1.5]))
    assert "tells harm best at the final norm (d 1.50 (0.50 to 2.50), AUROC 0.75)" in said
    assert "above chance from the final norm on" in said


def test_the_verdict_names_the_highest_d_among_the_sites_above_chance(small):
    evidence = with_transfer(small, [0.2, 1.2, 2.0, 1.8])
    assert "best at layer 2 of 3 (d 2.00" in verdict(evidence)
    wide = evidence.transfer.assign(d_low=[-1, 0.5, -0.1, 0.8])
    assert "best at the final norm (d 1.80" in verdict(replace(evidence, transfer=wide))


def test_a_verdict_without_any_number_or_set_says_why(small):
    assert "the run has no transfer set" in verdict(replace(small, transfer=small.transfer.iloc[:0]))
    nothing = with_transfer(small, [np.nan, np.nan])
    assert verdict(nothing) == (
        "Whether the direction is about harm cannot be said: the numbers it needs do not exist."
    )
    neither = verdict(with_transfer(small, [0.1, 0.1], held=False))
    assert neither.startswith("At no site is the direction more than chance")


def test_the_set_that_is_asked_about_harm(small):
    def of(*sources: tuple[str, int]) -> str | None:
        table = pd.DataFrame(sources, columns=["source", "n_pairs"])
        return probe_source(replace(small, transfer=table))

    assert of(("mine", 9), ("probe-pairs", 0)) == "probe-pairs"
    assert of(("first", 0), ("paired", 3), ("also", 4)) == "paired"
    assert of(("first", 0), ("second", 0)) == "first"
    assert of((LEFT_OUT, 5), ("other", 0)) == "other"
    assert of((LEFT_OUT, 5)) is None
    assert of() is None


def test_the_onset_is_that_of_the_table(small):
    table = pd.DataFrame({"measure": ["d", "d"], "source": ["a", "b"], "site": pd.array([3, None], dtype="Int64")})
    evidence = replace(small, onset=table)
    assert onset(evidence, "d", "a") == 3
    assert onset(evidence, "d", "b") is None
    assert onset(evidence, "d", "c") is None


def test_a_set_that_is_redrawn_in_part_is_named(small):
    settings = small.settings.assign(n_harmful=700, n_harmless=500, most_redrawn=1024)
    said = caveats(replace(small, settings=settings))[0]
    assert "Of the contrast set (1,200 prompts) a sample of about 1,024" in said
    assert caveats(replace(small, settings=settings.assign(n_harmful=524))) == []
    assert caveats(replace(small, settings=settings.drop(columns="most_redrawn"))) == []
    alone = replace(small, settings=settings, transfer=small.transfer.iloc[:0])
    assert "the contrast set (1,200 prompts)" in caveats(alone)[0]


def test_pairs_that_were_found_by_their_texts_are_named(small):
    hidden, prompts = planted_run(1, [0, 3])
    named = prompts["pair_id"].mask(prompts["fitted"], "detected-" + prompts["pair_id"].str.removeprefix("pair-"))
    (said,) = caveats(evaluate_run(hidden, prompts.assign(pair_id=named)))
    assert said.startswith("The contrast set names no pairs. 32 pairs of texts")
    assert caveats(small) == []


def test_the_overview_has_the_numbers_of_each_main_question(small):
    table = overview_table(small)
    np.testing.assert_array_equal(table["d in-sample"], small.sites["in_sample_d"])
    np.testing.assert_array_equal(table["d cross-fitted"], small.sites["crossfit_d"])
    np.testing.assert_array_equal(table["from"], small.sites["crossfit_d_low"])
    np.testing.assert_array_equal(table["to"], small.sites["crossfit_d_high"])
    np.testing.assert_array_equal(table["95 % of chance below"], small.sites["chance_d_95"])
    np.testing.assert_array_equal(table["d probe-pairs"], small.transfer["d"])
    np.testing.assert_array_equal(table[" from"], small.transfer["d_low"])
    np.testing.assert_array_equal(table[" to"], small.transfer["d_high"])
    np.testing.assert_array_equal(table["AUROC"], small.transfer["auroc"])
    both = small.refusal[small.refusal["label"].eq("both") & small.refusal["source"].eq("contrast")]
    np.testing.assert_array_equal(table["rho refusing"], both["rho"])
    assert "AUROC" not in overview_table(replace(small, transfer=small.transfer.iloc[:0]))
