"""Pages without a mouse: every control is reached with Tab, shows that it is, and works."""

from __future__ import annotations

from pathlib import Path

import pytest
from driving import let_settle, query, until
from playwright.sync_api import Page, expect
from synthetic import N_LAYERS
from synthetic import RUN as SYNTHETIC

# What can be used, as elements that are numbered when they are first seen, each with the group that is one stop of Tab
# and in which arrows go on.
CONTROLS = """() => {
    const kinds = "button, a[href], input, textarea, summary, [role=slider], [role=grid], [tabindex='0']";
    const folded = (each) => each.closest("details:not([open])") && !each.closest("summary");
    return [...document.querySelectorAll(`[data-testid=stMain] :is(${kinds})`)]
        .filter((each) => !each.disabled && each.tabIndex >= 0 && !folded(each))
        .filter((each) => each.checkVisibility({ visibilityProperty: true }))
        .map((each) => {
            each.dataset.place = window.places = (window.places || 0) + 1;
            const group = each.closest("[role=toolbar], [role=radiogroup]");
            return [each.dataset.place, each.outerHTML.slice(0, 160), group && group.querySelectorAll("button").length];
        });
}"""
LOOK = """(each) => {
    const looks = [];
    for (let place = 0; each && place < 8; place++, each = each.parentElement) {
        const look = getComputedStyle(each);
        looks.push([look.outlineStyle, look.outlineWidth, look.outlineColor, look.boxShadow, look.borderColor,
            look.backgroundColor].join());
    }
    return looks.join("; ");
}"""


def focused(page: Page) -> str | None:
    """The number of the control that has the focus."""
    return page.evaluate("document.activeElement.dataset.place || null")


@pytest.mark.parametrize("path", ["Layers", "Outliers"])
def test_every_control_is_reached_by_key_and_shows_that_it_is(open_page, path):
    page = open_page(path, run=SYNTHETIC, site="2")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
    let_settle(page)
    page.wait_for_timeout(1000)
    controls = page.evaluate(CONTROLS)
    wanted = {place: html for place, html, _ in controls}
    groups = {place: size for place, _, size in controls if size}
    looks = {place: page.locator(f"[data-place='{place}']").evaluate(LOOK) for place in wanted}
    reached, unseen = [], []

    def look() -> bool:
        """Note the control that has the focus; whether it is one that had not had it before."""
        place = focused(page)
        if place not in wanted or place in reached:
            return False
        reached.append(place)
        if page.evaluate(f"({LOOK})(document.activeElement)") == looks[place]:
            page.wait_for_timeout(200)
            if page.evaluate(f"({LOOK})(document.activeElement)") == looks[place]:
                unseen.append(wanted[place])
        return True

    for _ in range(3 * len(wanted) + 60):
        page.keyboard.press("Tab")
        if look():
            for _ in range(groups.get(reached[-1], 1) - 1):
                page.keyboard.press("ArrowRight")
                look()
        if len(reached) == len(wanted):
            break
    assert [html for place, html in wanted.items() if place not in reached] == []
    assert unseen == []
    assert len(wanted) > 15


def tab_to(page: Page, role: str, name: str) -> None:
    """Press Tab until a control has the focus."""
    control = page.get_by_role(role, name=name, exact=True)
    expect(control).to_be_attached(timeout=60_000)
    for _ in range(120):
        page.keyboard.press("Tab")
        if control.evaluate("(each) => each === document.activeElement"):
            return
    raise AssertionError(f"not reached: {name}")


def test_the_layers_are_played_and_paused_without_a_mouse(open_page):
    page = open_page("Layers", run=SYNTHETIC, site="1")
    title = page.locator(".st-key-panels-place .gtitle")
    expect(title).to_contain_text(f"layer 1 of {N_LAYERS}", timeout=60_000)
    let_settle(page)
    tab_to(page, "button", "Play")
    page.keyboard.press("Enter")
    # Which layer is seen first depends on the machine: each is there for less than half a second.
    until(page, lambda: not title.text_content().startswith("layer 1 of"))
    tab_to(page, "button", "Pause")
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    rested = title.text_content()
    assert "final norm" not in rested
    page.wait_for_timeout(1500)
    assert title.text_content() == rested


def test_the_slider_goes_to_its_ends_and_five_layers_on_by_key_and_elsewhere_the_page_keeps_those_keys(open_page):
    page = open_page("Layers", run=SYNTHETIC, site="1")
    title = page.locator(".st-key-panels-place .gtitle")
    expect(title).to_contain_text(f"layer 1 of {N_LAYERS}", timeout=60_000)
    let_settle(page)
    page.keyboard.press("End")
    page.wait_for_timeout(500)
    expect(title).to_contain_text(f"layer 1 of {N_LAYERS}")
    tab_to(page, "slider", "Layer")
    for key, site in (
        ("End", N_LAYERS),
        ("PageDown", N_LAYERS - 5),
        ("Home", 0),
        ("PageDown", 0),
        ("ArrowUp", 1),
        ("PageUp", 6),
        ("ArrowDown", 5),
        ("PageUp", N_LAYERS),
    ):
        page.keyboard.press(key)
        expect(title).to_contain_text("final norm" if site == N_LAYERS else f"layer {site} of {N_LAYERS}")
    until(page, lambda: query(page)["site"] == str(N_LAYERS))
    expect(page.get_by_text("All numbers of final norm")).to_be_attached()


def test_a_csv_is_taken_away_without_a_mouse(open_page):
    page = open_page("Outliers", run=SYNTHETIC, site="2")
    expect(page.get_by_role("button", name="Download as csv", exact=True)).to_be_visible(timeout=60_000)
    let_settle(page)
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText || ''").strip().endswith("Download as csv"):
            break
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert Path(download.value.path()).read_text().startswith("prompt_id,text,label")
