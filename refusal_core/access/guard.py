"""What stands before everything a server answers, pages, files and WebSocket alike: host, origin, token, headers.

It is plain ASGI: it knows nothing of the program behind it.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from refusal_core.access.settings import Access, Role

ROLE_HEADER = "x-refusal-role"
"""Header of a request by which the guard tells the program behind it who asks; a visitor's own is removed."""
MOST_UPLOADED = 100_000_000
"""Bytes that the server holds of the files of a visit that may only look and score, those under way included."""
MOST_TABS = 200
"""Open pages of all who may only look and score; the owner comes in beyond it, unless the server is read-only: there
the owner may only look and score, too."""
LARGEST_OF_VIEWER = 25_000_000
"""Bytes of one file that somebody who may only look and score may send."""
_HEALTH, _METRICS, _UPLOAD = "/_stcore/health", "/_stcore/metrics", "/_stcore/upload_file/"
_PARAMETER = "token"
_MOST_COOKIES = 16_384

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


class Guard:
    """Answers only what a visitor may ask for.

    A request has to name a host of the server's own; a WebSocket has to come from a page of the server's own; and all
    but the health check need the token, from the address once and from a cookie afterwards.
    """

    def __init__(
        self, app: App, access: Access, base_path: str = "", held_of: Callable[[str], int] = lambda visit: 0
    ) -> None:
        """Stand before a program.

        Args:
            app: the program.
            access: how it is protected.
            base_path: below which it is.
            held_of: returns how many bytes of files the program holds of a visit.
        """
        self._app = app
        self._access = access
        self._held_of = held_of
        self._tabs = 0
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
            await self._app(scope, receive, self._with_headers(send))
            return
        host = _one(scope, b"host")
        if host is None or not is_host_of(host, self._access.hosts):
            await self._refuse(scope, send, 403, "This server does not go by the name in the address.")
        elif path.startswith(f"{self._base}{_METRICS}"):
            await self._refuse(scope, send, 404, "There is nothing here.")
        elif not self._is_own_page(scope, host):
            await self._refuse(scope, send, 403, "Pages of other sites may not speak to this server.")
        else:
            await self._admit(scope, receive, send, host)

    async def _admit(self, scope: Message, receive: Receive, send: Send, host: str) -> None:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
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
        role = self._access.role_of_cookie(_cookie(scope, name))
        if role is None:
            await self._ask(scope, send, query, "This server needs the token that was printed when it was started.")
            return
        own = ROLE_HEADER.encode()
        headers = [(key, value) for key, value in scope["headers"] if key.lower() != own]
        passed = {**scope, "headers": [*headers, (own, role.encode())]}
        path, upload = str(scope["path"]), f"{self._base}{_UPLOAD}"
        if role == "owner":
            await self._app(passed, receive, self._with_headers(send))
        elif scope["type"] == "websocket":
            await self._open_tab(passed, receive, send)
        elif scope["method"] == "PUT" and path.startswith(upload):
            await self._take_file(passed, receive, send, path.removeprefix(upload).split("/")[0])
        else:
            await self._app(passed, receive, self._with_headers(send))

    async def _open_tab(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on the stream of a viewer's page, unless as many are open as may be."""
        if self._tabs >= MOST_TABS:
            await send({"type": "websocket.close", "code": 1013})
            return
        self._tabs += 1
        try:
            await self._app(scope, receive, self._with_headers(send))
        finally:
            self._tabs -= 1

    async def _take_file(self, scope: Message, receive: Receive, send: Send, visit: str) -> None:
        """Pass on a file that a viewer sends, unless it or all that the visit sends is too large."""
        length = _one(scope, b"content-length") or ""
        # A body in chunks is as long as it likes, whatever length is named.
        chunked = any(key.lower() == b"transfer-encoding" for key, _ in scope["headers"])
        if chunked or not (length.isdecimal() and int(length) <= LARGEST_OF_VIEWER):
            await self._refuse(scope, send, 413, f"A file of a visitor has at most {LARGEST_OF_VIEWER / 1e6:.0f} MB.")
            return
        # The program holds a file once it has all of it.
        if self._held_of(visit) + self._arriving[visit] + int(length) > MOST_UPLOADED:
            says = f"The files of a visit have at most {MOST_UPLOADED / 1e6:.0f} MB; reload the page to begin anew."
            await self._refuse(scope, send, 413, says)
            return
        self._arriving[visit] += int(length)
        try:
            await self._app(scope, receive, self._with_headers(send))
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
        return urlsplit(origin).netloc.lower() == host.lower() or origin in self._access.origins

    async def _let_in(self, scope: Message, send: Send, name: str, role: Role, rest: list[tuple[str, str]]) -> None:
        """Keep the token in a cookie and take it out of the address, which goes into histories and links."""
        path = "/" + quote(str(scope["path"]).lstrip("/\\"), safe="/")
        secure = "; Secure" if scope["scheme"] in ("https", "wss") else ""
        # An owner of a read-only server has the viewer's cookie.
        cookie = f"{name}={self._access.cookie(role)}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000{secure}"
        headers = [("location", f"{path}?{urlencode(rest)}" if rest else path), ("set-cookie", cookie)]
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

    def _with_headers(self, send: Send) -> Send:
        ours = {name.encode(): value.encode() for name, value in self._headers}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [(key, value) for key, value in message.get("headers", ()) if key.lower() not in ours]
                message = {**message, "headers": [*others, *ours.items()]}
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


def _cookie(scope: Message, name: str) -> str:
    sent = "; ".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"cookie")
    if len(sent) > _MOST_COOKIES:
        return ""
    for part in sent.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""
