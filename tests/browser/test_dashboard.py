"""The dashboard as a whole, driven as a visitor drives it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from driving import TITLES, assert_accessible, fits, is_read, let_settle, letters, query, until
from playwright.sync_api import expect
from synthetic import HOSTILE, N_LAYERS
from synthetic import RUN as SYNTHETIC

from refusal_core.annotations import raters
from refusal_core.models.opening import load_model
from refusal_core.pipeline.scoring import score
from refusal_core.runs.store import open_run

# The shipped run with most measurements, which lacks interventions alone.
SHIPPED = "qwen2.5-coder-0.5b-instruct--pairs--256x256--dbe230db--float32"
PARTS = {"Behaviour": ("Along the reply", "along_replies"), "Subspace": ("Blocks and words", "attribution_parts")}
WITH_INTERVENTIONS = "qwen2.5-coder-1.5b-instruct--pairs--256x256--06ca610e--float32"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", TITLES)
def test_every_page_fits_and_is_accessible_on_a_desk_and_a_phone(open_page, shipped_address, pictures, path, theme):
    page = open_page(path, theme, shipped_address, run=WITH_INTERVENTIONS if path == "Causality" else SHIPPED)
    if path == "":
        expect(page.get_by_role("row")).to_have_count(6, timeout=60_000)
    elif path not in ("Live_score", "Ratings", "Rate", "Runs", "Glossary"):
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
    for width in (1920, 1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        let_settle(page)
        fits(page)
        if width < 1920:
            assert_accessible(page)
            page.screenshot(path=pictures / f"{path.lower() or 'home'}-{theme}-{width}.png")
    cut = page.locator("[data-testid=stButtonGroup] > [role]").evaluate_all(
        "groups => groups.filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.innerText)"
    )
    assert cut == []
    assert page.locator("[data-testid=stException]").count() == 0
    if path in PARTS:
        page.set_viewport_size({"width": 1280, "height": 900})
        part, key = PARTS[path]
        page.get_by_text(part, exact=True).click()
        expect(page.locator(f".st-key-{key} .js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
        let_settle(page)
        fits(page)
        assert_accessible(page)
        page.screenshot(path=pictures / f"{path.lower()}-part-{theme}-1280.png", full_page=True)
        assert page.locator("[data-testid=stException]").count() == 0
    dark = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert dark == ("rgb(20, 25, 26)" if theme == "dark" else "rgb(255, 255, 255)")


def test_the_sidebar_leads_to_every_page(open_page):
    page = open_page("", run=SYNTHETIC)
    for path, title in list(TITLES.items())[1:]:
        page.locator(f"[data-testid=stSidebar] a[href*='{path}']").click()
        expect(page.locator("h1")).to_have_text(title)
        let_settle(page)
        expect(page.locator("[data-testid=stException]")).to_have_count(0)


def test_the_glossary_is_three_screens_high_at_most(open_page):
    page = open_page("Glossary")
    page.set_viewport_size({"width": 1280, "height": 800})
    let_settle(page)
    assert page.locator("[data-testid=stMain]").evaluate("element => element.scrollHeight") <= 3 * 800


def test_a_question_s_number_follows_the_layer(open_page):
    page = open_page("Evidence", run=SYNTHETIC, site="1")
    expect(page.get_by_text(re.compile(rf"At layer 1 of {N_LAYERS} the labels lie")).first).to_be_visible()
    page.get_by_label("Layer", exact=True).fill("3")
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile(rf"At layer 3 of {N_LAYERS} the labels lie")).first).to_be_visible()


def test_a_dragged_band_fills_the_table_and_its_address_opens_the_same_view(open_page, cache):
    page = open_page("Outliers", run=SYNTHETIC, site="2")
    plot = page.locator(".js-plotly-plot .nsewdrag").first
    expect(plot).to_be_visible(timeout=20_000)
    let_settle(page)
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    until(page, lambda: "band" in query(page))
    let_settle(page)
    low, high = map(float, query(page)["band"].split(".."))
    run = open_run(SYNTHETIC, cache)
    values = run.projections[run.rows(), 2]
    inside = int(((values >= low) & (values <= high)).sum())
    heading = page.get_by_role("heading", name="between").inner_text()
    assert sum(map(int, re.findall(r"(\d+) harm", heading))) == inside
    again = open_page("Outliers", **query(page))
    expect(again.get_by_role("heading", name="between")).to_have_text(heading)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as csv", exact=True).click()
    assert len(Path(download.value.path()).read_text().splitlines()) > inside


def test_a_click_on_a_point_opens_its_prompt(open_page, scored_run):
    page = open_page("Behaviour", run=scored_run.run_id, site="2")
    point = page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").last.locator(".point").nth(3)
    expect(point).to_be_visible(timeout=20_000)
    point.scroll_into_view_if_needed()
    let_settle(page)
    point.click(force=True)
    expect(page.get_by_role("heading", name="The chosen prompt")).to_be_visible()
    chosen = scored_run.prompts.set_index("prompt_id")["text"][query(page)["prompt"]]
    is_read(page, chosen)
    expect(page.get_by_text("The reply opens:")).to_be_visible()


def test_prompts_rated_by_key_and_by_mouse_are_kept_over_a_reload(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    rows = raters.rating_order(run, "Ana")
    texts = [" ".join(letters(run.prompts["text"][row]).split()) for row in rows]
    page = open_page("Rate", run=SYNTHETIC)
    prompt = page.locator("[data-testid=stMain] [data-testid=stText]").first

    def begin() -> None:
        page.get_by_label("Your name, or a code").fill("Ana")
        page.locator(".st-key-rate_size").get_by_text("all prompts").click()
        page.get_by_role("button", name="Begin").click()

    def is_shown(place: int) -> None:
        expect(page.get_by_text(f"{place} of {len(texts)} rated")).to_be_visible(timeout=20_000)
        expect(page.locator(f".st-key-rate_7_{run.prompts['prompt_id'][rows[place]]} button")).to_be_visible()
        until(page, lambda: " ".join(letters(prompt.text_content()).split()) == texts[place])
        # A key that is pressed while the page is being drawn may find no button to press.
        let_settle(page)

    begin()
    is_shown(0)
    page.keyboard.press("7")
    is_shown(1)
    page.get_by_role("button", name="slightly").click()
    is_shown(2)
    page.keyboard.press("1")
    is_shown(3)
    page.reload()
    begin()
    is_shown(3)
    assert raters.load_ratings_by("Ana", cache).table["rating"].tolist() == [7, 3, 1]
    page.keyboard.press("b")
    expect(page.get_by_role("button", name="Leave it")).to_be_visible()
    assert page.title() != "owned"
    assert page.locator("[data-testid=stMain] img[src='x'], [data-testid=stMain] .katex").count() == 0


def test_hostile_prompts_are_text(open_page, cache):
    run = open_run(SYNTHETIC, cache)
    page = open_page("Outliers", run=SYNTHETIC)
    for place, text in enumerate(HOSTILE):
        page.goto(f"{page.url.split('?')[0]}?run={SYNTHETIC}&prompt={run.prompts['prompt_id'][2 * place]}")
        is_read(page, text)
        let_settle(page)
        assert page.title() != "owned"
        assert page.locator("[data-testid=stMain] img[src='x'], [data-testid=stMain] .katex").count() == 0


def test_typing_scores_with_the_run_s_model_and_belongs_to_what_is_typed(open_page, scored_run, tiny_folder):
    page = open_page("Live_score", run=scored_run.run_id, site="2")
    page.get_by_label("Path of the model").fill(str(tiny_folder))
    page.keyboard.press("Enter")
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_enabled(timeout=20_000)
    chat_model = load_model(tiny_folder, dtype="float32", device="cpu")
    for text in ("How do I clean a flute?", HOSTILE[0], HOSTILE[3].replace("\n", " ")):
        expected = score(chat_model, scored_run, [text])[0]
        prompt.fill("")
        prompt.press_sequentially(text, delay=5)
        projection = page.locator("[data-testid=stMetric]", has_text="projection")
        expect(projection).to_contain_text(f"{expected.projection[2]:.3f}", timeout=20_000)
        expect(page.get_by_text(f"first token: {expected.first_token!r}")).to_be_visible()
    assert page.title() != "owned"
    page.get_by_role("button", name="Pin to compare").click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    prompt.fill("Tell me about flutes")
    expect(page.get_by_role("heading", name="Compared")).to_be_visible(timeout=20_000)


def test_a_prompt_over_the_limit_is_refused_in_a_sentence(open_page, scored_run, tiny_folder):
    page = open_page("Live_score", run=scored_run.run_id)
    page.get_by_label("Path of the model").fill(str(tiny_folder))
    page.keyboard.press("Enter")
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_enabled(timeout=20_000)
    prompt.fill("flute " * 17_000)
    expect(page.get_by_text("This prompt was not scored.")).to_be_visible(timeout=30_000)
    prompt.fill("flute")
    expect(page.locator("[data-testid=stMetric]", has_text="projection")).to_be_visible(timeout=20_000)


def test_an_edit_changes_what_the_model_would_say(open_page, planted_run, planted_folder):
    page = open_page("Causality", run=planted_run.run_id, site="3")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=20_000)
    expect(page.get_by_role("heading", name="Ablated at layer")).to_be_visible()
    page.get_by_label("Path of the model").fill(str(planted_folder))
    page.get_by_label("Path of the model").press("Enter")
    page.get_by_label("Prompt", exact=True).fill("bdgjkvwxzbdgjkvwxz?")
    page.get_by_label("Prompt", exact=True).press("Enter")
    openings = page.locator("[data-testid=stText]")
    expect(openings.nth(0)).to_have_text("Sure", timeout=30_000)
    expect(openings.nth(1)).to_have_text("I cannot")
    page.get_by_role("radio", name="ablate").click()
    expect(openings.nth(1)).to_have_text("Sure")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        let_settle(page)
        fits(page)
