"""What tests in the browser share: the pages, waiting for them, and reading them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Locator, Page, expect

from refusal_core.access.guard import cookie_name
from refusal_core.access.settings import Access, Role

ROOT = Path(__file__).resolve().parents[1]

TOKEN = "the-token-of-tests"

TITLES = {
    "": "Refusal directions",
    "Layers": "Layers",
    "Map": "Map",
    "Evidence": "Evidence",
    "Outliers": "Outliers",
    "Live_score": "Live score",
    "Subspace": "Subspace",
    "Behaviour": "Behaviour",
    "Harm": "Harm and refusal",
    "Causality": "Causality",
    "Ratings": "Ratings",
    "Rate": "Rate prompts",
    "Compare": "Compare",
    "Runs": "Runs",
    "Glossary": "Glossary",
}
"""Every page's address and its title."""


def let_settle(page: Page) -> None:
    """Wait until Streamlit has drawn what it is going to draw, so that nothing moves under the mouse."""
    page.wait_for_timeout(600)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=20_000)


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until something holds that no element says."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise TimeoutError(f"ten seconds, and it does not hold: {page.url}")


def fits(page: Page) -> None:
    """Wait until a page is no wider than its window, to which figures and tables adapt after it has changed."""
    main = page.locator("[data-testid=stMain]")
    until(page, lambda: main.evaluate("element => element.scrollWidth - element.clientWidth") <= 0)


def query(page: Page) -> dict[str, str]:
    """The options in the page's address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def click_point(page: Page, point: Locator) -> None:
    """Click a point of a figure, which has to have the mouse over it first to know that it is clicked."""
    let_settle(page)
    page.wait_for_timeout(500)
    point.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    point.hover(force=True)
    page.wait_for_timeout(300)
    point.click(force=True)


def assert_accessible(page: Page) -> None:
    """No rule of WCAG 2 at level A or AA that axe-core can check is broken on a page, as it is shown."""
    found = Axe().run(page, options={"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()


def is_read(page: Page, text: str) -> None:
    """Wait until a text is the first of those a page shows to be read: what follows it may be drawn before it is."""
    first = page.locator("[data-testid=stCode] code").first
    until(page, lambda: letters(first.evaluate("element => element.textContent")) == letters(text))


def letters(text: str) -> str:
    """What of a text the browser can show: control characters have no glyph, nor have word joiners."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\u2060]", "", text)


def let_in(visitor: BrowserContext, base: str, role: Role = "owner") -> None:
    """Give a visitor the cookie that the address with the token gives."""
    name = cookie_name(urlsplit(base).netloc, "http")
    visitor.add_cookies([{"name": name, "value": Access(TOKEN).cookie(role), "url": base}])


@contextmanager
def served(
    cache: Path, folder: Path, program: Sequence[str] = ("-m", "streamlit"), fails: bool = False, **settings: str
) -> Iterator[str]:
    """Serve the dashboard over a cache; yields its address. No traceback may be in the server's log at the end.

    Args:
        folder: empty, for the log.
        program: what Python runs as ``streamlit``.
        fails: whether its pages are made to fail, so that there are tracebacks.
        settings: environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            [sys.executable, *program, "run", "app.py", "--server.port", str(port)],
            cwd=ROOT,
            stdout=written,
            stderr=written,
            env=os.environ
            | {"REFUSAL_CACHE": str(cache), "REFUSAL_MODELS": str(folder / "models"), "REFUSAL_TOKEN": TOKEN}
            | settings,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(base, server, log)
        yield base
    finally:
        server.terminate()
        server.wait(20)
    assert fails or "Traceback" not in log.read_text(), log.read_text()[-3000:]


def _wait_until_served(base: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(720):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{base}/_stcore/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"not served within three minutes: {log.read_text()}")
