"""The questions at every read position: what is planted at one is found there and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from planted import WIDTH, evaluate_run, harmful_rows, prompt_table

from refusal_core.evidence.positions import position_table
from refusal_core.runs.schemas import FITS, HOLDS


def planted_at(token: int, strength: float = 4.0) -> tuple[np.ndarray, object]:
    """Noise at three positions and two sites, and harm at one position and the second site."""
    prompts = prompt_table(64, 48)
    at_end = np.random.default_rng(3).normal(size=(3, len(prompts), 2, WIDTH)) + 5.0
    at_end[token, harmful_rows(prompts), 1, 0] += strength
    return at_end.astype(np.float32), prompts


@pytest.mark.parametrize("token", [0, 2])
def test_harm_that_is_planted_at_one_position_is_found_there_alone(token):
    at_end, prompts = planted_at(token)
    table = position_table({place - 3: evaluate_run(at_end[place], prompts) for place in range(3)})
    held = table[table["measure"].eq(HOLDS)].set_index(["position", "site"])
    found = held.index[held["number_low"] > 0].tolist()
    assert found == [(token - 3, 1)]
    assert held["number"].max() > 3
    # What is fitted has a d wherever it is fitted.
    assert (table.loc[table["measure"].eq(FITS), "number"] > 0.3).all()


def test_the_numbers_are_those_of_the_evidence_at_the_position():
    at_end, prompts = planted_at(1)
    evidence = {place - 3: evaluate_run(at_end[place], prompts) for place in range(3)}
    table = position_table(evidence)
    table = table[table["position"].eq(-2)]
    for measure in (FITS, HOLDS, "crossfit_auroc"):
        rows = table[table["measure"].eq(measure)]
        assert rows["site"].tolist() == [0, 1]
        np.testing.assert_array_equal(rows["number"], evidence[-2].sites[measure])
    held = table[table["measure"].eq(HOLDS)]
    for end in ("_low", "_high"):
        np.testing.assert_array_equal(held[f"number{end}"], evidence[-2].sites[f"crossfit_d{end}"])
    refusal = evidence[-2].refusal
    both = refusal[refusal["source"].eq("contrast") & refusal["label"].eq("both")]
    np.testing.assert_array_equal(table.loc[table["measure"].eq("rho"), "number"], both["rho"])
