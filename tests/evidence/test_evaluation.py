from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, harmful_rows, planted_run, prompt_table
from scipy import stats
from sklearn.metrics import silhouette_score

from refusal_core.analysis import geometry, inference, resampling
from refusal_core.analysis.crossfit import crossfit
from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.effect_sizes import auroc, cohens_d, range_overlap
from refusal_core.analysis.gram import gram_matrices, gram_matrix
from refusal_core.analysis.groups import assign_folds, bootstrap_counts, find_twins
from refusal_core.analysis.projections import contrast_weights, project_draws
from refusal_core.analysis.weighted_statistics import (
    weighted_auroc,
    weighted_correlation,
    weighted_d,
    weighted_pair_accuracy,
    weighted_range_overlap,
    weighted_ranks,
)
from refusal_core.errors import RunError
from refusal_core.evidence import questions
from refusal_core.evidence.design import Contrast, TransferSet
from refusal_core.evidence.evaluation import BOTH, CONTRAST, Evidence, evaluate
from refusal_core.evidence.findings import NO_DIFFERENCE, QUESTIONS, reading, verdict

QUICK = {"permutations": 199, "draws": 200, "random_directions": 200, "repeats": 2, "learning_draws": 4}


def evaluate_run(hidden: np.ndarray, prompts: pd.DataFrame, **options) -> Evidence:
    fitted = prompts["fitted"].to_numpy()
    directions = fit_directions(hidden[fitted], harmful_rows(prompts)[fitted])
    return evaluate(hidden, prompts, directions, **(QUICK | options))


def labels_and_groups(n: int, paired: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n) % 2 == 0, np.arange(n) // 2 if paired else np.arange(n)


def bootstrap_of(labels: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> resampling.Draws:
    fold = assign_folds(labels, groups, 10, 1, np.random.default_rng(0))
    return resampling.draw_bootstrap(labels, groups, fold, draws, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def planted() -> Evidence:
    """Harm from site 3 of 6 on, log-odds of refusal that follow it within the labels too."""
    hidden, prompts = planted_run(0, [0, 0, 0, 4, 4, 4])
    prompts["refusal_log_odds"] = hidden[:, 4, 0] - 7.0
    return evaluate_run(hidden, prompts)


# --- equal to the direct computation ---------------------------------------------------------------------------------


def test_gram_matrices_give_what_the_activations_give():
    rng = np.random.default_rng(1)
    labels, _ = labels_and_groups(40)
    hidden = rng.normal(size=(60, 30)) * np.linspace(0.2, 3, 30) + 40
    fitted = np.arange(60) < 40
    grams = gram_matrices(hidden, fitted)
    gram, cross = grams[:40, :40], grams[:40, 40:]
    weights = contrast_weights(labels[None], ~labels[None])
    harmful, harmless = hidden[:40][labels].mean(axis=0), hidden[:40][~labels].mean(axis=0)
    unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
    midpoint = (harmful + harmless) @ unit / 2
    direct = hidden @ unit - midpoint
    np.testing.assert_allclose(project_draws(gram, weights)[0], direct[:40], atol=1e-9)
    np.testing.assert_allclose(project_draws(gram, weights, cross)[0], direct[40:], atol=1e-9)

    covariance = np.cov(hidden[:40].T, ddof=0)
    eigenvalues = np.linalg.eigvalsh(covariance)
    effective = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert geometry.effective_dimension(gram) == pytest.approx(effective, rel=1e-9)
    share = unit @ covariance @ unit / np.trace(covariance)
    assert geometry.variance_share(gram, weights[0]) == pytest.approx(share, rel=1e-9)
    other = rng.random((1, 40))
    direct_cosine = (other - other.mean()) @ hidden[:40] @ unit / np.linalg.norm((other - other.mean()) @ hidden[:40])
    assert geometry.cosine(gram, weights, other - other.mean())[0] == pytest.approx(direct_cosine[0], abs=1e-9)
    assert geometry.silhouette(gram, labels) == pytest.approx(silhouette_score(hidden[:40], labels), abs=1e-9)

    length = rng.normal(size=60) + np.r_[labels, np.zeros(20)]
    fold = assign_folds(labels, np.arange(40), 4, 1, rng)
    once = resampling.Draws(labels[None] * 1.0, ~labels[None] * 1.0, fold)
    found = once.project_held_out_without(gram, length[:40])[0]
    for k in range(4):
        training = fold[0] != k
        design = np.column_stack([np.ones(40), length[:40]])
        slopes = np.linalg.lstsq(design[training], hidden[:40][training], rcond=None)[0]
        residual = hidden[:40] - design @ slopes
        means = residual[training & labels].mean(axis=0), residual[training & ~labels].mean(axis=0)
        along = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
        np.testing.assert_allclose(found[~training], (residual @ along - sum(means) @ along / 2)[~training], atol=1e-9)

    components = geometry.principal_components(gram, 3)
    centred = hidden - hidden[:40].mean(axis=0)
    _, _, axes = np.linalg.svd(centred[:40], full_matrices=False)
    np.testing.assert_allclose(np.abs(components.scores[:, :3]), np.abs(centred[:40] @ axes[:3].T), atol=1e-9)
    np.testing.assert_allclose(np.abs(components.project(cross, 3)), np.abs(centred[40:] @ axes[:3].T), atol=1e-9)


def test_heretics_columns_are_those_of_means_and_geometric_medians():
    rng = np.random.default_rng(2)
    labels, _ = labels_and_groups(50)
    hidden = rng.normal(size=(50, 6)) + labels[:, None] * 0.5 + 3
    hidden[0] += 100
    mean = hidden.mean(axis=0)
    gram = gram_matrix(hidden)
    columns = geometry.residual_geometry(gram, (hidden - mean) @ mean, float(mean @ mean), labels)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def geometric_median(points):
        point = points.mean(axis=0)
        for _ in range(2000):
            weights = 1 / np.linalg.norm(points - point, axis=1)
            point = weights @ points / weights.sum()
        return point

    for star, centre in (("", lambda points: points.mean(axis=0)), ("*", geometric_median)):
        good, bad = centre(hidden[~labels]), centre(hidden[labels])
        expected = {
            f"S(g{star},b{star})": cosine(good, bad),
            f"S(g{star},r{star})": cosine(good, bad - good),
            f"S(b{star},r{star})": cosine(bad, bad - good),
            f"|g{star}|": np.linalg.norm(good),
            f"|b{star}|": np.linalg.norm(bad),
            f"|r{star}|": np.linalg.norm(bad - good),
        }
        for name, value in expected.items():
            assert columns[name] == pytest.approx(value, abs=1e-5 if star else 1e-9), name


@pytest.mark.parametrize("paired", [True, False])
def test_a_draw_counts_prompts_as_often_as_they_were_drawn(paired):
    rng = np.random.default_rng(3)
    labels, groups = labels_and_groups(30, paired)
    counts = bootstrap_counts(labels, groups, 20, rng)
    projections = rng.normal(size=(20, 30)).round(1)
    log_odds = rng.normal(size=30).round(1)
    harmful, harmless = counts * labels, counts * ~labels
    measured = {
        cohens_d: weighted_d(projections, harmful, harmless),
        auroc: weighted_auroc(projections, harmful, harmless),
        range_overlap: weighted_range_overlap(projections, harmful, harmless),
    }
    ranks = weighted_ranks(projections, counts)
    other_ranks = weighted_ranks(log_odds, counts)
    rho = weighted_correlation(ranks, other_ranks, counts)
    for draw in range(20):
        copies = np.repeat(np.arange(30), counts[draw].astype(int))
        values, of_label = projections[draw][copies], labels[copies]
        for statistic, found in measured.items():
            assert found[draw] == pytest.approx(statistic(values[of_label], values[~of_label]), abs=1e-9)
        assert rho[draw] == pytest.approx(stats.spearmanr(values, log_odds[copies]).statistic, abs=1e-9)
    if paired:
        assert (counts[:, 0::2] == counts[:, 1::2]).all()
        twins = find_twins(labels, groups)
        share = weighted_pair_accuracy(projections, twins, counts)
        copies = np.repeat(np.arange(15), counts[0, 0::2].astype(int))
        above = projections[0, 0::2][copies] - projections[0, 1::2][copies]
        assert share[0] == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
    assert (counts[:, labels].sum(axis=1) == 15).all()


def test_a_bootstrap_draw_is_the_crossfit_of_the_drawn_prompts_with_copies_in_one_fold():
    rng = np.random.default_rng(4)
    labels, groups = labels_and_groups(24)
    hidden = rng.normal(size=(24, 8)) + labels[:, None]
    drawn = bootstrap_of(labels, groups, 3, 0)
    held_out = drawn.project_held_out(gram_matrix(hidden))
    for draw in range(3):
        copies = np.repeat(np.arange(24), drawn.counts[draw].astype(int))
        for fold in range(drawn.fold.max() + 1):
            training = copies[drawn.fold[0][copies] != fold]
            harmful, harmless = hidden[training[labels[training]]].mean(0), hidden[training[~labels[training]]].mean(0)
            unit = (harmful - harmless) / np.linalg.norm(harmful - harmless)
            rows = drawn.fold[0] == fold
            expected = hidden[rows] @ unit - (harmful + harmless) @ unit / 2
            np.testing.assert_allclose(held_out[draw, rows], expected, atol=1e-9)


def test_random_directions_of_the_gram_matrix_are_those_of_the_whole_space():
    rng = np.random.default_rng(5)
    labels, _ = labels_and_groups(40)
    hidden = rng.normal(size=(40, 60)) * np.linspace(0.05, 4, 60) + labels[:, None] * np.linspace(2, 0, 60)
    found = geometry.random_direction_d(geometry.principal_components(gram_matrix(hidden), 3), labels, 3000, rng)
    centred = hidden - hidden.mean(axis=0)
    isotropic = rng.normal(size=(3000, 60))
    of_covariance = rng.normal(size=(3000, 40)) @ centred
    for kind, directions in (("isotropic", isotropic), ("covariance", of_covariance)):
        direct = [abs(cohens_d(*(centred[rows] @ v for rows in (labels, ~labels)))) for v in directions]
        assert stats.ks_2samp(found[kind], direct).pvalue > 0.001, kind
    assert len(found["component"]) == 39


# --- what must be true -----------------------------------------------------------------------------------------------


def test_a_planted_direction_is_recovered_within_its_error():
    rng = np.random.default_rng(6)
    labels, groups = labels_and_groups(200)
    strength, width = 2.0, 50
    cosines, held_out = [], []
    for _ in range(30):
        hidden = rng.normal(size=(200, width))
        hidden[:, 0] += strength * labels
        unit = fit_directions(hidden[:, None], labels).unit_direction[0]
        cosines.append(unit[0])
        held_out.append(crossfit(gram_matrix(hidden), labels, groups, repeats=1).d)
    # Each mean of 100 prompts carries noise of variance 1/100 in every dimension: cos² = s² / (s² + width · 2/100).
    expected = strength / np.sqrt(strength**2 + width * 2 / 100)
    assert np.mean(cosines) == pytest.approx(expected, abs=0.01)
    # A unit vector at that cosine sees the strength times it; the folds' directions come from 90 prompts a label.
    fold_cosine = strength / np.sqrt(strength**2 + width * 2 / 90)
    assert np.mean(held_out) == pytest.approx(strength * fold_cosine, abs=3 * np.std(held_out) / np.sqrt(30) + 0.02)


def test_onset_is_found_at_the_planted_layer_in_95_of_100_seeds():
    n_sites, planted_at, found, covered = 8, 4, 0, 0
    labels, groups = labels_and_groups(48)
    probes, probe_groups = labels_and_groups(48)
    for seed in range(100):
        strengths = [0.0] * planted_at + [2.5] * (n_sites - planted_at)
        hidden, _ = planted_run(seed, strengths, n=48, n_probes=48)
        bootstrap = bootstrap_of(labels, groups, 200, seed)
        counts = bootstrap_counts(probes, probe_groups, 200, np.random.default_rng([seed, 1]))
        transfer = TransferSet(
            "probe-pairs", np.arange(48), probes, np.zeros(48), find_twins(probes, probe_groups), counts
        )
        contrast = Contrast(labels, groups, np.ones(48), np.zeros(48), 10, 1, 0, bootstrap, bootstrap)
        point, lower, draws = [], [], []
        for site in range(n_sites):
            grams = gram_matrices(hidden[:, site], np.arange(96) < 48)
            gram, cross = grams[:48, :48], grams[:48, 48:]
            drawn = project_draws(gram, bootstrap.weights, cross)
            projection = project_draws(gram, contrast.weights, cross)[0]
            numbers, _, draws_d = questions.is_it_about_harm(gram, projection, drawn, transfer)
            point.append(numbers["d"])
            lower.append(numbers["d_low"])
            draws.append(draws_d)
        found += inference.onset(np.array(lower)) == planted_at
        low, high = inference.onset_interval(np.stack(draws, axis=1), np.array(point), np.array(lower))
        covered += low is not None and low <= planted_at and (high is None or high >= planted_at)
    assert found >= 95
    assert covered >= 95


@pytest.mark.parametrize("paired", [True, False])
def test_shuffled_labels_give_intervals_that_cover_0_and_uniform_p_values(paired):
    labels, groups = labels_and_groups(40, paired)
    outside, p_values = 0, []
    fold = assign_folds(labels, groups, 10, 1, np.random.default_rng(0))
    for seed in range(200):
        rng = np.random.default_rng([seed, 7])
        # Pairs share most of what they are; strong and weak dimensions.
        pair = np.repeat(rng.normal(size=(20, WIDTH)), 2, axis=0) if paired else 0.0
        gram = gram_matrix((rng.normal(size=(40, WIDTH)) + pair) * np.linspace(0.1, 2, WIDTH))
        drawn = resampling.draw_bootstrap(labels, groups, fold, 100, rng)
        bootstrap_d = weighted_d(drawn.project_held_out(gram), drawn.harmful, drawn.harmless)
        low, high = inference.interval(bootstrap_d, crossfit(gram, labels, groups, repeats=2).d)
        outside += not low <= 0 <= high
        permutations = resampling.draw_permutations(labels, groups, fold, 199, rng)
        contrast = Contrast(labels, groups, np.ones(40), np.ones(40), 10, 1, 0, drawn, permutations)
        observed = questions.does_it_fit(gram, contrast)[0]["in_sample_d"]
        null = questions.is_it_chance(gram, contrast)[1]
        p_values.append(inference.permutation_p(np.array([observed]), null[:, None])[0])
    assert outside <= 16
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_the_family_wise_error_of_corrected_p_values_is_5_percent():
    labels, groups = labels_and_groups(32, paired=False)
    fold = assign_folds(labels, groups, 4, 1, np.random.default_rng(0))
    weights = contrast_weights(labels[None], ~labels[None])
    counted = labels[None].astype(float)
    rejected = uncorrected = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 8])
        permutations = resampling.draw_permutations(labels, groups, fold, 99, rng)
        observed, null = [], []
        for site in range(10):
            # From 2 to 20 dimensions, so that chance reaches further at some sites than at others.
            gram = gram_matrix(rng.normal(size=(32, 2 + 2 * site)))
            observed.append(weighted_d(project_draws(gram, weights), counted, 1 - counted)[0])
            null.append(weighted_d(permutations.project(gram), permutations.harmful, permutations.harmless))
        observed, null = np.array(observed), np.stack(null, axis=1)
        corrected = inference.corrected_p(observed, null)
        single = inference.permutation_p(observed, null)
        assert (corrected >= single - 1e-12).all() or corrected.min() >= single.min()
        rejected += corrected.min() <= 0.05
        uncorrected += single.min() <= 0.05
    assert 4 <= rejected <= 27
    assert uncorrected > 80


def test_permutations_flip_pairs_and_shuffle_the_rest_with_their_folds():
    labels = np.array([True, False] * 10 + [True] * 5 + [False] * 7)
    groups = np.array([k // 2 for k in range(20)] + list(range(100, 112)))
    fold = assign_folds(labels, groups, 4, 1, np.random.default_rng(0))
    drawn = resampling.draw_permutations(labels, groups, fold, 300, np.random.default_rng(1))
    assert (drawn.harmful.sum(axis=1) == 15).all()
    assert (drawn.harmful[:, 0:20:2] + drawn.harmful[:, 1:20:2] == 1).all()
    assert (drawn.fold[:, :20] == fold[0, :20]).all()
    np.testing.assert_allclose(drawn.harmful[:, :20].mean(axis=0), 0.5, atol=0.12)
    np.testing.assert_allclose(drawn.harmful[:, 20:].mean(axis=0), 5 / 12, atol=0.12)
    for k in range(4):
        by_label = (drawn.harmful * (drawn.fold == k)).sum(axis=1)
        assert (by_label == (labels & (fold[0] == k)).sum()).all()


def test_style_without_harm_holds_but_is_not_about_harm():
    rng = np.random.default_rng(9)
    prompts = prompt_table(120, 48, paired=False)
    is_harmful, fitted = harmful_rows(prompts), prompts["fitted"].to_numpy()
    prompts["n_tokens"] = np.where(fitted & is_harmful, 45, 35) + rng.integers(-4, 5, len(prompts))
    hidden = rng.normal(size=(len(prompts), 3, WIDTH))
    hidden[:, :, :5] += (prompts["n_tokens"].to_numpy()[:, None, None] - 40) * 0.4
    evidence = evaluate_run(hidden.astype(np.float32), prompts)
    for site in range(3):
        row = evidence.sites.loc[site]
        assert row["in_sample_d"] > 2
        assert row["crossfit_d_low"] > 2
        assert row["permutation_p_corrected"] < 0.01
        assert row["length_d_low"] < 0 < row["length_d_high"]
        assert NO_DIFFERENCE in reading(evidence, "simpler", site)
        assert "holds on new prompts" in reading(evidence, "hold", site)
        harm = reading(evidence, "harm", site)
        assert NO_DIFFERENCE in harm
        assert "how the two sets were written" in harm
    assert (evidence.transfer["d_low"] < 0).all()
    assert (evidence.transfer["d"].abs() < 0.6).all()
    onset = evidence.onset.set_index(["measure", "source"])["site"]
    assert onset["crossfit_d", CONTRAST] == 0
    assert pd.isna(onset["d", "probe-pairs"])
    baselines = evidence.baselines.set_index(["baseline", "source"])
    assert baselines.loc[("tokens", CONTRAST), "d"] > 2
    assert abs(baselines.loc[("tokens", "probe-pairs"), "d"]) < 0.6
    assert NO_DIFFERENCE in verdict(evidence)


def test_a_set_on_which_the_direction_points_the_other_way_is_named():
    hidden, prompts = planted_run(5, [0, 4])
    opposed = prompts[~prompts["fitted"]].assign(source="borderline", pair_id=None)
    opposed["prompt_id"] = [f"b{k:011x}" for k in range(len(opposed))]
    turned = hidden[~prompts["fitted"]].copy()
    turned[:, 1, 0] *= -1
    both = pd.concat([prompts, opposed], ignore_index=True)
    evidence = evaluate_run(np.concatenate([hidden, turned]), both)
    for said in (reading(evidence, "harm", 1), verdict(evidence)):
        assert "On borderline it points the other way" in said
        assert "it follows the words" in said
    assert "borderline" not in verdict(evaluate_run(hidden, prompts))


def test_the_verdict_says_from_where_on_the_direction_beats_the_words(planted):
    words = planted.baselines.set_index(["baseline", "source"]).loc[("TF–IDF", "probe-pairs"), "auroc"]
    assert f"above what words alone reach (TF–IDF, AUROC {words:.2f}) from layer 3 of 5 on" in verdict(planted)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_planted_harm_is_found_where_it_is(planted):
    sites = planted.sites.set_index("site")
    assert (sites.loc[:2, "crossfit_d_low"] < 0).all()
    assert (sites.loc[3:, "crossfit_d_low"] > 1).all()
    assert (sites.loc[3:, "permutation_p_corrected"] <= 0.01).all()
    assert (sites.loc[:2, "permutation_p_corrected"] > 0.05).all()
    assert (sites["in_sample_d"] > sites["crossfit_d"]).all()
    onset = planted.onset.set_index(["measure", "source"])
    for row in (onset.loc[("d", "probe-pairs")], onset.loc[("crossfit_d", CONTRAST)]):
        assert (row["site"], row["site_low"], row["site_high"]) == (3, 3, 3)
    assert "layer 3 of 5 on (95 % interval 3 to 3)" in verdict(planted)
    assert "about harm, as far as" in reading(planted, "harm", 4)
    assert NO_DIFFERENCE in reading(planted, "harm", 1)
    assert NO_DIFFERENCE in reading(planted, "hold", 1)
    assert NO_DIFFERENCE in reading(planted, "chance", 1)
    rho = planted.refusal.set_index(["site", "source", "label"])
    for label in ("harmful", "harmless", BOTH):
        assert rho.loc[(4, CONTRAST, label), "rho_low"] > 0.5
    assert abs(rho.loc[(4, CONTRAST, BOTH), "rho"]) > abs(rho.loc[(1, CONTRAST, BOTH), "rho"])
    assert sites.loc[4, "behaviour_cosine_low"] > 0.9
    curve = planted.learning[planted.learning["site"].eq(4)]
    assert curve["size"].tolist()[:3] == [8, 16, 32]
    assert curve["cosine"].is_monotonic_increasing
    full = planted.learning[planted.learning["site"].eq(4)].iloc[-1]
    assert full["d"] == pytest.approx(sites.loc[4, "crossfit_d"], rel=0.05)
    assert planted.cosines["cosine"].between(-1 - 1e-6, 1 + 1e-6).all()
    assert planted.reasons.empty


def test_intervals_hold_their_estimates_and_the_same_seed_gives_the_same(planted):
    for table in (planted.sites, planted.transfer, planted.refusal, planted.baselines):
        for name in [column.removesuffix("_low") for column in table.columns if column.endswith("_low")]:
            if name in table:
                assert table[name].between(table[f"{name}_low"] - 1e-9, table[f"{name}_high"] + 1e-9).all(), name
    hidden, prompts = planted_run(0, [0, 0, 0, 4, 4, 4])
    prompts["refusal_log_odds"] = hidden[:, 4, 0] - 7.0
    again, other = evaluate_run(hidden, prompts), evaluate_run(hidden, prompts, seed=1)
    for name, table in planted.to_tables().items():
        pd.testing.assert_frame_equal(table, again.to_tables()[name])
    assert (planted.sites["crossfit_d_low"] != other.sites["crossfit_d_low"]).any()


def test_evidence_survives_parquet(planted, tmp_path):
    for name, table in planted.to_tables().items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    tables = {path.stem: pd.read_parquet(path) for path in tmp_path.iterdir()}
    restored = Evidence.from_tables(tables)
    assert verdict(restored) == verdict(planted)
    for question in QUESTIONS:
        assert reading(restored, question, 4) == reading(planted, question, 4)
    del tables["learning"]
    with pytest.raises(RunError, match="learning"):
        Evidence.from_tables(tables)


@pytest.mark.slow
def test_a_full_size_run_takes_under_a_minute_and_2_gigabytes():
    measured = subprocess.run([sys.executable, "-c", _FULL_SIZE], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, measured.stdout.split())
    print(f"evidence for 512 + 144 prompts, 29 sites, 1536 dimensions: {seconds:.1f} s, {gigabytes:.2f} GB")
    assert seconds < 60
    assert gigabytes < 2


_FULL_SIZE = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np
from planted import harmful_rows, prompt_table
from refusal_core.analysis.directions import fit_directions
from refusal_core.evidence.evaluation import evaluate
prompts = prompt_table(512, 144, paired=True)
hidden = np.random.default_rng(0).standard_normal((656, 29, 1536), dtype=np.float32)
directions = fit_directions(hidden[:512], harmful_rows(prompts)[:512])
begun = time.perf_counter()
evaluate(hidden, prompts, directions)
seconds = time.perf_counter() - begun
# Not getrusage's, which begins with that of the process that started this one.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak) * 1024 / 1e9)
"""


# --- data without an answer ------------------------------------------------------------------------------------------


def degenerate(change) -> Evidence:
    hidden, prompts = planted_run(3, [0, 2, 2], n=32, n_probes=16)
    hidden, prompts = change(hidden, prompts)
    evidence = evaluate_run(hidden, prompts, permutations=50, draws=50, random_directions=20)
    for table in evidence.to_tables().values():
        assert not np.isinf(table.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)).any()
    for question in QUESTIONS:
        for site in range(3):
            assert reading(evidence, question, site).endswith(".")
    assert verdict(evidence).endswith(".")
    return evidence


def constant_site(hidden, prompts):
    hidden[:, 0] = 0.3
    return hidden, prompts


def no_pairs(hidden, prompts):
    return hidden, prompts.assign(pair_id=None)


def sixteen_prompts(hidden, prompts):
    kept = np.r_[0:16, 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def four_prompts(hidden, prompts):
    kept = np.r_[0:4, 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def unbalanced(hidden, prompts):
    kept = np.r_[0:4, np.arange(5, 32, 2), 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def no_transfer(hidden, prompts):
    kept = prompts["fitted"].to_numpy()
    return hidden[kept], prompts[kept]


def one_label_transfer(hidden, prompts):
    prompts.loc[~prompts["fitted"], "label"] = "harmless"
    prompts["pair_id"] = None
    return hidden, prompts


def grey_transfer(hidden, prompts):
    prompts.loc[~prompts["fitted"], "label"] = "grey"
    return hidden, prompts


def one_length(hidden, prompts):
    return hidden, prompts.assign(n_tokens=40)


def no_log_odds(hidden, prompts):
    return hidden, prompts.assign(refusal_log_odds=np.nan)


def never_refuses(hidden, prompts):
    return hidden, prompts.assign(refusal_log_odds=-5.0)


def no_words(hidden, prompts):
    return hidden, prompts.assign(text="?!")


def identical_labels(hidden, prompts):
    hidden[1::2] = hidden[0::2]
    return hidden, prompts


def noiseless(hidden, prompts):
    hidden[:, 1] = harmful_rows(prompts)[:, None]
    return hidden, prompts


@pytest.mark.parametrize(
    ("change", "table", "number", "says"),
    [
        (constant_site, "sites", "crossfit_d", "the same for every prompt"),
        (constant_site, "transfer", "d", "the same for every prompt"),
        (no_pairs, "sites", "crossfit_pair_accuracy", "no matched pairs"),
        (no_pairs, "transfer", "pair_accuracy", "no matched pairs"),
        (sixteen_prompts, None, None, None),
        (four_prompts, "sites", "behaviour_cosine", "of 4 prompts"),
        (unbalanced, None, None, None),
        (no_transfer, "transfer", "d", "no transfer set"),
        (one_label_transfer, "transfer", "d", "one label only"),
        (grey_transfer, "transfer", "d", "one label only"),
        (one_length, "sites", "length_d", "same length"),
        (no_log_odds, "refusal", BOTH, "fewer than three"),
        (never_refuses, "sites", "behaviour_cosine", "refuse 0 of 32 prompts"),
        (no_words, "baselines", "TF–IDF", "no words"),
        (identical_labels, "sites", "in_sample_d", "mean activations coincide"),
        (noiseless, "sites", "crossfit_d", "do not vary within"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_exist_is_missing_and_says_why(change, table, number, says):
    evidence = degenerate(change)
    if says is None:
        assert np.isfinite(evidence.sites["crossfit_d"]).all()
        return
    rows = evidence.reasons[evidence.reasons["table"].eq(table) & evidence.reasons["number"].eq(number)]
    assert rows["reason"].str.contains(says).any()


def test_one_label_alone_is_refused():
    hidden, prompts = planted_run(0, [1.0], n=8, n_probes=0)
    directions = fit_directions(hidden, harmful_rows(prompts))
    with pytest.raises(ValueError, match="both labels"):
        evaluate(hidden, prompts.assign(label="harmful"), directions)
