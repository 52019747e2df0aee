"""A copied address: whoever opens it sees the same view. Back and Forward: the view of the address gone to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import click_point, let_settle, query, until
from playwright.sync_api import Page, expect
from synthetic import N_LAYERS, SECOND_RUN, save_second_run
from synthetic import RUN as SYNTHETIC

PATIENCE = 60_000
SHOWN = """() => {
    const all = (what) => [...document.querySelectorAll(what)];
    const within = (what) => all(`[data-testid=stMain] ${what}`);
    return {
        headings: within(":is(h1, h2, h3, h4, h5)").map((each) => each.innerText),
        pressed: within(":is([aria-checked=true], [aria-pressed=true])").map((each) => each.innerText),
        fields: within("input").map((each) => [each.value, each.checked]),
        chosen: within("[data-tag]").map((each) => each.innerText),
        prompts: within(":is(code, .st-key-layers_pinned [data-testid=stText])").map((each) => each.textContent),
        figures: all(".js-plotly-plot").map((each) => [
            each.data.map(({ name, visible }) => [name, visible]),
            (each.layout.shapes || []).map(({ x0, x1 }) => [x0, x1]),
            [...each.querySelectorAll(".gtitle, .xtitle, .ytitle")].map((title) => title.textContent),
        ]),
    };
}"""


@pytest.fixture
def second(cache: Path) -> Iterator[str]:
    """Another run on the synthetic run's prompts, in the cache for as long as the test."""
    yield save_second_run(cache)
    shutil.rmtree(cache / SECOND_RUN)


def opened(open_page, path: str, **options: str) -> Page:
    page = open_page(path, **options)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=PATIENCE)
    let_settle(page)
    return page


def assert_opens_alike(open_page, page: Page) -> None:
    """Another visitor, who opens the page's address, is shown the same as this one."""
    let_settle(page)
    path = page.url.split("?")[0].rsplit("/", 1)[1]
    again = open_page(path, **query(page))
    until(again, lambda: again.evaluate(SHOWN) == page.evaluate(SHOWN))
    assert query(again) == query(page)


def test_layers_with_its_panel_axes_outlines_and_pinned_prompts(open_page):
    page = opened(open_page, "Layers", run=SYNTHETIC, site="3")
    before = page.evaluate(SHOWN)
    page.locator(".st-key-layers_panel").get_by_text("Box", exact=True).click()
    page.locator(".st-key-layers_sources").get_by_text("probe-pairs", exact=True).click()
    page.locator(".st-key-layers_axes input").click()
    page.get_by_role("option", name="Same, in standard deviations").click()
    let_settle(page)
    for place in (3, 12):
        click_point(page, page.locator(".st-key-panels-place .scatterlayer .trace .points path").nth(place))
        until(page, lambda place=place: "followed" in query(page) and query(page)["followed"].count(",") == (place > 3))
        let_settle(page)
    page.get_by_text("Experiment 0, published").click()
    until(page, lambda: "published" in query(page))
    after = page.evaluate(SHOWN)
    assert all(after[part] != before[part] for part in ("pressed", "fields", "prompts", "figures"))
    assert_opens_alike(open_page, page)


def test_outliers_with_its_band_filter_and_chosen_prompt(open_page):
    page = opened(open_page, "Outliers", run=SYNTHETIC, site="2", band="-100..100", labels="harmful")
    page.keyboard.press("n")
    until(page, lambda: "prompt" in query(page))
    page.get_by_text("Activation units", exact=True).click()
    until(page, lambda: query(page).get("units") == "raw")
    assert_opens_alike(open_page, page)


def test_evidence_with_its_layer(open_page):
    page = opened(open_page, "Evidence", run=SYNTHETIC, site="1")
    page.get_by_label("Layer", exact=True).fill("4")
    page.keyboard.press("Enter")
    until(page, lambda: query(page)["site"] == "4")
    assert_opens_alike(open_page, page)


def test_compare_with_its_runs_prompts_and_labels(open_page, second):
    page = opened(open_page, "Compare", run=SYNTHETIC, others=second, site="4")
    page.get_by_role("radio", name="Rank of the prompts").click()
    until(page, lambda: query(page).get("part") == "Rank of the prompts")
    expect(page.locator(".st-key-compare_rank_heat .main-svg").first).to_be_visible(timeout=PATIENCE)
    page.locator(".st-key-compare_prompts").get_by_text("probe-pairs", exact=True).click()
    until(page, lambda: query(page)["prompts"] == "probe-pairs")
    let_settle(page)
    page.locator(".st-key-compare_among").get_by_text("harmless", exact=True).click()
    until(page, lambda: query(page).get("among") == "harmless")
    assert_opens_alike(open_page, page)


def test_behaviour_with_the_clicked_prompt(open_page, scored_run):
    page = opened(open_page, "Behaviour", run=scored_run.run_id, site="2")
    click_point(
        page, page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").last.locator(".point").nth(3)
    )
    until(page, lambda: "prompt" in query(page))
    expect(page.get_by_role("heading", name="The chosen prompt")).to_be_visible(timeout=PATIENCE)
    assert_opens_alike(open_page, page)


def test_causality_with_its_measure(open_page, planted_run):
    page = opened(open_page, "Causality", run=planted_run.run_id, site="3")
    page.locator(".st-key-causality_measure input").click()
    page.get_by_role("option").nth(2).click()
    until(page, lambda: "measure" in query(page))
    assert_opens_alike(open_page, page)


def assert_at_layer(page: Page, site: int) -> None:
    expect(page.get_by_text(f"All numbers of layer {site} of {N_LAYERS}")).to_be_attached()
    expect(page.locator(".st-key-panels-place .gtitle")).to_contain_text(f"layer {site} of {N_LAYERS}")
    until(page, lambda: query(page).get("site") == str(site))
    let_settle(page)


def test_back_and_forward_go_through_layers_and_pages(open_page):
    page = opened(open_page, "Layers", run=SYNTHETIC, site="1")
    assert_at_layer(page, 1)
    for site in (3, 4):
        field = page.get_by_label("Layer", exact=True).and_(page.locator("input"))
        field.fill(str(site))
        field.press("Enter")
        assert_at_layer(page, site)
    for site in (3, 1):
        page.go_back()
        assert_at_layer(page, site)
    page.go_forward()
    assert_at_layer(page, 3)
    page.locator("[data-testid=stSidebar]").get_by_role("link", name="Evidence").click()
    field = page.get_by_label("Layer", exact=True).and_(page.locator("input"))
    expect(page.locator("h1")).to_have_text("Evidence")
    expect(field).to_have_value("3")
    until(page, lambda: query(page).get("site") == "3")
    let_settle(page)
    field.fill("2")
    field.press("Enter")
    until(page, lambda: query(page)["site"] == "2")
    let_settle(page)
    page.go_back()
    expect(field).to_have_value("3")
    let_settle(page)
    page.go_back()
    expect(page.locator("h1")).to_have_text("Layers")
    assert_at_layer(page, 3)
    page.go_back()
    assert_at_layer(page, 1)
    for _ in range(2):
        page.go_forward()
        let_settle(page)
    expect(page.locator("h1")).to_have_text("Evidence")
    expect(page.get_by_label("Layer", exact=True).and_(page.locator("input"))).to_have_value("3")


def test_back_takes_a_search_back(open_page):
    page = opened(open_page, "Outliers", run=SYNTHETIC, site="2")
    search = page.get_by_label("Search the texts")
    search.fill("no prompt has this")
    until(page, lambda: "find" in query(page))
    let_settle(page)
    page.go_back()
    expect(search).to_have_value("")
    let_settle(page)
    assert "find" not in query(page)
    page.go_forward()
    expect(search).to_have_value("no prompt has this")
    let_settle(page)
    assert query(page)["find"] == "no prompt has this"
