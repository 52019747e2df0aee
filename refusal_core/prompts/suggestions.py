"""Contrasts worth trying: pairs of prompts that are alike but for one thing."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Contrast:
    """Two prompts, and in a line what scoring them side by side tests."""

    tests: str
    one: str
    other: str


@cache
def contrasts() -> tuple[Contrast, ...]:
    """Return the bundled contrasts, in order."""
    text = resources.files("refusal_core.prompts").joinpath("data", "suggestions.toml").read_text(encoding="utf-8")
    return tuple(Contrast(**entry) for entry in tomllib.loads(text)["contrast"])
