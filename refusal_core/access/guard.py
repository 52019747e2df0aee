"""What stands before everything a server answers, pages, files and WebSocket alike: host, origin, who asks, headers.

It is plain ASGI: it knows nothing of the program behind it.
"""

from __future__ import annotations

import asyncio
import html
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from refusal_core.access.settings import Access, Role
from refusal_core.errors import AccessError

ROLE_HEADER = "x-refusal-role"
"""Header of a request by which the guard tells the program behind it what the visitor may do; a visitor's own is
removed."""
PERSON_HEADER = "x-refusal-person"
"""Header with the quoted e-mail address of a visitor who has logged in; a visitor's own is removed."""
MOST_UPLOADED = 100_000_000
"""Bytes that the server holds of the files of a visit that may only look and score, those under way included; where
people log in, of all visits of one of them."""
MOST_UPLOADED_BY_ALL = 1_000_000_000
"""Bytes that the server holds of the files of all who may only look and score."""
MOST_TABS = 200
"""Open pages of all who may only look and score; the owner comes in beyond it, unless the server is read-only: there
the owner may only look and score, too."""
MOST_TABS_OF_ONE = 20
"""Open pages of one person who has logged in and may only look and score."""
MESSAGES_OF_TAB, MESSAGES_OF_ALL = 20, 100
"""Messages a second that are passed on of one page of who may only look and score, and of all such pages; others wait.
Each begins the page's program anew."""
LARGEST_OF_VIEWER = 25_000_000
"""Bytes of one file that somebody who may only look and score may send."""
_HEALTH, _METRICS, _UPLOAD = "/_stcore/health", "/_stcore/metrics", "/_stcore/upload_file/"
_LOG_IN, _LOG_OUT, _RETURN = "/auth/login", "/auth/logout", "/oauth2callback"
_PARAMETER = "token"
_MOST_ENDED, _LONGEST_PLACE = 10_000, 2000
_MOST_COOKIES = 8000
"""Characters of all cookies of a request: of more the library for WebSockets reads none."""

_OWN_HEADERS = {ROLE_HEADER.encode(), PERSON_HEADER.encode()}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Refusal directions</title>
<meta name="viewport" content="width=device-width"><style>body{{font:16px sans-serif;max-width:34rem;margin:4rem auto;
padding:0 1rem;color-scheme:light dark}}input{{font:inherit;padding:.3rem;width:100%;box-sizing:border-box}}
button{{font:inherit;margin-top:1rem}}</style><h1>Refusal directions</h1><p>{says}</p>{form}</html>"""
_FORM = """<form method="get"><label>Token<input type="password" name="token" autocomplete="current-password"
autofocus required></label>{kept}<button>Open</button></form>"""
_LINK = '<p><a href="{href}">{text}</a></p>'


@dataclass(frozen=True)
class Person:
    """Somebody who has logged in.

    Attributes:
        address: the e-mail address that the provider vouches for; empty where it vouches for none.
        log_in: tells this log-in from every other.
    """

    address: str
    log_in: str


@dataclass(frozen=True)
class LogIn:
    """How people log in to the program behind the guard, at its addresses for that.

    Attributes:
        providers: the names of those who say who somebody is.
        person_of: returns who has logged in by the cookies of a request, ``None`` for nobody.
        query_of: returns the query with which the program begins a log-in with a provider.
    """

    providers: tuple[str, ...]
    person_of: Callable[[Mapping[str, str]], Person | None]
    query_of: Callable[[str], str]


class _Turns:
    """So many turns a second, in the order in which they are asked for."""

    def __init__(self, per_second: float) -> None:
        self._seconds_between = 1 / per_second
        self._next = 0.0
        self._asking = asyncio.Lock()

    async def take(self) -> None:
        """Wait for the next turn."""
        async with self._asking:
            await asyncio.sleep(max(self._next - time.monotonic(), 0.0))
            self._next = time.monotonic() + self._seconds_between


class Guard:
    """Answers only what a visitor may ask for.

    A request has to name a host of the server's own; a WebSocket has to come from a page of the server's own; and all
    but the health check need the token, from the address once and from a cookie afterwards, or, where people log in, a
    log-in of somebody who may look.
    """

    def __init__(
        self,
        app: App,
        access: Access,
        base_path: str = "",
        held_of: Callable[[str], int] = lambda visit: 0,
        log_in: LogIn | None = None,
    ) -> None:
        """Stand before a program.

        Args:
            app: the program.
            access: how it is protected.
            base_path: below which it is.
            held_of: returns how many bytes of files the program holds of a visit.
            log_in: how people log in to it.

        Raises:
            AccessError: when people are to log in, and cannot.
        """
        if (access.people is None) is not (log_in is None):
            raise AccessError("expected people who may log in together with how they log in, got one without the other")
        self._app = app
        self._log_in = log_in
        self._ended: dict[str, None] = {}
        self._streams: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self._tabs_of: Counter[str] = Counter()
        self._visits_of: dict[str, set[str]] = {}
        self._access = access
        self._held_of = held_of
        self._tabs = 0
        self._turns = _Turns(MESSAGES_OF_ALL)
        self._arriving: Counter[str] = Counter()
        self._base = f"/{base_path.strip('/')}" if base_path.strip("/") else ""
        self._headers = _security_headers(access)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on with the visitor's role in a header."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        if scope["type"] == "http" and path == f"{self._base}{_HEALTH}":
            await self._app(scope, receive, self._with_headers(scope, send))
            return
        host = _one(scope, b"host")
        if host is None or not is_host_of(host, self._access.hosts):
            await self._refuse(scope, send, 403, "This server does not go by the name in the address.")
        elif path.startswith(f"{self._base}{_METRICS}"):
            await self._refuse(scope, send, 404, "There is nothing here.")
        elif not self._is_own_page(scope, host):
            await self._refuse(scope, send, 403, "Pages of other sites may not speak to this server.")
        elif self._log_in is not None:
            await self._admit_person(scope, receive, send, host, self._log_in)
        else:
            await self._admit(scope, receive, send, host)

    async def _admit_person(self, scope: Message, receive: Receive, send: Send, host: str, log_in: LogIn) -> None:
        """Answer where people log in: to strangers only the addresses by which they do."""
        path = str(scope["path"])
        path = path.removeprefix(self._base) if path.startswith(f"{self._base}/") else ""
        cookies = _cookies(scope)
        person = log_in.person_of(cookies)
        if person is not None and person.log_in in self._ended:
            person = None
        if scope["type"] == "http" and scope["method"] == "GET" and path in (_LOG_IN, _LOG_OUT, _RETURN):
            if path == _LOG_IN:
                await self._begin(scope, receive, send, host, log_in)
            elif path == _RETURN:
                await self._return(scope, receive, send, cookies.get(f"{cookie_name(host, scope['scheme'])}_back", ""))
            else:
                self._end(person)
                await self._app(scope, receive, self._with_headers(scope, send))
            return
        log_out = _LINK.format(href=html.escape(f"{self._base}{_LOG_OUT}"), text="Log out")
        if len(_sent_cookies(scope)) > _MOST_COOKIES:
            says = "Your browser sends longer cookies than this server reads; your provider may say too much of you."
            await self._refuse(scope, send, 431, says, log_out)
            return
        if person is None:
            await self._refuse(scope, send, 401, "Log in to see this.", self._log_in_links(scope, log_in))
            return
        role = self._access.role_of_person(person.address)
        if role is None:
            who = person.address or "somebody whose e-mail address your provider does not vouch for"
            says = f"You are logged in as {who}; whoever started this server has not let you in."
            await self._refuse(scope, send, 403, says, log_out)
            return
        if scope["type"] != "websocket":
            await self._pass(scope, receive, send, role, person)
            return
        stream = asyncio.current_task()
        assert stream is not None
        self._streams[person.log_in].add(stream)
        try:
            await self._pass(scope, receive, send, role, person)
        except asyncio.CancelledError:
            if person.log_in not in self._ended:
                raise
            stream.uncancel()
            await send({"type": "websocket.close", "code": 1008})
        finally:
            self._streams[person.log_in].discard(stream)
            if not self._streams[person.log_in]:
                del self._streams[person.log_in]

    async def _begin(self, scope: Message, receive: Receive, send: Send, host: str, log_in: LogIn) -> None:
        """Pass on the beginning of a log-in, and remember the page that it was wanted for."""
        asked = dict(_query(scope))
        if asked.get("provider") not in log_in.providers:
            await self._refuse(scope, send, 404, "Nobody of this name says here who you are.")
            return
        name = f"{cookie_name(host, scope['scheme'])}_back"
        secure = "; Secure" if scope["scheme"] == "https" else ""
        back = quote(asked.get("back", "")[:_LONGEST_PLACE], safe="")
        cookie = f"{name}={back}; Path=/; HttpOnly; SameSite=Lax; Max-Age=900{secure}"
        passed = {**scope, "query_string": log_in.query_of(asked["provider"]).encode()}
        await self._app(passed, receive, self._with_headers(scope, send, [("set-cookie", cookie)]))

    async def _return(self, scope: Message, receive: Receive, send: Send, back: str) -> None:
        """Pass on what the provider says, and lead to the page that the log-in was wanted for."""
        # Why the provider lets nobody in is a stranger's text, which the program writes to its log.
        if "error" in dict(_query(scope)):
            home = _LINK.format(href=html.escape(f"{self._base}/"), text="Back")
            await self._refuse(scope, send, 401, "Your provider did not log you in.", home)
            return
        place = unquote(back)
        own = [("location", _own_place(place))] if place.startswith(f"{self._base}/") else []
        await self._app(scope, receive, self._with_headers(scope, send, own))

    def _end(self, person: Person | None) -> None:
        """End a log-in, whoever has its cookies: close its pages' streams, and let nobody in with it any more."""
        if person is not None:
            self._ended[person.log_in] = None
            for log_in in list(self._ended)[:-_MOST_ENDED]:
                del self._ended[log_in]
            for stream in self._streams.get(person.log_in, ()):
                stream.cancel()

    def _log_in_links(self, scope: Message, log_in: LogIn) -> str:
        asked = scope.get("query_string", b"").decode("latin-1")
        place = f"{scope['path']}?{asked}" if asked else str(scope["path"])
        return "".join(
            _LINK.format(
                href=html.escape(f"{self._base}{_LOG_IN}?{urlencode({'provider': name, 'back': place})}"),
                text="Log in" if len(log_in.providers) == 1 else f"Log in with {html.escape(name)}",
            )
            for name in log_in.providers
        )

    async def _admit(self, scope: Message, receive: Receive, send: Send, host: str) -> None:
        query = _query(scope)
        given = [value for name, value in query if name == _PARAMETER]
        name = cookie_name(host, scope["scheme"])
        if self._access.token and given and scope["type"] == "http" and scope["method"] == "GET":
            role = self._access.role_of_token(given[-1].strip())
            rest = [(key, value) for key, value in query if key != _PARAMETER]
            if role is None:
                await self._ask(scope, send, rest, "This token is not this server's.")
            else:
                await self._let_in(scope, send, name, role, rest)
            return
        role = self._access.role_of_cookie(_cookies(scope).get(name, ""))
        if role is None:
            await self._ask(scope, send, query, "This server needs the token that was printed when it was started.")
        else:
            await self._pass(scope, receive, send, role, None)

    async def _pass(self, scope: Message, receive: Receive, send: Send, role: Role, person: Person | None) -> None:
        """Pass a request on, with what the visitor may do and who that is, within a viewer's limits."""
        own = {ROLE_HEADER: role} | ({PERSON_HEADER: quote(person.address)} if person is not None else {})
        others = [(key, value) for key, value in scope["headers"] if key.lower() not in _OWN_HEADERS]
        passed = {**scope, "headers": [*others, *((name.encode(), value.encode()) for name, value in own.items())]}
        path, upload = str(scope["path"]), f"{self._base}{_UPLOAD}"
        address = person.address if person is not None else ""
        if role == "owner":
            await self._app(passed, receive, self._with_headers(scope, send))
        elif scope["type"] == "websocket":
            await self._open_tab(passed, receive, send, address)
        elif scope["method"] == "PUT" and path.startswith(upload):
            await self._take_file(passed, receive, send, path.removeprefix(upload).split("/")[0], address)
        else:
            await self._app(passed, receive, self._with_headers(scope, send))

    async def _open_tab(self, scope: Message, receive: Receive, send: Send, address: str) -> None:
        """Pass on the stream of a viewer's page, unless as many are open as may be."""
        if self._tabs >= MOST_TABS or (address and self._tabs_of[address] >= MOST_TABS_OF_ONE):
            await send({"type": "websocket.close", "code": 1013})
            return
        self._tabs += 1
        self._tabs_of[address] += 1
        turns = _Turns(MESSAGES_OF_TAB)

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                await turns.take()
                await self._turns.take()
            return message

        try:
            await self._app(scope, receiving, self._with_headers(scope, send))
        finally:
            self._tabs -= 1
            self._tabs_of[address] -= 1
            if not self._tabs_of[address]:
                del self._tabs_of[address]

    async def _take_file(self, scope: Message, receive: Receive, send: Send, visit: str, address: str) -> None:
        """Pass on a file that a viewer sends, unless it, or all that the visit or the person sends, is too large."""
        length = _one(scope, b"content-length") or ""
        # A body in chunks is as long as it likes, whatever length is named.
        chunked = any(key.lower() == b"transfer-encoding" for key, _ in scope["headers"])
        if chunked or not (length.isdecimal() and int(length) <= LARGEST_OF_VIEWER):
            await self._refuse(scope, send, 413, f"A file of a visitor has at most {LARGEST_OF_VIEWER / 1e6:.0f} MB.")
            return
        visits_of = self._visits_of | {address: self._visits_of.get(address, set()) | {visit}}
        # The program holds a file once it has all of it.
        held = {each: self._held_of(each) + self._arriving[each] for visits in visits_of.values() for each in visits}
        own = visits_of[address] if address else {visit}
        self._visits_of = {
            who: still
            for who, visits in visits_of.items()
            if (still := {each for each in visits if held[each] or each == visit})
        }
        if sum(held[each] for each in own) + int(length) > MOST_UPLOADED:
            says = f"The files of a visit have at most {MOST_UPLOADED / 1e6:.0f} MB; reload the page to begin anew."
            await self._refuse(scope, send, 413, says)
            return
        if sum(held.values()) + int(length) > MOST_UPLOADED_BY_ALL:
            await self._refuse(scope, send, 503, "The files of all visitors are as large as they may be; try later.")
            return
        self._arriving[visit] += int(length)
        try:
            await self._app(scope, receive, self._with_headers(scope, send))
        finally:
            self._arriving[visit] -= int(length)
            if not self._arriving[visit]:
                del self._arriving[visit]

    def _is_own_page(self, scope: Message, host: str) -> bool:
        """Return whether a request comes from a page of this server, or from no page; one may always be navigated to.

        A host's other ports are of the same site, so that cookies are sent from their pages, but not of its origin.
        """
        origin = _one(scope, b"origin")
        if origin is None or (scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")):
            return True
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        return place.lower() == host.lower() or origin in self._access.origins

    async def _let_in(self, scope: Message, send: Send, name: str, role: Role, rest: list[tuple[str, str]]) -> None:
        """Keep the token in a cookie and take it out of the address, which goes into histories and links."""
        secure = "; Secure" if scope["scheme"] in ("https", "wss") else ""
        # An owner of a read-only server has the viewer's cookie.
        cookie = f"{name}={self._access.cookie(role)}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000{secure}"
        path = str(scope["path"])
        place = _own_place(f"{path}?{urlencode(rest)}" if rest else path)
        headers = [("location", place), ("set-cookie", cookie)]
        await self._answer(send, 303, "", [*headers, *self._headers])

    async def _ask(self, scope: Message, send: Send, query: Iterable[tuple[str, str]], says: str) -> None:
        kept = "".join(
            f'<input type="hidden" name="{html.escape(key)}" value="{html.escape(value)}">' for key, value in query
        )
        await self._refuse(scope, send, 401, says, _FORM.format(kept=kept))

    async def _refuse(self, scope: Message, send: Send, status: int, says: str, form: str = "") -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
        headers = [("content-security-policy", policy), ("cache-control", "no-store")]
        common = [(name, value) for name, value in self._headers if name != "content-security-policy"]
        page = _PAGE.format(says=html.escape(says), form=form)
        await self._answer(send, status, page, [*headers, *common])

    async def _answer(self, send: Send, status: int, page: str, headers: list[tuple[str, str]]) -> None:
        body = page.encode()
        full = [("content-type", "text/html; charset=utf-8"), ("content-length", str(len(body))), *headers]
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in full]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def _with_headers(self, scope: Message, send: Send, own: Iterable[tuple[str, str]] = ()) -> Send:
        """Return what sends an answer of the program with the server's headers, and some of this answer's own."""
        ours = {name.encode(): value.encode() for name, value in self._headers}
        encrypted = scope["scheme"] == "https"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.encode(), value.encode("latin-1")) for name, value in own]
                # A place to lead to is the program's to change only where it leads anywhere.
                leads = 300 <= message.get("status", 200) < 400
                given = [(key, value) for key, value in given if leads or key != b"location"]
                replaced = {*ours, *(key for key, _ in given if key != b"set-cookie")}
                others = [
                    (key, _kept_encrypted(value) if encrypted and key.lower() == b"set-cookie" else value)
                    for key, value in message.get("headers", ())
                    if key.lower() not in replaced
                ]
                message = {**message, "headers": [*others, *given, *ours.items()]}
            await send(message)

        return sending


def cookie_name(host: str, scheme: str) -> str:
    """Return the cookie of a server: browsers send one port's cookies to all others of a host as well.

    Args:
        host: as the browser names it, with its port unless that is the scheme's own.
        scheme: of the request.
    """
    port = urlsplit(f"//{host}").port or (443 if scheme in ("https", "wss") else 80)
    return f"refusal_{port}"


def is_host_of(host: str, names: Iterable[str]) -> bool:
    """Return whether a request's host, whatever its port, is among the names of a server."""
    try:
        parts = urlsplit(f"//{host}")
        asked, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if not asked or parts.username is not None or parts.path or parts.query or parts.fragment:
        return False
    for name in names:
        wanted = name.strip().lower().rstrip(".")
        if wanted == asked or (wanted.startswith("*.") and asked.endswith(wanted[1:])):
            return True
    return False


def _security_headers(access: Access) -> list[tuple[str, str]]:
    ancestors = " ".join(access.frames) or "'none'"
    policy = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; "
        f"worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
        f"frame-src 'self'; frame-ancestors {ancestors}"
    )
    headers = [
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ]
    # A browser that knows frame-ancestors leaves this one aside; it cannot name sites.
    return headers if access.frames else [*headers, ("x-frame-options", "DENY")]


def _one(scope: Message, name: bytes) -> str | None:
    """Return a header that may be sent once; sent twice it is as good as none, for nobody knows which counts."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else None


def _cookies(scope: Message) -> dict[str, str]:
    """Return the cookies of a request, the first of several of one name; none where they are longer than need be."""
    sent = _sent_cookies(scope)
    if len(sent) > _MOST_COOKIES:
        return {}
    pairs = (part.strip().partition("=") for part in sent.split(";"))
    return dict(reversed([(key, value) for key, _, value in pairs]))


def _sent_cookies(scope: Message) -> str:
    return "; ".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"cookie")


def _query(scope: Message) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _own_place(place: str) -> str:
    """Return a place of this server's, path and query, as an address that leads to no other server."""
    path, mark, query = place.partition("?")
    return f"/{quote(path.lstrip('/' + chr(92)), safe='/')}{mark}{quote(query, safe='=&%+')}"


def _kept_encrypted(cookie: bytes) -> bytes:
    """Return a cookie that the browser sends over encrypted connections alone."""
    return cookie if b"; secure" in cookie.lower() else cookie + b"; Secure"
