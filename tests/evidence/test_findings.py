"""The sentences are functions of the tables: here the tables are written by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import evaluate_run, planted_run

from refusal_core.evidence.answers import answer
from refusal_core.evidence.claims import (
    against_wording,
    best_site,
    better_than_wording_from,
    detectable_from,
    probe_source,
    separated,
)
from refusal_core.evidence.findings import caveats, overview_table, verdict
from refusal_core.evidence.phrases import NO_DIFFERENCE
from refusal_core.runs.evidence_tables import CONTRAST, EVERY_PROMPT, NEAR_TWINS, WORDING_COLUMNS, Evidence
from refusal_core.runs.migrations import migrated_evidence
from refusal_core.runs.run import LEFT_OUT


@pytest.fixture(scope="module")
def small() -> Evidence:
    """Evidence without harm, whose tables the tests replace."""
    return evaluate_run(*planted_run(0, [0, 0]))


def with_transfer(
    evidence: Evidence, d: list[float], p: list[float] | float, held: bool = True, best: int = 0
) -> Evidence:
    """The evidence with these d on the probe pairs, an interval of ± 1 and these p-values, one per site."""
    n_sites = len(d)
    transfer = pd.DataFrame({"site": range(n_sites), "source": "probe-pairs", "d": d, "n_pairs": 24})
    transfer = transfer.assign(
        d_low=transfer["d"] - 1, d_high=transfer["d"] + 1, auroc=0.75, pair_accuracy=0.8, permutation_p_corrected=p
    )
    transfer = transfer.assign(d_detectable=1.4, n_harmful=24, n_harmless=24)
    low = np.nan_to_num(transfer["d_low"].to_numpy(), nan=-1)
    below = np.flatnonzero(low <= 0)
    first = 0 if not len(below) else below[-1] + 1
    row = {"measure": "d", "source": "probe-pairs", "site": first if first < n_sites else None}
    sites = evidence.sites.iloc[[0] * n_sites].reset_index(drop=True)
    sites = sites.assign(site=range(n_sites), crossfit_d_low=0.5, permutation_p_corrected=0.001 if held else 0.9)
    return replace(
        evidence,
        transfer=transfer,
        sites=sites.assign(crossfit_d=np.where(np.arange(n_sites) == best, 3.0, 1.0)),
        wording=pd.DataFrame(columns=list(WORDING_COLUMNS), dtype=float),
        detectable_from=pd.DataFrame([row | {"site_low": 0, "site_high": n_sites - 1}]).astype({"site": "Int64"}),
    )


def with_wording(evidence: Evidence, lower: dict[tuple[str, str, str], list[float]]) -> Evidence:
    """The evidence with these lower bounds of the AUROC difference, by set, prompts and text model."""
    rows = [
        {"site": site, "source": source, "prompts": prompts, "opponent": opponent, "auroc_difference_low": bound}
        | {
            "auroc_difference": bound + 0.1,
            "auroc_difference_high": bound + 0.2,
            "text_auroc": 0.7,
            "auroc": 0.8 + bound,
        }
        | {"n_pairs": 37, "pair_accuracy": 0.9, "text_pair_accuracy": np.nan}
        for (source, prompts, opponent), bounds in lower.items()
        for site, bound in enumerate(bounds)
    ]
    return replace(evidence, wording=pd.DataFrame(rows))


def test_the_number_is_that_of_the_layer_with_the_highest_cross_fitted_d(small):
    evidence = with_transfer(small, [1.2, 1.5, 3.0, 1.1], [0.001] * 4, best=1)
    assert verdict(evidence).startswith(
        "At layer 1 of 3, where the cross-fitted d is highest, the direction separates the harmful from the harmless "
        "prompts of probe-pairs: d is 1.50 (0.50 to 2.50), AUROC 0.75. It is detectable from layer 0 of 3 on"
    )
    assert best_site(evidence) == 1
    # The final norm is no layer.
    assert best_site(with_transfer(small, [1.0, 1, 1, 1], 0.001, best=3)) == 0


def test_what_is_separated_elsewhere_is_not_said_of_the_best_layer(small):
    said = verdict(with_transfer(small, [0.2, 0.3, 1.5, 1.8], [0.9, 0.9, 0.01, 0.002]))
    assert said.startswith(
        "The direction separates the harmful from the harmless prompts of probe-pairs at 2 of 4 sites, but not at "
        "layer 0 of 3, where the cross-fitted d is highest: there d is 0.20 (-0.80 to 1.20), AUROC 0.75."
    )
    assert "detectable from layer 2 of 3 on (95 % interval 0 to norm)" in said


def test_sites_that_are_not_detectable_up_to_the_last_are_counted(small):
    said = verdict(with_transfer(small, [1.5, 1.2, 0.1], [0.001, 0.004, 0.5]))
    assert "It is detectable at 2 of 3 sites, but not up to the last." in said


@pytest.mark.parametrize(("p", "side"), [(0.02, 1), (0.0201, 0)])
def test_a_site_is_separated_where_the_corrected_test_and_the_interval_say_so(small, p, side):
    evidence = with_transfer(small, [1.5, 0.9, -1.5, -0.9], p)
    assert separated(evidence, "probe-pairs").tolist() == [side, 0, -side, 0]


def test_nothing_is_no_proof_of_nothing(small):
    evidence = with_transfer(small, [0.2, 0.3], 0.5)
    said = verdict(evidence)
    assert said == (
        "The direction separates the two halves of its contrast set, cross-fitted, at 2 of 2 sites, but on "
        f"probe-pairs it is {NO_DIFFERENCE} at any: what holds on pairs of its own kind need not carry over to others. "
        "An effect of d = 1.40 on probe-pairs would have been found at layer 0 of 1 four times in five."
    )
    unpaired = replace(evidence, settings=evidence.settings.assign(n_pairs=0))
    assert "may be how the two sets were written. An effect of" in verdict(unpaired)
    neither = verdict(with_transfer(small, [0.2, 0.3], 0.5, held=False))
    assert neither.startswith(
        f"At no site is the direction more than chance: cross-fitted and on probe-pairs it is {NO_DIFFERENCE}."
    )
    assert "would have been found" in neither
    blind = evidence.transfer.assign(d_detectable=np.nan)
    assert "no effect could have been found" in verdict(replace(evidence, transfer=blind))


def test_a_verdict_without_any_number_or_set_says_why(small):
    assert "the run has no transfer set" in verdict(replace(small, transfer=small.transfer.iloc[:0]))
    nothing = with_transfer(small, [np.nan, np.nan], np.nan)
    assert verdict(nothing) == (
        "Whether the direction is about harm cannot be said: the numbers it needs do not exist."
    )


def test_a_run_that_was_not_tested_over_all_sites_claims_nothing(small):
    evidence = with_transfer(small, [1.5, 1.8], 0.001)
    old = replace(evidence, transfer=evidence.transfer.drop(columns=["permutation_p_corrected", "d_detectable"]))
    assert verdict(old) == (
        "On probe-pairs d is 1.50 (0.50 to 2.50), AUROC 0.75 at layer 0 of 1, where the cross-fitted d is highest. "
        "Whether that is more than chance was not tested over all sites when this run was made: make it again to know."
    )
    assert "was not tested over all sites" in answer(old, "harm", 0)
    assert "cross-fitted d" in answer(old, "simpler", 0)


def test_evidence_of_earlier_versions_is_read_under_the_present_names(small):
    tables = small.to_tables()
    stored = {"onset" if name == "detectable_from" else name: table for name, table in tables.items()}
    del stored["wording"]
    restored = Evidence.from_tables(migrated_evidence(stored))
    assert restored.wording.empty
    assert list(restored.wording) == list(WORDING_COLUMNS)
    assert restored.detectable_from is tables["detectable_from"]
    assert migrated_evidence({}) == {}
    assert migrated_evidence(tables)["wording"] is tables["wording"]


def test_wording_is_exceeded_where_every_text_model_is(small):
    evidence = with_transfer(small, [1.5] * 4, 0.001)
    evidence = with_wording(
        evidence,
        {
            (CONTRAST, EVERY_PROMPT, "words"): [0.1, 0.1, 0.1, 0.1],
            (CONTRAST, EVERY_PROMPT, "characters"): [-0.1, 0.2, -0.01, 0.05],
        },
    )
    closest = against_wording(evidence, CONTRAST)
    assert closest["opponent"].tolist() == ["characters", "words", "characters", "characters"]
    assert better_than_wording_from(evidence, CONTRAST) == 3
    assert better_than_wording_from(evidence, "probe-pairs") is None
    assert better_than_wording_from(evidence, CONTRAST, NEAR_TWINS) is None
    said = verdict(evidence)
    assert "the prompts' wording on held-out contrast prompts from the final norm on (text reaches AUROC 0.70)." in said
    below = answer(evidence, "simpler", 2)
    assert "not shown to be more than the wording, 0.70 by characters: difference 0.09 (-0.01 to 0.19)" in below
    above = answer(evidence, "simpler", 3)
    assert "reaches AUROC 0.85 (90 % of pairs in order), more than the wording, 0.70 by characters" in above


def test_wording_is_exceeded_on_a_transfer_set_no_earlier_than_it_is_separated(small):
    evidence = with_transfer(small, [0.1, 1.5, 1.5], [0.9, 0.001, 0.001])
    lower = {
        ("probe-pairs", EVERY_PROMPT, "words"): [0.1, 0.1, 0.1],
        ("probe-pairs", NEAR_TWINS, "words"): [0.1, -0.1, 0.1],
    }
    evidence = with_wording(evidence, lower)
    assert better_than_wording_from(evidence, "probe-pairs") == 1
    assert better_than_wording_from(evidence, "probe-pairs", NEAR_TWINS) == 2
    said = verdict(evidence)
    assert "on probe-pairs from layer 1 of 2 on" in said
    assert "on the 37 such pairs of probe-pairs from the final norm on" in said
    worse = with_wording(evidence, {key: [-0.1] * 3 for key in lower})
    assert "on probe-pairs at no site up to the last" in verdict(worse)


def test_an_answer_about_harm_weighs_the_wording(small):
    evidence = with_transfer(small, [1.5, 1.5, 0.2, -1.5], [0.001, 0.003, 0.5, 0.001])
    evidence = with_wording(evidence, {("probe-pairs", EVERY_PROMPT, "words"): [0.05, -0.05, 0.05, 0.05]})
    above = answer(evidence, "harm", 0)
    assert "80 % of 24 pairs in the right order: more than chance (p ≤ 0.001 over all sites, 0.02 needed)" in above
    assert (
        "more than their wording tells (words, AUROC 0.70, difference 0.15 (0.05 to 0.25)): it is about harm" in above
    )
    below = answer(evidence, "harm", 1)
    assert "more than chance (p = 0.003" in below
    assert "but it may be their wording (words, AUROC 0.70, difference 0.05 (-0.05 to 0.15))" in below
    assert "about harm" not in below
    nothing = answer(evidence, "harm", 2)
    assert f"{NO_DIFFERENCE} (p = 0.5 over all sites" in nothing
    assert "An effect of d = 1.40 on probe-pairs would have been found at layer 2 of 3 four times in five." in nothing
    assert "puts harmless prompts on the harmful side (p ≤ 0.001" in answer(evidence, "harm", 3)
    without = replace(evidence, wording=evidence.wording.iloc[:0])
    assert answer(without, "harm", 0).endswith("more than chance (p ≤ 0.001 over all sites, 0.02 needed).")


def test_the_set_that_is_asked_about_harm(small):
    def of(*sources: tuple[str, int]) -> str | None:
        table = pd.DataFrame(sources, columns=["source", "n_pairs"])
        return probe_source(replace(small, transfer=table))

    assert of(("mine", 9), ("probe-pairs", 0)) == "probe-pairs"
    assert of(("probe-pairs", 9), ("quartets", 9)) == "quartets"
    assert of(("first", 0), ("paired", 3), ("also", 4)) == "paired"
    assert of(("first", 0), ("second", 0)) == "first"
    assert of((LEFT_OUT, 5), ("other", 0)) == "other"
    assert of((LEFT_OUT, 5)) is None
    assert of() is None


def test_the_first_detectable_site_is_that_of_the_table(small):
    table = pd.DataFrame({"measure": ["d", "d"], "source": ["a", "b"], "site": pd.array([3, None], dtype="Int64")})
    evidence = replace(small, detectable_from=table)
    assert detectable_from(evidence, "d", "a") == 3
    assert detectable_from(evidence, "d", "b") is None
    assert detectable_from(evidence, "d", "c") is None


def notes(evidence: Evidence, start: str) -> list[str]:
    return [note for note in caveats(evidence) if note.startswith(start)]


def test_a_set_that_is_redrawn_in_part_is_named(small):
    settings = small.settings.assign(n_harmful=700, n_harmless=500, most_redrawn=1024)
    (said,) = notes(replace(small, settings=settings), "Estimates")
    assert "Of the contrast set (1,200 prompts) a sample of about 1,024" in said
    assert not notes(replace(small, settings=settings.assign(n_harmful=524)), "Estimates")
    assert not notes(replace(small, settings=settings.drop(columns="most_redrawn")), "Estimates")
    (alone,) = notes(replace(small, settings=settings, transfer=small.transfer.iloc[:0]), "Estimates")
    assert "the contrast set (1,200 prompts)" in alone


def test_a_small_sample_is_called_small(small):
    assert caveats(small) == []
    few = small.settings.assign(n_harmful=8, n_harmless=30)
    (said,) = caveats(replace(small, settings=few))
    assert said == (
        "A small sample: the direction was fitted on 8 harmful and 30 harmless prompts: of so few, intervals are rough "
        "and only large effects can be seen."
    )
    transfer = small.transfer.assign(n_harmless=23)
    (both,) = caveats(replace(small, settings=few, transfer=transfer))
    assert "fitted on 8 harmful and 30 harmless prompts and probe-pairs has 24 harmful and 23 harmless prompts" in both
    (alone,) = caveats(replace(small, settings=few, transfer=small.transfer.iloc[:0]))
    assert "8 harmful" in alone


def test_pairs_that_were_found_by_their_texts_are_named():
    hidden, prompts = planted_run(1, [0, 3])
    named = prompts["pair_id"].mask(prompts["fitted"], "detected-" + prompts["pair_id"].str.removeprefix("pair-"))
    (said,) = caveats(evaluate_run(hidden, prompts.assign(pair_id=named)))
    assert said.startswith("The contrast set names no pairs. 32 pairs of texts")


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
