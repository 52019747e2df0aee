"""Inner products that are computed as they are used are those of the matrix."""

from __future__ import annotations

import numpy as np
import pytest
from planted import harmful_rows, planted_run

from refusal_core.analysis import geometry, gram, groups
from refusal_core.analysis.crossfit import crossfit
from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.gram import InnerProducts, gram_matrices, gram_matrix
from refusal_core.evidence.design import plan_contrast
from refusal_core.evidence.evaluation import evaluate
from refusal_core.evidence.findings import caveats
from refusal_core.pipeline.analysis import analyse
from refusal_core.runs.evidence_tables import CONTRAST


@pytest.fixture
def hidden_site() -> np.ndarray:
    """More prompts than dimensions, far from the origin."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(90, 12)) * np.linspace(3, 0.1, 12) + 50).astype(np.float32)


def in_parts(monkeypatch, hidden_site: np.ndarray, fitted: np.ndarray) -> InnerProducts:
    monkeypatch.setattr(gram, "EXPLICIT", 20)
    monkeypatch.setattr(gram, "BLOCK", 16)
    products = gram_matrices(hidden_site, fitted)
    assert isinstance(products, InnerProducts)
    return products


def test_what_is_asked_of_a_gram_matrix_gives_the_same_in_parts(hidden_site, monkeypatch):
    rng = np.random.default_rng(1)
    fitted = np.arange(90) % 3 > 0
    matrix = gram_matrices(hidden_site, fitted)
    parts = in_parts(monkeypatch, hidden_site, fitted)
    some, others = np.flatnonzero(fitted)[5:45], np.array([3, 2, 80])
    for found, expected in (
        (parts, matrix),
        (parts[np.ix_(some, others)], matrix[np.ix_(some, others)]),
        (parts[fitted][:, others], matrix[fitted][:, others]),
        (parts[fitted].T, matrix[fitted].T),
    ):
        left, right = rng.normal(size=(4, len(expected))), rng.normal(size=(expected.shape[1], 2))
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-9)
        np.testing.assert_allclose(left @ found, left @ expected, atol=1e-9)
        np.testing.assert_allclose(left[0] @ found, left[0] @ expected, atol=1e-9)
        np.testing.assert_allclose(found @ right, expected @ right, atol=1e-9)
        assert len(found) == len(expected)
    np.testing.assert_allclose(parts.diagonal(), matrix.diagonal())
    assert geometry.effective_dimension(parts) == pytest.approx(geometry.effective_dimension(matrix))
    found, expected = (geometry.principal_components(products, 3) for products in (parts, matrix))
    np.testing.assert_allclose(found.shares, expected.shares[:3])
    np.testing.assert_allclose(found.project(parts, 3), expected.project(matrix, 3), atol=1e-6)


def test_held_out_projections_are_the_same_in_parts(hidden_site, monkeypatch):
    labels, groups = np.arange(90) % 2 == 0, np.arange(90) // 2
    whole = crossfit(gram_matrix(hidden_site), labels, groups)
    parts = crossfit(in_parts(monkeypatch, hidden_site, np.ones(90, bool)), labels, groups)
    np.testing.assert_allclose(parts.projection, whole.projection, atol=1e-9)
    assert parts.d == pytest.approx(whole.d)


def test_constant_activations_have_no_inner_products_in_parts(monkeypatch):
    parts = in_parts(monkeypatch, np.full((40, 3), 0.3, np.float32), np.ones(40, bool))
    assert not parts.any()
    assert not (np.ones((1, 40)) @ parts).any()


@pytest.mark.slow
def test_a_large_run_has_the_estimates_of_all_prompts_and_the_draws_of_a_sample(monkeypatch):
    """As a matrix and redrawn whole, against in parts and sampled: every estimate that needs no draws is the same."""
    hidden, prompts = planted_run(0, [0, 2], n=240, n_probes=120)
    whole = analyse(hidden, prompts)
    assert caveats(whole.evidence) == []
    monkeypatch.setattr(gram, "EXPLICIT", 100)
    monkeypatch.setattr(gram, "BLOCK", 64)
    monkeypatch.setattr(groups, "MOST_REDRAWN", 60)
    large = analyse(hidden, prompts)
    np.testing.assert_allclose(large.projections, whole.projections, rtol=1e-6)
    np.testing.assert_allclose(large.projections_crossfit, whole.projections_crossfit, atol=1e-6)
    for column in large.layer_stats.select_dtypes(float):
        np.testing.assert_allclose(large.layer_stats[column], whole.layer_stats[column], rtol=1e-5, err_msg=column)
    estimates = {
        "sites": [
            "in_sample_d",
            "in_sample_auroc",
            "mean_crossings",
            "crossfit_d",
            "crossfit_auroc",
            "crossfit_accuracy",
            "crossfit_range_overlap",
            "crossfit_pair_accuracy",
            "length_d",
            "length_auroc",
            "length_cosine",
            "behaviour_d",
            "behaviour_auroc",
            "behaviour_cosine",
            "effective_dimension",
            "variance_share",
            "pc1_share",
            "pc2_share",
            "pc3_share",
        ],
        "transfer": ["d", "auroc", "pair_accuracy", "n_harmful", "n_harmless", "n_pairs"],
        "refusal": ["rho", "n"],
        "baselines": ["d", "auroc"],
        "components": ["pc1", "pc2", "pc3"],
        "geometry": [name for name in whole.evidence.geometry if name not in ("site", "Silh")],
        "cosines": ["cosine"],
    }
    tables, whole_tables = large.evidence.to_tables(), whole.evidence.to_tables()
    for name, columns in estimates.items():
        for column in columns:
            found, expected = tables[name][column], whole_tables[name][column]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=column)
    sites, whole_sites = large.evidence.sites, whole.evidence.sites
    wider = (sites["crossfit_d_high"] - sites["crossfit_d_low"]) / (
        whole_sites["crossfit_d_high"] - whole_sites["crossfit_d_low"]
    )
    # A quarter of the prompts: intervals about twice as wide, around the same estimate.
    assert wider.between(1.3, 3.5).all()
    assert sites["crossfit_d"].between(sites["crossfit_d_low"], sites["crossfit_d_high"]).all()
    assert sites.loc[1, "permutation_p_corrected"] < 0.01 < sites.loc[0, "permutation_p_corrected"]
    assert sites["crossfit_range_overlap_low"].isna().all()
    assert large.evidence.settings["most_redrawn"].item() == 60
    assert large.evidence.learning["size"].max() < 60
    assert (
        "Of the contrast set (240 prompts) and probe-pairs (120 prompts) a sample of about 60"
        in (caveats(large.evidence)[0])
    )


@pytest.mark.parametrize("paired", [True, False])
def test_a_sample_keeps_pairs_and_labels(paired, monkeypatch):
    monkeypatch.setattr(groups, "MOST_REDRAWN", 50)
    _, prompts = planted_run(0, [1], n=210, n_probes=0, paired=paired)
    prompts = prompts[~(harmful_rows(prompts) & (np.arange(210) % 3 == 0))] if not paired else prompts
    labels = harmful_rows(prompts)
    contrast = plan_contrast(prompts.assign(source=CONTRAST), 10, 5, 0, 10, 10)
    kept = contrast.sampled
    assert len(kept.is_harmful) == pytest.approx(50, abs=2)
    assert kept.is_harmful.mean() == pytest.approx(labels.mean(), abs=0.02)
    assert len(kept.twins) == (25 if paired else 0)
    again, other = (plan_contrast(prompts, 10, 5, seed, 10, 10) for seed in (0, 1))
    np.testing.assert_array_equal(again.sample, contrast.sample)
    assert (other.sample != contrast.sample).any()


def test_many_transfer_prompts_beside_few_fitted_ones_need_no_large_matrix(monkeypatch):
    hidden, prompts = planted_run(0, [2], n=40, n_probes=200)
    fitted = prompts["fitted"].to_numpy()
    directions = fit_directions(hidden, harmful_rows(prompts), fitted)
    options = {"permutations": 50, "draws": 50, "random_directions": 20, "repeats": 2, "learning_draws": 2}
    whole, _ = evaluate(hidden, prompts, directions, **options)
    monkeypatch.setattr(gram, "EXPLICIT", 100)
    parts, _ = evaluate(hidden, prompts, directions, **options)
    for name, table in whole.to_tables().items():
        numbers = table.select_dtypes(float)
        np.testing.assert_allclose(parts.to_tables()[name][numbers.columns], numbers, atol=1e-5, err_msg=name)
