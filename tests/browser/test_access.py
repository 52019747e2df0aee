"""A server of the dashboard as others reach it: without the token, with a viewer's, started in other ways."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from driving import ROOT, TOKEN, let_in, let_settle, served
from playwright.sync_api import expect
from synthetic import RUN

from refusal_core.access.guard import cookie_name
from refusal_core.access.settings import Access


def handshake(base: str, **headers: str) -> int:
    """The status that a WebSocket is answered with: 101 where it is opened."""
    where = urlsplit(base)
    given = {
        "Host": where.netloc,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "streamlit",
    } | headers
    lines = ["GET /_stcore/stream HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    with socket.create_connection((where.hostname, where.port), timeout=20) as asked:
        asked.sendall("\r\n".join(lines).encode())
        return int(asked.recv(64).split()[1])


def test_a_second_browser_without_the_token_sees_nothing(browser, address):
    page = browser.new_context().new_page()
    for path in ("", "Runs", "Layers", "_stcore/metrics", "_stcore/host-config", "static/index.html"):
        answer = page.goto(f"{address}/{path}")
        assert answer.status in (401, 404)
        assert RUN not in page.content()
    page.goto(f"{address}/Runs?run={RUN}")
    page.get_by_label("Token").fill("a guess")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("not this server")).to_be_visible()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("h1")).to_have_text("Runs", timeout=60_000)
    assert TOKEN not in page.url
    assert f"run={RUN}" in page.url
    page.context.close()


def test_the_stream_is_opened_to_the_page_of_the_server_alone(address):
    cookie = f"{cookie_name(urlsplit(address).netloc, 'http')}={Access(TOKEN).cookie('owner')}"
    port = urlsplit(address).port
    assert handshake(address, Cookie=cookie, Origin=address) == 101
    assert handshake(address) == 403
    assert handshake(address, Origin=address) == 403
    assert handshake(address, Cookie=cookie, Host="evil.example", Origin="http://evil.example") == 403
    assert handshake(address, Cookie=cookie, Origin="http://evil.example") == 403
    assert handshake(address, Cookie=cookie, Origin=f"http://127.0.0.1:{port + 1}") == 403


def test_a_viewer_looks_and_scores_and_is_offered_nothing_that_changes(browser, address, scored_run):
    context = browser.new_context()
    let_in(context, address, "viewer")
    page = context.new_page()
    page.goto(f"{address}/Runs")
    expect(page.locator("h1")).to_have_text("Runs", timeout=60_000)
    expect(page.get_by_role("button", name="Verify")).to_be_visible()
    let_settle(page)
    for label in ("Delete", "Rename", "Start a run", "Import", "Measure"):
        assert page.get_by_role("button", name=label, exact=True).count() == 0
        assert page.get_by_role("tab", name=label).count() == 0
    page.goto(f"{address}/Outliers?run={scored_run.run_id}")
    expect(page.get_by_text("Marks are the owner's to change here.")).to_be_visible(timeout=60_000)
    page.goto(f"{address}/Rate?run={scored_run.run_id}")
    expect(page.get_by_text("which is the owner's to do")).to_be_visible(timeout=60_000)
    context.close()


def test_a_read_only_server_without_a_token_shows_and_changes_nothing(browser, cache, tmp_path):
    with served(cache, tmp_path, REFUSAL_TOKEN="", REFUSAL_NO_TOKEN="1", REFUSAL_READ_ONLY="1") as base:
        page = browser.new_context().new_page()
        page.goto(f"{base}/Runs")
        expect(page.get_by_role("button", name="Verify")).to_be_visible(timeout=60_000)
        let_settle(page)
        assert page.get_by_role("button", name="Delete", exact=True).count() == 0
        page.context.close()


def started(*options: str, script: str = "app.py", **settings: str) -> subprocess.CompletedProcess[str]:
    """What a server that has to end by itself, or is ended after a while, says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", script, f"--server.port={port}", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REFUSAL_")} | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False)


def test_a_server_that_others_reach_is_not_started_without_a_token():
    ended = started("--server.address=0.0.0.0", REFUSAL_NO_TOKEN="1")
    assert ended.returncode != 0
    assert "without a token" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_page_that_is_served_by_itself_shows_nothing(browser, cache, tmp_path):
    """Streamlit serves any script; one that is not app.py has nothing before it."""
    program = "import sys; from streamlit.web.cli import main; sys.argv[2] = 'pages/10_Runs.py'; sys.exit(main())"
    with served(cache, tmp_path, ("-c", program)) as base:
        page = browser.new_context().new_page()
        page.goto(base)
        expect(page.get_by_text("started without its protection")).to_be_visible(timeout=60_000)
        assert RUN not in page.content()
        page.context.close()


def test_the_printed_address_opens_the_dashboard(cache, tmp_path):
    with served(cache, tmp_path, REFUSAL_TOKEN="") as base:
        printed = (tmp_path / "log").read_text()
        tokens = re.findall(rf"{re.escape(base)}/\?token=(\S+)", printed)
        assert len(tokens) == 2
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        for token in tokens:
            with opener.open(f"{base}/?token={token}") as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(base)
        refused.value.close()


FAILING = """
import sys
import streamlit as st
from refusal_core.ui import glossary

def fail():
    raise KeyError("secret of a file")

@st.fragment
def part():
    if st.button("part"):
        fail()

def show_glossary():
    st.button("function", on_click=fail)
    part()
    stop, again, page = [st.button(name) for name in ("stop", "again", "page")]
    if stop:
        st.stop()
    if again:
        st.rerun()
    if page:
        fail()
    st.text("the end of the page")

glossary.show_glossary = show_glossary
from streamlit.web.cli import main
sys.exit(main())
"""


def test_a_page_that_fails_is_a_sentence_with_a_reference_and_the_log_has_the_details(browser, cache, tmp_path):
    state = tmp_path / "state"
    with served(cache, tmp_path, ("-c", FAILING), fails=True, XDG_STATE_HOME=str(state)) as base:
        visitor = browser.new_context()
        let_in(visitor, base)
        page = visitor.new_page()
        page.goto(f"{base}/Glossary")
        expect(page.get_by_text("the end of the page")).to_be_visible(timeout=60_000)
        for button in ("stop", "again"):
            page.get_by_role("button", name=button).click()
            let_settle(page)
            assert page.get_by_text("failed").count() == 0
        for number, button in enumerate(("page", "part", "function"), start=1):
            page.get_by_role("button", name=button).click()
            told = page.get_by_text("The reference")
            expect(page.get_by_text("not foreseen (KeyError)")).to_be_visible()
            reference = re.search(r"reference ([0-9a-f]{8})", told.inner_text())[1]
            assert "secret" not in page.content()
            assert page.get_by_test_id("stException").count() == 0
            (log,) = state.rglob("errors.log")
            details = log.read_text().partition(f"reference {reference}\n")[2]
            assert "KeyError: 'secret of a file'" in details
            assert log.read_text().count(" reference ") == number
            page.reload()
            expect(page.get_by_text("the end of the page")).to_be_visible(timeout=60_000)
        visitor.close()
