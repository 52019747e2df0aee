"""The guard lets nothing pass that does not belong to the server, whatever is behind it."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from unittest.mock import AsyncMock

import pytest

from refusal_core.access.guard import (
    LARGEST_OF_VIEWER,
    MESSAGES_OF_ALL,
    MESSAGES_OF_TAB,
    MOST_TABS,
    MOST_TABS_OF_ONE,
    MOST_UPLOADED,
    MOST_UPLOADED_BY_ALL,
    PERSON_HEADER,
    ROLE_HEADER,
    Guard,
    LogIn,
    Person,
    cookie_name,
    is_host_of,
)
from refusal_core.access.settings import Access, People
from refusal_core.errors import AccessError

ACCESS = Access("the-owner's-long-token")
HOST = "localhost:8501"
OWNER = f"refusal_8501={ACCESS.cookie('owner')}"
VIEWER = f"refusal_8501={ACCESS.cookie('viewer')}"


def ask(
    path: str = "/",
    query: str = "",
    kind: str = "http",
    method: str = "GET",
    access: Access = ACCESS,
    base: str = "",
    **headers: str | list[str],
) -> tuple[int, dict[str, str], str, str | None]:
    """Status (101: a WebSocket was passed on), headers and body of an answer, and the role that was passed on."""
    passed: list[str] = []
    sent: list[dict[str, Any]] = []

    async def program(scope, receive, send):
        passed.extend(value.decode() for name, value in scope["headers"] if name == ROLE_HEADER.encode())
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOWALL")]})
        await send({"type": "http.response.body", "body": b"secret"})

    async def send(message):
        sent.append(message)

    given = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [
        (name, value) for name, values in given.items() for value in ([values] if isinstance(values, str) else values)
    ]
    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "scheme": "ws" if kind == "websocket" else "http",
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
    }
    if kind == "http":
        scope["method"] = method
    asyncio.run(
        Guard(program, access, base, {"b": 0, "full": MOST_UPLOADED - 9, "over": MOST_UPLOADED + 1}.__getitem__)(
            scope, None, send
        )
    )
    first = sent[0]
    if kind == "websocket":
        status = 101 if first["type"] == "websocket.accept" else 403
        return status, {}, "", passed[0] if passed else None
    answered = {name.decode(): value.decode() for name, value in first["headers"]}
    return first["status"], answered, sent[1]["body"].decode(), passed[0] if passed else None


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "path", ["/", "/Layers", "/_stcore/stream", "/_stcore/upload_file/a/b", "/media/x.png", "/static/x"]
)
@pytest.mark.parametrize(
    "cookie", ["", "refusal_8501=", "refusal_8501=x", f"refusal_8502={ACCESS.cookie('owner')}", "a" * 20_000]
)
def test_nothing_but_the_health_check_is_answered_without_the_cookie(kind, path, cookie):
    status, _, body, role = ask(path, kind=kind, cookie=cookie)
    assert status in (401, 403)
    assert role is None
    assert "secret" not in body


def test_the_health_check_is_answered_to_anyone():
    assert ask("/_stcore/health", host="anything")[0] == 200
    assert ask("/sub/_stcore/health", base="/sub/")[0] == 200


def test_the_cookie_opens_pages_and_the_stream_and_says_who_asks():
    assert ask(cookie=OWNER)[::3] == (200, "owner")
    assert ask(cookie=VIEWER)[::3] == (200, "viewer")
    assert ask("/_stcore/stream", kind="websocket", cookie=f"a=b; {VIEWER}")[::3] == (101, "viewer")
    assert ask(kind="websocket", cookie=["a=b", OWNER])[::3] == (101, "owner")


@pytest.mark.parametrize(
    ("cookie", "visit", "length", "status"),
    [
        (VIEWER, "b", str(LARGEST_OF_VIEWER), 200),
        (VIEWER, "b", str(LARGEST_OF_VIEWER + 1), 413),
        (VIEWER, "b", "", 413),
        (VIEWER, "b", "-1", 413),
        (VIEWER, "full", "9", 200),
        (VIEWER, "full", "10", 413),
        (OWNER, "b", str(10 * LARGEST_OF_VIEWER), 200),
        (OWNER, "over", "10", 200),
    ],
)
@pytest.mark.parametrize("base", ["", "sub"])
def test_a_visit_sends_so_much_and_no_more(cookie, visit, length, status, base):
    path = f"{'/sub' if base else ''}/_stcore/upload_file/{visit}/file"
    sizes = {"content-length": length} if length else {}
    assert ask(path, method="PUT", cookie=cookie, base=base, **sizes)[0] == status
    assert ask(path, method="DELETE", cookie=cookie, base=base)[0] == 200


def test_a_visitor_s_file_whose_length_is_not_what_its_header_says_is_refused():
    sent = {"content_length": "10", "transfer_encoding": "chunked"}
    assert ask("/_stcore/upload_file/b/file", method="PUT", cookie=VIEWER, **sent)[0] == 413


def test_files_that_arrive_at_the_same_time_are_no_more_than_a_visit_may_send():
    arrived, ended = [], asyncio.Event()

    async def program(scope, receive, send):
        arrived.append(scope["path"])
        await ended.wait()

    async def send_files() -> None:
        guard, answers = Guard(program, ACCESS), []

        def put(visit: str) -> asyncio.Task:
            sizes = [(b"content-length", str(LARGEST_OF_VIEWER).encode())]
            scope = {
                "type": "http",
                "method": "PUT",
                "path": f"/_stcore/upload_file/{visit}/{len(arrived)}",
                "scheme": "http",
                "headers": [(b"host", HOST.encode()), (b"cookie", VIEWER.encode()), *sizes],
            }
            return asyncio.create_task(guard(scope, None, AsyncMock(side_effect=answers.append)))

        most = MOST_UPLOADED // LARGEST_OF_VIEWER
        files = [put(visit) for visit in ("a", "b") for _ in range(100)]
        await asyncio.sleep(0)
        assert len(arrived) == 2 * most
        assert [answer["status"] for answer in answers if "status" in answer] == [413] * (200 - 2 * most)
        ended.set()
        await asyncio.gather(*files)
        # What has arrived is counted by the program.
        await put("a")
        assert len(arrived) == 2 * most + 1

    asyncio.run(send_files())


def test_the_files_of_all_visits_are_limited_and_the_owner_s_are_not_among_them():
    held: dict[str, int] = {}
    answers: list[int] = []

    async def program(scope, receive, send):
        held[scope["path"].split("/")[-2]] = LARGEST_OF_VIEWER
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send_files() -> None:
        guard = Guard(program, ACCESS, held_of=lambda visit: held.get(visit, 0))

        async def put(visit: int, cookie: str) -> int:
            sent: list[dict[str, Any]] = []
            sizes = [(b"content-length", str(LARGEST_OF_VIEWER).encode())]
            headers = [(b"host", HOST.encode()), (b"cookie", cookie.encode()), *sizes]
            path = f"/_stcore/upload_file/{visit}/file"
            scope = {"type": "http", "method": "PUT", "path": path, "scheme": "http", "headers": headers}
            await guard(scope, None, AsyncMock(side_effect=sent.append))
            return sent[0]["status"]

        most = MOST_UPLOADED_BY_ALL // LARGEST_OF_VIEWER
        for visit in range(5):
            answers.append(await put(1000 + visit, OWNER))
        for visit in range(most + 1):
            answers.append(await put(visit, VIEWER))
        assert answers == [204] * (5 + most) + [503]
        assert await put(2000, OWNER) == 204
        # Streamlit has forgotten a visit that is over.
        held["3"] = 0
        assert await put(most, VIEWER) == 204

    asyncio.run(send_files())


@pytest.mark.parametrize("n_tabs", [1, 30])
def test_who_sends_messages_without_end_waits_and_others_come_in_between_and_the_owner_at_once(n_tabs):
    came: list[str] = []

    async def program(scope, receive, send):
        for _ in range(10_000):
            await receive()
            came.append(dict(scope["headers"])[b"x-who"].decode())

    async def flood() -> float:
        guard = Guard(program, ACCESS)

        def tab(who: str, cookie: str, n_messages: int) -> asyncio.Task:
            headers = [(b"host", HOST.encode()), (b"cookie", cookie.encode()), (b"x-who", who.encode())]
            scope = {"type": "websocket", "path": "/_stcore/stream", "scheme": "ws", "headers": headers}
            messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            for _ in range(n_messages):
                messages.put_nowait({"type": "websocket.receive", "bytes": b""})
            return asyncio.create_task(guard(scope, messages.get, AsyncMock()))

        begun = time.monotonic()
        tabs = [tab(f"flood {number}", VIEWER, 9000) for number in range(n_tabs)]
        await asyncio.sleep(0.2)
        tabs += [tab("owner", OWNER, 9000), tab("guest", VIEWER, 1)]
        await asyncio.sleep(0.8)
        for each in tabs:
            each.cancel()
        await asyncio.gather(*tabs, return_exceptions=True)
        return time.monotonic() - begun

    seconds = asyncio.run(flood())
    assert came.count("owner") == 9000
    assert came.count("guest") == 1
    floods = [who for who in came if who.startswith("flood")]
    assert len(set(floods)) == n_tabs
    assert len(floods) <= 1 + seconds * MESSAGES_OF_ALL
    assert max(map(floods.count, floods)) <= 1 + seconds * MESSAGES_OF_TAB


def test_of_too_many_tabs_the_next_is_refused_until_one_is_closed_and_the_owner_s_never():
    opened, closed = [], asyncio.Event()

    async def program(scope, receive, send):
        opened.append(scope)
        await closed.wait()

    async def open_tabs() -> None:
        guard, refused = Guard(program, ACCESS), []

        def tab(cookie: str) -> asyncio.Task:
            headers = [(b"host", HOST.encode()), (b"cookie", cookie.encode())]
            scope = {"type": "websocket", "path": "/_stcore/stream", "scheme": "ws", "headers": headers}
            return asyncio.create_task(guard(scope, None, AsyncMock(side_effect=refused.append)))

        tabs = [tab(VIEWER) for _ in range(MOST_TABS + 2)] + [tab(OWNER)]
        await asyncio.sleep(0)
        assert len(opened) == MOST_TABS + 1
        assert [message["type"] for message in refused] == ["websocket.close"] * 2
        closed.set()
        await asyncio.gather(*tabs)
        await tab(VIEWER)
        assert len(opened) == MOST_TABS + 2

    asyncio.run(open_tabs())


def test_a_visitor_cannot_say_who_he_is():
    assert ask(cookie=VIEWER, x_refusal_role="owner")[3] == "viewer"
    assert ask(cookie=VIEWER, X_Refusal_Role="owner")[3] == "viewer"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8501", "", "user@localhost", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_name_that_is_not_the_server_s_is_refused_even_with_the_cookie(host, kind):
    status, _, _, role = ask(kind=kind, host=host, cookie=OWNER)
    assert (status, role) == (403, None)


def test_a_host_that_is_named_twice_is_refused():
    assert ask(host=["localhost:8501", "evil.example"], cookie=OWNER)[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:9999", "null", "http://localhost:8501.evil.example", "http://[::1", ""],
)
def test_pages_of_other_origins_reach_neither_the_stream_nor_a_form(origin):
    """Another port of the same host is of the same site, so that the browser sends the cookie from there."""
    assert ask(kind="websocket", cookie=OWNER, origin=origin)[0] == 403
    assert ask("/_stcore/upload_file/a/b", method="PUT", cookie=OWNER, origin=origin)[0] == 403


def test_the_server_s_own_page_reaches_the_stream_and_so_does_a_site_that_is_named():
    assert ask(kind="websocket", cookie=OWNER, origin="http://localhost:8501")[0] == 101
    other = Access(ACCESS.token, origins=("https://lab.example",))
    assert ask(kind="websocket", cookie=OWNER, origin="https://lab.example", access=other)[0] == 101


def test_the_token_becomes_a_cookie_and_leaves_the_address():
    status, headers, body, role = ask("/Layers", f"run=a%26b&token={ACCESS.token}&site=3")
    assert (status, role, body) == (303, None, "")
    assert headers["location"] == "/Layers?run=a%26b&site=3"
    assert headers["set-cookie"].startswith(f"{OWNER}; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(headers["set-cookie"].split("; "))
    assert ACCESS.token not in str(headers)
    assert VIEWER in ask("/", f"token={ACCESS.viewer_token}")[1]["set-cookie"]


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/a\r\nset-cookie: b=c"])
def test_the_way_back_leads_to_no_other_server(path):
    location = ask(path, f"token={ACCESS.token}")[1]["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    assert "\n" not in location


def test_a_wrong_token_gets_a_page_that_keeps_the_rest_of_the_address_as_text():
    status, headers, body, _ = ask("/Layers", "run=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&token=wrong")
    assert status == 401
    assert "<script" not in body
    assert "&lt;script&gt;" in body
    assert "wrong" not in body.replace("not this server", "")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "set-cookie" not in headers


def test_metrics_are_closed_to_everybody():
    assert ask("/_stcore/metrics", cookie=OWNER)[0] == 404
    assert ask("/sub/_stcore/metrics", base="sub", cookie=OWNER)[0] == 404


def test_every_answer_has_the_headers_and_the_program_cannot_weaken_them():
    for answer in (ask(cookie=OWNER), ask(), ask("/_stcore/health"), ask("/_stcore/metrics", cookie=OWNER)):
        headers = answer[1]
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    framed = ask(cookie=OWNER, access=Access(ACCESS.token, frames=("https://huggingface.co",)))[1]
    assert "frame-ancestors https://huggingface.co" in framed["content-security-policy"]


def test_a_cookie_belongs_to_one_port():
    assert cookie_name("localhost:8501", "http") != cookie_name("localhost:8502", "http")
    assert cookie_name("a.example", "https") == "refusal_443"


@pytest.mark.parametrize(
    ("host", "names", "is_one"),
    [
        ("LOCALHOST:1", ("localhost",), True),
        ("localhost.", ("localhost",), True),
        ("[::1]:8501", ("::1",), True),
        ("a.example.org", ("*.example.org",), True),
        ("example.org", ("*.example.org",), False),
        ("evilexample.org", ("*.example.org",), False),
        ("localhost:port", ("localhost",), False),
        ("[::1", ("::1",), False),
        ("localhost/x", ("localhost",), False),
    ],
)
def test_hosts_are_compared_without_their_port(host, names, is_one):
    assert is_host_of(host, names) is is_one


def person_of(cookies: dict[str, str]) -> Person | None:
    """Whoever the cookie names, with a log-in of its own."""
    return Person(cookies["who"].partition("/")[0], cookies["who"]) if "who" in cookies else None


LOG_IN = LogIn(("default",), person_of, "provider={}".format)
PEOPLE = Access("", people=People(("owner@lab.example",), ("@lab.example",)))


def asked(guard: Guard, kind: str, path: str, who: str, **others: object) -> tuple[asyncio.Task, list[dict[str, Any]]]:
    sent: list[dict[str, Any]] = []
    headers = [(b"host", HOST.encode()), (b"cookie", f"who={who}".encode()), *others.pop("headers", [])]
    scope = {"type": kind, "path": path, "scheme": "ws" if kind == "websocket" else "http", "headers": headers} | others
    return asyncio.create_task(guard(scope, None, AsyncMock(side_effect=sent.append))), sent


def test_people_and_how_they_log_in_come_together():
    with pytest.raises(AccessError, match="together"):
        Guard(AsyncMock(), PEOPLE)
    with pytest.raises(AccessError, match="together"):
        Guard(AsyncMock(), ACCESS, log_in=LOG_IN)


def test_one_guest_opens_so_many_pages_and_sends_so_much_in_all_visits_and_leaves_room_for_others():
    opened, held, closed = [], {}, asyncio.Event()

    async def program(scope, receive, send):
        given = {key: value.decode() for key, value in scope["headers"]}
        assert given[PERSON_HEADER.encode()] == "a%40lab.example"
        opened.append(given[ROLE_HEADER.encode()])
        if scope["type"] == "websocket":
            await closed.wait()
        else:
            held[scope["path"].split("/")[-2]] = LARGEST_OF_VIEWER

    async def come() -> None:
        guard = Guard(program, PEOPLE, held_of=lambda visit: held.get(visit, 0), log_in=LOG_IN)
        forged = [(PERSON_HEADER.encode(), b"owner%40lab.example"), (ROLE_HEADER.encode(), b"owner")]
        tabs = [
            asked(guard, "websocket", "/_stcore/stream", f"a@lab.example/{place % 3}", headers=forged)
            for place in range(MOST_TABS_OF_ONE + 1)
        ]
        await asyncio.sleep(0)
        assert opened == ["viewer"] * MOST_TABS_OF_ONE
        assert [sent["type"] for _, all_sent in tabs for sent in all_sent] == ["websocket.close"]
        closed.set()
        await asyncio.gather(*(task for task, _ in tabs))
        size = [(b"content-length", str(LARGEST_OF_VIEWER).encode())]
        answers = []
        for visit in range(MOST_UPLOADED // LARGEST_OF_VIEWER + 1):
            path = f"/_stcore/upload_file/{visit}/x"
            task, sent = asked(guard, "http", path, "a@lab.example", method="PUT", headers=size)
            await task
            answers += [message["status"] for message in sent if "status" in message]
        assert answers == [413]
        # A visit that is over gives its room back.
        held["0"] = 0
        task, sent = asked(guard, "http", "/_stcore/upload_file/9/x", "a@lab.example", method="PUT", headers=size)
        await task
        assert not sent

    asyncio.run(come())


def test_cookies_of_an_encrypted_server_are_never_sent_in_the_open():
    async def program(scope, receive, send):
        cookies = [(b"Set-Cookie", b"_streamlit_user=x; Path=/"), (b"set-cookie", b"a=b; Secure")]
        await send({"type": "http.response.start", "status": 200, "headers": cookies})

    async def come() -> None:
        for scheme, expected in (("https", [True, True]), ("http", [False, True])):
            task, sent = asked(
                Guard(program, PEOPLE, log_in=LOG_IN), "http", "/", "a@lab.example", method="GET", scheme=scheme
            )
            await task
            cookies = [value for key, value in sent[0]["headers"] if key.lower() == b"set-cookie"]
            assert [b"; Secure" in cookie for cookie in cookies] == expected

    asyncio.run(come())
