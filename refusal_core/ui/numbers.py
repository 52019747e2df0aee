"""Tables of numbers behind a figure, with the names and meanings of the glossary."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st
from streamlit.column_config import Column, NumberColumn
from streamlit.elements.lib.column_types import ColumnConfig

from refusal_core.glossary import meaning_of, name_of

_COUNTS = ("mean_crossings", "crossfit_range_overlap", "range_overlap")


def whole(value: float) -> int:
    """Round a number half up, as tables in the browser do; Python rounds halves to even numbers."""
    return math.floor(value + 0.5)


def numbers_table(table: pd.DataFrame) -> None:
    """Show a table whose columns are numbers of the evidence, of behaviour, of ratings or of interventions."""
    st.dataframe(
        table,
        column_config={str(column): _described(str(column), table[column].dtype.kind) for column in table},
        hide_index=True,
        width="stretch",
        placeholder="–",
    )


def _described(column: str, kind: str) -> ColumnConfig:
    name, meaning = name_of(column), meaning_of(column)
    if kind == "f":
        return NumberColumn(name, help=meaning, format="%.0f" if column in _COUNTS else "%.3f")
    return Column(name, help=meaning)
