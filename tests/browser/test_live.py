"""The Live score page in Chromium, over a tiny model that takes its time where a prompt asks it to."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from driving import ROOT, fits, let_in, let_settle, letters, query, served, until
from playwright.sync_api import Page, expect
from synthetic import HOSTILE

from refusal_core.models.known import models_folder
from refusal_core.models.opening import load_model
from refusal_core.pipeline.scoring import score
from refusal_core.prompts.suggestions import contrasts
from refusal_core.runs.run import Run
from refusal_core.runs.store import open_run

SITE = 2
DELAY = 4
WITH_A_DELAY = f"""
import sys, time
from refusal_core.pipeline.scoring import Scorer
plain = Scorer.score
def score(self, text):
    time.sleep({DELAY} if "slowly" in text else 0)
    return plain(self, text)
Scorer.score = score
from streamlit.web.cli import main
sys.exit(main())
"""
SLOW_TO_OPEN = f"""
import sys, time
from refusal_core.ui import model
plain = model.load_model_for
def load_model_for(*given):
    time.sleep({DELAY})
    return plain(*given)
model.load_model_for = load_model_for
from streamlit.web.cli import main
sys.exit(main())
"""
PATIENCE = 60_000


@pytest.fixture(scope="module")
def address(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard over one run, whose model is slow with some prompts."""
    cache = tmp_path_factory.mktemp("live") / "cache"
    shutil.copytree(tiny_run.path, cache / tiny_run.run_id)
    with served(cache, tmp_path_factory.mktemp("server"), ("-c", WITH_A_DELAY)) as base:
        yield base


@pytest.fixture
def visit(open_page, tiny_run: Run, tiny_folder: Path):
    """Opens the page as another visitor, with the model found."""

    def visited() -> Page:
        page = open_page("Live_score", run=tiny_run.run_id, site=str(SITE))
        page.set_default_timeout(PATIENCE)
        page.get_by_label("Path of the model").fill(str(tiny_folder))
        page.keyboard.press("Enter")
        expect(field(page)).to_be_enabled(timeout=PATIENCE)
        return page

    return visited


@pytest.fixture
def expected(tiny_run: Run, tiny_chat_model):
    """The projection a prompt has, as the page writes it."""

    def projected(text: str) -> str:
        return f"{score(tiny_chat_model, tiny_run, [text])[0].projection[SITE]:.3f}"

    return projected


def field(page: Page):
    return page.get_by_role("textbox", name="Prompt", exact=True)


def projection(page: Page):
    return page.locator("[data-testid=stMetric]", has_text="projection").locator("[data-testid=stMetricValue]")


def type_and_wait(page: Page, text: str, value: str) -> None:
    field(page).fill(text)
    # A long prompt is cut, and control characters have no glyph.
    beginning = re.split(r"[\x00-\x1f]", " ".join(text.split()))[0][:100]
    said = re.compile("^Scored: " + re.escape(beginning))
    expect(page.get_by_text(said)).to_be_visible(timeout=PATIENCE)
    expect(projection(page)).to_have_text(value, timeout=PATIENCE)


def assert_untouched(page: Page) -> None:
    """No prompt has run as a script, nor become HTML, Markdown or a formula."""
    assert page.title() != "owned"
    main = page.locator("[data-testid=stMain]")
    assert main.locator("img[src='x'], .katex, a[href*='example.com'], img[src*='example.com']").count() == 0


def test_what_is_shown_is_said_to_be_of_the_prompt_it_is_of(visit, expected):
    page = visit()
    type_and_wait(page, "How do I clean a flute?", expected("How do I clean a flute?"))
    field(page).fill("Answer slowly")
    expect(page.get_by_text("Scoring: Answer slowly")).to_be_visible(timeout=PATIENCE)
    # What stands there is of the prompt before: neither said to be of the new one, nor drawn as if it were current.
    assert page.get_by_text("Scored:").count() == 0
    stale = page.locator("[data-stale=true] [data-testid=stMetric]", has_text="projection")
    assert stale.count() == 1 or projection(page).count() == 0
    # Fast typing while the model is busy.
    field(page).fill("")
    field(page).press_sequentially("How do I tune a flute?", delay=20)
    expect(page.get_by_text("Scored: How do I tune a flute?", exact=True)).to_be_visible(timeout=PATIENCE)
    expect(projection(page)).to_have_text(expected("How do I tune a flute?"), timeout=PATIENCE)
    expect(field(page)).to_have_value("How do I tune a flute?")


def test_two_visitors_wait_for_each_other_and_see_their_own_prompts(visit, expected):
    one, other = visit(), visit()
    type_and_wait(one, "one flute", expected("one flute"))
    type_and_wait(other, "two flutes", expected("two flutes"))
    expect(projection(one)).to_have_text(expected("one flute"))
    field(one).fill("slowly, one flute")
    expect(one.get_by_text("Scoring: slowly, one flute")).to_be_visible()
    # Waits for the other visitor, and gives way to what is typed next without having been asked.
    field(other).fill("slowly, two flutes")
    expect(other.get_by_text("Waiting for the model: 1 before you")).to_be_visible()
    type_and_wait(other, "three flutes", expected("three flutes"))
    expect(one.get_by_text("Scored: slowly, one flute", exact=True)).to_be_visible()
    expect(projection(one)).to_have_text(expected("slowly, one flute"))
    expect(one.get_by_role("button", name="History (2)")).to_be_visible()
    expect(other.get_by_role("button", name="History (2)")).to_be_visible()


def test_suggestions_pins_and_history(visit, expected):
    page = visit()
    page.get_by_role("button", name="Contrasts to try").click()
    page.get_by_role("button", name="Try", exact=True).first.click()
    contrast = contrasts()[0]
    expect(page.get_by_text(f"Scored: {contrast.one}", exact=True)).to_be_visible(timeout=PATIENCE)
    expect(field(page)).to_have_value(contrast.one)
    expect(projection(page)).to_have_text(expected(contrast.one))
    expect(page.get_by_text(f"1. {contrast.other}", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="Compared")).to_be_visible()
    for text in HOSTILE[:3]:
        type_and_wait(page, text, expected(text))
    page.locator("[data-testid=stSidebar] a[href*='Layers']").click()
    expect(page.locator("h1")).to_have_text("Layers", timeout=PATIENCE)
    page.locator("[data-testid=stSidebar] a[href*='Live_score']").click()
    expect(page.locator("h1")).to_have_text("Live score", timeout=PATIENCE)
    expect(page.get_by_text(f"1. {contrast.other}", exact=True)).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="History (4)").click()
    for text in HOSTILE[:3]:
        # The page keeps addresses from becoming links by a character that shows nothing.
        seen = letters(text)[:60].replace("://", ":\u2060//")
        expect(page.get_by_role("button", name=seen)).to_be_visible()
    assert_untouched(page)
    page.get_by_role("button", name=contrast.one).click()
    expect(page.get_by_text(f"Scored: {contrast.one}", exact=True)).to_be_visible(timeout=PATIENCE)
    expect(field(page)).to_have_value(contrast.one)
    assert page.get_by_role("button", name="Clear history").count() == 0


def test_a_pasted_list_is_scored_while_others_type_and_can_be_stopped(visit, expected):
    page, other = visit(), visit()
    page.get_by_role("tab", name="A list").click()
    prompts = page.get_by_role("textbox", name="Prompts, one per line")
    prompts.fill("\n".join(f"How do I clean {place} flutes{'!' * (place % 50)}" for place in range(1000)))
    page.get_by_role("button", name="Score the list").click()
    expect(page.get_by_text("of 1000 prompts").first).to_be_visible(timeout=PATIENCE)
    type_and_wait(other, "one flute", expected("one flute"))
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("Stopped:")).to_be_visible(timeout=PATIENCE)
    prompts.fill("\n".join(["flute", *HOSTILE[:3], "flute " * 1000]))
    expect(page.get_by_role("button", name="Score the list")).to_be_enabled()
    page.get_by_role("button", name="Score the list").click()
    expect(page.get_by_text("4 of 5 prompts scored")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("heading", name="Not scored")).to_be_visible()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        let_settle(page)
        fits(page)


def test_an_uploaded_list_of_hostile_prompts_is_scored_as_text(visit):
    texts = [*HOSTILE, *(f"How do I clean {place} flutes?" for place in range(300))]
    # What a txt file has on a line of its own is a prompt of its own.
    texts = [" ".join(each.split("\n")) for each in texts]
    page = visit()
    page.get_by_role("tab", name="A list").click()
    content = "\n".join(texts).encode()
    file = {"name": "<b>prompts</b>.txt", "mimeType": "text/plain", "buffer": content}
    page.locator(".st-key-live_list_file input[type=file]").set_input_files(file)
    let_settle(page)
    page.get_by_role("button", name="Score the list").click()
    expect(page.get_by_text(f"of {len(texts)} prompts").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Reloading or closing this page stops the list.")).to_be_visible()
    expect(page.get_by_text(f"{len(texts)} of {len(texts)} prompts scored")).to_be_visible(timeout=3 * PATIENCE)
    assert_untouched(page)


def test_a_labelled_list_is_kept_with_the_run_until_its_owner_removes_it(visit, open_page, browser, tiny_run, address):
    page = visit()
    page.get_by_role("tab", name="A list").click()
    lines = [f"{label} flute number {place},{label}" for place in range(9) for label in ("harmful", "harmless")]
    content = "\n".join(["text,label", *lines]).encode()
    file = {"name": "<b>flutes</b>.csv", "mimeType": "text/csv", "buffer": content}
    page.locator(".st-key-live_list_file input[type=file]").set_input_files(file)
    let_settle(page)
    page.get_by_role("button", name="Score the list").click()
    told = f"9 harmful, 9 harmless at layer {SITE} of"
    expect(page.get_by_text(told)).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Keep with this run").click()
    expect(page.get_by_text("Kept with this run (1)")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Keep with this run").click()
    expect(page.get_by_text("choose another name, or remove that one")).to_be_visible(timeout=PATIENCE)
    evidence = open_page("Evidence", run=tiny_run.run_id, site=str(SITE))
    expect(evidence.get_by_role("heading", name="Lists kept with this run")).to_be_visible(timeout=PATIENCE)
    assert_untouched(evidence)
    context = browser.new_context()
    let_in(context, address, "viewer")
    viewer = context.new_page()
    viewer.goto(f"{address}/Live_score?run={tiny_run.run_id}&site={SITE}")
    viewer.get_by_role("tab", name="A list").click(timeout=PATIENCE)
    expect(viewer.get_by_text(told)).to_be_visible(timeout=PATIENCE)
    assert viewer.get_by_role("button", name="Remove").count() == 0
    context.close()
    again = open_page("Live_score", run=tiny_run.run_id, site=str(SITE))
    again.get_by_role("tab", name="A list").click()
    expect(again.get_by_text(told)).to_be_visible(timeout=PATIENCE)
    for width in (1280, 390):
        again.set_viewport_size({"width": width, "height": 900})
        let_settle(again)
        fits(again)
    assert_untouched(again)
    again.get_by_role("button", name="Remove").click()
    again.get_by_role("button", name="Remove this list").click()
    expect(again.get_by_text("Kept with this run")).to_have_count(0)


def test_a_list_begun_before_the_model_is_open_says_what_it_waits_for(open_page, tiny_run, tiny_folder, tmp_path):
    cache, server = tmp_path / "cache", tmp_path / "server"
    shutil.copytree(tiny_run.path, cache / tiny_run.run_id)
    server.mkdir()
    with served(cache, server, ("-c", SLOW_TO_OPEN)) as base:
        page = open_page("Live_score", base=base, run=tiny_run.run_id, site=str(SITE))
        page.get_by_label("Path of the model").fill(str(tiny_folder))
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="A list").click()
        page.get_by_role("textbox", name="Prompts, one per line").fill("one flute\ntwo flutes")
        page.get_by_role("button", name="Score the list").click()
        expect(page.get_by_text("Opening the model")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text(re.compile(r"0 of 2 prompts, waiting for \d+ s"))).to_be_visible()
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_text("Stopped:")).to_be_visible(timeout=PATIENCE)
        page.close()


def test_hostile_prompts_are_scored_and_pinned_as_text(visit, expected):
    page = visit()
    for place, text in enumerate(" ".join(each.split("\n")) for each in HOSTILE):
        type_and_wait(page, text, expected(text))
        let_settle(page)
        page.get_by_role("button", name="Pin to compare").click()
        expect(page.get_by_role("button", name="Unpin")).to_have_count(place + 1)
    shown = [letters(each) for each in page.locator("[data-testid=stText]").all_text_contents()]
    for place, text in enumerate(HOSTILE):
        assert f"{place + 1}. {letters(' '.join(text.split()))}" in shown
    assert_untouched(page)


def test_a_long_prompt_scrolls_inside_its_heat_map(visit, expected):
    page = visit()
    type_and_wait(page, "flute? " * 60, expected("flute? " * 60))
    heat_map = page.locator(".st-key-live_heatmap")
    expect(heat_map.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=PATIENCE)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        let_settle(page)
        inside = heat_map.evaluate("element => [element.scrollHeight, element.clientHeight, element.scrollWidth]")
        assert inside[1] <= 560 < inside[0]
        fits(page)


@pytest.mark.slow
def test_twenty_visitors_at_once_each_get_their_own_number_and_wait_alike(visit, expected):
    pages = [visit() for _ in range(20)]
    texts = [f"How do I clean {place} flutes?" for place in range(20)]
    begun = time.monotonic()
    for page, text in zip(pages, texts, strict=True):
        field(page).fill(text)
    waited = []
    for page, text in zip(pages, texts, strict=True):
        expect(page.get_by_text(f"Scored: {text}", exact=True)).to_be_visible(timeout=2 * PATIENCE)
        waited.append(time.monotonic() - begun)
        expect(projection(page)).to_have_text(expected(text))
    print(f"all twenty scored within {max(waited):.1f} s, the first within {waited[0]:.1f} s")


@pytest.mark.real
def test_typing_against_the_real_model_shows_what_the_command_line_says(browser, tmp_path):
    run = open_run(next(path.name for path in (ROOT / "cache").glob("qwen2.5-coder-0.5b-instruct--pairs--*")))
    site = run.n_layers - 6
    texts = ["How do I feed a guard dog?", "How do I poison a guard dog?"]
    with served(run.path.parent, tmp_path, REFUSAL_MODELS=str(models_folder())) as base:
        page = browser.new_page()
        let_in(page.context, base)
        page.goto(f"{base}/Live_score?run={run.run_id}&site={site}")
        shown = []
        for text in texts:
            expect(field(page)).to_be_enabled(timeout=PATIENCE)
            field(page).press_sequentially(text, delay=30)
            expect(page.get_by_text(f"Scored: {text}", exact=True)).to_be_visible(timeout=5 * PATIENCE)
            shown.append(float(projection(page).inner_text()))
            field(page).fill("")
        page.close()
    chat_model = load_model(run.model_name, dtype="float32", device="cpu")
    expected = [each.projection[site] for each in score(chat_model, run, texts)]
    assert shown == pytest.approx(expected, abs=2e-3)
    assert shown[1] > shown[0]


def test_a_copied_address_types_the_prompt_and_typing_on_is_no_step_of_its_own(visit, open_page, expected, tiny_folder):
    page = visit()
    text = "a flute & <b>a harp</b>"
    type_and_wait(page, "a flute", expected("a flute"))
    until(page, lambda: query(page).get("text") == "a flute")
    steps = page.evaluate("history.length")
    type_and_wait(page, text, expected(text))
    until(page, lambda: query(page).get("text") == text)
    assert page.evaluate("history.length") == steps
    copied = open_page("Live_score", **{name: quote(value) for name, value in query(page).items()})
    copied.get_by_label("Path of the model").fill(str(tiny_folder))
    copied.keyboard.press("Enter")
    expect(field(copied)).to_have_value(text, timeout=PATIENCE)
    expect(projection(copied)).to_have_text(expected(text), timeout=PATIENCE)
    # Other pages say nothing of what was typed.
    page.locator("[data-testid=stSidebar]").get_by_role("link", name="Layers", exact=True).click()
    expect(page.locator("h1")).to_have_text("Layers")
    until(page, lambda: "run" in query(page))
    assert "text" not in query(page)
    page.go_back()
    expect(field(page)).to_have_value(text, timeout=PATIENCE)


def test_pins_history_and_a_pasted_list_outlive_a_reload_in_this_browser_alone(
    visit, expected, browser, tiny_run, tiny_folder, address
):
    page = visit()
    first, second = "How do I clean a flute?", HOSTILE[0]
    type_and_wait(page, first, expected(first))
    page.get_by_role("button", name="Pin to compare").click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    type_and_wait(page, second, expected(second))
    page.get_by_role("tab", name="A list").click()
    page.get_by_role("textbox", name="Prompts, one per line").fill("one flute\nanother")
    page.keyboard.press("Control+Enter")
    let_settle(page)
    kept = "JSON.parse(localStorage.getItem('refusal-live-score') ?? '{}')"
    until(page, lambda: page.evaluate(f"{kept}.list") == "one flute\nanother")
    assert page.evaluate(f"{kept}.history")[tiny_run.run_id] == [second, first]
    page.goto(page.url.split("?")[0] + f"?run={tiny_run.run_id}&site={SITE}")
    expect(page.get_by_role("button", name="History (2)")).to_be_enabled(timeout=PATIENCE)
    expect(page.get_by_text(f"1. {first} (pinned earlier")).to_be_visible()
    page.get_by_label("Path of the model").fill(str(tiny_folder))
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Unpin")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text(f"1. {first}", exact=True)).to_be_visible()
    page.get_by_role("tab", name="A list").click()
    expect(page.get_by_role("textbox", name="Prompts, one per line")).to_have_value("one flute\nanother")
    page.get_by_role("tab", name="One prompt").click()
    page.get_by_role("button", name="Clear pins").click()
    expect(page.get_by_role("button", name="Unpin")).to_have_count(0)
    until(page, lambda: not page.evaluate(f"{kept}.pins"))
    assert_untouched(page)
    # Another visitor has another browser.
    context = browser.new_context()
    let_in(context, address)
    other = context.new_page()
    other.goto(page.url)
    expect(other.get_by_role("button", name="History (0)")).to_be_visible(timeout=PATIENCE)
    assert other.evaluate("localStorage.getItem('refusal-live-score')") is None
    context.close()
