"""What was measured of a run at other read positions, and sentences that say so."""

from __future__ import annotations

from itertools import product

import pandas as pd

from refusal_core.errors import RunError
from refusal_core.runs.additions import read_addition
from refusal_core.runs.manifest import PositionsManifest
from refusal_core.runs.positions import position_label, positions_of
from refusal_core.runs.run import T_INST, T_POST, Run
from refusal_core.runs.schemas import (
    ASKED,
    BOTH_DIRECTIONS,
    CELLS,
    CORRECTED,
    COSINE,
    DONE,
    FITS,
    FOLLOWS_INTENT,
    GOES_WITH_REFUSING,
    HARM,
    HOLDS,
    QUARTET_CELLS,
    READ_AT_POSITIONS,
    REFUSAL,
)

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

CLAIMED = 0.025
"""Highest p of permuted replies at which refusing is said to have a direction, at a layer chosen beforehand."""

BELOW_1 = "A value below 1 does not show two directions: one direction read through a noisy threshold gives it too."

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
    read = of_positions(table)
    quartets = bool(read["measure"].isin(OF_QUARTETS).any())
    measures = READ_AT_POSITIONS if quartets else [name for name in READ_AT_POSITIONS if name not in OF_QUARTETS]
    wanted = [(position, HARM, measure) for position, measure in product(positions_of(manifest), measures)]
    if manifest.replies is not None:
        wanted += _compared(manifest, quartets)
    rows = table.groupby("site")[["position", "subject", "measure"]]
    if set(rows.groups) != set(range(run.n_sites)) or any(
        sorted(of_site.itertuples(index=False, name=None)) != sorted(wanted) for _, of_site in rows
    ):
        raise RunError(
            f"run {run.run_id!r}: positions.parquet lacks positions or sites, or has rows twice; measure it again"
        )
    return table, manifest


def _compared(manifest: PositionsManifest, quartets: bool) -> list[tuple[int, str, str]]:
    """Return position, subject and measure of every row that compares harm and refusal at a site."""
    first, last, apart = positions_of(manifest)[0], -1, manifest.replies is not None and manifest.replies.reason is None
    of_each = [*CELLS, ASKED, DONE, *(QUARTET_CELLS if quartets else ())]
    measures = [(HARM, measure) for measure in of_each]
    if apart:
        measures += [(REFUSAL, measure) for measure in (*of_each, *(("intent", "cue") if quartets else ()))]
        measures += [(BOTH_DIRECTIONS, COSINE), (BOTH_DIRECTIONS, CORRECTED)]
    return [(position, *measure) for position, measure in product((first, last), measures)]


def of_positions(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the direction of harm at every read position."""
    return table[table["subject"].eq(HARM) & table["measure"].isin(READ_AT_POSITIONS)]


def numbers_at(measured: Measured, measure: str) -> pd.DataFrame:
    """Return ``(position, site)`` of a measure, positions and sites as the index and columns."""
    table = of_positions(measured[0])
    return table[table["measure"].eq(measure)].pivot(index="position", columns="site", values="number")


def questions_of(measured: Measured) -> dict[str, str]:
    """Return the measures that are put as questions, by the word for each: without quartets one less."""
    known = set(of_positions(measured[0])["measure"])
    return {word: measure for measure, (word, _) in QUESTIONS.items() if measure in known}


def numbers_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per position at a site, with every number and the ends of its interval as columns."""
    table, manifest = of_positions(measured[0]), measured[1]
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
    table, manifest = of_positions(measured[0]), measured[1]
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


def is_compared(measured: Measured) -> bool:
    """Return whether harm and refusal were compared, which takes the run's behaviour."""
    return measured[1].replies is not None


def ends_of(manifest: PositionsManifest) -> dict[str, int]:
    """Return the two positions at which harm and refusal are compared, by name."""
    return {T_INST: positions_of(manifest)[0], T_POST: -1}


def apart_at(measured: Measured, site: int) -> pd.DataFrame:
    """Return the rows that compare harm and refusal at a site, with position, subject and measure as the index."""
    table = measured[0]
    others = table[table["site"].eq(site)].drop(index=of_positions(table).index, errors="ignore")
    return others.set_index(["position", "subject", "measure"]).sort_index()


def cosines_over_layers(measured: Measured) -> dict[str, pd.DataFrame]:
    """Return the corrected cosine per site, ``site, number, number_low, number_high``, at either end.

    It is missing where refusing is not shown to have a direction.
    """
    table, manifest = measured
    shown = table[table["subject"].eq(REFUSAL) & table["measure"].eq(DONE)].set_index(["position", "site"])["p"]
    cosines = {}
    for name, position in ends_of(manifest).items():
        rows = table[
            table["position"].eq(position) & table["subject"].eq(BOTH_DIRECTIONS) & table["measure"].eq(CORRECTED)
        ].sort_values("site")
        if len(rows):
            exists = shown.loc[position].reindex(rows["site"]).le(CLAIMED).to_numpy()
            numbers = ["number", "number_low", "number_high"]
            cosines[name] = rows[["site", *numbers]].assign(
                **{column: rows[column].where(exists) for column in numbers}
            )
    return cosines


def verdict(run: Run, measured: Measured, site: int) -> str:
    """Say at a site how alike harm and refusal are, at each end; that they are two directions, no number shows."""
    replies = measured[1].replies
    where = run.site_label(site)
    if replies is None:
        return "How alike harm and refusal are takes the run's behaviour, which was not measured."
    if replies.reason is not None:
        return f"How alike harm and refusal are cannot be said: {replies.reason}."
    numbers = apart_at(measured, site)
    said = {name: _alike(numbers, position) for name, position in ends_of(measured[1]).items()}
    if said[T_INST] == said[T_POST]:
        sentence = f"At {where}, at {T_INST} and at {T_POST}, {said[T_INST]}."
    else:
        sentence = f"At {where} {said[T_INST]} at {T_INST}; at {T_POST} {said[T_POST]}."
    return f"{sentence} {BELOW_1}" if "corrected cosine" in sentence else sentence


def _alike(numbers: pd.DataFrame, position: int) -> str:
    """Return what is said of harm and refusal at a position: of replies that follow the label alone, nothing."""
    if not numbers.loc[(position, REFUSAL, DONE), "p"] <= CLAIMED:
        return "no direction of refusing is found"
    if not numbers.loc[(position, HARM, ASKED), "number_low"] > 0 and not (
        numbers.loc[(position, HARM, DONE), "number_low"] > 0
    ):
        return "no direction of harm is found"
    corrected = numbers.loc[(position, BOTH_DIRECTIONS, CORRECTED)]
    if pd.isna(corrected["number"]):
        return "harm and refusal are not told apart"
    if corrected["number_high"] < 1:
        return f"the corrected cosine of harm and refusal is {_spelt(corrected)}"
    return f"harm and refusal, with a corrected cosine of {_spelt(corrected)}, are not told apart"


def how_alike(measured: Measured, site: int) -> str:
    """Say the cosines of harm and refusal at a site, as far as refusing has a direction there."""
    if measured[1].replies is None or measured[1].replies.reason is not None:
        return ""
    numbers, sentences = apart_at(measured, site), []
    for name, position in ends_of(measured[1]).items():
        p = numbers.loc[(position, REFUSAL, DONE), "p"]
        if not p <= CLAIMED:
            sentences.append(
                f"at {name} it says nothing, since refusing is not shown to have a direction (p = {p:.3f})"
            )
            continue
        raw = numbers.loc[(position, BOTH_DIRECTIONS, COSINE)]
        said = f"at {name} {_spelt(raw)}, of permuted replies {raw['chance_low']:.2f} to {raw['chance_high']:.2f}"
        corrected = numbers.loc[(position, BOTH_DIRECTIONS, CORRECTED)]
        if pd.notna(corrected["number"]):
            said += f", without noise {_spelt(corrected)}"
        sentences.append(said)
    return (
        f"Cosine of harm and refusal: {'; '.join(sentences)}. Whether refusing has a direction is tested at a layer "
        "chosen beforehand: p is not corrected over the layers."
    )


def what_follows(measured: Measured, site: int) -> str:
    """Say what each direction is shown to follow at a site, held out: what is asked, what the model does, neither."""
    if measured[1].replies is None:
        return ""
    numbers, sentences = apart_at(measured, site), []
    subjects = [HARM, *([REFUSAL] if measured[1].replies.reason is None else [])]
    for subject, (name, position) in product(subjects, ends_of(measured[1]).items()):
        shown, missing = [], []
        for measure, what in ((ASKED, "what is asked"), (DONE, "refusing")):
            row = numbers.loc[(position, subject, measure)]
            if row["number_low"] > 0:
                shown.append(f"{what} by {_spelt(row)}")
            elif pd.notna(row["number"]):
                missing.append(what)
        said = f"{subject.capitalize()} at {name} follows {' and '.join(shown)}" if shown else ""
        if missing:
            lacking = f"is not shown to follow {' or '.join(missing)}"
            said = f"{said}, and {lacking}" if said else f"{subject.capitalize()} at {name} {lacking}"
        if said:
            sentences.append(f"{said}.")
    return " ".join(sentences)


def apart_table(measured: Measured, site: int) -> pd.DataFrame:
    """Return one row per number that compares harm and refusal at a site, position and direction in words."""
    names = {position: name for name, position in ends_of(measured[1]).items()}
    table = apart_at(measured, site).reset_index()
    return pd.DataFrame(
        {
            "read_at": table["position"].map(names),
            "direction_of": table["subject"],
            "of": table["measure"].str.replace("_", ", "),
            **{column: table[column] for column in ("number", "number_low", "number_high")},
            "permuted_low": table["chance_low"],
            "permuted_high": table["chance_high"],
            "p_permuted": table["p"],
        }
    )
