"""A provider of OpenID Connect on this machine, which says of somebody what a test makes it say."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "the-dashboard", "the-secret-of-the-client"


@dataclass
class Provider:
    """What the provider says next.

    Attributes:
        address: of its server.
        claims: of the person, in the next tokens.
        key: that the next tokens are signed with; the provider publishes another where ``forged``.
        says: its whole answer at the address where people log in, where it lets nobody in.
    """

    address: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    forged: bool = False
    says: dict[str, str] = field(default_factory=dict)
    logged_out: int = 0

    def be(self, email: str, **claims: Any) -> None:
        """Say of everybody who comes that this is the address, until told otherwise."""
        self.forged, self.says = False, {}
        self.claims = {"email": email, "email_verified": True, "name": "Somebody"} | claims


@contextmanager
def provided() -> Iterator[Provider]:
    """Serve a provider."""
    provider, codes = Provider(), {}
    published, other = (RSAKey.generate_key(2048, {"kid": "a"}) for _ in range(2))

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *told: Any) -> None:
            pass

        def answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def lead(self, place: str, **query: str) -> None:
            self.send_response(302)
            self.send_header("location", f"{place}?{urlencode(query)}" if query else place)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(asked.query).items()}
            match asked.path:
                case "/.well-known/openid-configuration":
                    here = provider.address
                    self.answer(
                        {
                            "issuer": here,
                            "authorization_endpoint": f"{here}/authorize",
                            "token_endpoint": f"{here}/token",
                            "jwks_uri": f"{here}/keys",
                            "end_session_endpoint": f"{here}/end",
                            "code_challenge_methods_supported": ["S256"],
                            "id_token_signing_alg_values_supported": ["RS256"],
                        }
                    )
                case "/keys":
                    self.answer({"keys": [published.as_dict(private=False)]})
                case "/authorize":
                    code = secrets.token_hex(8)
                    codes[code] = query
                    self.lead(query["redirect_uri"], state=query["state"], **(provider.says or {"code": code}))
                case "/end":
                    provider.logged_out += 1
                    self.lead(query["post_logout_redirect_uri"])

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"])).decode()
            given = {name: values[0] for name, values in parse_qs(sent).items()}
            begun = codes.pop(given["code"])
            challenge = base64.urlsafe_b64encode(hashlib.sha256(given["code_verifier"].encode()).digest())
            assert challenge.decode().rstrip("=") == begun["code_challenge"]
            assert base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode() in self.headers["authorization"]
            now = int(time.time())
            claims = {"iss": provider.address, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 600}
            claims |= {"nonce": begun["nonce"]} | provider.claims
            signed = jwt.encode({"alg": "RS256", "kid": "a"}, claims, other if provider.forged else published)
            self.answer({"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": signed})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    provider.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_secrets(provider: Provider, folder: Path, **others: str) -> Path:
    """Write Streamlit's secrets for a server that people log in to, at whichever port of this machine."""
    values = {
        "redirect_uri": "http://127.0.0.1:{port}/oauth2callback",
        "cookie_secret": "a-secret-of-tests-that-is-long-enough",
        "client_id": CLIENT,
        "client_secret": SECRET,
        "server_metadata_url": f"{provider.address}/.well-known/openid-configuration",
    } | others
    path = folder / "secrets.toml"
    path.write_text("[auth]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path
