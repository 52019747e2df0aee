"""The server's side of the dashboard: how it is protected, what it prints when it starts, and who its visitor is."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import unquote

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config

from refusal_core.access.folders import without_paths
from refusal_core.access.guard import PERSON_HEADER, ROLE_HEADER, Guard
from refusal_core.access.settings import TOKEN, Access, access_for, is_specific
from refusal_core.error_log import log_failure
from refusal_core.errors import AccessError, RefusalError
from refusal_core.ui.streamlit_internals import PageMessages, is_page, log_in, uploaded_bytes
from refusal_core.waiting_threads import sleep_while_waiting

_guarded = False


def guard(script: str) -> list[Middleware]:
    """Return what stands before everything that this server answers, and print the addresses that open it.

    Called when a server starts, before anything imports PyTorch.
    The process ends with a sentence when the server would be open to others.

    Args:
        script: the file that the server was started with.
    """
    global _guarded
    sleep_while_waiting()
    address = str(_option("server.address") or "")
    base_path = str(_option("server.baseUrlPath") or "")
    try:
        access = access_for(address, _option("server.allowedHosts"), _option("server.corsAllowedOrigins"))
        logging_in = log_in(access, base_path) if access.people is not None else None
    except RefusalError as error:
        sys.exit(f"error: {error}")
    _print_addresses(access, address, base_path)
    _guarded = True
    before = Middleware(Guard, access=access, base_path=base_path, held_of=uploaded_bytes, log_in=logging_in)
    return [before, Middleware(PageMessages, script=script)]


def show_failure(error: Exception) -> bool:
    """Say in one sentence that a page failed in a way that nobody foresaw; the details are in the log file.

    Streamlit calls this for what a page, a part of it that is drawn by itself, or a button's function raises, and not
    for a page that stops or begins anew.

    Returns:
        That nothing else is to be shown.
    """
    failure = log_failure(error)
    st.error(f"This part of the page failed: {failure.what}.", icon=":material/error:")
    st.text(f"The reference {failure.reference} finds the details in the log of whoever started this dashboard.")
    return True


def stop_unguarded() -> None:
    """End a page that a server shows without the guard, as one that was started with a page's own file does."""
    if st.context.headers.get("Host") is not None and not _guarded:
        st.error("This server was started without its protection; start it with app.py.", icon=":material/lock_open:")
        st.stop()


def may_change() -> bool:
    """Return whether the visitor may change what is in the cache; outside a server, who runs the program may.

    A page that was closed while its program runs has no headers any more, and nobody's page changes nothing.
    """
    return not is_page() or st.context.headers.get(ROLE_HEADER, "viewer" if _guarded else "owner") == "owner"


def require_owner() -> None:
    """Raise AccessError unless the visitor may change what is in the cache."""
    if not may_change():
        raise AccessError("this is the owner's to do here; you may look and score")


def told(text: object) -> str:
    """Return what the visitor is told of an error, a job or a folder: of the machine's paths the owner alone."""
    return str(text) if may_change() else without_paths(str(text))


def person() -> str:
    """Return the e-mail address of a visitor who has logged in; empty where nobody logs in."""
    return unquote(st.context.headers.get(PERSON_HEADER, "")) if is_page() else ""


def person_field() -> None:
    """Show who has logged in, and a button to log out; nothing where nobody logs in."""
    if address := person():
        st.caption("Logged in as")
        st.text(address)
        st.button("Log out", icon=":material/logout:", on_click=st.logout)


def _print_addresses(access: Access, address: str, base_path: str) -> None:
    """Print what opens the dashboard; a token that was chosen by whoever started the server is not repeated."""
    host = address if is_specific(address) else "localhost"
    scheme = "https" if _option("server.sslCertFile") else "http"
    path = f"{base_path.strip('/')}/" if base_path.strip("/") else ""
    place = f"{scheme}://{f'[{host}]' if ':' in host else host}:{_option('server.port')}/{path}"
    print(f"\nThe dashboard: {place}", flush=True)
    if access.people is not None:
        owners, viewers = (", ".join(names) or "nobody" for names in (access.people.owners, access.people.viewers))
        print(f"People log in: {owners} may change runs, {viewers} may look and score.\n", flush=True)
    elif not access.token:
        print("Anyone who reaches it may look and score; nobody needs a token.\n", flush=True)
    elif access.chosen:
        print(f"It asks for the token in {TOKEN}.\n", flush=True)
    else:
        if not access.read_only:
            print(f"  yours, to run, rename and delete: {place}?token={access.token}")
        print(f"  for others, to look and score:    {place}?token={access.viewer_token}\n", flush=True)


def _option(name: str) -> Any:
    value = config.get_option(name)
    return tuple(map(str, value)) if isinstance(value, list) else value
