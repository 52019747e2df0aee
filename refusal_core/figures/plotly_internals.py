"""What the figures use of Plotly beyond its documented interface, gathered where an upgrade would break it."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import plotly.graph_objects as go


def serialise_once(figure: go.Figure) -> go.Figure:
    """Make a figure's traces and frames ready for a browser once, and not every time that it is sent.

    They may no longer change; its layout may.
    """
    ready: dict[str, Any] = figure.to_dict()

    def to_dict() -> dict[str, Any]:
        return ready | {"layout": layout_of(figure)}

    figure.to_dict = to_dict
    return figure


def layout_of(figure: go.Figure) -> dict[str, Any]:
    """Return a figure's layout as plain data."""
    layout: dict[str, Any] = figure.layout.to_plotly_json()
    return layout


class Uncopied(dict[str, Any]):
    """Plain data that nobody changes, so that a figure, which copies itself at every turn, keeps it as it is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        """Return the same data."""
        return self


def encoded(value: Any) -> Any:
    """Encode an array as Plotly has arrays sent, which it does by itself everywhere but in a slider's arguments.

    Anything else is returned as it is.
    """
    if not isinstance(value, np.ndarray):
        return value
    return {"dtype": value.dtype.str[1:], "bdata": b64encode(value.tobytes()).decode()}
