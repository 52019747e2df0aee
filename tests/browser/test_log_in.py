"""People log in with a provider of OpenID Connect; nobody else reaches anything, and a guest only looks."""

from __future__ import annotations

import hashlib
import http.cookiejar
import json
import re
import shutil
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from driving import let_settle, served
from itsdangerous import URLSafeTimedSerializer
from playwright.sync_api import expect
from provider import CLIENT, Provider, provided, write_secrets
from synthetic import RUN
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from refusal_core.annotations import marks
from refusal_core.runs.store import open_run

OWNER, GUEST, STRANGER = "owner@lab.example", "guest@other.example", "somebody@evil.example"
PEOPLE = {"REFUSAL_TOKEN": "", "REFUSAL_OWNERS": f"{OWNER}, second@lab.example", "REFUSAL_VIEWERS": "@other.example"}


@pytest.fixture(scope="module")
def provider():
    with provided() as started:
        yield started


@pytest.fixture(scope="module")
def marked(synthetic_cache, tmp_path_factory):
    """A cache that is marked here alone."""
    return shutil.copytree(synthetic_cache, tmp_path_factory.mktemp("marked") / "cache")


@pytest.fixture(scope="module")
def here(provider, marked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    secrets = write_secrets(provider, folder)
    with served(marked, folder, fails=True, STREAMLIT_SECRETS_FILES=str(secrets), **PEOPLE) as base:
        yield base


class Visitor:
    """A browser that runs no scripts: it keeps cookies and follows where it is led."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """The status, the address that it ended at, and the page."""
        data = b"" if method in ("PUT", "POST") else None
        request = urllib.request.Request(f"{self.base}/{path}", data, headers, method=method)
        try:
            with self._opener.open(request, timeout=20) as answer:
                return answer.status, answer.url, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.url, refused.read().decode(errors="replace")

    def log_in(self, back: str = "") -> tuple[int, str, str]:
        return self.ask(f"auth/login?provider=default&back={back}")

    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value for cookie in self.jar}

    def stream(self, cookies: dict[str, str] | None = None):
        """The stream behind a page."""
        sent = "; ".join(f"{name}={value}" for name, value in (cookies or self.cookies()).items())
        return connect(
            f"ws{self.base.removeprefix('http')}/_stcore/stream",
            origin=self.base,
            subprotocols=["streamlit"],
            additional_headers={"Cookie": sent},
            open_timeout=20,
        )


def let_in(provider: Provider, base: str, email: str, **claims: object) -> Visitor:
    provider.be(email, **claims)
    visitor = Visitor(base)
    visitor.log_in()
    return visitor


REACHABLE = ("", "Runs", "Layers?run=x", "_stcore/host-config", "_stcore/metrics", "_stcore/stream", "media/x.png")
REACHABLE += (
    "static/index.html",
    "component/x/y.js",
    "_stcore/bidi-components/x/y.js",
    "app/static/x",
    "_stcore/agent",
)
REACHABLE += ("auth/login", "auth/login?provider=x", "auth/loginx", "auth", "/auth/login", "auth/../Runs", "Auth/Login")


def assert_outside(visitor: Visitor, cookies: dict[str, str] | None = None) -> None:
    """A visitor sees no page, no file and no stream."""
    sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}
    for path in REACHABLE:
        status, _, page = visitor.ask(path, **sent)
        assert status in (401, 403, 404), path
        assert RUN not in page
        assert "<script" not in page
    for method in ("PUT", "POST", "DELETE"):
        for path in ("_stcore/upload_file/a/b", "auth/login?provider=default", "oauth2callback"):
            assert visitor.ask(path, method, **sent)[0] in (401, 403), path
    with pytest.raises(InvalidStatus, match="403"):
        visitor.stream(cookies)


def test_a_stranger_reaches_the_way_in_and_nothing_else(here):
    stranger = Visitor(here)
    assert_outside(stranger)
    status, _, page = stranger.ask("Layers?run=%22%3E%3Cscript%3E")
    assert status == 401
    assert re.findall('href="([^"]*)"', page) == [
        "/auth/login?provider=default&amp;back=%2FLayers%3Frun%3D%2522%253E%253Cscript%253E"
    ]
    assert "<input" not in page
    # Nobody's return from a provider is anybody's.
    status, place, _ = stranger.ask("oauth2callback?code=x&state=y")
    assert (status, place) == (401, f"{here}/")
    status, _, page = stranger.ask("oauth2callback?error=%1b[2Jx&error_description=%3Cscript%3E")
    assert status == 401
    assert "script" not in page
    assert_outside(stranger)


def test_an_owner_and_a_guest_are_led_to_the_page_they_asked_for_and_may_look(provider, here):
    for email in (OWNER, GUEST, OWNER.upper(), "A.B+c@OTHER.example"):
        provider.be(email)
        visitor = Visitor(here)
        status, place, page = visitor.log_in("/Layers%3Frun%3Da%2526b%26site%3D3")
        assert (status, place) == (200, f"{here}/Layers?run=a%26b&site=3")
        assert "<script" in page
        with visitor.stream() as stream:
            assert stream.subprotocol == "streamlit"
    for elsewhere in ("//evil.example/", "/\\evil.example", "https://evil.example", "/%0d%0aa:b"):
        visitor = Visitor(here)
        assert urlsplit(visitor.log_in(elsewhere)[1]).netloc == urlsplit(here).netloc


@pytest.mark.parametrize(
    "claims",
    [
        {"email": STRANGER},
        {"email": "owner@lab.example.evil.example"},
        {"email": "owner@lab.example", "email_verified": False},
        {"email": "owner@lab.example", "email_verified": None},
        {"email": "second@lab.example\n"},
        {"email": "@other.example"},
        {"email": "other.example"},
        {"email": "gu\u00ebst@other.example"},
        {"email": ["owner@lab.example"]},
        {"email": None},
    ],
    ids=str,
)
def test_who_may_not_look_is_told_who_he_is_and_may_log_out(provider, here, claims):
    visitor = let_in(provider, here, **claims)
    assert_outside(visitor)
    status, _, page = visitor.ask("")
    assert status == 403
    assert "has not let you in" in page
    assert "/auth/logout" in page


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": ["somebody-else"], "azp": CLIENT},
        {"nonce": "another"},
        {"nonce": None},
        {"iss": "http://evil.example"},
        {"exp": 1},
        {"sub": None},
        {"forged": True},
        {"says": {"error": "access_denied"}},
        {"says": {}, "is_logged_in": True, "nonce": "x"},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_this_log_in_lets_nobody_in(provider, here, claims):
    claims = dict(claims)
    forged, says = claims.pop("forged", False), claims.pop("says", {})
    provider.be(OWNER, **claims)
    provider.forged, provider.says = forged, says
    visitor = Visitor(here)
    status, _, page = visitor.log_in()
    assert status == 401
    assert RUN not in page
    assert_outside(visitor)


def test_cookies_that_were_changed_or_made_by_others_are_nobody_s(provider, here):
    guest = let_in(provider, here, GUEST)
    given = guest.cookies()
    (name,) = [name for name in given if name == "_streamlit_user"]
    right = "a-secret-of-tests-that-is-long-enough"
    claims = json.loads(URLSafeTimedSerializer(right, salt=name).loads(given[name]))
    assert claims["email"] == GUEST

    def sign(key: str, salt: str, **others: str) -> str:
        return URLSafeTimedSerializer(key, salt=salt).dumps(json.dumps(claims | {"email": OWNER} | others))

    payload, *signature = given[name].rsplit(".", 2)
    for forged in (
        ".".join([sign("", name).rsplit(".", 2)[0], *signature]),
        payload,
        given[name][:-1],
        given[name] + "x",
        given["_streamlit_user_tokens"],
        sign("", name),
        sign("another secret", name),
        sign(right, "_streamlit_user_tokens"),
        "chunks-2",
        "\u00ff\u00fe",
        "refusal",
    ):
        assert_outside(Visitor(here), {name: forged})
    # What only who has the secret can make is let in: the check above could fail.
    with Visitor(here).stream({name: sign(right, name)}):
        pass
    # Another server with the same secret.
    assert_outside(Visitor(here), {name: sign(right, name, origin="http://a.example")})


def test_names_and_origins_of_others_are_refused_with_the_cookie_too(provider, here):
    owner = let_in(provider, here, OWNER)
    assert owner.ask("", Host="evil.example")[0] == 403
    assert owner.ask("auth/login?provider=default", Host="evil.example")[0] == 403
    assert owner.ask("_stcore/upload_file/a/b", "PUT", Origin="http://evil.example")[0] == 403
    assert owner.ask("_stcore/metrics")[0] == 404


def test_a_log_out_ends_every_page_of_the_log_in_and_its_cookies_let_nobody_in(provider, here):
    owner, second = let_in(provider, here, OWNER), let_in(provider, here, OWNER)
    taken = owner.cookies()
    before = provider.logged_out
    with owner.stream() as stream, second.stream() as other:
        status, place, _ = owner.ask("auth/logout")
        assert (status, urlsplit(place).netloc) == (401, urlsplit(here).netloc)
        assert provider.logged_out == before + 1
        with pytest.raises(ConnectionClosed):
            stream.recv(timeout=20)
        with pytest.raises(TimeoutError):
            other.recv(timeout=0.3)
    assert "_streamlit_user" not in owner.cookies()
    assert_outside(owner)
    assert_outside(Visitor(here), taken)
    # Without the other cookie it is the same log-in.
    assert_outside(Visitor(here), {"_streamlit_user": taken["_streamlit_user"]})
    assert second.ask("")[0] == 200


def test_somebody_of_whom_the_provider_says_too_much_is_told_so_and_may_log_out(provider, here):
    groups = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(120)]
    visitor = let_in(provider, here, GUEST, groups=groups)
    assert "_streamlit_user_2" in visitor.cookies()
    status, _, page = visitor.ask("")
    assert status == 431
    assert "longer cookies" in page
    visitor.ask("auth/logout")
    assert_outside(visitor)
    assert visitor.ask("", Cookie="a" * 40_000)[0] == 431


def test_in_a_browser_an_owner_marks_under_his_address_and_logs_out_and_a_guest_only_looks(
    provider, here, browser, marked
):
    provider.be(OWNER)
    prompt = open_run(RUN, marked).prompts["prompt_id"][0]
    context = browser.new_context()
    page, other = context.new_page(), context.new_page()
    page.goto(f"{here}/Outliers?run={RUN}&prompt={prompt}")
    page.get_by_role("link", name="Log in").click()
    expect(page.locator("h1")).to_have_text("Outliers", timeout=60_000)
    assert f"run={RUN}" in page.url
    expect(page.get_by_text(OWNER)).to_be_visible()
    let_settle(page)
    assert page.get_by_label("Your name, or a code").count() == 0
    page.get_by_role("button", name="ambiguous").click()
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    assert marks.load_marks(marked)[["prompt_id", "mark", "author"]].values.tolist() == [[prompt, "ambiguous", OWNER]]
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    other.goto(f"{here}/Rate?run={RUN}")
    expect(other.get_by_role("button", name="Begin")).to_be_visible(timeout=60_000)
    assert other.get_by_label("Your name, or a code").count() == 0
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in")).to_be_visible(timeout=60_000)
    provider.be(GUEST)
    page.goto(f"{here}/Outliers?run={RUN}")
    page.get_by_role("link", name="Log in").click()
    expect(page.get_by_text(GUEST)).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Marks are the owner's to change here.")).to_be_visible(timeout=60_000)
    # The tab that the owner left open is nobody's, and does not become the guest's with what the owner did in it.
    other.get_by_role("button", name="Begin").click()
    other.wait_for_timeout(1500)
    assert other.get_by_role("button", name="Skip").count() == 0
    context.close()
