"""What an intervention consists of: edits of the model, one condition each, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refusal_core.options import PRESETS

ABLATE, ADD, PLAIN = "ablate", "add", "none"
FOUND = "found"

OWN = -1
"""In place of the layer a direction was read at: every edited layer takes its own."""

DOSES = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
CONTROL_DOSES = (-1.0, 1.0)

CANDIDATE_DEPTH = 0.8
"""The published rule chooses among layers below this share of the depth (Arditi et al. 2024, appendix C), where the
residual stream is counted before blocks: their layer ``l + 1`` is our layer ``l``."""


@dataclass(frozen=True)
class Condition:
    """One edit of the model.

    Attributes:
        edit: :data:`PLAIN`, :data:`ABLATE` or :data:`ADD`.
        direction: :data:`FOUND`, or a control's name.
        position: the token at which the direction was read, -1 for the last of the templated prompt.
        read_at: the layer at which it was read, or :data:`OWN`.
        layers: the blocks after which the residual stream is edited.
        alpha: what is added, in units of the distance between the labels' means; 0 where nothing is.
        openings: whether openings are generated.
    """

    edit: str
    direction: str = FOUND
    position: int = -1
    read_at: int = OWN
    layers: tuple[int, ...] = ()
    alpha: float = 0.0
    openings: bool = True

    @property
    def columns(self) -> dict[str, Any]:
        """What tells it from other conditions, as a table has it."""
        return {
            "edit": self.edit,
            "direction": self.direction,
            "position": self.position,
            "read_at": self.read_at,
            "layers": self.layers,
            "alpha": self.alpha,
        }


@dataclass(frozen=True)
class Tried:
    """How the reply to one prompt begins under a condition.

    Attributes:
        refusal_log_odds: see :func:`refusal_core.activations.refusal_tokens.refusal_log_odds`.
        kl: divergence of the first reply token's distribution from the one without an edit, in nats.
        opening: ``None`` where it was not asked for.
        others: the same log-odds of other sets of tokens, where any were asked for.
    """

    refusal_log_odds: float
    kl: float
    opening: str | None
    others: tuple[float, ...] = ()


COLUMNS = list(Condition(PLAIN).columns)


def at_its_own_layer(table: pd.DataFrame) -> pd.Series:
    """Return which rows edit one layer alone, the layer that their direction was read at."""
    return table["layers"].str.len().eq(1) & table["layers"].str[0].eq(table["read_at"])


def everywhere(
    n_layers: int, layer: int, direction: str = FOUND, position: int = -1, openings: bool = True
) -> Condition:
    """A direction read at one layer and ablated at every layer."""
    return Condition(ABLATE, direction, position, layer, tuple(range(n_layers)), openings=openings)


def candidate_layers(n_layers: int) -> range:
    """The layers that the published rule chooses from."""
    return range(max(1, int(CANDIDATE_DEPTH * n_layers) - 1))


def together(layers: Sequence[int], span: tuple[int, int] | None, direction: str = FOUND) -> list[Condition]:
    """Each layer's own direction ablated at the presets together, and at a range of layers, where there is one."""
    sets = [tuple(layer for layer in PRESETS if layer in layers)]
    if span is not None:
        sets.append(tuple(layer for layer in range(min(span), max(span) + 1) if layer in layers))
    return [
        Condition(ABLATE, direction, layers=layers, openings=direction == FOUND) for layers in sets if len(layers) > 1
    ]


def sweep(
    n_layers: int, layers: Sequence[int], positions: Sequence[int], span: tuple[int, int] | None = None
) -> list[Condition]:
    """Each layer alone, the presets together, all layers, and the candidates of the published choice.

    Candidates are told apart by their first token alone, so no openings are generated for them.

    Args:
        n_layers: transformer blocks of the model.
        layers: those that have a direction; not all do where it was imported.
        positions: tokens at which candidate directions were read.
        span: first and last layer of a range to ablate together as well, each layer its own direction.
    """
    conditions = [Condition(PLAIN)]
    for layer in layers:
        conditions.append(Condition(ABLATE, FOUND, -1, layer, (layer,)))
        conditions.append(Condition(ADD, FOUND, -1, layer, (layer,), 1.0))
    conditions += together(layers, span)
    conditions.append(Condition(ABLATE, layers=tuple(layers)))
    for position in positions:
        for layer in (layer for layer in candidate_layers(n_layers) if layer in layers):
            conditions.append(everywhere(n_layers, layer, position=position, openings=False))
            if position != -1:
                conditions.append(Condition(ADD, FOUND, position, layer, (layer,), 1.0, openings=False))
    return list(dict.fromkeys(conditions))


def doses_and_controls(
    n_layers: int,
    layers: Sequence[int],
    layer: int,
    position: int,
    at: Sequence[int],
    controls: Sequence[str],
    span: tuple[int, int] | None = None,
) -> list[Condition]:
    """Dose–response of a direction at its layer, and every control at some layers, at several, and along the doses.

    Openings take most of the time; of controls they are generated where the found direction is looked at most closely.

    Args:
        n_layers: transformer blocks of the model.
        layers: those that have a direction.
        layer: the layer at which the direction was read.
        position: the token at which it was read, counted from the end.
        at: layers of which controls are measured alone.
        controls: names of the control directions.
        span: first and last of the layers that are edited together.
    """
    conditions = [Condition(ADD, FOUND, position, layer, (layer,), dose) for dose in DOSES]
    conditions.append(everywhere(n_layers, layer, position=position))
    for control in controls:
        for place in at:
            conditions.append(Condition(ABLATE, control, -1, place, (place,), openings=place == layer))
            conditions.append(Condition(ADD, control, -1, place, (place,), 1.0, openings=False))
        conditions += [Condition(ADD, control, position, layer, (layer,), dose, False) for dose in CONTROL_DOSES]
        conditions += together(layers, span, control)
        conditions.append(Condition(ABLATE, control, layers=tuple(layers), openings=False))
        conditions.append(everywhere(n_layers, layer, control))
    return list(dict.fromkeys(conditions))
