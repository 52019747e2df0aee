"""Downloads: a run as one zip file, and a figure that moves without a network."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from driving import let_settle
from playwright.sync_api import Browser, expect
from synthetic import N_LAYERS
from synthetic import RUN as SYNTHETIC

PATIENCE = 180_000


def test_one_press_takes_the_report_s_own_files(open_page):
    page = open_page("", run=SYNTHETIC)
    page.locator("[data-testid=stExpander]").get_by_text("Download", exact=True).click()
    button = page.get_by_role("button", name="Everything, as one zip")
    expect(button).to_be_visible()
    let_settle(page)
    with page.expect_download(timeout=PATIENCE) as download:
        button.click()
    assert download.value.suggested_filename == f"{SYNTHETIC}.zip"
    with zipfile.ZipFile(download.value.path()) as packed:
        assert packed.testzip() is None
        sizes = {each.filename.partition("/")[2]: each.file_size for each in packed.infolist()}
    histograms = {name for name in sizes if name.startswith("layer_distributions/") and name.endswith(".png")}
    assert len(histograms) == N_LAYERS + 1
    assert {"report.html", "directions.safetensors"} <= set(sizes)
    assert min(sizes.values()) > 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_saved_page_of_the_layers_moves_without_a_network(open_page, browser: Browser, tmp_path: Path, theme):
    page = open_page("Layers", theme, run=SYNTHETIC, site="1")
    save = page.locator(".st-key-panels-place").get_by_role("button", name="Save")
    expect(save).to_be_visible(timeout=60_000)
    let_settle(page)
    save.click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Save as HTML").click()
    download.value.save_as(tmp_path / "panels.html")

    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    asked, errors = [], []
    alone = context.new_page()
    alone.on("request", lambda request: asked.append(request.url))
    alone.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    alone.on("pageerror", lambda error: errors.append(str(error)))
    alone.goto((tmp_path / "panels.html").as_uri())
    title = alone.locator(".gtitle")
    expect(title).to_contain_text(f"layer 1 of {N_LAYERS}")
    grip, rail = alone.locator(".slider-grip-rect").bounding_box(), alone.locator(".slider-rail-rect").bounding_box()
    alone.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    alone.mouse.down()
    alone.mouse.move(rail["x"] + rail["width"], grip["y"] + grip["height"] / 2, steps=8)
    alone.mouse.up()
    expect(title).to_contain_text("final norm")
    assert [each for each in asked if not each.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    context.close()
