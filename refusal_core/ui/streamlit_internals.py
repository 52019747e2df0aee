"""What the dashboard uses of Streamlit beyond its documented interface, gathered where an upgrade would break it.

What the browser's side uses of Streamlit's and Plotly's pages is in ``dom.js``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import streamlit as st
from google.protobuf.message import DecodeError
from streamlit.auth_util import (
    encode_provider_token,
    get_secrets_auth_section,
    get_validated_redirect_uri,
    is_authlib_installed,
    validate_auth_credentials,
)
from streamlit.errors import StreamlitAuthError
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server.starlette import starlette_websocket
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from refusal_core.access.guard import App, LogIn, Message, Person, Receive, Send, is_host_of
from refusal_core.access.settings import Access
from refusal_core.errors import AccessError

_SHORTEST_SECRET = 32
_ASKED = ("rerun_script", "stop_script", "app_heartbeat", "file_urls_request")
"""What the dashboard's pages ask of the server, beside ``_OPERATIONS``."""
_OPERATIONS = ("deferred_file", "dataframe_chunk")


class PageMessages:
    """Passes on what the dashboard's pages ask for and nothing else, and does not tell them where the program is.

    Streamlit does for every page what its menu offers to developers: one visitor could empty the caches of all, which
    stops everybody's lists and lets go of the model.
    """

    def __init__(self, app: App, script: str) -> None:
        """Stand before a program.

        Args:
            app: the program.
            script: the file that the server was started with, whose place Streamlit tells every page.
        """
        self._app = app
        self._script = Path(script).resolve()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; of a page's stream pass on the messages that may be."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return

        async def receiving() -> Message:
            message = await receive()
            while not _is_asked(message.get("bytes")):
                message = await receive()
            return message

        async def sending(message: Message) -> None:
            await send({**message, "bytes": self._told(message["bytes"])} if message.get("bytes") else message)

        await self._app(scope, receiving, sending)

    def _told(self, content: bytes) -> bytes:
        """Return a message to a page with the script's name in place of its path."""
        if str(self._script).encode() not in content:
            return content
        message = ForwardMsg.FromString(content)
        if message.HasField("new_session"):
            message.new_session.main_script_path = self._script.name
        told: bytes = message.SerializeToString()
        return told


def _is_asked(content: bytes | None) -> bool:
    """Return whether a message is what a page of the dashboard sends; what is none at all Streamlit refuses."""
    try:
        message = BackMsg.FromString(content or b"")
    except DecodeError:
        return True
    kind = message.WhichOneof("type")
    if kind == "backend_operation_request":
        return message.backend_operation_request.WhichOneof("payload") in _OPERATIONS
    return kind is None or kind in _ASKED


def log_in(access: Access, base_path: str) -> LogIn:
    """Return how people log in by what Streamlit's secrets have in their section ``auth``.

    Args:
        access: how the server is protected.
        base_path: below which it is.

    Raises:
        AccessError: when nobody could log in by it, or others than those who are meant.
    """
    if not is_authlib_installed():
        raise AccessError("people log in here, which needs Authlib: install the extras named dashboard and login")
    section = get_secrets_auth_section()
    clients = {
        name: values for name, values in section.items() if isinstance(values, Mapping) and "client_id" in values
    }
    if "client_id" in section:
        clients["default"] = section
    try:
        for name in clients or ["default"]:
            validate_auth_credentials(name)
    except StreamlitAuthError as error:
        says = " ".join(str(error).split())
        raise AccessError(f"people log in here, and Streamlit's secrets do not say how: {says}") from error
    back = get_validated_redirect_uri()
    place = urlsplit(back or "")
    route = "/".join(["", *filter(None, [base_path.strip("/")]), "oauth2callback"])
    if place.scheme not in ("http", "https") or place.path != route or not is_host_of(place.netloc, access.hosts):
        raise AccessError(
            f"expected redirect_uri in Streamlit's secrets to be the address of this server, which goes by "
            f"{', '.join(access.hosts)}, with {route}; got {section['redirect_uri']!r:.200}"
        )
    if len(str(section["cookie_secret"])) < _SHORTEST_SECRET:
        raise AccessError(
            f"expected a cookie_secret of at least {_SHORTEST_SECRET} random characters in Streamlit's secrets, got "
            f"{len(str(section['cookie_secret']))}: who guesses it is let in as anybody"
        )
    origin = f"{place.scheme}://{place.netloc}"
    audiences = {name: str(values["client_id"]) for name, values in clients.items()}

    def person_of(cookies: Mapping[str, str]) -> Person | None:
        signed = starlette_websocket._get_signed_cookie_with_chunks(dict(cookies), USER_COOKIE_NAME)
        claims = starlette_websocket._parse_decoded_user_cookie(signed, origin) if signed else {}
        meant = audiences.get(str(claims.get("provider")))
        # Authlib lets a token pass that is for somebody else, as long as it was given to this client.
        audience = claims.get("aud") if isinstance(claims.get("aud"), list) else [claims.get("aud")]
        if not signed or claims.get("is_logged_in") is not True or meant is None or meant not in (audience or ()):
            return None
        # Amazon's provider says it with a word.
        verified = claims.get("email_verified", access.people is not None and access.people.unverified)
        address = str(claims.get("email") or "") if verified is True or verified == "true" else ""
        return Person(address, hashlib.sha256(signed).hexdigest())

    return LogIn(tuple(audiences), person_of, lambda name: urlencode({"provider": encode_provider_token(name)}))


def came_by_history() -> bool:
    """Return whether the browser's Back or Forward led to this script run."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def is_page() -> bool:
    """Return whether this is called by a page, and not by a program that uses what pages use."""
    return get_script_run_ctx(suppress_warning=True) is not None


def visit() -> str:
    """Return what tells the visit of this page from all others; empty outside a page."""
    context = get_script_run_ctx(suppress_warning=True)
    return context.session_id if context is not None else ""


def component(name: str, css: str | None = None, isolate_styles: bool = True) -> Callable[..., Any]:
    """Return the component whose script is the file ``name.js`` of this package.

    Args:
        name: of the script and of the component.
        css: its styles.
        isolate_styles: whether those are kept from the rest of the page.
    """
    script = f"{resource('dom.js')}\n{resource(f'{name}.js')}"
    mount: Callable[..., Any] = st.components.v2.component(name, js=script, css=css, isolate_styles=isolate_styles)
    return mount


@lru_cache(maxsize=16)
def resource(name: str) -> str:
    """Return the text of a file of this package."""
    return (files("refusal_core.ui") / name).read_text(encoding="utf-8")


def uploaded_bytes(session: str) -> int:
    """Return how many bytes of uploaded files the server holds of a session."""
    if not Runtime.exists():
        return 0
    files_of = getattr(Runtime.instance().uploaded_file_mgr, "file_storage", {}).get(session, {})
    return sum(len(file.data) for file in list(files_of.values()))


def select_rows(key: str, rows: Iterable[int]) -> None:
    """Select rows of a table that is about to be drawn: of a widget's state Streamlit documents reading alone."""
    st.session_state[key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
