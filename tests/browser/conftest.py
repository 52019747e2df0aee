"""The dashboard served over small runs, and pages of it in a real Chromium.

It is served over a synthetic run, which has hostile prompts, one of a tiny random model, which can be scored, and one
of a planted model, which can be edited; and over the shipped runs. An error that a page writes to the browser's console
fails its test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from driving import ROOT, TITLES, let_in, served
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright
from synthetic import RUN, save_positions, save_subspace

from refusal_core.behaviour import measurement
from refusal_core.models.opening import load_model
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# Streamlit asks for these below a page's own address first, and then where they are.
STREAMLITS_OWN = ("/_stcore/health", "/_stcore/host-config")
# Parts of a page load their own scripts when they are first drawn: on a busy machine five seconds are too few.
expect.set_options(timeout=30_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder drives a browser, and is tried once more when it waited in vain."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["[Tt]imeout"]))
            if CHROMIUM is None:
                item.add_marker(
                    pytest.mark.skip(reason="needs Chromium on the PATH (Debian: apt-get install chromium)")
                )


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pictures of the pages are kept in."""
    chosen = request.config.getoption("--pictures")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("pictures")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cache(
    synthetic_cache: Path,
    tiny_folder: Path,
    tiny_run: Run,
    planted_run: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The synthetic run with what needs no model, a tiny one with behaviour, and a planted one with interventions."""
    folder = tmp_path_factory.mktemp("browser") / "cache"
    shutil.copytree(synthetic_cache, folder)
    shutil.copytree(planted_run.path, folder / planted_run.run_id)
    shutil.copytree(tiny_run.path, folder / tiny_run.run_id)
    save_subspace(open_run(RUN, folder))
    save_positions(open_run(RUN, folder), refused=np.arange(len(open_run(RUN, folder).prompts)) // 2 % 2 == 0)
    made = open_run(tiny_run.run_id, folder)
    measurement.record(made, load_model(tiny_folder, dtype="float32", device="cpu"))
    return folder


@pytest.fixture(scope="session")
def scored_run(cache: Path):
    return open_run(next(path.name for path in cache.iterdir() if path.name.startswith("tiny-qwen2")), cache)


@pytest.fixture(scope="session")
def address(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard is served."""
    with served(cache, tmp_path_factory.mktemp("server")) as base:
        yield base


@pytest.fixture(scope="session")
def shipped_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard is served over a copy of the shipped runs."""
    folder = tmp_path_factory.mktemp("shipped")
    for path in (ROOT / "cache").glob("qwen2.5-coder-*"):
        shutil.copytree(path, folder / "cache" / path.name)
    with served(folder / "cache", tmp_path_factory.mktemp("server")) as base:
        yield base


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A Chromium for those who need visitors of their own."""
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def visitor(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """One visitor's Chromium, which keeps the dashboard's scripts, as files and compiled, from page to page.

    A visit is a tab: Streamlit keeps nothing of one for another.
    """
    profile = tmp_path_factory.mktemp("profile")
    opened = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture
def open_page(visitor: BrowserContext, address: str):
    """Opens a page of the dashboard and returns it; at the end no console error may have been seen, nor a traceback."""
    errors, pages = [], []

    def record(message) -> None:
        if message.type == "error" and not message.location["url"].endswith(STREAMLITS_OWN):
            errors.append(f"{message.text} ({message.location['url']})")

    def opened(path: str = "", theme: str = "light", base: str = address, **query: str) -> Page:
        let_in(visitor, base)
        page = visitor.new_page()
        pages.append(page)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.on("console", record)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{base}/{path}?" + "&".join(f"{name}={value}" for name, value in query.items()))
        expect(page.locator("h1")).to_have_text(TITLES[path], timeout=60_000)
        return page

    yield opened
    for page in pages:
        if not page.is_closed():
            errors += page.locator("[data-testid=stException]").all_inner_texts()
            page.evaluate("localStorage.clear()")
            page.close()
    assert not errors
