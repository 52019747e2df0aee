"""The Layers page: scrubbing, playing, following prompts, saving."""

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
    expect(page.get_by_role("heading", name=f"layer {site} of {N_LAYERS}")).to_be_visible()
    let_settle(page)
    return page


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
    expect(page.get_by_role("heading", name="final norm")).to_be_visible()
    until(page, lambda: query(page)["site"] == str(N_LAYERS))
    expect(title).to_contain_text("final norm")


def test_a_click_on_a_curve_goes_to_its_layer(open_page):
    page = opened(open_page)
    point = page.locator(".st-key-layers_effect .scatterlayer .trace").last.locator(".point").nth(4)
    expect(point).to_be_attached(timeout=60_000)
    point.scroll_into_view_if_needed()
    let_settle(page)
    point.click(force=True)
    expect(page.get_by_role("heading", name=f"layer 4 of {N_LAYERS}")).to_be_visible()
    assert query(page)["site"] == "4"


def test_arrow_keys_move_one_layer_unless_a_field_has_them(open_page):
    page = opened(open_page)
    title = page.locator(f"{PANELS} .gtitle")
    slider = page.get_by_role("slider", name="Layer")
    expect(slider).to_have_attribute("aria-valuetext", "1")
    for key, site in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        expect(title).to_contain_text(f"layer {site} of {N_LAYERS}")
    expect(page.get_by_role("heading", name=f"layer 2 of {N_LAYERS}")).to_be_visible()
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


def test_a_layer_has_the_numbers_it_has_when_it_is_opened(open_page):
    # Streamlit sets the title that a page opens with in bold.
    read = f"""() => {{
        const plot = document.querySelector('{PANELS} .js-plotly-plot');
        const lists = (value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
        const {{ xaxis, xaxis2, yaxis4, shapes, title }} = plot._fullLayout;
        const traces = plot._fullData.map((trace) => [
            trace.x, trace.y, trace.q1, trace.customdata, trace.hovertext, trace.width,
        ].map(lists));
        return JSON.stringify([
            traces, xaxis.range, xaxis2.range, yaxis4.range, title.text.replace(/<.?b>/g, ""),
            shapes.map(({{ x0, x1 }}) => [x0, x1]),
        ]);
    }}"""
    moved = opened(open_page, site="1")
    moved.keyboard.press("ArrowRight")
    expect(moved.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 2 of {N_LAYERS}")
    assert moved.evaluate(read) == opened(open_page, site="2").evaluate(read)


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


def test_a_clicked_prompt_is_followed_over_the_layers_and_stays_chosen(open_page):
    page = opened(open_page, site="4")
    point = page.locator(f"{PANELS} .scatterlayer .trace .points path").nth(5)
    point.click(force=True)
    expect(page.get_by_text("Prompts followed")).to_be_visible(timeout=20_000)
    until(page, lambda: "prompt" in query(page))
    expect(page.locator(f"{PANELS} .gtitle")).to_contain_text(f"layer 4 of {N_LAYERS}")
    expect(page.locator(f"{PANELS} .ytitle, {PANELS} .y5title", has_text="standard deviations").first).to_be_visible()


def test_on_a_phone_the_panels_are_stacked(open_page):
    page = opened(open_page)
    wide = page.locator(f"{PANELS} .js-plotly-plot").bounding_box()["height"]
    page.set_viewport_size({"width": 390, "height": 900})
    plot = f"document.querySelector('{PANELS} .js-plotly-plot')"
    page.wait_for_function(f"{plot} && {plot}.clientHeight > {1.4 * wide}", timeout=60_000)


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_a_figure_can_be_saved_as_it_is_shown(open_page, tmp_path, kind):
    page = opened(open_page)
    page.keyboard.press("ArrowRight")
    until(page, lambda: query(page)["site"] == "2")
    page.get_by_role("button", name="Save").first.click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name=f"Save as {kind.upper()}").click()
    assert download.value.suggested_filename == f"{SYNTHETIC}--panels.{kind}"
    download.value.save_as(tmp_path / "file")
    contents = Path(tmp_path / "file").read_bytes()
    if kind == "png":
        assert contents.startswith(b"\x89PNG")
    else:
        assert f"layer {'2' if kind == 'svg' else '1'} of {N_LAYERS}".encode() in contents
