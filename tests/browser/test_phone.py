"""The tasks of the pages, done with a finger on a window of 390 pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import TITLES, fits, is_read, let_in, let_settle, query, until
from playwright.sync_api import Browser, Page, expect
from synthetic import N_LAYERS
from synthetic import RUN as SYNTHETIC

from refusal_core.annotations import marks, raters
from refusal_core.exploration.outliers import derived_band, in_band, prompts_at
from refusal_core.models.opening import load_model
from refusal_core.pipeline.scoring import score
from refusal_core.runs.store import open_run

SITE = 2
Open = Callable[..., Page]


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Open]:
    """Opens a page on a phone; what is seen of it at the end is no wider than the phone."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    let_in(context, address)
    page = context.new_page()

    def opened(path: str, **options: str) -> Page:
        page.goto(f"{address}/{path}?" + "&".join(f"{name}={value}" for name, value in options.items()))
        expect(page.locator("h1")).to_have_text(TITLES[path], timeout=60_000)
        let_settle(page)
        return page

    yield opened
    fits(page)
    assert page.locator("[data-testid=stException]").count() == 0
    context.close()


def layer_field(page: Page):
    return page.get_by_label("Layer", exact=True).and_(page.locator("input"))


def go_to_layer(page: Page, site: int) -> None:
    """Choose a layer where the page is scrolled to its end, in the field that is still in view."""
    page.locator("[data-testid=stMain]").evaluate("element => element.scrollTo(0, element.scrollHeight)")
    field = layer_field(page)
    expect(field).to_be_in_viewport()
    field.fill(str(site))
    field.press("Enter")
    until(page, lambda: query(page)["site"] == str(site))
    let_settle(page)


def test_a_layer_is_chosen_and_a_prompt_is_pinned_and_unpinned(phone):
    page = phone("Layers", run=SYNTHETIC, site="0")
    go_to_layer(page, 4)
    expect(page.locator(".st-key-panels-place .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")
    page.get_by_label("Pin a prompt").tap()
    page.get_by_role("option").nth(2).tap()
    pins = page.locator(".st-key-layers_pinned")
    expect(pins.get_by_test_id("stText")).to_have_count(1, timeout=20_000)
    let_settle(page)
    pins.get_by_role("button", name="Unpin").tap()
    expect(pins.get_by_test_id("stText")).to_have_count(0, timeout=20_000)


def test_a_prompt_of_the_list_is_read_and_marked_and_a_search_finds_it(phone, cache: Path):
    run = open_run(SYNTHETIC, cache)
    shutil.rmtree(cache / ".marks", ignore_errors=True)
    found = in_band(prompts_at(run, SITE), derived_band(run, SITE))
    found = found[found["source"].eq(run.contrast_name)]
    page = phone("Outliers", run=SYNTHETIC, site=str(SITE))
    page.locator(".st-key-outliers_list tbody tr").nth(1).get_by_role("button").tap()
    is_read(page, found["text"].iloc[1])
    chosen = found["prompt_id"].iloc[1]
    let_settle(page)
    # Of a button that is explained Streamlit draws two, one for a mouse and one for a finger.
    page.locator(f".st-key-marks_fine_{chosen} button:visible").tap()
    until(page, lambda: chosen in marks.load_marks(cache).index)
    shutil.rmtree(cache / ".marks", ignore_errors=True)
    let_settle(page)
    page.get_by_label("Search the texts").fill("no prompt has these words")
    expect(page.get_by_role("heading", name="between")).to_contain_text("0 with", timeout=20_000)
    go_to_layer(page, 3)


def test_a_prompt_is_typed_scored_and_pinned(phone, scored_run, tiny_folder):
    page = phone("Live_score", run=scored_run.run_id, site="2")
    path = page.get_by_label("Path of the model")
    path.fill(str(tiny_folder))
    path.press("Enter")
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_enabled(timeout=30_000)
    text = "How do I clean a flute?"
    prompt.press_sequentially(text, delay=5)
    expected = score(load_model(tiny_folder, dtype="float32", device="cpu"), scored_run, [text])[0]
    projection = page.locator("[data-testid=stMetric]", has_text="projection")
    expect(projection).to_contain_text(f"{expected.projection[2]:.3f}", timeout=30_000)
    page.get_by_role("button", name="Pin to compare").tap()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible(timeout=20_000)
    go_to_layer(page, 1)
    expect(projection).to_contain_text(f"{expected.projection[1]:.3f}", timeout=30_000)


def test_prompts_are_rated_one_after_the_other(phone, cache: Path):
    run = open_run(SYNTHETIC, cache)
    rows = raters.rating_order(run, "Phone")
    page = phone("Rate", run=SYNTHETIC)
    page.get_by_label("Your name, or a code").fill("Phone")
    page.locator(".st-key-rate_size").get_by_text("all prompts").tap()
    page.get_by_role("button", name="Begin").tap()
    for place, rating in enumerate((7, 1)):
        button = page.locator(f".st-key-rate_{rating}_{run.prompts['prompt_id'][rows[place]]} button")
        expect(button).to_be_visible(timeout=20_000)
        let_settle(page)
        button.tap()
    expect(page.get_by_text(f"2 of {len(rows)} rated")).to_be_visible(timeout=20_000)
    assert raters.load_ratings_by("Phone", cache).table["rating"].tolist() == [7, 1]


def test_a_page_is_found_in_the_menu_and_a_question_unfolded(phone):
    page = phone("", run=SYNTHETIC)
    page.get_by_test_id("stExpandSidebarButton").tap()
    page.locator("[data-testid=stSidebar] a[href*='Evidence']").first.tap()
    expect(page.locator("h1")).to_have_text("Evidence", timeout=20_000)
    let_settle(page)
    expect(page.get_by_test_id("stSidebar")).not_to_be_in_viewport()
    page.get_by_text("Figure and numbers").first.tap()
    expect(page.locator(".js-plotly-plot")).to_have_count(2, timeout=20_000)
    go_to_layer(page, 1)
