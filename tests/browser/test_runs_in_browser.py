"""The Runs page as a visitor uses it: a run made from start to deletion, and runs sent and taken in."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import assert_accessible, fits, let_settle, letters, query, served, until
from playwright.sync_api import Page, expect
from synthetic import HOSTILE
from synthetic import RUN as SYNTHETIC

from refusal_core.access.guard import LARGEST_OF_VIEWER
from refusal_core.runs import store
from refusal_core.sharing.archives import pack_run
from refusal_core.ui.jobs import Command

SENT = "sent--pairs--16x16--00000000--float32"
PATIENCE = 180_000
TITLE = "10. Nine <b>pairs</b>: 3 >= 2 -> yes -- no"


@pytest.fixture(scope="module")
def sent(cache) -> dict[str, bytes]:
    """The synthetic run under another name, packed."""
    packed = io.BytesIO()
    pack_run(SYNTHETIC, packed, cache)
    with zipfile.ZipFile(packed) as archive:
        files = {name.replace(SYNTHETIC, SENT): archive.read(name) for name in archive.namelist()}
    # The manifests of later measurements name their run too.
    manifests = {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}
    return files | {name: json.dumps(manifest | {"run_id": SENT}).encode() for name, manifest in manifests.items()}


def hand_in(page: Page, files: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    page.get_by_role("tab", name="Import").click()
    chooser = page.locator(".st-key-runs_import input[type=file]")
    chooser.set_input_files({"name": "sent.zip", "mimeType": "application/zip", "buffer": packed.getvalue()})
    button = page.get_by_role("button", name="Import", exact=True)
    expect(button).to_be_visible(timeout=PATIENCE)
    let_settle(page)
    button.click()


@pytest.fixture
def jobs_of_every_kind(cache: Path) -> Iterator[list[str]]:
    """One job of each state in the cache, with hostile titles and words; their titles."""
    folder = cache / ".jobs"
    folder.mkdir(exist_ok=True)
    running, titles = [], []
    for place, state in enumerate(("running", "failed", "cancelled", "done")):
        command = Command(f"{state}: {HOSTILE[place]}", "run", ("--model", state))
        progress = folder / f"{command.name}.progress"
        process = subprocess.Popen(
            [sys.executable, "-c", "input()", f"--progress-file={progress}"], stdin=subprocess.PIPE
        )
        running.append(process)
        if state != "running":
            process.kill()
            process.communicate()
        described = {
            "stage": "extracting (prompts)",
            "done": 120,
            "total": 608,
            "rate": 12.5,
            "clock": time.monotonic(),
        }
        message = HOSTILE[0] if state == "failed" else ""
        progress.write_text(json.dumps(described | {"state": state, "message": message}))
        record = {
            "title": command.title,
            "verb": command.verb,
            "arguments": command.arguments,
            "pid": process.pid,
            "began": time.time() - 95,
            "clock": time.monotonic() - 95,
        }
        (folder / f"{command.name}.json").write_text(json.dumps(record | {"cancelled": state == "cancelled"}))
        (folder / f"{command.name}.log").write_text("\n".join(HOSTILE))
        titles.append(command.title)
    yield titles
    for process in running:
        process.kill()
        process.communicate()
    shutil.rmtree(folder)


def pick(page: Page, key: str, option: str | re.Pattern) -> None:
    page.locator(f".st-key-{key} input").click()
    page.get_by_role("option", name=option).click()
    let_settle(page)


def test_a_run_is_started_watched_cancelled_gone_on_with_opened_renamed_and_deleted(open_page, cache, tiny_folder):
    before = {summary.run_id for summary in store.list_runs(cache)[0]}
    page = open_page("Runs")
    page.get_by_role("tab", name="Start a run").click()
    pick(page, "runs_model", "another model")
    path = page.get_by_label("Hub id, folder or GGUF file", exact=True)
    path.fill("no-such-model")
    path.press("Enter")
    let_settle(page)
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("There is no model named 'no-such-model'")).to_be_visible(timeout=PATIENCE)
    path.fill(str(tiny_folder))
    path.press("Enter")
    page.get_by_text("Options", exact=True).click()
    limit = page.get_by_label("Prompts per label, at most", exact=True)
    limit.fill("9")
    limit.press("Enter")
    let_settle(page)
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("9 harmful + 9 harmless prompts").first).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Start the run").click()
    expect(page.get_by_text("running for").first).to_be_visible(timeout=PATIENCE)

    # A closed tab changes nothing, and another visitor sees the same job; held, so that it is certain to be at work.
    page.close()
    record = max((cache / ".jobs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    os.kill(json.loads(record.read_text())["pid"], signal.SIGSTOP)
    page = open_page("Runs")
    expect(page.get_by_text("running for").first).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.get_by_text("started again, it continues there")).to_be_visible(timeout=PATIENCE)
    assert {summary.run_id for summary in store.list_runs(cache)[0]} == before

    # Other tests' jobs have ended before this one: its own is told by the button that opens the run it made.
    page.get_by_role("button", name="Continue").click()
    opens = page.locator("[class*=st-key-open_run-] button")
    expect(opens).to_be_visible(timeout=PATIENCE)
    (made,) = {summary.run_id for summary in store.list_runs(cache)[0]} - before
    opens.click()
    expect(page.locator("h1")).to_have_text("Refusal directions", timeout=PATIENCE)
    until(page, lambda: query(page).get("run") == made)

    page.locator("[data-testid=stSidebar]").get_by_role("link", name="Runs").click()
    expect(page.locator("h1")).to_have_text("Runs")
    expect(page.get_by_text(made).first).to_be_visible(timeout=PATIENCE)
    let_settle(page)
    page.get_by_role("button", name="Rename").click()
    title = page.get_by_label("Title", exact=True)
    title.fill(TITLE)
    title.press("Enter")
    page.get_by_role("button", name="Save title").click()
    heading = page.get_by_role("heading").filter(has_text="Nine").first
    expect(heading).to_be_visible(timeout=PATIENCE)
    until(page, lambda: letters(heading.evaluate("element => element.textContent")) == TITLE)
    assert store.run_titles(cache) == {made: TITLE}
    let_settle(page)
    page.get_by_role("button", name="Delete", exact=True).click()
    assert (cache / made).exists()
    page.get_by_role("button", name="Delete the run").click()
    deleted = page.locator("[data-testid=stAlert]").filter(has_text="Deleted")
    expect(deleted).to_be_visible(timeout=PATIENCE)
    assert letters(deleted.inner_text()).endswith(f"Deleted {TITLE}.")
    assert not (cache / made).exists()


def test_a_wrong_hash_is_refused_and_a_good_run_taken_in_and_opened(open_page, cache, sent):
    page = open_page("Runs")
    # Longer than what others than the owner may send.
    hand_in(page, sent | {f"{SENT}/prompts.parquet": os.urandom(LARGEST_OF_VIEWER)})
    expect(page.get_by_text("its SHA-256 differs")).to_be_visible(timeout=PATIENCE)
    assert not (cache / SENT).exists()
    page = open_page("Runs")
    hand_in(page, sent)
    expect(page.get_by_text("Imported: all files")).to_be_visible(timeout=PATIENCE)
    try:
        page.locator(".st-key-open_imported button").click()
        expect(page.locator("h1")).to_have_text("Refusal directions", timeout=PATIENCE)
        until(page, lambda: query(page).get("run") == SENT)
    finally:
        store.delete_run(SENT, cache)


def test_what_is_downloaded_is_the_whole_run(open_page, cache):
    page = open_page("Runs", run=SYNTHETIC)
    with page.expect_download(timeout=PATIENCE) as download:
        page.get_by_role("button", name="Pack and download").click()
    with zipfile.ZipFile(download.value.path()) as packed:
        assert {name.partition("/")[2] for name in packed.namelist()} == {
            path.name for path in (cache / SYNTHETIC).iterdir()
        }


def test_a_job_that_ends_leaves_a_visitor_on_the_tab_that_was_chosen(open_page, jobs_of_every_kind):
    page = open_page("Runs")
    expect(page.get_by_text("running for").first).to_be_visible(timeout=PATIENCE)
    let_settle(page)
    page.get_by_role("tab", name="Import").click()
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.get_by_text("running for")).to_have_count(0, timeout=PATIENCE)
    let_settle(page)
    expect(page.get_by_role("tab", name="Import")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_jobs_of_every_kind_are_told_apart_and_their_words_are_text(open_page, pictures, jobs_of_every_kind, theme):
    page = open_page("Runs", theme)
    for said in ("extracting: 120 of 608 prompts", "failed after", "cancelled after", "done after", HOSTILE[0]):
        expect(page.get_by_text(said).first).to_be_visible(timeout=PATIENCE)
    shown = [
        # The page keeps addresses from becoming links by a character that shows nothing.
        " ".join(letters(each.replace("\u2060", "")).split())
        for each in page.locator("[data-testid=stMain] strong").all_text_contents()
    ]
    assert [title for title in jobs_of_every_kind if " ".join(letters(title).split()) not in shown] == []
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 1500})
        let_settle(page)
        fits(page)
        assert_accessible(page)
        page.screenshot(path=pictures / f"jobs-{theme}-{width}.png")
    assert page.title() != "owned"
    assert page.locator("[data-testid=stMain] img[src='x'], [data-testid=stMain] .katex").count() == 0


def test_a_job_goes_on_while_the_server_is_restarted(open_page, cache, tiny_folder, tmp_path):
    own = tmp_path / "cache"
    shutil.copytree(cache / SYNTHETIC, own / SYNTHETIC)
    with served(own, tmp_path) as base:
        page = open_page("Runs", base=base)
        page.get_by_role("tab", name="Start a run").click()
        pick(page, "runs_model", "another model")
        path = page.get_by_label("Hub id, folder or GGUF file", exact=True)
        path.fill(str(tiny_folder))
        path.press("Enter")
        let_settle(page)
        page.get_by_role("button", name="Check").click()
        page.get_by_role("button", name="Start the run").click(timeout=PATIENCE)
        expect(page.get_by_text("running for").first).to_be_visible(timeout=PATIENCE)
        page.close()
    (record,) = (own / ".jobs").glob("*.json")
    job = json.loads(record.read_text())["pid"]
    # Held, so that it is certain to be at work when the next server looks.
    os.kill(job, signal.SIGSTOP)
    (tmp_path / "again").mkdir()
    with served(own, tmp_path / "again") as base:
        page = open_page("Runs", base=base)
        expect(page.get_by_text("running for").first).to_be_visible(timeout=PATIENCE)
        os.kill(job, signal.SIGCONT)
        expect(page.get_by_text("done after")).to_be_visible(timeout=PATIENCE)
        page.locator("[class*=st-key-open_run-] button").click()
        expect(page.locator("h1")).to_have_text("Refusal directions", timeout=PATIENCE)
        # A page that still loads parts of itself would find the server gone.
        page.close()
    assert len(store.list_runs(own)[0]) == 2


def test_a_hostile_title_is_text(open_page, cache):
    title = "<b>a</b> **b** $c$ https://example.com www.example.com d@example.com"
    store.rename_run(SYNTHETIC, title, cache)
    try:
        page = open_page("Runs", run=SYNTHETIC)
        let_settle(page)
        heading = page.locator("[data-testid=stMain] h3").first
        until(page, lambda: heading.text_content().replace("\u2060", "") == title)
        assert page.locator("[data-testid=stMain] h3 :is(b, strong, .katex), a[href*='example.com']").count() == 0
    finally:
        store.rename_run(SYNTHETIC, "", cache)
