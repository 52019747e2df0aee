"""What tests in the browser share: the pages, waiting for them, and reading them."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect

TITLES = {
    "": "Refusal directions",
    "Layers": "Layers",
    "Evidence": "Evidence",
    "Outliers": "Outliers",
    "Live_score": "Live score",
    "Behaviour": "Behaviour",
    "Causality": "Causality",
    "Ratings": "Ratings",
    "Rate": "Rate",
    "Compare": "Compare",
    "Runs": "Runs",
}
"""Every page's address and its title."""


def let_settle(page: Page) -> None:
    """Wait until Streamlit has drawn what it is going to draw, so that nothing moves under the mouse."""
    page.wait_for_timeout(600)
    expect(page.locator("[data-testid=stStatusWidget]")).to_have_count(0, timeout=20_000)


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until something holds that no element says."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.url)


def query(page: Page) -> dict[str, str]:
    """The options in the page's address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def letters(text: str) -> str:
    """What of a text the browser can show: control characters have no glyph."""
    return re.sub(r"[\x00-\x08\x0b-\x1f]", "", text)
