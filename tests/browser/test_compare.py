"""Runs side by side: chosen by hand, sent as an address, read prompt by prompt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import is_read, let_settle, query, until
from playwright.sync_api import expect
from synthetic import HOSTILE, RUN, SECOND_RUN, save_second_run

from refusal_core.exploration import comparison
from refusal_core.runs.store import open_run

DISPUTED = "Where they disagree"


@pytest.fixture
def second(cache: Path) -> Iterator[str]:
    """Another run on the synthetic run's prompts, in the cache for as long as the test."""
    yield save_second_run(cache)
    shutil.rmtree(cache / SECOND_RUN)


def test_runs_are_chosen_and_the_address_opens_the_same_comparison(open_page, second):
    page = open_page("Compare", run=RUN, others="")
    expect(page.get_by_text("Choose at least one run")).to_be_visible()
    page.get_by_role("combobox", name="Compare with").click()
    page.get_by_role("option", name="other").click()
    # An open list hides the rest of the page from assistive technology, and so from roles.
    page.keyboard.press("Escape")
    expect(page.get_by_text("is of a base model")).to_be_visible(timeout=20_000)
    expect(page.locator(".st-key-compare_over_depth .legendtext").nth(1)).to_contain_text("other", timeout=20_000)
    page.get_by_role("radio", name="Rank of the prompts").click()
    page.get_by_role("radio", name="probe-pairs").click()
    said = page.get_by_text("shared prompts of probe-pairs")
    expect(said).to_be_visible()
    until(page, lambda: query(page).get("prompts") == "probe-pairs")
    assert query(page)["others"] == second
    again = open_page("Compare", **query(page))
    expect(again.get_by_text("shared prompts of probe-pairs")).to_have_text(said.inner_text())


def test_a_disputed_row_opens_its_prompt_in_both_runs(open_page, second, cache):
    shared = comparison.shared_prompts(open_run(RUN, cache), open_run(second, cache))
    most = comparison.rank_differences(shared, 5, 2).iloc[0]
    page = open_page("Compare", run=RUN, others=second, site="5", part=DISPUTED)
    table = page.locator(".st-key-compare_disagreements canvas").first
    expect(table).to_be_visible(timeout=30_000)
    table.scroll_into_view_if_needed()
    let_settle(page)
    # The grid's own scroller lies over its canvas.
    table.click(position={"x": 16, "y": 52}, force=True)
    until(page, lambda: query(page).get("prompt") == most["prompt_id"])
    expect(page.get_by_role("heading", name="The chosen prompt")).to_be_visible()
    is_read(page, most["text"])
    expect(page.locator(".st-key-compare_courses .legendtext")).to_have_count(2, timeout=20_000)
    # At another layer another prompt stands in that row; what is read stays what it was.
    other = comparison.rank_differences(shared, 4, comparison.site_in_other(shared.run, 4, shared.other)).iloc[0]
    assert other["prompt_id"] != most["prompt_id"]
    field = page.get_by_label("Layer", exact=True).and_(page.locator("input"))
    field.fill("4")
    field.press("Enter")
    until(page, lambda: query(page)["site"] == "4")
    let_settle(page)
    assert query(page)["prompt"] == most["prompt_id"]
    is_read(page, most["text"])


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_hostile_prompts_are_text(open_page, second, cache, place):
    prompt = open_run(RUN, cache).prompts["prompt_id"][2 * place]
    page = open_page("Compare", run=RUN, others=second, site="5", prompt=prompt, part=DISPUTED)
    expect(page.get_by_role("heading", name="The chosen prompt")).to_be_visible()
    is_read(page, HOSTILE[place])
    expect(page.locator(".st-key-compare_disagreements canvas").first).to_be_visible()
    assert page.title() != "owned"
    assert page.locator("[data-testid=stMain] img[src='x'], [data-testid=stMain] .katex").count() == 0
