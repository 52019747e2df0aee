"""A direction that was imported is tested as it is: against plain numbers, planted truths and chance."""

from __future__ import annotations

import numpy as np
import pytest
from planted import QUICK, WIDTH, evaluate_run, harmful_rows, planted_run

from refusal_core.analysis import groups
from refusal_core.analysis.directions import fit_directions, imported_directions
from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.analysis.inference import permutation_p
from refusal_core.evidence import fixed_direction
from refusal_core.evidence.answers import QUESTIONS, answer
from refusal_core.evidence.design import plan_contrast
from refusal_core.evidence.evaluation import evaluate
from refusal_core.evidence.findings import caveats, overview_table, verdict
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.runs.schemas import check_evidence


def axis(place: int, sign: float = 1.0) -> np.ndarray:
    return (sign * np.eye(WIDTH)[place]).astype(np.float32)


def imported(hidden: np.ndarray, prompts, vectors, **options) -> Evidence:
    fitted = prompts["fitted"].to_numpy()
    directions = imported_directions(vectors, hidden, harmful_rows(prompts), fitted)
    return evaluate(hidden, prompts, directions, imported=True, **(QUICK | options))[0]


@pytest.fixture(scope="module")
def made():
    hidden, prompts = planted_run(0, [0, 2, 2, 2, 2])
    # Along the planted direction twice, against it, across it, and no vector at the last site.
    return hidden, prompts, imported(hidden, prompts, {0: axis(0), 1: axis(0), 2: axis(0, -1), 3: axis(1)})


def test_numbers_are_those_of_the_projections_themselves(made):
    hidden, prompts, evidence = made
    harmful, fitted = harmful_rows(prompts), prompts["fitted"].to_numpy()
    for site in range(4):
        place, sign = (1, 1) if site == 3 else (0, -1 if site == 2 else 1)
        for table, rows in ((evidence.sites, fitted), (evidence.transfer.set_index("site"), ~fitted)):
            values = sign * hidden[:, site, place].astype(np.float64)
            labelled = values[rows & harmful], values[rows & ~harmful]
            names = ("crossfit_d", "crossfit_auroc") if rows is fitted else ("d", "auroc")
            np.testing.assert_allclose(table.loc[site, names[0]], cohens_d(*labelled), rtol=1e-6)
            np.testing.assert_allclose(table.loc[site, names[1]], auroc(*labelled))
    np.testing.assert_array_equal(evidence.sites["in_sample_d"], evidence.sites["crossfit_d"])


def test_harm_is_found_where_it_was_planted_and_nowhere_else(made):
    _, _, evidence = made
    p = evidence.sites["permutation_p_corrected"]
    assert p[1] <= 0.01
    assert p[0] > 0.05
    assert p[3] > 0.05
    # Labels that are the wrong way round are not chance, but they are no harm either.
    assert p[2] > 0.9
    assert evidence.sites["crossfit_d_high"][2] < 0
    transfer = evidence.transfer.set_index("site")
    assert transfer.loc[1, "d_low"] > 0 > transfer.loc[2, "d_high"]
    assert "puts harmless prompts on the harmful side" in answer(evidence, "harm", 2)
    for site in (1, 2):
        low, point, high = (evidence.sites[f"crossfit_d{end}"][site] for end in ("_low", "", "_high"))
        assert low < point < high
        assert high - low < 2


def test_a_site_without_a_vector_has_no_answer_and_says_why(made):
    _, _, evidence = made
    assert np.isnan(evidence.sites.loc[4, ["crossfit_d", "in_sample_d", "variance_share", "length_d"]]).all()
    assert np.isnan(evidence.transfer.set_index("site").loc[4, "d"])
    for question in ("fit", "hold", "chance", "harm", "simpler"):
        assert fixed_direction.NO_VECTOR in answer(evidence, question, 4)


def test_words_say_that_it_was_imported(made):
    _, prompts, evidence = made
    texts = [verdict(evidence), *(answer(evidence, question, site) for question in QUESTIONS for site in range(5))]
    assert not any("cross-fitted" in text or "in-sample" in text or "held-out" in text for text in texts)
    # A direction may have been made from the very prompts that it is tested on.
    texts += caveats(evidence)
    assert not any("not fitted on" in text or "new prompts" in text for text in texts)
    for question in ("fit", "hold"):
        assert "made from these prompts is not known here" in answer(evidence, question, 1)
    assert "made from these prompts is not known here" in caveats(evidence)[0]
    assert fixed_direction.NOT_FITTED in answer(evidence, "enough", 1)
    assert "d imported" in overview_table(evidence)
    assert "d cross-fitted" not in overview_table(evidence)
    check_evidence(evidence.to_tables(), 5, prompts["prompt_id"])


def test_a_vector_of_the_final_norm_alone_has_a_verdict(made):
    hidden, prompts, _ = made
    said = verdict(imported(hidden, prompts, {4: axis(0)}))
    assert said.startswith(
        f"No layer has a d of the imported direction by which it could be chosen: {fixed_direction.NO_VECTOR}."
    )
    assert "At the final norm d on" in said
    assert said.endswith("more than chance.")
    assert "nan" not in said


def test_a_fitted_run_says_nothing_of_imports(made):
    hidden, prompts, _ = made
    evidence = evaluate_run(hidden, prompts)
    assert "imported" not in evidence.settings
    assert not any("imported" in note for note in caveats(evidence))


def test_a_fitted_direction_that_is_imported_again_has_its_in_sample_numbers():
    hidden, prompts = planted_run(1, [2])
    fitted = evaluate_run(hidden, prompts)
    own = fit_directions(hidden, harmful_rows(prompts), prompts["fitted"].to_numpy())
    evidence = imported(hidden, prompts, {0: own.unit_direction[0]})
    for name in ("in_sample_d", "in_sample_auroc", "variance_share", "effective_dimension"):
        np.testing.assert_allclose(evidence.sites[name][0], fitted.sites[name][0], rtol=1e-5)
    # Cross-fitting takes off what the fit had by chance; an imported direction had nothing of it.
    assert evidence.sites["crossfit_d"][0] > fitted.sites["crossfit_d"][0]


def test_a_direction_of_length_is_found_to_be_one():
    hidden, prompts = planted_run(2, [0])
    harmful = harmful_rows(prompts)
    prompts["n_tokens"] = np.where(harmful, 40, 30) + np.arange(len(prompts)) % 3
    hidden[:, 0, 0] = prompts["n_tokens"] + np.random.default_rng(0).normal(size=len(prompts)) / 10
    evidence = imported(hidden, prompts, {0: axis(0)})
    assert evidence.sites["crossfit_d"][0] > 5
    assert evidence.sites["length_d_low"][0] < 0.5


def test_a_direction_of_refusing_has_its_cosine_with_what_the_model_refuses():
    hidden, prompts = planted_run(3, [0, 0], n=200)
    hidden[:, :, 5] += 8 * np.sign(prompts["refusal_log_odds"].to_numpy())[:, None]
    evidence = imported(hidden, prompts, {0: axis(5), 1: axis(6)})
    assert evidence.sites["behaviour_cosine"][0] > 0.95
    assert abs(evidence.sites["behaviour_cosine"][1]) < 0.3
    assert evidence.sites["behaviour_cosine_low"][1] < 0 < evidence.sites["behaviour_cosine_high"][1]


def test_a_direction_of_nothing_is_called_more_than_chance_as_rarely_as_the_level_says():
    p = []
    for seed in range(200):
        hidden, prompts = planted_run(seed, [0], n=32, n_probes=0)
        contrast = plan_contrast(prompts, folds=10, repeats=1, seed=seed, permutations=199, draws=2)
        _, null = fixed_direction.is_it_chance(hidden[:, 0, 1].astype(np.float64), contrast)
        observed = cohens_d(*(hidden[rows, 0, 1] for rows in (contrast.is_harmful, ~contrast.is_harmful)))
        p.append(permutation_p(np.array([observed]), null[:, None])[0])
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.1
    assert 0.4 < np.mean(p) < 0.6


def test_of_a_large_set_a_sample_is_redrawn(monkeypatch):
    hidden, prompts = planted_run(4, [2], n=120, n_probes=60)
    whole = imported(hidden, prompts, {0: axis(0)})
    monkeypatch.setattr(groups, "MOST_REDRAWN", 40)
    part = imported(hidden, prompts, {0: axis(0)})
    for table in ("sites", "transfer"):
        name = "crossfit_d" if table == "sites" else "d"
        wide, narrow = (getattr(evidence, table).iloc[0] for evidence in (part, whole))
        assert wide[name] == pytest.approx(narrow[name])
        assert wide[f"{name}_high"] - wide[f"{name}_low"] > narrow[f"{name}_high"] - narrow[f"{name}_low"]


def test_the_magnitude_is_the_distance_of_the_means_along_the_vector():
    hidden, prompts = planted_run(5, [2, 2])
    harmful, fitted = harmful_rows(prompts), prompts["fitted"].to_numpy()
    directions = imported_directions({0: axis(0, -1)}, hidden, harmful, fitted)
    means = [hidden[fitted & rows, 0, 0].mean() for rows in (harmful, ~harmful)]
    np.testing.assert_allclose(directions.magnitude, [abs(means[0] - means[1]), 0], atol=1e-5)
