"""Text and lines can be told from what is behind them in both themes (WCAG 2.2, 1.4.3 and 1.4.11)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from refusal_core.figures import comparison, style

THEMES = tomllib.loads((Path(__file__).resolve().parents[2] / ".streamlit" / "config.toml").read_text())["theme"]
PALETTE = {
    style.HARMFUL,
    style.HARMLESS,
    style.GREY,
    style.ACCENT,
    style.PROBE,
    *style.LINE_COLOURS,
    *comparison.COLOURS,
}
FADED = 0.6
"""How opaque Streamlit writes captions."""


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(parts: list[float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, background: str, opacity: float = 1) -> float:
    mixed = [
        opacity * front + (1 - opacity) * behind
        for front, behind in zip(channels(colour), channels(background), strict=True)
    ]
    low, high = sorted((luminance(mixed), luminance(channels(background))))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_the_one_of_the_standard():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#767676", "#FFFFFF") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_line_and_mark_stands_out_from_the_page(theme):
    assert {colour for colour in PALETTE if contrast(colour, THEMES[theme]["backgroundColor"]) < 3} == set()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_faded_too(theme):
    look = THEMES[theme]
    for background in (look["backgroundColor"], look["secondaryBackgroundColor"], look["sidebar"]["backgroundColor"]):
        assert contrast(look["textColor"], background) >= 7
        assert contrast(look["textColor"], background, FADED) >= 4.5
        assert contrast(look["primaryColor"], background) >= 4.5
    assert contrast(look["backgroundColor"], look["primaryColor"]) >= 4.5
