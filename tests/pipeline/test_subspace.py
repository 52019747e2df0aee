"""The subspace of a run: measured from stored activations or with the model, stored beside the run, and described."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from making import make_run
from synthetic import RUN, synthetic_prompts

from refusal_core.errors import RunError
from refusal_core.exploration import subspace as described
from refusal_core.pipeline import subspace
from refusal_core.prompts.sets import prompt_id
from refusal_core.runs.additions import save_addition
from refusal_core.runs.manifest import SubspaceManifest
from refusal_core.runs.schemas import COSINE, ESTIMATED, LEFT_OVER
from refusal_core.runs.store import open_run

DRAWS, PAIRS, NAMES = 199, 20, ("Fraud", "Privacy", "Violence", "Weapons")


def planted(rank: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Activations ``(prompt, 2, 16)``, at the first site of no harm, at the second along ``rank`` directions."""
    n = 2 * PAIRS * len(NAMES)
    category, label = np.repeat(np.arange(len(NAMES)), 2 * PAIRS), np.arange(n) % 2 == 0
    prompts = pd.DataFrame(
        {
            "prompt_id": [prompt_id(str(place)) for place in range(n)],
            "text": [str(place) for place in range(n)],
            "label": np.where(label, "harmful", "harmless"),
            "category": np.array(NAMES)[category],
            "pair_id": [f"pair-{place // 2}" for place in range(n)],
            "source": "pairs",
            "fitted": True,
        }
    )
    hidden = np.random.default_rng(rank).normal(size=(n, 2, 16))
    for direction in range(rank):
        hidden[:, 1, direction] += 8 * label * ((direction == 0) | (category % rank == direction))
    return hidden.astype(np.float32), prompts


@pytest.fixture
def as_if(run, monkeypatch):
    """Returns what was measured of planted activations as if it were the synthetic run's."""

    def measured(rank: int) -> described.Measured:
        table, drawn = subspace.measure(*planted(rank), seed=0, draws=DRAWS)
        manifest = SubspaceManifest(created="", activations="stored", seed=0, draws=DRAWS, categories=drawn.names)
        return table, manifest

    return measured


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_planted_ranks_are_found_at_their_site_and_said(run, as_if, rank):
    measured = as_if(rank)
    assert described.ranks(measured[0]).tolist() == [0, rank]
    assert "no direction" in described.verdict(run, measured, 0)
    assert ("one direction" if rank == 1 else f"at least {rank}") in described.verdict(run, measured, 1)
    assert ("more prompts might find more" in described.verdict(run, measured, 1)) == (rank == 1)
    assert "no better than chance" in described.how_many(measured, 0)
    left = described.left_over_at(measured[0], 1)
    assert f"AUROC {left['number'][rank]:.2f}" in described.how_many(measured, 1)
    assert left["p"][rank] > 0.025 >= left["p"][rank - 1]


def test_categories_that_share_a_direction_are_told_from_those_that_do_not(run, as_if):
    of_one, of_two = as_if(1), as_if(2)
    assert "No two categories are told apart" in described.which_share(of_one, 1)
    assert not described.differing(of_one, 1)
    # Of two planted directions the second is that of every other category.
    told = {(NAMES[first], NAMES[other]) for first in range(4) for other in range(4) if (first - other) % 2}
    assert described.differing(of_two, 1) == told
    for sentence in (described.which_share(of_two, 1), described.verdict(run, of_two, 1)):
        assert "4 of 6 pairs of categories do not share one direction" in sentence
    matrix = described.cosine_matrix(of_two, 1)
    assert np.allclose(matrix, matrix.T)
    assert matrix.loc["Fraud", "Violence"] > 0.9 > matrix.loc["Fraud", "Privacy"]


def test_one_direction_is_not_called_shared_where_two_categories_do_not_share_one(run, as_if):
    table, manifest = as_if(1)
    assert "share" not in described.verdict(run, (table, manifest), 1)
    pair = table["site"].eq(1) & table["subject"].eq("Fraud") & table["other"].eq("Weapons")
    apart = table.assign(p=table["p"].mask(pair, 0.01)), manifest
    assert described.verdict(run, apart, 1).endswith(
        "one direction of harm is found; more prompts might find more. 1 of 6 pairs of categories does not share one "
        "direction."
    )


def test_an_estimator_that_separates_better_and_one_that_follows_intent_are_said(run):
    hidden, prompts = planted(0)
    n = len(prompts)
    # Wording moves prompts along the first axis and varies there; what is asked moves them along the second.
    harmful, alarming = prompts["label"].eq("harmful").to_numpy(), np.arange(80) % 4 < 2
    quartets = pd.DataFrame(
        {
            "prompt_id": [prompt_id(f"q{place}") for place in range(80)],
            "text": [f"q{place}" for place in range(80)],
            "label": np.where(np.arange(80) % 2 == 0, "harmful", "harmless"),
            "category": None,
            "pair_id": [f"{place // 4}-{'alarming' if alarming[place] else 'calm'}" for place in range(80)],
            "source": "quartets",
            "fitted": False,
        }
    )
    rng = np.random.default_rng(0)
    asked = np.concatenate([harmful, quartets["label"].eq("harmful")])
    cue = np.concatenate([harmful, alarming])
    hidden = rng.normal(size=(n + 80, 1, 16))
    hidden[:, 0, 0] = 8 * hidden[:, 0, 0] + 4 * cue
    hidden[:, 0, 1] += 2 * asked
    table, drawn = subspace.measure(hidden.astype(np.float32), pd.concat([prompts, quartets]), seed=0, draws=DRAWS)
    manifest = SubspaceManifest(created="", activations="stored", seed=0, draws=DRAWS, categories=drawn.names)
    numbers = described.estimator_table((table, manifest), 0)
    assert numbers.loc["mean difference", "auroc_gain"] == 0
    assert numbers["auroc_gain_low"]["whitened difference"] > 0
    assert numbers["intent_lead_low"]["whitened difference"] > 0
    assert numbers["intent_lead_low"]["mean difference"] < 0
    sentences = described.which_estimator(run, (table, manifest), 0)
    assert "reach more" in sentences
    assert "hitened difference (+" in sentences
    assert "On quartets whitened difference" in sentences
    largest = numbers["intent"].idxmax()
    assert f"The largest effect of intent is that of the {largest}, {numbers['intent'][largest]:.2f} (" in sentences
    assert "not compared with the others'" in sentences
    # An interval that holds 0 does not show that the opposite is so.
    unknown = table.assign(number_low=table["number_low"].mask(table["measure"].eq("intent_lead"), -0.1))
    assert "On quartets none is shown to follow" in described.which_estimator(run, (unknown, manifest), 0)


def test_where_noise_has_no_direction_no_estimator_is_called_better(run, as_if):
    measured = as_if(1)
    assert "No other is better" in described.which_estimator(run, measured, 1)
    # Without quartets nothing is said of them.
    assert "quartets" not in described.which_estimator(run, measured, 1)


def test_a_set_without_two_categories_of_both_labels_is_told_why(run):
    prompts = synthetic_prompts().assign(category=None)
    hidden = np.zeros((len(prompts), 2, 4), np.float32)
    table, drawn = subspace.measure(hidden, prompts, seed=0, draws=DRAWS)
    assert table.empty
    assert drawn is None
    assert "nothing to fit" in described.which_estimator(run, (table, None), 0)
    manifest = SubspaceManifest(created="", activations="stored", seed=0, draws=1, categories=(), reason="it is so")
    for says in (described.how_many, described.which_share):
        assert says((table, manifest), 0) == "Missing: it is so."
    assert "cannot be said" in described.verdict(run, (table, manifest), 0)


@pytest.mark.slow
def test_stored_activations_and_the_model_give_the_same_subspace(tiny_folder, tmp_path):
    prompts = planted(1)[1].assign(note=None)
    prompts["text"] = [f"Tell me of number {place}" for place in range(len(prompts))]
    file = tmp_path / "mine.csv"
    prompts[["text", "label", "category", "pair_id"]].to_csv(file, index=False)
    tables = []
    for keep in (True, False):
        cache = tmp_path / f"cache-{keep}"
        run = make_run(tiny_folder, str(file), dtype="float32", device="cpu", cache=cache, keep_activations=keep).run
        subspace.record(run, model=None if keep else tiny_folder, draws=DRAWS)
        table, manifest = described.load_subspace(run)
        assert manifest.categories == NAMES
        assert manifest.activations == ("stored" if keep else "extracted again")
        tables.append(table)
    assert set(tables[0]["measure"]) == {LEFT_OVER, COSINE, *ESTIMATED}
    assert np.allclose(tables[0]["number"], tables[1]["number"], atol=1e-3)


@pytest.fixture
def stored(synthetic_cache, tmp_path, as_if):
    """A run and what is stored beside it: the planted measurement, the same at every site."""
    shutil.copytree(synthetic_cache / RUN, tmp_path / RUN)
    run = open_run(RUN, tmp_path)
    table, manifest = as_if(1)
    at_site = table[table["site"].eq(1)]
    return run, pd.concat([at_site.assign(site=site) for site in range(run.n_sites)], ignore_index=True), manifest


def is_row(table: pd.DataFrame, **values: object) -> pd.Series:
    """``(row,)`` bool: rows at site 2 that have these values."""
    return table["site"].eq(2) & np.logical_and.reduce(
        [table[name].eq(value).fillna(False) for name, value in values.items()]
    )


PAIR = {"measure": COSINE, "subject": "Fraud", "other": "Privacy"}


@pytest.mark.parametrize(
    "values",
    [
        {"measure": LEFT_OVER},
        {"measure": LEFT_OVER, "removed": 1},
        {"measure": COSINE},
        PAIR,
        {"subject": "mean difference"},
        {"measure": "crossfit_auroc"},
        {"measure": "stability", "subject": "logistic regression"},
    ],
)
def test_a_table_that_lacks_rows_at_a_site_is_refused(stored, values):
    run, table, manifest = stored
    save_addition(run, table, manifest)
    assert described.load_subspace(run) is not None
    save_addition(run, table[~is_row(table, **values)], manifest)
    with pytest.raises(RunError, match="incomplete at site 2 or has rows twice; measure it again"):
        described.load_subspace(run)


@pytest.mark.parametrize(
    "values",
    [{"measure": LEFT_OVER, "removed": 0}, PAIR, {"measure": "auroc_gain", "subject": "mean difference"}],
)
def test_a_table_that_has_a_row_twice_is_refused(stored, values):
    run, table, manifest = stored
    save_addition(run, pd.concat([table, table[is_row(table, **values)]]), manifest)
    with pytest.raises(RunError, match="site 2 or has rows twice; measure it again"):
        described.load_subspace(run)


def test_intent_without_alarming_wording_is_incomplete(stored):
    run, table, manifest = stored
    effects = [
        table[table["measure"].eq("stability")].assign(measure=name) for name in ("intent", "cue", "intent_lead")
    ]
    save_addition(run, pd.concat([table, *effects]), manifest)
    assert described.load_subspace(run) is not None
    save_addition(run, pd.concat([table, effects[0]]), manifest)
    with pytest.raises(RunError, match="incomplete at site 0"):
        described.load_subspace(run)


def test_a_site_may_lack_estimators_and_a_run_with_a_reason_categories(stored):
    run, table, manifest = stored
    save_addition(run, table[~(is_row(table) & table["measure"].isin(ESTIMATED))], manifest)
    measured = described.load_subspace(run)
    assert "nothing to fit" in described.which_estimator(run, measured, 2)
    of_estimators = table[table["measure"].isin(ESTIMATED)]
    save_addition(run, of_estimators, manifest.model_copy(update={"categories": (), "reason": "few prompts"}))
    assert described.load_subspace(run) is not None
    save_addition(run, of_estimators, manifest.model_copy(update={"categories": ()}))
    with pytest.raises(RunError, match="incomplete at site 0"):
        described.load_subspace(run)


def test_a_table_without_some_numbers_is_described_all_the_same(stored):
    run, table, manifest = stored
    save_addition(run, table.assign(number_low=np.nan, chance_low=np.nan), manifest)
    measured = described.load_subspace(run)
    assert "reaches AUROC" in described.which_estimator(run, measured, 1)
    assert "no directions here" in described.which_share(measured, 1)


def test_a_table_of_other_categories_or_estimators_or_out_of_range_is_refused(stored):
    run, table, manifest = stored
    for broken, message in (
        (table.replace("Fraud", "Baking"), "other categories"),
        (table.replace("logistic regression", "astrology"), "other categories or estimators"),
        (table.assign(p=2.0), "out of their range"),
    ):
        save_addition(run, broken, manifest)
        with pytest.raises(RunError, match=message):
            described.load_subspace(run)
