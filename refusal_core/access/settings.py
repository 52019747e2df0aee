"""How a server of the dashboard is protected: from environment variables, which every way of starting it passes on."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from refusal_core.errors import AccessError

Role = Literal["owner", "viewer"]
"""An owner may change the cache, a viewer looks and scores."""
TOKEN, OPEN, READ_ONLY, FRAMES = "REFUSAL_TOKEN", "REFUSAL_NO_TOKEN", "REFUSAL_READ_ONLY", "REFUSAL_FRAME_ANCESTORS"
OWNERS, VIEWERS, UNVERIFIED = "REFUSAL_OWNERS", "REFUSAL_VIEWERS", "REFUSAL_UNVERIFIED_EMAIL"
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""The host names by which a browser on the same machine asks for a server."""
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")
_DOMAIN = r"@[a-z0-9.-]+"
_ADDRESS = r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]+" + _DOMAIN


@dataclass(frozen=True)
class People:
    """Who may come in by logging in, by the e-mail address that their provider of OpenID Connect names.

    Attributes:
        owners: addresses of those who may change the cache.
        viewers: addresses of those who may look and score, and domains, as ``@example.org``, all of whose may.
        unverified: whether an address counts of which the provider does not say that it was verified.
    """

    owners: tuple[str, ...] = ()
    viewers: tuple[str, ...] = ()
    unverified: bool = False

    def role_of(self, address: str) -> Role | None:
        """Return what somebody with an e-mail address may do, ``None`` for nothing.

        Addresses are compared in lower case; of others than ASCII none counts, for there letters that look alike, and
        some that become alike in lower case, are different people's.
        """
        name = _lower(address)
        if not re.fullmatch(_ADDRESS, name):
            return None
        if name in self.owners:
            return "owner"
        return "viewer" if name in self.viewers or name[name.index("@") :] in self.viewers else None


@dataclass(frozen=True)
class Access:
    """How a server is protected.

    Attributes:
        token: the owner's; empty where none is required. Never shown by ``repr``.
        read_only: nobody may change anything, the owner neither.
        hosts: names by which it may be asked for; ``*.example.org`` stands for all names below one.
        origins: addresses of other sites whose pages may speak to it.
        frames: addresses of sites that may show it in a frame.
        chosen: whether the token was given, not made.
        people: those who may log in, where people log in and no token is asked for.
    """

    token: str = field(repr=False)
    read_only: bool = False
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    origins: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    chosen: bool = False
    people: People | None = None

    @property
    def viewer_token(self) -> str:
        """The token to give to those who may look and score; the owner's cannot be derived from it."""
        return self._derived("viewer's token")[:43]

    def role_of_token(self, given: str) -> Role | None:
        """Return whose token this is, ``None`` for nobody's."""
        if not self.token:
            return None
        if _same(given, self.token):
            return self._limited("owner")
        return "viewer" if _same(given, self.viewer_token) else None

    def role_of_cookie(self, given: str) -> Role | None:
        """Return whose cookie this is, ``None`` for nobody's; where nothing is required everybody has a role."""
        if self.people is not None:
            return None
        if not self.token:
            return self._limited("owner")
        roles: tuple[Role, ...] = ("owner", "viewer")
        return next((self._limited(role) for role in roles if _same(given, self.cookie(role))), None)

    def role_of_person(self, address: str) -> Role | None:
        """Return what somebody who has logged in may do, ``None`` for nothing.

        Args:
            address: the person's e-mail address.
        """
        role = self.people.role_of(address) if self.people is not None else None
        return role and self._limited(role)

    def cookie(self, role: Role) -> str:
        """Return what a browser of this role keeps: neither token can be derived from it."""
        return self._derived(f"{role}'s cookie")

    def _limited(self, role: Role) -> Role:
        return "viewer" if self.read_only else role

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def access_for(
    address: str,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Access:
    """Return how a server is to be protected that listens on an address.

    Args:
        address: that it listens on; empty for all addresses of the machine.
        hosts: names by which it may be asked for, beside the address; by default those of the machine for itself.
        origins: addresses of other sites whose pages may speak to it.
        environment: variables; by default those of the process.

    Raises:
        AccessError: when that would leave it open to others.
    """
    variables = os.environ if environment is None else environment
    token, without, people = variables.get(TOKEN, ""), _is_on(variables, OPEN), _people(variables)
    read_only = _is_on(variables, READ_ONLY)
    here_only = is_loopback(address)
    if without and token:
        raise AccessError(f"{OPEN} and {TOKEN} are both set: expected one of them")
    if people and (token or without):
        raise AccessError(
            f"{OWNERS} or {VIEWERS} is set, so that people log in, and {TOKEN if token else OPEN} as well: expected "
            "one of them"
        )
    if without and not here_only and not read_only:
        raise AccessError(
            f"a server that listens on {address or 'every address'} without a token would let anyone who reaches it "
            "change runs and start jobs: require a token or a log-in, let it be read-only, or listen on 127.0.0.1"
        )
    if token and (len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token)):
        raise AccessError(
            f"expected a token of at least {SHORTEST_TOKEN} letters, digits, dots, dashes and underscores, "
            f"got one of {len(token)} characters"
        )
    frames = tuple(variables.get(FRAMES, "").split())
    for frame in frames:
        if urlsplit(frame).scheme not in ("http", "https") or not re.fullmatch(r"https?://[A-Za-z0-9.*:-]+", frame):
            raise AccessError(f"expected addresses like https://example.org in {FRAMES}, got {frame!r:.80}")
    return Access(
        token="" if without or people else token or secrets.token_urlsafe(32),
        read_only=read_only,
        hosts=(*(hosts or LOOPBACK_NAMES), *((address,) if is_specific(address) and not here_only else ())),
        origins=origins,
        frames=frames,
        chosen=bool(token),
        people=people,
    )


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches a server that listens on an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_specific(address: str) -> bool:
    """Return whether an address is one that a browser can ask for, and not a wildcard for all of a machine's."""
    return address not in ("", "0.0.0.0", "::")


def _people(variables: Mapping[str, str]) -> People | None:
    owners, viewers = (
        tuple(_lower(name) for name in re.split(r"[\s,]+", variables.get(setting, "")) if name)
        for setting in (OWNERS, VIEWERS)
    )
    for setting, names, form, like in (
        (OWNERS, owners, _ADDRESS, "e-mail addresses like a@example.org"),
        (
            VIEWERS,
            viewers,
            f"{_ADDRESS}|{_DOMAIN}",
            "e-mail addresses like a@example.org, and domains like @example.org,",
        ),
    ):
        for name in names:
            if not re.fullmatch(form, name):
                raise AccessError(f"expected {like} in {setting}, got {name!r:.80}")
    return People(owners, viewers, _is_on(variables, UNVERIFIED)) if owners or viewers else None


def _lower(address: str) -> str:
    # The Kelvin sign, which is not ASCII, becomes a k.
    return address.lower() if address.isascii() else address


def _is_on(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name, "").strip().lower()
    if value not in ("", "0", "1", "false", "true"):
        raise AccessError(f"expected 1 or 0 as {name}, got {value!r:.40}")
    return value in ("1", "true")


def _same(given: str, expected: str) -> bool:
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())
