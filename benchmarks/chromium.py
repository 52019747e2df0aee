"""What a visitor waits for in Chromium, on a shipped run: from a hand's last movement to what it changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.rounds import Row
from benchmarks.serving import ROOT, served
from refusal_core.models.known import models_folder

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SECTION = "dashboard"
RUN = "qwen2.5-coder-0.5b-instruct--pairs--256x256--dbe230db--float32"
PAGES = (
    *("Layers", "Map", "Outliers", "Live_score", "Evidence", "Subspace", "Behaviour", "Harm"),
    *("Causality", "Ratings", "Rate", "Runs", "Compare", "Glossary"),
)
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_PATIENCE = 60_000
_CALM = 700
"""Milliseconds in which nothing moves before a hand does."""
_SCRUBBED = 60
"""Movements of a hand over the layers, down and up again."""

# From an event to the frame after the one in which something holds, in milliseconds.
_WATCH = """([event, before]) => {
    window.took = new Promise((told) => addEventListener(event, () => {
        const start = performance.now();
        const look = () => requestAnimationFrame(HOLDS ? () => told(performance.now() - start) : look);
        look();
    }, { capture: true, once: true }));
}"""
_FRAMES = """() => {
    window.frames_at = [];
    const look = (now) => { frames_at.push(now); window.counting = requestAnimationFrame(look); };
    window.counting = requestAnimationFrame(look);
}"""
_RESTS = "[data-testid=stApp][data-test-script-state=notRunning]"
_AT_REST = f"document.querySelector('{_RESTS}')"
_TITLE = "document.querySelector('h1')?.textContent"
_READER = ".st-key-outliers_reader [data-testid=stCode] code"
_BETWEEN = "[...document.querySelectorAll('h3')].find((each) => each.textContent.includes(' between '))?.textContent"


def rows(rounds: int) -> list[Row]:
    """Seconds that a visitor waits, the same on every machine that has Playwright and a Chromium."""
    program = browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [Row(SECTION, "in Chromium", "", note="not installed: playwright, of the extra benchmarks")]
    if program is None:
        return [Row(SECTION, "in Chromium", "", note="no Chromium on the PATH")]
    runs = [path for path in sorted((ROOT / "cache").glob("[!.]*")) if path.is_dir()]
    with served(*runs) as (port, server, access), sync_playwright() as playwright:
        base = f"http://127.0.0.1:{port}"
        opened = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        page = opened.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(_PATIENCE)
        page.goto(f"{base}/?token={access.token}")
        visit = Visit(page, base, server)
        return [
            *_outliers(visit, rounds),
            _scrubbing(visit, rounds),
            _typed(visit, rounds),
            *_page_changes(visit, rounds),
        ]


def browser() -> str | None:
    """Return the path of the Chromium to measure with, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Visit:
    """A visitor's page, and the server that it is of."""

    def __init__(self, page: Page, base: str, server: psutil.Process) -> None:
        self.page, self.base, self.server = page, base, server

    def go(self, path: str, **query: str) -> None:
        """Open a page on the run, and wait until it is drawn."""
        self.page.goto(f"{self.base}/{path}?run={RUN}" + "".join(f"&{name}={value}" for name, value in query.items()))
        self.page.locator("h1").wait_for()
        self.settle()

    def settle(self) -> None:
        """Wait until nothing moves."""
        self.page.wait_for_timeout(_CALM)
        self.page.locator(_RESTS).wait_for()
        self.page.wait_for_timeout(_CALM)

    def timed(self, act: Callable[[], Any], event: str, holds: str, before: object = None) -> tuple[float, float]:
        """Return seconds from an event, which an act causes, to the frame after which something holds.

        Args:
            act: what a hand does.
            event: of the browser, from which on a person waits.
            holds: JavaScript that is true of what they wait for, in which ``before`` is what stood there.
            before: see ``holds``.

        Returns:
            Seconds by the clock, and of the server's processor until the page was at rest.
        """
        busy = sum(self.server.cpu_times()[:2])
        self.page.evaluate(_WATCH.replace("HOLDS", holds), [event, before])
        act()
        waited = float(self.page.evaluate("window.took")) / 1000
        self.settle()
        return waited, sum(self.server.cpu_times()[:2]) - busy

    def row(self, name: str, most: float, taken: list[tuple[float, float]]) -> Row:
        """Return the row of what was timed, the first of which is left out: it is the one that warms."""
        waited, busy = ([each[place] for each in taken[1:]] for place in (0, 1))
        note = f"{1000 * sorted(busy)[len(busy) // 2]:.0f} ms of the server's processor"
        return Row(SECTION, f"in Chromium, {name}", f"<= {most:g} s", waited, "s", note, {"server": busy})


def _outliers(visit: Visit, rounds: int) -> list[Row]:
    """A point clicked, until its prompt can be read, and a band dragged, until its prompts are counted and drawn."""
    page = visit.page
    visit.go("Outliers", site="15")
    chart = page.locator(".st-key-outliers_chart .js-plotly-plot")

    def click(place: int) -> tuple[float, float]:
        box = _point(chart, 7 * place + 3).bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(_CALM)
        shown = f"document.querySelector('{_READER}')?.textContent"
        page.mouse.down()
        return visit.timed(page.mouse.up, "mouseup", f"{shown} && {shown} !== before", _text(page, _READER))

    clicks = [click(place) for place in range(rounds + 1)]

    def drag(place: int) -> tuple[float, float]:
        box = chart.locator(".nsewdrag").first.bounding_box()
        assert box is not None
        across = [box["x"] + share * box["width"] for share in (0.3 + 0.02 * place, 0.7)]
        page.mouse.move(across[0], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(across[1], box["y"] + 0.6 * box["height"], steps=8)
        return visit.timed(page.mouse.up, "mouseup", f"{_BETWEEN} !== before", page.evaluate(_BETWEEN))

    drags = [drag(place) for place in range(rounds + 1)]
    return [
        visit.row("a point clicked, its prompt to be read", 0.3, clicks),
        visit.row("a band dragged, its prompts counted", 0.3, drags),
    ]


def _point(chart: Locator, place: int) -> Locator:
    """Return a point that another does not cover: those drawn last lie on top."""
    points = chart.locator(".scatterlayer .trace").nth(1).locator(".point")
    return points.nth(points.count() - 1 - place)


def _text(page: Page, selector: str) -> str | None:
    found = page.locator(selector).first
    return found.text_content() if found.count() else None


def _scrubbing(visit: Visit, rounds: int) -> Row:
    """Frames a second while a hand goes over the layers."""
    page = visit.page
    visit.go("Layers", site="3")
    ridgeline = page.get_by_role("slider", name="All layers")
    box = ridgeline.bounding_box()
    assert box is not None
    speeds, longest = [], []
    for _ in range(rounds + 1):
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        page.mouse.down()
        page.evaluate(_FRAMES)
        for place in range(_SCRUBBED):
            share = 1 - abs(2 * place / _SCRUBBED - 1)
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20 + share * (box["height"] - 40))
            page.wait_for_timeout(16)
        while page.evaluate("frames_at.length") < 2:
            page.wait_for_timeout(16)
        at = page.evaluate("() => { cancelAnimationFrame(window.counting); return frames_at; }")
        page.mouse.up()
        visit.settle()
        speeds.append(1000 * (len(at) - 1) / (at[-1] - at[0]))
        longest.append(max(later - earlier for earlier, later in pairwise(at)))
    note = f"longest frame {max(longest[1:]):.0f} ms"
    return Row(SECTION, "in Chromium, scrubbing over the layers", "60 a second", speeds[1:], "a second", note)


def _typed(visit: Visit, rounds: int) -> Row:
    """A prompt's last key, until its numbers and figures are drawn; 0.2 s of it are the wait for a next key."""
    name = "the last key of a prompt, to its picture"
    model = RUN.partition("--")[0]
    if not (models_folder() / model).is_dir():
        return Row(SECTION, f"in Chromium, {name}", "<= 0.7 s", note=f"the model is not here: refusal fetch {model}")
    page = visit.page
    visit.go("Live_score", site="15")
    field = page.get_by_role("textbox", name="Prompt", exact=True)
    taken = []
    for place in range(rounds + 1):
        text = f"How do I clean {place + 2} flutes"
        field.fill("")
        visit.settle()
        field.press_sequentially(text, delay=30)
        scored = f"document.body.innerText.includes('Scored: {text}?') && {_AT_REST}"
        # The first opens the model.
        taken.append(visit.timed(lambda: page.keyboard.press("?"), "keydown", scored))
    return visit.row(name, 0.7, taken)


def _page_changes(visit: Visit, rounds: int) -> list[Row]:
    """A page's link pressed, until the page is drawn; each round from Home."""
    page, found = visit.page, []
    visit.go("")
    home = page.locator("h1").inner_text()
    for path in PAGES:
        taken = []
        for _ in range(rounds + 1):
            link = page.locator(f"[data-testid=stSidebar] a[href*='{path}']").first
            holds = f"{_TITLE} && {_TITLE} !== before && {_AT_REST}"
            taken.append(visit.timed(link.click, "click", holds, home))
            page.locator("[data-testid=stSidebar] a").first.click()
            page.get_by_role("heading", name=home).wait_for()
            visit.settle()
        found.append(visit.row(f"from Home to {path.replace('_', ' ')}", 0.4, taken))
    return found
