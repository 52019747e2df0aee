"""The questions at every read position: the direction is fitted and tested there as it is at the template's last token.

A position counts from the end of the templated prompt: -1 is the last token of the template (``t_post``), where a run
reads its prompts; before it lie the template's other closing tokens, and before these the last token of the user's
instruction (``t_inst``). What a prompt asks is said to be read at ``t_inst``, and whether it is refused at ``t_post``
(Zhao et al. 2025, "LLMs encode harmfulness and refusal separately").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from refusal_core.evidence.design import Design, plan_design
from refusal_core.evidence.evaluation import parallel_sites
from refusal_core.evidence.site_answers import answer_site
from refusal_core.evidence.wording import Compared, compared_prompts
from refusal_core.options import FOLDS, REPEATS
from refusal_core.progress import Progress
from refusal_core.runs.evidence_tables import BOTH, CONTRAST
from refusal_core.runs.schemas import HARM, READ_AT_POSITIONS

TESTING = "testing (sites)"
DRAWS = 1000
"""Of the bootstrap, as in a run, whose numbers are those of the last position."""
COLUMNS = ("position", "site", "subject", "measure", "number", "number_low", "number_high")


def plan_positions(prompts: pd.DataFrame, seed: int, draws: int) -> Design:
    """Deal folds and draws as a run does, without what its read positions are not asked."""
    return plan_design(
        prompts,
        seed=seed,
        folds=FOLDS,
        repeats=REPEATS,
        permutations=1,
        draws=draws,
        random_directions=1,
        learning_draws=1,
    )


def position_table(
    at_end: np.ndarray, prompts: pd.DataFrame, seed: int, progress: Progress, draws: int = DRAWS
) -> pd.DataFrame:
    """Return the numbers of every read position and site.

    Args:
        at_end: ``(token, prompt, site, d_model)`` activations of all prompts at the last tokens of each.
        prompts: a run's prompt table, rows in the same order.
        seed: of folds and draws, as the run's.
        progress: called once per position and site.
        draws: of the bootstrap.

    Returns:
        One row per position, site and measure, ``position, site, subject, measure, number, number_low, number_high``,
        of the direction of harm: the in-sample and cross-fitted d and the cross-fitted AUROC of the contrast set, the
        effects of intent and cue on quartets where the run has them, and the rank correlation with the refusal log-odds
        within the labels.
    """
    n_positions, n_prompts, n_sites, d_model = at_end.shape
    design = plan_positions(prompts, seed, draws)
    compared = compared_prompts(design)
    places = [(token, site) for token in range(n_positions) for site in range(n_sites)]
    drawn = len(design.contrast.sampled.is_harmful) * draws
    workers = parallel_sites(n_prompts, len(places), d_model, drawn)
    rows: list[dict[str, Any]] = []
    progress(TESTING, 0, len(places))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        answered = pool.map(lambda place: list(_numbers(at_end[place[0], :, place[1]], design, compared)), places)
        for done, ((token, site), numbers) in enumerate(zip(places, answered, strict=True), start=1):
            rows += [{"position": token - n_positions, "site": site, **row} for row in numbers]
            progress(TESTING, done, len(places))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _numbers(hidden_site: np.ndarray, design: Design, compared: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    """Yield the numbers of one position and site, by name, from the answers to all questions there."""
    answers = answer_site(0, hidden_site, design, compared).rows
    numbers: dict[str, float] = dict(answers["sites"][0])
    for row in answers.get("quartets", ())[:1]:
        numbers |= row
    for row in answers["refusal"]:
        if (row["source"], row["label"]) == (CONTRAST, BOTH):
            numbers |= row
    for measure in READ_AT_POSITIONS:
        if measure in numbers:
            ends = {f"number{end}": numbers.get(f"{measure}{end}", np.nan) for end in ("", "_low", "_high")}
            yield {"subject": HARM, "measure": measure, **ends}
