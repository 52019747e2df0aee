"""Widgets for options: label, help, bounds and choices come from the option itself."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge
from pydantic.fields import FieldInfo
from streamlit.delta_generator import DeltaGenerator

from refusal_core.options import Options


def option_widget(place: DeltaGenerator, options: type[Options], name: str, key: str) -> Any:
    """Draw the widget of one option and return what was chosen, ``None`` where nothing was.

    Args:
        place: a column, or another place in the page.
        options: the class of options.
        name: the option.
        key: the widget's key.
    """
    field = options.model_fields[name]
    extra = field.json_schema_extra
    unset = str(extra["unset"]) if isinstance(extra, dict) else ""
    label, explanation = str(field.title), str(field.description)
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if choices := _choices(field):
        return place.selectbox(
            label,
            list(choices),
            index=list(choices).index(field.default),
            format_func=lambda choice: choices[choice] or unset,
            key=key,
            help=explanation,
        )
    if kinds == [bool]:
        return place.checkbox(label, value=field.default, key=key, help=explanation)
    if kinds == [int]:
        lowest: Any = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
        return place.number_input(
            label, min_value=lowest, value=field.default, placeholder=unset, step=1, key=key, help=explanation
        )
    return place.text_input(label, value=field.default or "", placeholder=unset, key=key, help=explanation) or None


def _choices(field: FieldInfo) -> dict[Any, str]:
    """Return an option's choices with how they are shown; empty for one that has none. What is unset shows nothing."""
    kinds = get_args(field.annotation)
    if set(kinds) == {bool, NoneType}:
        return {None: "", True: "on", False: "off"}
    literals = [kind for kind in (field.annotation, *kinds) if get_origin(kind) is Literal]
    values = [value for kind in literals for value in get_args(kind)]
    unset = {None: ""} if values and NoneType in kinds else {}
    return unset | {value: str(value) for value in values}
