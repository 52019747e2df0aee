from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import changed, save_synthetic_run, synthetic_prompts, with_tables

from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.groups import bootstrap_counts, redraw_prompts
from refusal_core.exploration import comparison
from refusal_core.prompts.sets import prompt_groups
from refusal_core.runs.run import Run
from refusal_core.runs.store import list_runs, open_run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with four layers on most of the prompts of the synthetic run, in another order."""
    cache = tmp_path_factory.mktemp("other")
    prompts = synthetic_prompts().drop(index=[0, 1, 33]).sample(frac=1, random_state=3).reset_index(drop=True)
    hidden = np.random.default_rng(5).normal(size=(len(prompts), 5, 12))
    side = prompts["label"].map({"harmful": 1.0, "harmless": -1.0, "grey": 0.0}).to_numpy()
    hidden[..., 0] += side[:, None] * np.linspace(0, 2, 5)
    save_synthetic_run(hidden, prompts, cache)
    return open_run(list_runs(cache)[0][0].run_id, cache)


def shuffled(run: Run, seed: int = 7) -> Run:
    order = np.random.default_rng(seed).permutation(len(run.prompts))
    return with_tables(
        run,
        prompts=run.prompts.iloc[order].reset_index(drop=True),
        projections=run.projections[order],
        projections_crossfit=run.projections_crossfit[order],
    )


def keep(run: Run, rows: np.ndarray) -> Run:
    return with_tables(
        run,
        prompts=run.prompts.iloc[rows].reset_index(drop=True),
        projections=run.projections[rows],
        projections_crossfit=run.projections_crossfit[rows],
    )


def by_hand(run: Run, prompt_ids: pd.Series, site: int, fitted: bool) -> np.ndarray:
    scores = run.projections_crossfit if fitted else run.projections
    return pd.Series(scores[:, site], index=run.prompts["prompt_id"]).loc[prompt_ids].to_numpy()


@pytest.mark.parametrize("source", [None, "probe-pairs"])
def test_rank_correlations_are_scipy_s_on_the_joined_prompts(run, other, source):
    shared = comparison.shared_prompts(run, other, source)
    common = set(run.prompts.loc[run.rows(source=source), "prompt_id"]) & set(other.prompts["prompt_id"])
    assert set(shared.prompts["prompt_id"]) == common
    assert len(common) == (30 if source is None else 15)
    table = comparison.rank_correlations(shared, 4, 2, draws=50).set_index("label")
    for label in comparison.LABELS:
        chosen = shared.prompts[shared.of_label(label)]["prompt_id"]
        ours, theirs = by_hand(run, chosen, 4, source is None), by_hand(other, chosen, 2, source is None)
        row = table.loc[label]
        assert row["n"] == len(chosen)
        assert row["rho"] == pytest.approx(stats.spearmanr(ours, theirs).statistic)
        assert row["tau"] == pytest.approx(stats.kendalltau(ours, theirs).statistic)
        assert row["rho_low"] <= row["rho"] <= row["rho_high"]
        assert row["tau_low"] <= row["tau"] <= row["tau_high"]


def test_bootstrap_draws_are_correlated_as_scipy_does_on_the_drawn_prompts():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
    counts = redraw_prompts(12, 8, rng)
    drawn = comparison._draw_kendall(ours, theirs, counts)
    for tau, often in zip(drawn, counts.astype(int), strict=True):
        expected = stats.kendalltau(np.repeat(ours, often), np.repeat(theirs, often)).statistic
        assert tau == pytest.approx(expected, abs=1e-6)


def test_the_order_of_the_rows_does_not_matter(run, other):
    straight = comparison.shared_prompts(run, other)
    turned = comparison.shared_prompts(shuffled(run), shuffled(other, 8))
    first, second = (comparison.rank_correlations(shared, 5, 3, draws=20) for shared in (straight, turned))
    pd.testing.assert_frame_equal(first[["label", "n", "rho", "tau"]], second[["label", "n", "rho", "tau"]])
    columns = ["prompt_id", "projection", "other_projection", "difference"]
    pd.testing.assert_frame_equal(
        comparison.rank_differences(straight, 5, 3)[columns], comparison.rank_differences(turned, 5, 3)[columns]
    )


def test_a_run_beside_itself_agrees_in_everything(run):
    shared = comparison.shared_prompts(run, shuffled(run))
    table = comparison.rank_correlations(shared, 3, 3, draws=20)
    assert table[["rho", "rho_low", "tau", "tau_low"]].to_numpy() == pytest.approx(1)
    assert (comparison.rank_differences(shared, 3, 3)["difference"] == 0).all()
    assert np.diag(comparison.rank_matrix(shared)) == pytest.approx(1)
    assert comparison.direction_cosines(run, run) == pytest.approx(1, abs=1e-6)
    assert "are ranked identically" in comparison.describe_rank_correlations(shared, table, 3, 3, ["A", "B"])
    assert comparison.count_left_out(run, shuffled(run)) == 0


def test_every_cell_of_the_rank_matrix_is_a_rank_correlation(run, other):
    shared = comparison.shared_prompts(run, other)
    for label in ("both", "harmful"):
        matrix = comparison.rank_matrix(shared, label)
        assert matrix.shape == (run.n_sites, other.n_sites)
        table = comparison.rank_correlations(shared, 6, 1, draws=5).set_index("label")
        assert matrix[6, 1] == pytest.approx(table.loc[label, "rho"])


def test_a_site_that_projects_all_alike_has_no_correlation_and_says_so(run):
    flat = with_tables(run, projections_crossfit=np.zeros_like(run.projections_crossfit))
    shared = comparison.shared_prompts(run, flat)
    table = comparison.rank_correlations(shared, 2, 2, draws=5)
    assert table["rho"].isna().all()
    assert np.isnan(comparison.rank_matrix(shared)).all()
    assert "projects them all alike" in comparison.describe_rank_correlations(shared, table, 2, 2, ["A", "B"])


def test_disagreements_are_differences_of_percentiles(run, other):
    table = comparison.rank_differences(comparison.shared_prompts(run, other), 4, 2)
    ranks = stats.rankdata(table["projection"]), stats.rankdata(table["other_projection"])
    np.testing.assert_allclose(table["difference"], 100 * (ranks[0] - ranks[1]) / len(table))
    assert table["difference"].abs().is_monotonic_decreasing
    rows = run.prompts.loc[table["row"]]
    assert rows["text"].tolist() == table["text"].tolist()
    np.testing.assert_allclose(run.projections_crossfit[table["row"], 4], table["projection"])
    np.testing.assert_allclose(other.projections_crossfit[table["other_row"], 2], table["other_projection"])


def test_a_prompt_that_one_run_fitted_and_the_other_did_not_is_left_out_and_counted(run):
    turned = run.prompts["fitted"] & run.prompts["pair_id"].eq("pairs-3")
    relabelled = with_tables(
        run, prompts=run.prompts.assign(fitted=run.prompts["fitted"] & ~turned, source=run.prompts["source"])
    )
    assert comparison.count_left_out(run, relabelled) == 2
    joined = comparison.shared_prompts(run, relabelled).prompts["prompt_id"]
    assert not joined.isin(run.prompts.loc[turned, "prompt_id"]).any()


def test_prompts_whose_labels_differ_are_in_neither_label(run):
    relabelled = with_tables(
        run, prompts=run.prompts.assign(label=run.prompts["label"].where(run.prompts.index != 0, "harmless"))
    )
    shared = comparison.shared_prompts(run, relabelled)
    assert [shared.of_label(label).sum() for label in comparison.LABELS] == [32, 15, 16]


def test_runs_that_share_nothing_too_little_or_one_label_say_so(run):
    strangers = with_tables(run, prompts=run.prompts.assign(prompt_id=[f"{i:012x}" for i in run.prompts.index]))
    few = keep(run, np.flatnonzero(run.rows())[:3])
    harmful = keep(run, np.flatnonzero(run.rows("harmful")))
    for partner, says in (
        (strangers, "share no prompt that both fitted"),
        (few, "3 can be ranked and at least 5 are needed"),
        (harmful, "All of these are harmful."),
    ):
        shared = comparison.shared_prompts(run, partner)
        table = comparison.rank_correlations(shared, 5, 4, draws=30)
        assert says in comparison.describe_rank_correlations(shared, table, 5, 4, ["A", "B"])
        assert comparison.rank_matrix(shared).shape == (run.n_sites, run.n_sites)
        assert len(comparison.rank_differences(shared, 5, 4)) == len(shared.prompts)
    assert comparison.shared_sources(run, strangers) == []
    assert comparison.shared_sources(run, shuffled(run)) == ["probe-pairs", "borderline"]


def test_the_numbers_over_depth_are_the_run_s_and_its_evidence_s(run):
    evidence = run.evidence
    table = comparison.numbers_over_depth(run, evidence)
    np.testing.assert_array_equal(table["probe_d"], run.layer_stats["probe_d"])
    np.testing.assert_array_equal(table["crossfit_d_low"], evidence.sites["crossfit_d_low"])
    probes = evidence.transfer[evidence.transfer["source"].eq("probe-pairs")].sort_values("site")
    np.testing.assert_array_equal(table["probe_auroc_high"], probes["auroc_high"])
    assert table["depth"].tolist()[:-1] == pytest.approx(np.linspace(0, 1, run.n_layers))
    assert np.isnan(table["depth"].iloc[-1])
    bare = comparison.numbers_over_depth(run, None)
    assert bare["probe_d_low"].isna().all()
    assert comparison.describe_detectable_from(run, None) == "–"
    assert comparison.describe_detectable_from(run, evidence).startswith("layer")


def test_scores_by_category_are_means_and_aurocs_of_its_prompts(run):
    table = comparison.separation_by_category(run, None, 4, draws=50).set_index("category")
    values = run.projections_crossfit[:, 4]
    spread = np.sqrt((np.var(values[run.rows("harmful")]) + np.var(values[run.rows("harmless")])) / 2)
    for category, row in table.iterrows():
        of_it = run.prompts["category"].eq(category).to_numpy()
        harmful, harmless = values[of_it & run.rows("harmful")], values[of_it & run.rows("harmless")]
        assert (row["n_harmful"], row["n_harmless"]) == (len(harmful), len(harmless)) == (8, 8)
        assert row["mean"] == pytest.approx(harmful.mean() / spread)
        assert row["auroc"] == pytest.approx(auroc(harmful, harmless))
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]


def test_a_run_without_categories_has_an_empty_table_of_the_same_columns(run):
    without = with_tables(run, prompts=run.prompts.assign(category=None))
    tables = [comparison.separation_by_category(each, None, 4, draws=5) for each in (run, without)]
    assert tables[1].empty
    assert list(tables[1]) == list(tables[0])


def test_cosines_are_only_of_directions_of_the_same_weights(run, other):
    stranger = changed(run, model={"sha256": "1" * 64})
    nameless = changed(run, model={"sha256": None, "revision": None})
    for partner in (other, stranger, nameless):
        assert comparison.direction_cosines(run, partner) is None
    assert comparison.direction_cosines(nameless, nameless) is None
    hidden = np.random.default_rng(1).normal(size=(20, run.n_sites, 24))
    directions = fit_directions(hidden, np.arange(20) < 10)
    expected = [np.dot(a, b) for a, b in zip(directions.unit_direction, run.directions.unit_direction, strict=True)]
    turned = with_tables(run, directions=directions)
    np.testing.assert_allclose(comparison.direction_cosines(run, turned), expected, rtol=1e-5)


def test_a_run_without_a_chat_template_of_its_own_is_a_control(run):
    assert not comparison.is_control(run)
    for base in ({"sha256": None}, {"borrowed": {"from": "another", "text": "…"}}):
        assert comparison.is_control(changed(run, template=base))


def test_the_words_on_matched_pairs_follow_the_numbers(run, other, monkeypatch):
    def said(*runs):
        return comparison.describe_probe_d(
            runs, ["A", "B"], [comparison.numbers_over_depth(each, each.evidence) for each in runs]
        )

    best = run.best_site()
    assert f"A {run.layer_stats['probe_d'][best]:.2f} (" in said(run, other)
    probes = run.rows(source="probe-pairs")
    harmful = run.prompts["label"].eq("harmful").to_numpy()
    signs = np.where(harmful, 1.0, -1.0)[:, None]
    # The same noise in both runs: intervals of d overlap, that of the difference lies above 0.
    moved = [np.where(probes[:, None], run.projections + gain * signs, run.projections) for gain in (0.0, 0.4)]
    low, high = (with_tables(run, projections=values) for values in moved)
    difference, lower, upper = comparison.d_difference(comparison.shared_prompts(high, low, "probe-pairs"), best, best)
    assert 0 < lower < difference < upper
    assert comparison._compare_highest([high, low], [best, best], ["A", "B"]) == (
        f"On the same prompts d of A is higher than that of B by {difference:.2f} ({lower:.2f} to {upper:.2f})."
    )
    assert "may be chance: the difference is 0.00 (0.00 to 0.00)" in comparison._compare_highest(
        [run, run], [best, best], ["A", "B"]
    )
    tables = [comparison.numbers_over_depth(run, run.evidence), comparison.numbers_over_depth(other, None)]
    assert "Not every run has intervals" in comparison.describe_probe_d([run, other], ["A", "B"], tables)
    without = with_tables(other, layer_stats=other.layer_stats.assign(probe_d=np.nan))
    assert "B has no matched pairs" in said(run, without)
    monkeypatch.setattr(comparison, "shared_sources", lambda *runs: [])
    assert "asked on different prompts" in said(run, other)


def test_a_paired_difference_by_hand(run, other):
    shared = comparison.shared_prompts(run, other, "probe-pairs")
    harmful = shared.prompts["label"].eq("harmful").to_numpy()
    expected = [cohens_d(scores[harmful, 2], scores[~harmful, 2]) for scores in (shared.scores, shared.other_scores)]
    assert comparison.d_difference(shared, 2, 2)[0] == pytest.approx(expected[0] - expected[1])


def test_of_more_prompts_than_draws_are_made_of_the_same_are_taken_in_both_runs(run, other, monkeypatch):
    shared = comparison.shared_prompts(run, other)
    whole = comparison.rank_correlations(shared, 1, 1)
    monkeypatch.setattr(comparison, "MOST_DRAWN", 12)
    table = comparison.rank_correlations(shared, 1, 1)
    assert whole["n"][0] == 30
    assert table["n"][0] == 12
    first = shared.prompts["prompt_id"].sort_values().index[:12]
    expected = stats.spearmanr(shared.scores[first, 1], shared.other_scores[first, 1]).statistic
    assert table["rho"][0] == pytest.approx(expected)
    assert comparison.separation_by_category(run, None, 1)[["n_harmful", "n_harmless"]].to_numpy().sum() <= 12


def test_a_site_without_spread_has_no_scores_by_category(run):
    flat = run.projections_crossfit.copy()
    flat[:, 1] = np.where(np.isnan(flat[:, 1]), np.nan, 0.0)
    table = comparison.separation_by_category(with_tables(run, projections_crossfit=flat), None, 1)
    assert comparison.separation_by_category(run, None, 1)["auroc"].notna().any()
    assert table[["mean", "auroc", "auroc_low", "auroc_high"]].isna().all(axis=None)


def test_draws_that_are_kept_are_those_of_the_prompts_asked_for(run):
    prompts = run.prompts[run.rows()]
    for asked in (prompts, prompts.iloc[:20], prompts.assign(pair_id=None), prompts.assign(label="harmful"), prompts):
        is_harmful = asked["label"].eq("harmful").to_numpy()
        expected = bootstrap_counts(is_harmful, prompt_groups(asked), 30, np.random.default_rng(4))
        np.testing.assert_array_equal(comparison._draw_counts(asked, 30, 4), expected)
