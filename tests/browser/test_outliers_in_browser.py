"""The Outliers page as a researcher spends an hour with it: band, list, prompt, mark, next, and a refit in the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from driving import click_point, is_read, let_settle, query, until
from making import make_run
from playwright.sync_api import Locator, Page, expect
from synthetic import HOSTILE
from synthetic import RUN as SYNTHETIC

from refusal_core.annotations import marks
from refusal_core.exploration.outliers import derived_band, in_band, prompts_at
from refusal_core.pipeline.refit import refit_id
from refusal_core.prompts.sets import prompt_id
from refusal_core.runs.run import LEFT_OUT
from refusal_core.runs.store import open_run

SITE = 2


@pytest.fixture
def unmarked(cache: Path):
    """No marks, before and after."""
    shutil.rmtree(cache / ".marks", ignore_errors=True)
    yield cache
    shutil.rmtree(cache / ".marks", ignore_errors=True)


@pytest.fixture(scope="module")
def kept_run(cache: Path, tiny_folder: Path, tmp_path_factory):
    """A run whose activations were kept, under a name of its own."""
    folder = tmp_path_factory.mktemp("model") / "small"
    shutil.copytree(tiny_folder, folder)
    options = {"dtype": "float32", "device": "cpu", "keep_activations": True}
    return make_run(folder, "pairs", limit_per_label=9, cache=cache, **options).run


def listed(run, site: int = SITE):
    found = in_band(prompts_at(run, site), derived_band(run, site))
    return found[found["source"].eq(run.contrast_name)]


def shows(page: Page, text: str) -> None:
    """A prompt is there to read, and the buttons that judge it."""
    expect(page.get_by_role("heading", name="The chosen prompt")).to_be_visible(timeout=20_000)
    is_read(page, text)
    expect(page.locator(f".st-key-marks_fine_{prompt_id(text)} button").first).to_be_visible()
    let_settle(page)


def row_of_list(page: Page, place: int) -> Locator:
    return page.locator(".st-key-outliers_list tbody tr").nth(place)


def choose_row(page: Page, place: int) -> None:
    """Click a row of the list."""
    expect(row_of_list(page, place)).to_be_visible(timeout=20_000)
    let_settle(page)
    row_of_list(page, place).get_by_role("button").click()


def test_chart_list_and_prompt_are_one(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    found = listed(run)
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE))
    choose_row(page, 1)
    # What a click does is visible without scrolling: the row opens where it is.
    expect(row_of_list(page, 1).get_by_role("button")).to_have_attribute("aria-pressed", "true")
    shows(page, found["text"].iloc[1])
    assert query(page)["prompt"] == found["prompt_id"].iloc[1]
    expect(page.get_by_text(f"2 of {len(found)} in the list")).to_be_visible()
    ringed = page.locator(".st-key-outliers_chart .scatterlayer .trace").last.locator(".point")
    expect(ringed).to_have_count(1)
    page.keyboard.press("n")
    shows(page, found["text"].iloc[2])
    page.keyboard.press("p")
    shows(page, found["text"].iloc[1])
    page.keyboard.press("p")
    shows(page, found["text"].iloc[0])
    # A point of the chart: the harmless prompts come first, and the chosen one last.
    lane = found[found["label"].eq("harmful")]
    click_point(page, page.locator(".st-key-outliers_chart .scatterlayer .trace").nth(1).locator(".point").nth(1))
    shows(page, lane["text"].iloc[1])
    place = found["prompt_id"].tolist().index(lane["prompt_id"].iloc[1])
    expect(page.get_by_text(f"{place + 1} of {len(found)} in the list")).to_be_visible()


def test_search_and_filters_narrow_the_list_and_stay_in_the_address(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    values = run.projections[run.rows(), SITE]
    band = f"{values.min() - 1:.4g}..{values.max() + 1:.4g}"
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), band=band)
    heading = page.get_by_role("heading", name="between")
    expect(heading).to_contain_text("16 harmless, 16 harmful", timeout=20_000)
    page.get_by_label("Search the texts").press_sequentially("REQUEST, number 1", delay=20)
    expected = run.prompts[run.rows() & run.prompts["text"].str.contains("request, number 1").to_numpy()]
    rows = page.locator(".st-key-outliers_list tbody tr")
    expect(heading).to_contain_text(f"{len(expected)} with “REQUEST, number 1” between", timeout=20_000)
    expect(rows).to_have_count(len(expected))
    expect(rows.locator("mark")).to_have_text(["request, number 1"] * len(expected))
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Labels").click()
    page.get_by_role("option", name="harmless").click()
    # An open list hides the rest of the page from assistive technology, and so from roles.
    page.keyboard.press("Escape")
    count = int(expected["label"].eq("harmless").sum())
    expect(rows).to_have_count(count, timeout=20_000)
    expect(page.locator(".st-key-outliers_separation")).to_contain_text(f"0 harmful, {count} harmless")
    until(page, lambda: query(page).get("labels") == "harmless")
    again = open_page("Outliers", **query(page))
    expect(again.get_by_role("heading", name="between")).to_have_text(heading.inner_text(), timeout=20_000)
    expect(again.get_by_label("Search the texts")).to_have_value("REQUEST, number 1")
    again.get_by_role("button", name="Clear").click()
    expect(again.get_by_role("heading", name="between")).to_contain_text("16 harmless, 16 harmful", timeout=20_000)
    until(again, lambda: "find" not in query(again) and "labels" not in query(again))


def test_a_search_outside_the_band_lists_what_is_there(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    text = run.prompts["text"][run.rows()].iloc[10]
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), band="900..901", find=text)
    expect(page.get_by_role("heading", name="1 outside it")).to_be_visible(timeout=20_000)
    expect(row_of_list(page, 0).locator("mark")).to_have_text(text)


def test_the_list_is_gone_through_and_sorted_by_key(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    found = listed(run)
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE))
    first = row_of_list(page, 0).get_by_role("button")
    expect(first).to_be_visible(timeout=20_000)
    let_settle(page)
    first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(page, found["text"].iloc[1])
    page.get_by_role("button", name="projection", exact=True).press("Enter")
    page.get_by_role("button", name="projection", exact=True).press("Enter")
    expect(page.get_by_role("columnheader", name="projection")).to_have_attribute("aria-sort", "descending")
    expect(first).to_have_text(found["text"].iloc[-1])


def test_chart_and_reader_are_on_one_screen(open_page, cache):
    found = listed(open_run(SYNTHETIC, cache))
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), prompt=found["prompt_id"].iloc[0])
    page.set_viewport_size({"width": 1280, "height": 800})
    shows(page, found["text"].iloc[0])
    for part in (".st-key-outliers_chart .main-svg", ".st-key-outliers_reader", ".st-key-marks_buttons"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 800


def test_marks_made_by_key_outlast_a_reload_and_go_into_a_csv_and_back(open_page, unmarked):
    found = listed(open_run(SYNTHETIC, unmarked))
    ids = found["prompt_id"].tolist()
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), prompt=ids[0])
    shows(page, found["text"].iloc[0])
    note = page.get_by_label("Note", exact=True)
    note.fill("<b>not</b> harmful: $x$")
    note.press("Enter")
    let_settle(page)
    page.get_by_role("heading", name="The chosen prompt").click()
    page.keyboard.press("m")
    shows(page, found["text"].iloc[1])
    page.keyboard.press("a")
    shows(page, found["text"].iloc[2])
    page.keyboard.press("f")
    until(page, lambda: len(marks.load_marks(unmarked)) == 3)
    assert marks.load_marks(unmarked)["mark"].to_dict() == dict(zip(ids, marks.KINDS, strict=False))
    assert marks.load_marks(unmarked)["note"].iloc[0] == "<b>not</b> harmful: $x$"
    let_settle(page)
    page.keyboard.press("u")
    until(page, lambda: len(marks.load_marks(unmarked)) == 2)
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), prompt=ids[0])
    expect(page.get_by_label("Note", exact=True)).to_have_value("<b>not</b> harmful: $x$", timeout=20_000)
    page.get_by_text("All marks").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the marks").click()
    content = Path(download.value.path()).read_bytes()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="The chosen prompt").click()
    page.keyboard.press("x")
    until(page, lambda: len(marks.load_marks(unmarked)) == 1)
    page.locator("input[type=file]").set_input_files({"name": "m.csv", "mimeType": "text/csv", "buffer": content})
    page.get_by_role("button", name="Add 2 marks").click()
    until(page, lambda: marks.load_marks(unmarked)["mark"].tolist() == ["mislabelled", "ambiguous"])
    assert page.locator("[data-testid=stMain] .katex").count() == 0


def test_a_key_pressed_faster_than_the_page_is_drawn_marks_no_prompt_that_was_not_read(open_page, unmarked):
    found = listed(open_run(SYNTHETIC, unmarked))
    ids = found["prompt_id"].tolist()
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE), prompt=ids[0])
    shows(page, found["text"].iloc[0])
    # Both in one go, so that nothing can be drawn in between.
    page.evaluate(
        """() => { for (const key of ["m", "f"]) for (const type of ["keydown", "keyup"]) document.body.dispatchEvent(
            new KeyboardEvent(type, { key, code: "Key" + key.toUpperCase(), bubbles: true })) }"""
    )
    shows(page, found["text"].iloc[1])
    until(page, lambda: len(marks.load_marks(unmarked)) > 0)
    page.wait_for_timeout(1000)
    assert marks.load_marks(unmarked)["mark"].to_dict() == {ids[0]: "mislabelled"}


def test_several_rows_are_marked_at_once(open_page, unmarked):
    found = listed(open_run(SYNTHETIC, unmarked))
    page = open_page("Outliers", run=SYNTHETIC, site=str(SITE))
    page.get_by_text("Choose several").click()
    choose_row(page, 0)
    choose_row(page, 2)
    expect(page.get_by_text("2 prompts chosen: a mark is for all of them.")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="ambiguous").click()
    until(page, lambda: len(marks.load_marks(unmarked)) == 2)
    assert set(marks.load_marks(unmarked)["prompt_id"]) == set(found["prompt_id"].iloc[[0, 2]])


def test_hostile_notes_and_prompts_are_text(open_page, unmarked):
    run = open_run(SYNTHETIC, unmarked)
    texts = run.prompts.set_index("prompt_id")["text"]
    hostile = [each for each, text in texts.items() if text in HOSTILE]
    marks.save_marks([marks.Mark(each, texts[each], "mislabelled", texts[each]) for each in hostile], unmarked)
    page = open_page("Outliers", run=SYNTHETIC, band="-100..100", marked="mislabelled", prompt=hostile[0])
    expect(page.get_by_role("heading", name=f"{len(hostile)} harmful between")).to_be_visible(timeout=20_000)
    expect(page.locator(".st-key-outliers_list tbody tr")).to_have_count(len(hostile))
    shows(page, texts[hostile[0]])
    points = page.locator(".st-key-outliers_chart .scatterlayer .trace").first.locator(".point")
    for place in range(len(hostile)):
        points.nth(place).hover(force=True)
        page.wait_for_timeout(200)
    assert page.title() != "owned"
    assert page.locator("[data-testid=stMain] img[src='x'], [data-testid=stMain] .katex").count() == 0


def test_a_refit_without_the_marked_is_made_and_compared(open_page, unmarked, kept_run):
    gone = kept_run.prompts["prompt_id"][0]
    run_id = refit_id(kept_run, [gone])
    shutil.rmtree(unmarked / run_id, ignore_errors=True)
    page = open_page("Outliers", run=kept_run.run_id, site="2", prompt=gone)
    shows(page, kept_run.prompts["text"][0])
    page.get_by_role("button", name="mislabelled").click()
    expect(page.get_by_text("marked: 1. Left out, since pairs and quartets stay together: 2.")).to_be_visible(
        timeout=20_000
    )
    page.get_by_role("button", name="Refit without them").click()
    opened = page.get_by_role("button", name="Open that run")
    expect(opened).to_be_visible(timeout=180_000)
    assert open_run(run_id, unmarked).prompts["source"].eq(LEFT_OUT).sum() == 2
    expect(page.get_by_text("Left out: 1 harmful, 1 harmless.")).to_be_visible()
    expect(page.locator(f".st-key-refit_change_{run_id} .main-svg").first).to_be_visible()
    opened.click()
    until(page, lambda: query(page)["run"] == run_id)
    expect(page.get_by_text(f"This run is a refit of {kept_run.run_id}.")).to_be_visible(timeout=20_000)
