"""The Map page: a lasso, scrubbing with what it holds, and the page that is saved."""

from __future__ import annotations

from pathlib import Path

from driving import let_settle, query, until
from playwright.sync_api import Page, expect
from synthetic import HOSTILE, N_LAYERS
from synthetic import RUN as SYNTHETIC

PLACE = ".st-key-map-place"


def opened(open_page, **options: str) -> Page:
    page = open_page("Map", run=SYNTHETIC, **options)
    expect(page.locator(f"{PLACE} .slider-grip-rect")).to_be_visible(timeout=60_000)
    let_settle(page)
    return page


def test_a_lasso_lists_what_it_holds_and_the_layers_move_under_it(open_page):
    page = opened(open_page, site="3")
    box = page.locator(f"{PLACE} .nsewdrag").first.bounding_box()
    corners = [(0.5, 0.02), (0.98, 0.02), (0.98, 0.98), (0.5, 0.98), (0.5, 0.05)]
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()
    counts = page.locator(".st-key-map_counts")
    expect(counts).to_contain_text("selected: ")
    expect(counts).not_to_contain_text("None")
    said = counts.locator("p").first.inner_text()
    rings = page.locator(f"{PLACE} .scatterlayer .trace").last.locator(".point")
    expect(rings).to_have_count(int(said.split()[0]))
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{PLACE} .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")
    until(page, lambda: query(page)["site"] == "4")
    let_settle(page)
    expect(counts.locator("p").first).to_have_text(said)
    expect(rings).to_have_count(int(said.split()[0]))
    page.get_by_role("button", name="Clear").click()
    expect(counts).to_contain_text("None selected")


def test_a_click_on_a_point_opens_its_prompt_on_the_same_screen(open_page):
    page = opened(open_page, site="3")
    page.set_viewport_size({"width": 1280, "height": 800})
    let_settle(page)
    point = page.locator(f"{PLACE} .scatterlayer .trace").first.locator(".point").nth(3)
    point.hover(force=True)
    page.wait_for_timeout(300)
    point.click(force=True)
    heading = page.get_by_role("heading", name="The chosen prompt")
    expect(heading).to_be_in_viewport()
    assert "prompt" in query(page)


def test_the_saved_page_is_small_moves_by_itself_and_runs_nothing_of_a_prompt(open_page, tmp_path: Path):
    page = opened(open_page, site="2")
    page.locator(PLACE).get_by_role("button", name="Save").click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Save as HTML").click()
    file = tmp_path / "map.html"
    download.value.save_as(file)
    assert file.stat().st_size < 1_000_000
    asked: list[str] = []
    saved = page.context.new_page()
    saved.on("request", lambda request: asked.append(request.url))
    saved.goto(file.as_uri())
    expect(saved.locator("#name")).to_have_text(f"layer 2 of {N_LAYERS}")
    before = saved.locator("#map").evaluate("canvas => canvas.toDataURL()")
    saved.get_by_role("slider", name="Layer").press("End")
    expect(saved.locator("#name")).to_have_text("final norm")
    expect(saved.locator("#share")).to_contain_text("of the variance")
    saved.wait_for_timeout(600)
    assert saved.locator("#map").evaluate("canvas => canvas.toDataURL()") != before
    # Every prompt, the hostile ones among them, is read by the hand that passes over the map.
    read = saved.evaluate("""() => told.texts.map((text, prompt) => {
        const [x, y] = drawn.find((place) => place[2] === prompt);
        const box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.x + x, clientY: box.y + y }));
        return tip.textContent;
    })""")
    assert any(" ".join(HOSTILE[0].split())[:100] == text for text in read)
    assert saved.title() != "owned"
    assert saved.locator("img").count() == 0
    saved.get_by_role("button", name="Play").click()
    expect(saved.locator("#name")).to_have_text("layer 1 of 6", timeout=5000)
    assert asked == [file.as_uri()]
    saved.close()
