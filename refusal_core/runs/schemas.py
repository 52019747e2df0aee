"""What every table of a run has to be, wherever the run came from: columns, kinds of values, ranges, keys that join.

A manifest's hashes make a run complete, not true: a stranger's may be of other prompts, have text for numbers or a
share above 1. What is read is what is held here, so that no page meets anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Kind = Literal["text", "number", "integer", "truth", "layers"]

LEFT_OVER, COSINE = "left_over", "cosine"
ESTIMATED = (
    *("crossfit_d", "crossfit_auroc", "auroc_gain", "intent", "cue", "intent_lead"),
    *("stability", "mean_difference_cosine"),
)
"""What the rows of a run's subspace are: see :func:`refusal_core.pipeline.subspace.record`."""
FITS, HOLDS, FOLLOWS_INTENT, GOES_WITH_REFUSING = "in_sample_d", "crossfit_d", "intent_lead", "rho"
READ_AT_POSITIONS = (FITS, HOLDS, "crossfit_auroc", "intent", "cue", FOLLOWS_INTENT, GOES_WITH_REFUSING)
"""What is measured at every read position: see :func:`refusal_core.evidence.positions.position_table`."""
HARM, REFUSAL, BOTH_DIRECTIONS = "harm", "refusal", "both"
CELLS = ("harmful_refused", "harmful_answered", "harmless_refused", "harmless_answered")
QUARTET_CELLS = ("alarming_harmful", "alarming_harmless", "calm_harmful", "calm_harmless")
ASKED, DONE, CORRECTED = "asked", "done", "corrected_cosine"
"""What is compared at the first and the last of them: see :func:`refusal_core.evidence.apart.apart_table`."""
ADDED, DIFFERENCE = "added", "difference"
RAISED, LOWERED, RAISED_MEAN, LOWERED_MEAN = "raised", "lowered", "raised_mean", "lowered_mean"
"""What adds to a direction, and which tokens it would write: see :func:`refusal_core.pipeline.attribution.record`."""
EMBEDDING, ATTENTION, MLP, BLOCK = "embedding", "attention", "mlp", "block"
_ROUNDING = 1e-6
"""How far a number may lie outside of its range for the rounding of float32."""


@dataclass(frozen=True)
class Column:
    """What the values of a column are.

    Attributes:
        kind: ``layers`` are lists of integers.
        low, high: the range of numbers. Infinity is in none but an open one.
        missing: whether values may be missing.
        among: the texts it may have, where those are few.
        optional: whether a table may lack the column.
        is_site: whether it says which site; the final norm is one.
    """

    kind: Kind
    low: float = -math.inf
    high: float = math.inf
    missing: bool = False
    among: tuple[str, ...] = ()
    optional: bool = False
    is_site: bool = False


Schema = Mapping[str, Column]

_TEXT, _NOTE = Column("text"), Column("text", missing=True)
_SITE = Column("integer", is_site=True)
_COUNT = Column("number", low=0)
_NUMBER, _MEASURED = Column("number"), Column("number", missing=True)
_SPREAD = Column("number", low=0)
_SHARE = Column("number", 0, 1, missing=True)
_COSINE = Column("number", -1, 1, missing=True)
_LABEL = Column("text", among=("harmful", "harmless", "grey"))


def _with_interval(column: Column, *names: str, optional: bool = False) -> dict[str, Column]:
    """Return columns with the ends of their intervals, which may be missing where the number is not."""
    ends = Column(column.kind, column.low, column.high, missing=True, optional=optional)
    return {f"{name}{end}": ends for name in names for end in ("", "_low", "_high")}


def _optional(columns: Schema) -> dict[str, Column]:
    return {
        name: Column(column.kind, column.low, column.high, column.missing, column.among, True, column.is_site)
        for name, column in columns.items()
    }


PROMPTS: Schema = {
    "prompt_id": _TEXT,
    "text": _TEXT,
    "conversation": Column("text", missing=True, optional=True),
    "extra": Column("text", missing=True, optional=True),
    "label": _LABEL,
    "category": _NOTE,
    "pair_id": _NOTE,
    "source": _TEXT,
    "note": _NOTE,
    "fitted": Column("truth"),
    "n_tokens": Column("integer", low=0),
    "first_token": _NOTE,
    "refusal_log_odds": _MEASURED,
}
PROJECTIONS: Schema = {"prompt_id": _TEXT, "site": _SITE, "projection": _NUMBER, "projection_crossfit": _MEASURED}
LAYER_STATS: Schema = {
    "site": _SITE,
    "layer": Column("integer", low=0, missing=True),
    "magnitude": _SPREAD,
    "t_statistic": _MEASURED,
    "in_sample_d": _MEASURED,
    "valid": Column("truth"),
    **{
        f"{label}_projection_{number}": _SPREAD if number in ("std", "range") else _NUMBER
        for label in ("harmful", "harmless")
        for number in ("mean", "std", "min", "max", "range")
    },
    "mean_crossings": _COUNT,
    "log10_p": Column("number", high=0, missing=True),
    "hedges_g": _MEASURED,
    "in_sample_auroc": _SHARE,
    "range_overlap": _COUNT,
    **_optional({"crossfit_d": _MEASURED, "crossfit_auroc": _SHARE, "probe_d": _MEASURED, "probe_auroc": _SHARE}),
}
_HEADS = ("S(g,b)", "S(g,r)", "S(b,r)", "S(g*,b*)", "S(g*,r*)", "S(b*,r*)", "Silh")
_NORMS = ("|g|", "|b|", "|r|", "|g*|", "|b*|", "|r*|")
_DIFFERENCES = ("auroc_difference", "pair_accuracy_difference")
EVIDENCE: Mapping[str, Schema] = {
    "sites": {
        "site": _SITE,
        "in_sample_d": _MEASURED,
        "in_sample_auroc": _SHARE,
        "mean_crossings": Column("number", low=0, missing=True),
        **_with_interval(_MEASURED, "crossfit_d", "length_d"),
        **_with_interval(_SHARE, "crossfit_auroc", "crossfit_accuracy", "length_auroc"),
        **_with_interval(Column("number", low=0, missing=True), "crossfit_range_overlap"),
        **_with_interval(_SHARE, "crossfit_pair_accuracy", optional=True),
        **_with_interval(_MEASURED, "category_d", optional=True),
        **_with_interval(_SHARE, "category_auroc", optional=True),
        "chance_d_median": _MEASURED,
        "chance_d_95": _MEASURED,
        "chance_crossfit_low": _MEASURED,
        "chance_crossfit_high": _MEASURED,
        "length_cosine": _COSINE,
        "behaviour_d": _MEASURED,
        "behaviour_auroc": _SHARE,
        **_with_interval(_COSINE, "behaviour_cosine"),
        "effective_dimension": Column("number", low=0, missing=True),
        "variance_share": _SHARE,
        **{f"pc{place}_share": Column("number", 0, 1, missing=True, optional=True) for place in (1, 2, 3)},
        "permutation_p": _SHARE,
        "permutation_p_corrected": _SHARE,
    },
    "transfer": {
        "site": _SITE,
        "source": _TEXT,
        **_with_interval(_MEASURED, "d"),
        **_with_interval(_SHARE, "auroc"),
        **_with_interval(_SHARE, "pair_accuracy", optional=True),
        "n_harmful": _COUNT,
        "n_harmless": _COUNT,
        "n_pairs": _COUNT,
        **_optional({"permutation_p_corrected": _SHARE, "d_detectable": _MEASURED}),
    },
    "quartets": {
        "site": _SITE,
        "source": _TEXT,
        "n_quartets": _COUNT,
        **_with_interval(_MEASURED, "intent", "cue", "interaction", "intent_lead"),
        "cue_p_corrected": _SHARE,
    },
    "wording": {
        "site": _SITE,
        "source": _TEXT,
        "prompts": _TEXT,
        "opponent": _TEXT,
        "strongest": Column("truth"),
        "n_harmful": _COUNT,
        "n_harmless": _COUNT,
        "n_pairs": _COUNT,
        **_with_interval(_SHARE, "auroc", "pair_accuracy", "text_auroc", "text_pair_accuracy"),
        **_with_interval(_COSINE, *_DIFFERENCES),
    },
    "detectable_from": {
        "measure": _TEXT,
        "source": _TEXT,
        **{name: Column("integer", missing=True, is_site=True) for name in ("site", "site_low", "site_high")},
    },
    "random_directions": {
        "site": _SITE,
        "kind": _TEXT,
        "directions": _COUNT,
        "d_median": _MEASURED,
        "d_95": _MEASURED,
        "d_max": _MEASURED,
        "share_reaching": _SHARE,
    },
    "permutations": {"site": _SITE, "quantile": Column("number", 0, 1), "d": _MEASURED},
    "learning": {
        "site": _SITE,
        "size": _COUNT,
        **_with_interval(_MEASURED, "d"),
        **_with_interval(_COSINE, "cosine"),
    },
    "baselines": {
        "baseline": _TEXT,
        "source": _TEXT,
        **_with_interval(_MEASURED, "d"),
        **_with_interval(_SHARE, "auroc"),
        **_with_interval(_SHARE, "pair_accuracy", optional=True),
    },
    "refusal": {
        "site": _SITE,
        "source": _TEXT,
        "label": _TEXT,
        **_with_interval(_COSINE, "rho"),
        "n": _COUNT,
    },
    "geometry": {
        "site": _SITE,
        **dict.fromkeys(_HEADS, _COSINE),
        **dict.fromkeys(_NORMS, Column("number", low=0, missing=True)),
    },
    "cosines": {"site": _SITE, "other": _SITE, "cosine": _COSINE},
    "components": {
        "prompt_id": _TEXT,
        "site": _SITE,
        **{f"pc{place}": Column("number", missing=True, optional=True) for place in (1, 2, 3)},
    },
    "reasons": {
        "table": _TEXT,
        "number": _TEXT,
        "source": _NOTE,
        "site": Column("integer", missing=True, is_site=True),
        "reason": _TEXT,
    },
    "settings": dict.fromkeys(
        ("seed", "folds", "repeats", "permutations", "draws", "n_harmful", "n_harmless", "n_pairs", "d_model"), _COUNT
    ),
}
ADDITIONS: Mapping[str, Schema] = {
    "behaviour": {
        "prompt_id": _TEXT,
        "phrase_log_odds": _MEASURED,
        "opening": _NOTE,
        "opening_label": _NOTE,
    },
    "intervention": {
        "edit": _TEXT,
        "direction": _TEXT,
        "position": Column("integer"),
        "read_at": Column("integer", low=-1),
        "layers": Column("layers", low=0),
        "alpha": _NUMBER,
        "prompt_id": _TEXT,
        "refusal_log_odds": _MEASURED,
        "kl": _MEASURED,
        "opening": _NOTE,
        "opening_label": _NOTE,
    },
    "judgement": {
        "edit": _TEXT,
        "direction": _TEXT,
        "prompt_id": _TEXT,
        "refusal_log_odds": _NUMBER,
        "harmful_log_odds": _NUMBER,
        "harmless_log_odds": _NUMBER,
        "answered": Column("number", 0, 1),
    },
    "subspace": {
        "site": _SITE,
        "measure": Column("text", among=(LEFT_OVER, COSINE, *ESTIMATED)),
        "removed": Column("integer", low=0, missing=True),
        "subject": _NOTE,
        "other": _NOTE,
        **_with_interval(_MEASURED, "number"),
        "chance_low": _MEASURED,
        "chance_high": _MEASURED,
        "p": _SHARE,
    },
    "attribution": {
        "site": _SITE,
        "measure": Column("text", among=(ADDED, DIFFERENCE, RAISED, LOWERED, RAISED_MEAN, LOWERED_MEAN)),
        "part": Column("text", missing=True),
        "block": Column("integer", low=0, missing=True),
        "rank": Column("integer", low=1, missing=True),
        "token": _NOTE,
        **_with_interval(_MEASURED, "number"),
        "again": _SHARE,
        "chance_low": _MEASURED,
        "chance_high": _MEASURED,
        "p": _SHARE,
    },
    # And a column projection_SITE per site, which :func:`refusal_core.exploration.kept_lists.load_lists` holds.
    "lists": {
        "list": _TEXT,
        "text": _TEXT,
        "conversation": _NOTE,
        "label": Column("text", among=("harmful", "harmless")),
        "pair_id": _NOTE,
    },
    "trajectory": {
        "prompt_id": _TEXT,
        "reply": _NOTE,
        "token": Column("integer", low=0),
        "thought": Column("truth"),
        "site": _SITE,
        "projection": _NUMBER,
    },
    "positions": {
        "position": Column("integer", high=-1),
        "site": _SITE,
        "subject": Column("text", among=(HARM, REFUSAL, BOTH_DIRECTIONS)),
        "measure": Column("text", among=(*READ_AT_POSITIONS, *CELLS, *QUARTET_CELLS, ASKED, DONE, COSINE, CORRECTED)),
        **_with_interval(_MEASURED, "number"),
        "chance_low": _MEASURED,
        "chance_high": _MEASURED,
        "p": _SHARE,
    },
}
_COLUMN_NAME = re.compile(r"[\w|*(), -]{1,80}")


def check_table(name: str, table: pd.DataFrame, schema: Schema, n_sites: int) -> None:
    """Hold a table to its schema; columns that this version does not know have to be flat, and are left alone.

    Args:
        name: of the table, in errors.
        table: as it was read.
        schema: what its columns have to be.
        n_sites: the sites there are.

    Raises:
        ValueError: naming the first column that is missing or has other values, and none of its values.
    """
    if table.columns.nlevels != 1 or not table.columns.is_unique:
        raise ValueError(f"{name} has a column twice")
    missing = [column for column, held in schema.items() if column not in table.columns and not held.optional]
    if missing:
        raise ValueError(f"{name} lacks the column {missing[0]}")
    for column in table.columns:
        if not isinstance(column, str) or not _COLUMN_NAME.fullmatch(column):
            raise ValueError(f"{name} has a column whose name is none")
        # An empty table has no kinds of values.
        fault = _fault(table[column], schema.get(column), n_sites) if len(table) else None
        if fault:
            raise ValueError(f"{name} has {fault} in the column {column}")


def check_sites(name: str, table: pd.DataFrame, n_sites: int) -> None:
    """Raise ValueError unless a table has one row per site, in order."""
    if len(table) != n_sites or not np.array_equal(table["site"].to_numpy(), np.arange(n_sites)):
        raise ValueError(f"{name} has other sites than the model")


def check_prompts(name: str, table: pd.DataFrame) -> None:
    """Raise ValueError unless every prompt is there once, and those of both labels alone were fitted on."""
    if not table["prompt_id"].is_unique:
        raise ValueError(f"{name} has a prompt_id twice")
    labels = set(table.loc[table["fitted"], "label"].unique())
    if labels != {"harmful", "harmless"}:
        raise ValueError(f"{name} has no harmful and harmless prompts that were fitted on, or others among them")


def check_evidence(tables: Mapping[str, pd.DataFrame], n_sites: int, prompt_ids: pd.Series) -> None:
    """Hold all tables of a run's evidence to their schemas.

    Args:
        tables: by name; those that this version does not know have to be flat.
        n_sites: the sites there are.
        prompt_ids: of the run's prompts.

    Raises:
        ValueError: naming the table and its first column that is none of a run.
    """
    for name, table in tables.items():
        check_table(f"evidence_{name}", table, EVIDENCE.get(name, {}), n_sites)
    for name in ("sites", "geometry"):
        if name in tables and len(tables[name]):
            check_sites(f"evidence_{name}", tables[name], n_sites)
    if "settings" in tables and len(tables["settings"]) != 1:
        raise ValueError("evidence_settings has other than one row")
    if "components" in tables and not tables["components"]["prompt_id"].isin(prompt_ids).all():
        raise ValueError("evidence_components is of other prompts")


def _fault(values: pd.Series, column: Column | None, n_sites: int) -> str | None:
    """Return what is wrong with the values of a column, ``None`` for nothing."""
    kind = _kind(values)
    if kind is None:
        return "values that are neither texts, numbers nor truths"
    if column is None:
        return None
    absent = values.isna().to_numpy()
    if kind not in ("missing", column.kind):
        # Whole numbers of which one is missing are stored as others are.
        whole = column.kind == "integer" and kind == "number" and _are_whole(values, absent)
        if not whole and (column.kind, kind) != ("number", "integer"):
            return f"values of another kind than {column.kind}"
    if absent.any() and not column.missing:
        return "missing values"
    if column.among and not values.isin(column.among).all():
        return "texts of another kind"
    if kind in ("number", "integer"):
        return _out_of_range(values.to_numpy(float, na_value=np.nan)[~absent], column, n_sites)
    if kind == "layers":
        numbers = np.array([number for layers in values for number in layers], float)
        return _out_of_range(numbers, Column("integer", 0, n_sites - 2), n_sites)
    return None


def _out_of_range(numbers: np.ndarray, column: Column, n_sites: int) -> str | None:
    low, high = (0, n_sites - 1) if column.is_site else (column.low, column.high)
    if np.isinf(numbers).any():
        return "infinite values"
    if numbers.size and (numbers.min() < low - _ROUNDING or numbers.max() > high + _ROUNDING):
        return "values out of their range"
    return None


def _are_whole(values: pd.Series, absent: np.ndarray) -> bool:
    numbers = values.to_numpy(float, na_value=np.nan)[~absent]
    return bool((numbers == np.round(numbers)).all())


def _kind(values: pd.Series) -> Kind | Literal["missing"] | None:
    """Return the kind of a column's values, ``None`` for one that no table of a run has."""
    dtype = values.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "truth"
    if isinstance(dtype, pd.CategoricalDtype | pd.DatetimeTZDtype | pd.PeriodDtype | pd.IntervalDtype):
        return None
    if pd.api.types.is_integer_dtype(dtype):
        return "integer"
    if pd.api.types.is_float_dtype(dtype):
        return "number"
    if isinstance(dtype, pd.StringDtype):
        return "missing" if values.isna().all() else "text"
    if not pd.api.types.is_object_dtype(dtype):
        return None
    present = values[values.notna().to_numpy()]
    if present.empty:
        return "missing"
    if all(type(value) is str for value in present):
        return "text"
    if all(isinstance(value, tuple) and all(type(number) is int for number in value) for value in present):
        return "layers"
    return None
