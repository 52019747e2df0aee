"""A server that people log in to is started only where they can, and as nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.secrets import secrets_singleton

from refusal_core.access.settings import Access, People
from refusal_core.errors import AccessError
from refusal_core.ui.streamlit_internals import PageMessages, log_in

ACCESS = Access("", hosts=("lab.example",), people=People(("a@lab.example",)))
AUTH = {
    "redirect_uri": "https://lab.example/oauth2callback",
    "cookie_secret": "x" * 32,
    "client_id": "dashboard",
    "client_secret": "secret",
    "server_metadata_url": "https://provider.example/.well-known/openid-configuration",
}
CLIENT = {name: AUTH[name] for name in ("client_id", "client_secret", "server_metadata_url")}
SHARED = {name: AUTH[name] for name in ("redirect_uri", "cookie_secret")}


def test_the_providers_are_those_of_the_secrets(monkeypatch):
    monkeypatch.setattr(secrets_singleton, "_secrets", {"auth": AUTH})
    assert log_in(ACCESS, "").providers == ("default",)
    assert log_in(ACCESS, "").person_of({"_streamlit_user": "x"}) is None
    monkeypatch.setattr(secrets_singleton, "_secrets", {"auth": SHARED | {"google": CLIENT, "lab": CLIENT}})
    assert log_in(ACCESS, "").providers == ("google", "lab")
    below = SHARED | {"redirect_uri": "https://lab.example/below/oauth2callback"}
    monkeypatch.setattr(secrets_singleton, "_secrets", {"auth": below | CLIENT})
    assert log_in(ACCESS, "/below/").providers == ("default",)


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        ({}, "do not say how"),
        ({"auth": {}}, "do not say how"),
        ({"auth": SHARED}, "do not say how"),
        *(({"auth": {key: value for key, value in AUTH.items() if key != name}}, "do not say how") for name in AUTH),
        ({"auth": SHARED | {"google": CLIENT, "lab": {"client_id": "x"}}}, "do not say how"),
        ({"auth": SHARED | {"my_lab": CLIENT}}, "do not say how"),
        ({"auth": AUTH | {"redirect_uri": "https://evil.example/oauth2callback"}}, "redirect_uri"),
        ({"auth": AUTH | {"redirect_uri": "https://lab.example/x/oauth2callback"}}, "redirect_uri"),
        ({"auth": AUTH | {"redirect_uri": "https://lab.example/"}}, "redirect_uri"),
        ({"auth": AUTH | {"redirect_uri": "lab.example/oauth2callback"}}, "redirect_uri"),
        ({"auth": AUTH | {"cookie_secret": "x" * 31}}, "cookie_secret"),
    ],
    ids=str,
)
def test_without_a_way_to_log_in_the_server_is_not_started(monkeypatch, secrets, says):
    monkeypatch.setattr(secrets_singleton, "_secrets", secrets)
    with pytest.raises(AccessError, match=says):
        log_in(ACCESS, "")


def through(received: list[bytes], told: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What the program is asked by a page's stream, and what the page is told of what the program says."""
    asked: list[bytes] = []
    sent: list[dict[str, Any]] = []
    messages = iter([*({"type": "websocket.receive", "bytes": each} for each in received), {"type": "end"}])

    async def program(scope, receive, send):
        while (message := await receive())["type"] != "end":
            asked.append(message["bytes"])
        for each in told:
            await send({"type": "websocket.send", "bytes": each})

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(PageMessages(program, "/secret place/app.py")({"type": "websocket"}, receive, send))
    return asked, [message["bytes"] for message in sent]


def test_a_page_asks_for_what_pages_ask_for_and_not_for_what_concerns_all_visitors():
    page = [BackMsg(stop_script=True), BackMsg(app_heartbeat=True), BackMsg(), BackMsg(), BackMsg()]
    page[2].rerun_script.query_string = "run=x"
    page[3].file_urls_request.request_id = "1"
    page[4].backend_operation_request.deferred_file.file_id = "1"
    developer = [BackMsg(**{kind: True}) for kind in ("clear_cache", "load_git_info", "set_run_on_save")]
    developer += [BackMsg(debug_shutdown_runtime=True), BackMsg()]
    developer[-1].backend_operation_request.install_skills.SetInParent()
    sent = [message.SerializeToString() for message in (*developer, *page, *developer)]
    garbage = b"\xff\xff"
    asked, _ = through([*sent, garbage], [])
    assert asked == [*(message.SerializeToString() for message in page), garbage]


def test_a_page_is_not_told_where_the_program_is():
    begins, text = ForwardMsg(hash="x"), ForwardMsg()
    begins.new_session.main_script_path = "/secret place/app.py"
    begins.new_session.name = "app"
    text.delta.new_element.text.body = "harmless"
    _, (first, second) = through([], [begins.SerializeToString(), text.SerializeToString()])
    assert b"secret" not in first
    session = ForwardMsg.FromString(first).new_session
    assert (session.main_script_path, session.name) == ("app.py", "app")
    assert second == text.SerializeToString()
