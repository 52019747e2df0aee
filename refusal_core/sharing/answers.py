"""The run's answers to the five questions that a reader asks first, all of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from refusal_core.evidence.claims import follows_intent, of_quartets, probe_source
from refusal_core.evidence.phrases import new_prompts_d
from refusal_core.intervention import effects
from refusal_core.intervention.conditions import ABLATE
from refusal_core.runs.evidence_tables import BOTH, CONTRAST, Evidence
from refusal_core.runs.run import Run

Verdict = Literal["yes", "no", "unclear", "not measured"]

QUESTIONS = {
    "fit": "Does it fit the prompts it was made from?",
    "hold": "Does it hold on new prompts?",
    "intent": "Does it follow intent more than wording?",
    "refusing": "Does it go with refusing?",
    "cause": "Does it cause refusing?",
}
"""The questions in order, by key."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one question.

    Attributes:
        key: of :data:`QUESTIONS`.
        verdict: ``yes`` or ``no`` where the interval of the number excludes its reference, else ``unclear``; of intent
            as :func:`.follows_intent` has it, corrected over all sites.
        number: the number at the layer with its interval, as text; empty where nothing was measured.
        compared: what the number is compared with, as text.
        values: ``(site,)`` the number at all sites; NaN where it was not measured.
        low: ``(site,)`` lower ends of its intervals.
        high: ``(site,)`` upper ends of its intervals.
        reference: the number without any effect.
    """

    key: str
    verdict: Verdict
    number: str
    compared: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reference: float = 0.0

    @property
    def question(self) -> str:
        """The question."""
        return QUESTIONS[self.key]


def answer_questions(run: Run, evidence: Evidence, site: int, edits: pd.DataFrame | None = None) -> list[Answer]:
    """Return the answers to :data:`QUESTIONS` at one site.

    Args:
        run: the run.
        evidence: its evidence.
        site: ``0 … n_layers - 1``.
        edits: of :func:`refusal_core.intervention.effects.summarise`, where interventions were measured.
    """
    return [
        _fit(evidence, site),
        _hold(evidence, site),
        _intent(evidence, site),
        _refusing(evidence, site),
        _cause(run, edits, site),
    ]


def headline(answered: Sequence[Answer], layer: str) -> str:
    """Return the answers in one sentence.

    Args:
        answered: of :func:`answer_questions`.
        layer: name of the layer they are of.
    """
    verdicts = {answer.key: answer.verdict for answer in answered}
    if verdicts["hold"] != "yes":
        return f"At {layer} the direction does not separate new harmful requests from harmless ones."
    clauses = [f"At {layer} the direction separates new harmful requests from harmless ones"]
    clauses.append(
        {
            "yes": "it follows their intent more than their wording",
            "no": "it follows how they are worded more than their intent",
            "unclear": "whether it follows intent or wording is not settled",
            "not measured": "whether it follows intent or wording was not measured",
        }[verdicts["intent"]]
    )
    refusing, cause = verdicts["refusing"], verdicts["cause"]
    if cause == "yes":
        clauses.append("removing it makes the model refuse less")
    elif refusing == "yes":
        clauses.append("the further a request lies along it, the likelier the model refuses")
    return f"{clauses[0]}; {', and '.join(clauses[1:])}."


def _fit(evidence: Evidence, site: int) -> Answer:
    if evidence.imported:
        nothing = np.full(evidence.n_sites, np.nan)
        return Answer("fit", "not measured", "", "imported: those prompts are not known", nothing, nothing, nothing)
    table = _by_site(evidence.sites, evidence)
    value, chance = table["in_sample_d"][site], table["chance_d_95"][site]
    known = np.isfinite(value) and np.isfinite(chance)
    nothing = np.full(evidence.n_sites, np.nan)
    return Answer(
        key="fit",
        verdict=("yes" if value > chance else "unclear") if known else "not measured",
        number=f"in-sample d {value:.2f}" if np.isfinite(value) else "",
        compared=f"shuffled labels reach {chance:.2f}" if known else "",
        values=table["in_sample_d"].to_numpy(float),
        low=nothing,
        high=nothing,
    )


def _hold(evidence: Evidence, site: int) -> Answer:
    return _interval(
        "hold",
        _by_site(evidence.sites, evidence),
        "crossfit_d",
        site,
        new_prompts_d(evidence),
        "chance is 0; the layer was chosen by it",
    )


def _intent(evidence: Evidence, site: int) -> Answer:
    source = probe_source(evidence)
    quartets = of_quartets(evidence, str(source)).reindex(range(evidence.n_sites))
    if np.isfinite(quartets["intent"][site]):
        cue, low, high = (_signed(quartets[f"cue{end}"][site]) for end in ("", "_low", "_high"))
        compared = f"alarming wording {cue} ({low} to {high}), in standard deviations"
        answer = _interval("intent", quartets, "intent", site, "intent", compared)
    else:
        table = evidence.transfer[evidence.transfer["source"].eq(source)]
        answer = _interval("intent", _by_site(table, evidence), "d", site, f"d on {source}", "chance is 0")
    follows = follows_intent(evidence, site)
    return _with(answer, follows if follows and answer.number else "not measured", answer.compared)


def _refusing(evidence: Evidence, site: int) -> Answer:
    rows = evidence.refusal["source"].eq(CONTRAST) & evidence.refusal["label"].eq(BOTH)
    table = _by_site(evidence.refusal[rows], evidence)
    return _interval("refusing", table, "rho", site, "ρ with refusing", "within labels; chance is 0")


def _cause(run: Run, edits: pd.DataFrame | None, site: int) -> Answer:
    if edits is None or site >= run.n_layers:
        nothing = np.full(run.n_sites, np.nan)
        return Answer("cause", "not measured", "", "", nothing, nothing, nothing)
    swept = effects.over_layers(edits, ABLATE, "harmful").set_index("site", drop=False)
    table = swept.reindex(range(run.n_sites))
    answer = _interval("cause", table, "change", site, "refusal log-odds when ablated", "")
    row = table.loc[site]
    if not np.isfinite(row["change_band_low"]):
        return _with(answer, "unclear" if answer.number else "not measured", "no controls at this layer")
    verdict: Verdict = "unclear"
    if effects.verdict(row) == effects.EFFECT:
        verdict = "yes" if row["change"] < 0 else "no"
    band = f"controls {_signed(row['change_band_low'])} to {_signed(row['change_band_high'])}"
    return _with(answer, verdict, band)


def _interval(key: str, table: pd.DataFrame, column: str, site: int, name: str, compared: str) -> Answer:
    """Return the answer that an interval gives: yes above 0, no below it."""
    value, low, high = (float(table[f"{column}{end}"][site]) for end in ("", "_low", "_high"))
    known = np.isfinite(value)
    verdict: Verdict = "not measured" if not known else "yes" if low > 0 else "no" if high < 0 else "unclear"
    interval = f" ({_signed(low)} to {_signed(high)})" if np.isfinite(low) and np.isfinite(high) else ""
    return Answer(
        key=key,
        verdict=verdict,
        number=f"{name} {_signed(value)}{interval}" if known else "",
        compared=compared if known else "",
        values=table[column].to_numpy(float),
        low=table[f"{column}_low"].to_numpy(float),
        high=table[f"{column}_high"].to_numpy(float),
    )


def _with(answer: Answer, verdict: Verdict, compared: str) -> Answer:
    return Answer(answer.key, verdict, answer.number, compared, answer.values, answer.low, answer.high)


def _by_site(table: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """Return a table with a row per site, NaN where it has none."""
    return table.set_index("site").reindex(range(evidence.n_sites))


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")
