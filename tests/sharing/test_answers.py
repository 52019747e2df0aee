"""The five answers of the home page, on evidence whose truth is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from refusal_core.intervention import effects, experiment
from refusal_core.runs.evidence_tables import Evidence
from refusal_core.sharing.answers import QUESTIONS, Answer, answer_questions, headline

SITE = 3


@pytest.fixture
def evidence(run) -> Evidence:
    return run.evidence


def planted(evidence: Evidence, table: str, rows, **values: float) -> Evidence:
    """The evidence with numbers of some rows of a table replaced."""
    changed = getattr(evidence, table).copy()
    for name, value in values.items():
        changed.loc[rows(changed), name] = value
    return replace(evidence, **{table: changed})


def answer(answered: list[Answer], key: str) -> Answer:
    return next(each for each in answered if each.key == key)


def test_every_question_is_answered_in_order_at_one_site(run, evidence):
    answered = answer_questions(run, evidence, SITE)
    assert [each.key for each in answered] == list(QUESTIONS)
    hold = answer(answered, "hold")
    assert hold.values[SITE] == evidence.sites["crossfit_d"][SITE]
    assert f"{hold.values[SITE]:.2f}" in hold.number
    assert len(hold.values) == run.n_sites


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 2.0, "yes"), (-2.0, -0.1, "no"), (-0.5, 0.5, "unclear"), (0.0, 1.0, "unclear")]
)
def test_an_interval_answers_only_where_it_excludes_nothing(run, evidence, low, high, verdict):
    def here(table):
        return table["site"].eq(SITE)

    middle = (low + high) / 2
    changed = planted(evidence, "sites", here, crossfit_d=middle, crossfit_d_low=low, crossfit_d_high=high)
    changed = planted(changed, "refusal", here, rho=middle, rho_low=low, rho_high=high)
    answered = answer_questions(run, changed, SITE)
    assert {answer(answered, key).verdict for key in ("hold", "refusing")} == {verdict}
    # Elsewhere nothing was changed.
    assert answer(answer_questions(run, changed, 1), "hold").number != answer(answered, "hold").number


@pytest.mark.parametrize(
    ("d", "p", "beyond_wording", "verdict"),
    [
        (1.0, 0.001, 0.1, "yes"),
        (1.0, 0.03, 0.1, "unclear"),
        (1.0, 0.001, -0.1, "unclear"),
        (-1.0, 0.001, -0.1, "no"),
    ],
)
def test_pairs_answer_about_intent_by_the_corrected_test_and_more_than_their_wording(
    run, evidence, d, p, beyond_wording, verdict
):
    def here(table):
        return table["site"].eq(SITE) & table["source"].eq("probe-pairs")

    numbers = {"d": d, "d_low": d - 0.5, "d_high": d + 0.5, "permutation_p_corrected": p}
    changed = planted(evidence, "transfer", here, **numbers)
    changed = planted(changed, "wording", here, auroc_difference=0.2, auroc_difference_low=beyond_wording)
    assert answer(answer_questions(run, changed, SITE), "intent").verdict == verdict
    earlier = replace(changed, transfer=changed.transfer.drop(columns="permutation_p_corrected"))
    assert answer(answer_questions(run, earlier, SITE), "intent").verdict == "not measured"


@pytest.mark.parametrize(
    ("intent", "lead", "p", "cue_p", "verdict"),
    [
        (1.0, 0.8, 0.001, 0.9, "yes"),
        (1.0, 0.0, 0.001, 0.001, "unclear"),
        (1.0, -0.8, 0.001, 0.001, "no"),
        (1.0, -0.8, 0.001, 0.9, "unclear"),
        (1.0, 0.8, 0.5, 0.9, "unclear"),
        (-1.0, -0.8, 0.001, 0.9, "no"),
    ],
)
def test_quartets_answer_about_intent_by_what_moves_the_projection_more(run, evidence, intent, lead, p, cue_p, verdict):
    def here(table):
        return table["site"].eq(SITE) & table["source"].eq("quartets")

    renamed = evidence.transfer.assign(source=evidence.transfer["source"].replace("probe-pairs", "quartets"))
    numbers = {"d": intent, "d_low": intent - 0.5, "d_high": intent + 0.5, "permutation_p_corrected": p}
    changed = planted(replace(evidence, transfer=renamed), "transfer", here, **numbers)
    effects = {"intent": intent, "cue": 0.7, "interaction": 0.0, "intent_lead": lead}
    row = {"site": SITE, "source": "quartets", "n_quartets": 100, "cue_p_corrected": cue_p}
    for name, value in effects.items():
        row |= {name: value, f"{name}_low": value - 0.5, f"{name}_high": value + 0.5}
    changed = replace(changed, quartets=pd.DataFrame([row]))
    answered = answer(answer_questions(run, changed, SITE), "intent")
    assert answered.verdict == verdict
    assert answered.compared == "alarming wording 0.70 (0.20 to 1.20), in standard deviations"
    # Without quartets at a site nothing is said of it from them.
    assert answer(answer_questions(run, changed, 1), "intent").number.startswith("d on quartets")


def test_in_sample_d_is_compared_with_what_shuffled_labels_reach(run, evidence):
    above = planted(evidence, "sites", lambda table: table["site"].eq(SITE), in_sample_d=1.0, chance_d_95=0.9)
    below = planted(evidence, "sites", lambda table: table["site"].eq(SITE), in_sample_d=1.0, chance_d_95=1.1)
    assert answer(answer_questions(run, above, SITE), "fit").verdict == "yes"
    assert answer(answer_questions(run, below, SITE), "fit").verdict == "unclear"


def test_intent_of_a_run_without_transfer_sets_is_not_measured(run, evidence):
    missing = answer(answer_questions(run, replace(evidence, transfer=evidence.transfer[:0]), SITE), "intent")
    assert (missing.verdict, missing.number) == ("not measured", "")


def edits(change: float, half: float, band: tuple[float, float] | None) -> pd.DataFrame:
    """Effects of ablating the layer on harmful prompts, as :func:`effects.summarise` returns them."""
    row = {
        "edit": "ablate",
        "direction": "found",
        "label": "harmful",
        "layers": (SITE,),
        "read_at": SITE,
        "position": -1,
        "alpha": 0.0,
        "n": 16,
        "n_controls": 20 if band else 0,
        "change": change,
        "change_low": change - half,
        "change_high": change + half,
        "change_band_low": band[0] if band else np.nan,
        "change_band_high": band[1] if band else np.nan,
    }
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (edits(-2.0, 0.5, (-0.6, 0.6)), "yes"),
        (edits(2.0, 0.5, (-0.6, 0.6)), "no"),
        (edits(-0.5, 0.2, (-0.6, 0.6)), "unclear"),
        (edits(-2.0, 0.5, None), "unclear"),
        (None, "not measured"),
    ],
)
def test_refusing_is_caused_only_by_more_than_control_directions_do(run, evidence, table, verdict):
    assert answer(answer_questions(run, evidence, SITE, table), "cause").verdict == verdict


def test_at_a_layer_that_was_not_edited_the_cause_is_not_measured(run, evidence):
    assert (
        answer(answer_questions(run, evidence, SITE + 1, edits(-2.0, 0.5, (-0.6, 0.6))), "cause").verdict
        == "not measured"
    )
    assert (
        answer(answer_questions(run, evidence, run.n_layers, edits(-2.0, 0.5, (-0.6, 0.6))), "cause").verdict
        == "not measured"
    )


@pytest.mark.parametrize(
    ("verdicts", "says", "never"),
    [
        ({"hold": "unclear"}, "does not separate new harmful requests", "intent"),
        ({"intent": "yes", "refusing": "yes"}, "intent more than their wording", "removing"),
        ({"intent": "no", "cause": "yes", "refusing": "yes"}, "removing it makes the model refuse less", "likelier"),
        ({"intent": "unclear", "refusing": "unclear"}, "is not settled", "refuse"),
    ],
)
def test_the_headline_says_no_more_than_the_answers(verdicts, says, never):
    nothing = np.array([])
    answered = [
        Answer(key, verdicts.get(key, "yes" if key != "cause" else "not measured"), "", "", nothing, nothing, nothing)
        for key in QUESTIONS
    ]
    sentence = headline(answered, "layer 3 of 6")
    assert says in sentence
    assert never not in sentence
    assert sentence.count(".") == 1


def test_the_rows_that_effects_are_read_from_are_theirs(planted_run):
    table, _ = experiment.load_interventions(planted_run)
    measured = effects.summarise(planted_run, table)
    cause = answer(answer_questions(planted_run, planted_run.evidence, 2, measured), "cause")
    swept = effects.over_layers(measured, "ablate", "harmful").set_index("read_at")
    assert cause.values[2] == swept["change"][2]
