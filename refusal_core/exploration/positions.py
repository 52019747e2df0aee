"""What was measured of a run at other read positions, and sentences that say so."""

from __future__ import annotations

import pandas as pd

from refusal_core.errors import RunError
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import PositionsManifest
from refusal_core.runs.run import Run
from refusal_core.runs.schemas import FITS, FOLLOWS_INTENT, GOES_WITH_REFUSING, HOLDS, READ_AT_POSITIONS

T_INST, T_POST = "t_inst", "t_post"
OF_QUARTETS = frozenset({"intent", "cue", FOLLOWS_INTENT})
QUESTIONS = {
    FITS: ("fits", "Does it fit? In-sample d"),
    HOLDS: ("holds", "Does it hold on new prompts? Cross-fitted d"),
    FOLLOWS_INTENT: (
        "intent",
        "Does it follow what is asked? On quartets, effect of intent less that of alarming wording",
    ),
    GOES_WITH_REFUSING: (
        "refusing",
        "Does it go with refusing? Rank correlation with the refusal log-odds, within labels",
    ),
}
"""The measures that are put as questions: a word for each, and the question with its number."""

Measured = tuple[pd.DataFrame, PositionsManifest]


def load_positions(run: Run) -> Measured | None:
    """Return what was measured of a run at its read positions and the manifest, or ``None`` when that was not measured.

    Raises:
        RunError: when it is damaged, or not of every position and site.
    """
    stored = read_addition(run, PositionsManifest)
    if stored is None:
        return None
    table, manifest = stored
    measures = (
        set(READ_AT_POSITIONS) if table["measure"].isin(OF_QUARTETS).any() else {*READ_AT_POSITIONS} - OF_QUARTETS
    )
    wanted = pd.MultiIndex.from_product([positions_of(manifest), range(run.n_sites), sorted(measures)])
    given = pd.MultiIndex.from_frame(table[["position", "site", "measure"]])
    if len(given) != len(wanted) or not wanted.isin(given).all():
        raise RunError(
            f"run {run.run_id!r}: positions.parquet lacks positions or sites, or has rows twice; measure it again"
        )
    return table, manifest


def positions_of(manifest: PositionsManifest) -> range:
    """Return the read positions, counted from the end of the templated prompt, ``t_inst`` first and -1 last."""
    return range(-1 - len(manifest.closing_tokens), 0)


def position_label(position: int, manifest: PositionsManifest) -> str:
    """Return what a position is called: ``t_inst``, a closing token as it is written, or ``t_post``."""
    if position == -1:
        return T_POST
    if position == positions_of(manifest)[0]:
        return T_INST
    # A token is a stranger's text, and a line break has no letter.
    return repr(manifest.closing_tokens[position])[1:-1]


def numbers_at(measured: Measured, measure: str) -> pd.DataFrame:
    """Return ``(position, site)`` of a measure, positions and sites as the index and columns."""
    table = measured[0]
    return table[table["measure"].eq(measure)].pivot(index="position", columns="site", values="number")


def questions_of(measured: Measured) -> dict[str, str]:
    """Return the measures that are put as questions, by the word for each: without quartets one less."""
    known = set(measured[0]["measure"])
    return {word: measure for measure, (word, _) in QUESTIONS.items() if measure in known}


def numbers_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per position at a site, with every number and the ends of its interval as columns."""
    table, manifest = measured
    at_site = table[table["site"].eq(site)].set_index(["position", "measure"])
    columns: dict[str, pd.Series] = {}
    for measure in READ_AT_POSITIONS:
        for column, end in (("number", ""), ("number_low", "_low"), ("number_high", "_high")):
            values = at_site[column].unstack("measure").get(measure)
            if values is not None and values.notna().any():
                columns[f"{measure}{end}"] = values.reindex(positions_of(manifest)).astype(float)
    index = pd.Index([position_label(position, manifest) for position in positions_of(manifest)], name="read_at")
    return pd.DataFrame({name: values.to_numpy() for name, values in columns.items()}, index=index)


def where_read(run: Run, measured: Measured, site: int) -> str:
    """Say how the directions read at ``t_inst`` and at ``t_post`` do at a site, on new prompts and on quartets."""
    table, manifest = measured
    at_site = table[table["site"].eq(site)].set_index(["position", "measure"])
    sentences = []
    for position in (positions_of(manifest)[0], -1):
        numbers = at_site.loc[position]
        said = "there is nothing to fit"
        if pd.notna(numbers.loc[HOLDS, "number"]):
            said = f"new prompts are separated with d {_spelt(numbers.loc[HOLDS])}"
        if FOLLOWS_INTENT in numbers.index and pd.notna(numbers.loc["intent", "number"]):
            lead = numbers.loc[FOLLOWS_INTENT]
            against = (
                "more than" if lead["number_low"] > 0 else "less than" if lead["number_high"] < 0 else "as against"
            )
            intent, cue = _spelt(numbers.loc["intent"]), _spelt(numbers.loc["cue"])
            said += f", and on quartets intent moves the projection by {intent}, {against} alarming wording, {cue}"
        sentences.append(f"At {position_label(position, manifest)}, {run.site_label(site)}, {said}.")
    return " ".join(sentences)


def _spelt(row: pd.Series) -> str:
    return f"{row['number']:.2f} ({row['number_low']:.2f} to {row['number_high']:.2f})"
