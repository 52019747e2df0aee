"""The Layers page: scrubbing, playing, the ridgeline, pinning prompts, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
from driving import let_settle, query, until
from playwright.sync_api import Page, expect
from synthetic import N_LAYERS
from synthetic import RUN as SYNTHETIC

PANELS = ".st-key-panels-place"


def opened(open_page, site: str = "1", **options: str) -> Page:
    page = open_page("Layers", run=SYNTHETIC, site=site, **options)
    expect(page.locator(f"{PANELS} .slider-grip-rect")).to_be_visible(timeout=60_000)
    follows(page, int(site))
    let_settle(page)
    return page


def follows(page: Page, site: int) -> None:
    """Wait until the page below the panel is at a site."""
    name = f"layer {site} of {N_LAYERS}" if site < N_LAYERS else "final norm"
    expect(page.get_by_text(f"All numbers of {name}")).to_be_attached()


def test_scrubbing_moves_the_histogram_at_once_and_the_page_follows(open_page):
    page = opened(open_page)
    handle = page.locator(f"{PANELS} .slider-grip-rect").first
    title = page.locator(f"{PANELS} .gtitle")
    rail = page.locator(f"{PANELS} .slider-rail-touch-rect").first.bounding_box()
    grip = handle.bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    page.mouse.move(rail["x"] + rail["width"] * 0.98, grip["y"] + grip["height"] / 2, steps=12)
    expect(title).to_contain_text("final norm", timeout=20_000)
    # Held, however long: the server has heard nothing.
    page.wait_for_timeout(1200)
    assert query(page)["site"] == "1"
    page.mouse.up()
    follows(page, N_LAYERS)
    until(page, lambda: query(page)["site"] == str(N_LAYERS))
    expect(title).to_contain_text("final norm")


def test_a_click_on_a_curve_goes_to_its_layer(open_page):
    page = opened(open_page)
    point = page.locator(".st-key-layers_effect .scatterlayer .trace").last.locator(".point").nth(4)
    expect(point).to_be_attached(timeout=60_000)
    point.scroll_into_view_if_needed()
    let_settle(page)
    point.click(force=True)
    follows(page, 4)
    assert query(page)["site"] == "4"


def test_arrow_keys_move_one_layer_unless_a_field_has_them(open_page):
    page = opened(open_page)
    title = page.locator(f"{PANELS} .gtitle")
    slider = page.get_by_role("slider", name="Layer", exact=True)
    expect(slider).to_have_attribute("aria-valuetext", "1")
    for key, site in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        expect(title).to_contain_text(f"layer {site} of {N_LAYERS}")
    follows(page, 2)
    until(page, lambda: query(page)["site"] == "2")
    page.get_by_label("Layer", exact=True).and_(page.locator("input")).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(500)
    expect(title).to_contain_text(f"layer 2 of {N_LAYERS}")


def test_a_step_is_drawn_once(open_page):
    page = opened(open_page)
    plot = f"document.querySelector('{PANELS} .js-plotly-plot')"
    page.evaluate(f"window.drawn = 0; {plot}.on('plotly_afterplot', () => window.drawn++)")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 2 of {N_LAYERS}")
    until(page, lambda: query(page)["site"] == "2")
    assert page.evaluate("window.drawn") == 1


@pytest.mark.parametrize("panel", ["histogram", "cumulative", "box", "sorted", "map"])
def test_a_layer_has_the_numbers_it_has_when_it_is_opened(open_page, panel):
    # Streamlit sets the title that a page opens with in bold.
    read = f"""() => {{
        const plot = document.querySelector('{PANELS} .js-plotly-plot');
        const lists = (value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
        const {{ xaxis, yaxis, shapes, title }} = plot._fullLayout;
        const traces = plot._fullData.map((trace) => [
            trace.x, trace.y, trace.q1, trace.customdata, trace.hovertext, trace.width,
        ].map(lists));
        return JSON.stringify([
            traces, xaxis.range, yaxis.range, title.text.replace(/<.?b>/g, ""),
            shapes.map(({{ x0, x1 }}) => [x0, x1]),
        ]);
    }}"""
    moved = opened(open_page, site="1", panel=panel)
    moved.keyboard.press("ArrowRight")
    expect(moved.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 2 of {N_LAYERS}")
    assert moved.evaluate(read) == opened(open_page, site="2", panel=panel).evaluate(read)


def test_playing_goes_through_the_layers_and_pauses(open_page):
    page = opened(open_page)
    title = page.locator(f"{PANELS} .gtitle")
    buttons = page.locator(f"{PANELS} .updatemenu-button")
    buttons.nth(0).dispatch_event("click")
    # Which layer is seen first depends on the machine: each is there for less than half a second.
    until(page, lambda: not title.text_content().startswith("layer 1 of"))
    buttons.nth(1).dispatch_event("click")
    page.wait_for_timeout(500)
    rested = title.text_content()
    page.wait_for_timeout(1500)
    assert title.text_content() == rested
    until(page, lambda: rested.startswith(f"layer {query(page)['site']} of") or query(page)["site"] == str(N_LAYERS))
    # Left to play it comes to the end, tells the page, and a key takes it on from there.
    buttons.nth(0).dispatch_event("click")
    until(page, lambda: query(page)["site"] == str(N_LAYERS))
    page.keyboard.press("ArrowLeft")
    expect(title).to_contain_text(f"layer {N_LAYERS - 1} of {N_LAYERS}")


def test_a_site_chosen_in_the_field_moves_the_panels(open_page):
    page = opened(open_page)
    field = page.get_by_label("Layer", exact=True).and_(page.locator("input"))
    field.fill("4")
    field.press("Enter")
    expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")
    assert query(page)["site"] == "4"


def test_a_hand_on_the_ridgeline_moves_the_panel_and_the_page_follows(open_page):
    page = opened(open_page)
    title = page.locator(f"{PANELS} .gtitle")
    ridgeline = page.get_by_role("slider", name="All layers")
    box = ridgeline.bounding_box()
    step = (box["height"] - 20) / (N_LAYERS + 1)
    at = [box["y"] + 16 + (site + 0.5) * step for site in range(N_LAYERS + 1)]
    page.mouse.move(box["x"] + box["width"] / 2, at[0])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, at[4], steps=8)
    expect(title).to_contain_text(f"layer 4 of {N_LAYERS}")
    expect(ridgeline).to_have_attribute("aria-valuetext", f"layer 4 of {N_LAYERS}")
    page.mouse.up()
    follows(page, 4)
    assert query(page)["site"] == "4"
    ridgeline.focus()
    page.keyboard.press("End")
    expect(title).to_contain_text("final norm")
    follows(page, N_LAYERS)


def test_the_ridgeline_follows_the_panel(open_page):
    page = opened(open_page)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("slider", name="All layers")).to_have_attribute("aria-valuenow", "2")


def test_the_ridgeline_the_panel_and_the_pins_are_on_one_screen(open_page):
    page = opened(open_page)
    page.set_viewport_size({"width": 1280, "height": 800})
    let_settle(page)
    for part in (page.get_by_role("slider", name="All layers"), page.locator(f"{PANELS} .main-svg").first):
        box = part.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800
    expect(page.get_by_label("Pin a prompt")).to_be_in_viewport()


def test_the_panel_switches_without_leaving_the_layer(open_page):
    page = opened(open_page, site="3")
    for name, axis in (("Map", "principal plane, across"), ("Sorted prompts", "rank within the label")):
        page.locator(".st-key-layers_panel").get_by_text(name, exact=True).click()
        # The panel before it is there until the new one is drawn.
        expect(page.locator(f"{PANELS} .xtitle").filter(has_text=axis)).to_be_visible()
        expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 3 of {N_LAYERS}")
    assert query(page)["panel"] == "sorted"


def test_a_clicked_prompt_is_pinned_and_stays_chosen_until_it_is_unpinned(open_page):
    page = opened(open_page, site="4", panel="box")
    point = page.locator(f"{PANELS} .scatterlayer .trace .points path").nth(5)
    point.click(force=True)
    pins = page.locator(".st-key-layers_pinned")
    expect(pins.get_by_test_id("stText")).to_have_count(1)
    expect(pins.get_by_test_id("stText")).to_be_in_viewport()
    until(page, lambda: "prompt" in query(page))
    expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")
    expect(page.locator(".st-key-layers_courses .ytitle")).to_have_text("standard deviations from the midpoint")
    pins.get_by_role("button", name="Unpin").click()
    expect(pins.get_by_test_id("stText")).to_have_count(0)


def test_a_prompt_is_pinned_by_a_part_of_it(open_page):
    page = opened(open_page)
    page.get_by_label("Pin a prompt").click()
    option = page.get_by_role("option").nth(2)
    wanted = option.inner_text()
    option.click()
    expect(page.locator(".st-key-layers_pinned").get_by_test_id("stText").first).to_contain_text(wanted[:20])


def test_on_a_phone_the_layer_stays_in_view(open_page):
    page = opened(open_page)
    page.set_viewport_size({"width": 390, "height": 800})
    field = page.get_by_label("Layer", exact=True).and_(page.locator("input"))
    expect(field).to_be_in_viewport()
    page.locator("[data-testid=stMain]").evaluate("element => element.scrollTo(0, element.scrollHeight)")
    expect(field).to_be_in_viewport()
    field.fill("4")
    field.press("Enter")
    expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_a_figure_can_be_saved_as_it_is_shown(open_page, tmp_path, kind):
    page = opened(open_page)
    page.keyboard.press("ArrowRight")
    until(page, lambda: query(page)["site"] == "2")
    page.get_by_role("button", name="Save").first.click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name=f"Save as {kind.upper()}").first.click()
    use = "" if kind == "html" else "--slide"
    assert download.value.suggested_filename == f"{SYNTHETIC}--panels{use}.{kind}"
    download.value.save_as(tmp_path / "file")
    contents = Path(tmp_path / "file").read_bytes()
    if kind == "png":
        assert contents.startswith(b"\x89PNG")
    else:
        assert f"layer {'2' if kind == 'svg' else '1'} of {N_LAYERS}".encode() in contents
