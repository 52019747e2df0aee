"""A server that people log in to is started only where they can, and as nobody else."""

from __future__ import annotations

import pytest
from streamlit.runtime.secrets import secrets_singleton

from refusal_core.access.settings import Access, People
from refusal_core.errors import AccessError
from refusal_core.ui.streamlit_internals import log_in

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
