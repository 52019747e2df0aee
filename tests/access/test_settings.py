"""No setting leaves a server open to others unsaid."""

from __future__ import annotations

import pytest

from refusal_core.access.settings import (
    FRAMES,
    LOOPBACK_NAMES,
    OPEN,
    OWNERS,
    READ_ONLY,
    TOKEN,
    UNVERIFIED,
    VIEWERS,
    Access,
    People,
    access_for,
    is_loopback,
)
from refusal_core.errors import AccessError

GIVEN = "a-token-of-some-length"


def test_a_token_is_made_anew_at_every_start():
    first, second = (access_for("127.0.0.1", environment={}) for _ in range(2))
    assert len(first.token) >= 40
    assert first.token != second.token
    assert first.token not in repr(first)
    assert first.hosts == LOOPBACK_NAMES
    assert not first.chosen


def test_a_token_that_was_chosen_is_the_one_asked_for():
    access = access_for("0.0.0.0", environment={TOKEN: GIVEN})
    assert access.chosen
    assert access.role_of_token(GIVEN) == "owner"
    assert access.role_of_token(access.viewer_token) == "viewer"
    for wrong in ("", GIVEN[:-1], GIVEN + "x", GIVEN.upper(), "é", access.cookie("owner")):
        assert access.role_of_token(wrong) is None


def test_cookies_tell_roles_apart_and_are_no_tokens():
    access = Access(GIVEN)
    assert access.role_of_cookie(access.cookie("owner")) == "owner"
    assert access.role_of_cookie(access.cookie("viewer")) == "viewer"
    for wrong in ("", GIVEN, access.viewer_token, Access(GIVEN + "x").cookie("owner")):
        assert access.role_of_cookie(wrong) is None


def test_of_a_read_only_server_nobody_is_the_owner():
    access = access_for("127.0.0.1", environment={TOKEN: GIVEN, READ_ONLY: "1"})
    assert access.role_of_token(GIVEN) == "viewer"
    assert access.role_of_cookie(access.cookie("owner")) == "viewer"
    assert access_for("127.0.0.1", environment={OPEN: "1", READ_ONLY: "true"}).role_of_cookie("") == "viewer"


def test_without_a_token_everybody_on_this_machine_is_the_owner():
    access = access_for("127.0.0.1", environment={OPEN: "1"})
    assert access.role_of_cookie("") == "owner"
    assert access.role_of_token("") is None


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "192.168.1.5", "refusal.example.org", "10.0.0.1"])
def test_beyond_this_machine_a_server_without_a_token_is_refused(address):
    with pytest.raises(AccessError, match="without a token"):
        access_for(address, environment={OPEN: "1"})
    assert access_for(address, environment={}).token
    assert access_for(address, environment={OPEN: "1", READ_ONLY: "1"}).role_of_cookie("") == "viewer"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({TOKEN: "short"}, "at least 16"),
        ({TOKEN: "a token with spaces in it"}, "at least 16"),
        ({TOKEN: GIVEN, OPEN: "1"}, "both set"),
        ({OPEN: "maybe"}, "1 or 0"),
        ({FRAMES: "https://a.example; script-src *"}, FRAMES),
        ({FRAMES: "*"}, FRAMES),
        ({OWNERS: "a@lab.example", TOKEN: GIVEN}, "as well: expected one"),
        ({VIEWERS: "@lab.example", OPEN: "1"}, "as well: expected one"),
        ({OWNERS: "@lab.example"}, OWNERS),
        ({OWNERS: "lab.example"}, OWNERS),
        ({OWNERS: "\u212aate@lab.example"}, OWNERS),
        ({VIEWERS: "*"}, VIEWERS),
        ({VIEWERS: "@"}, VIEWERS),
        ({VIEWERS: "a@b@lab.example"}, VIEWERS),
        ({VIEWERS: "@lab.example", UNVERIFIED: "maybe"}, "1 or 0"),
    ],
)
def test_what_nobody_can_mean_is_refused(environment, says):
    with pytest.raises(AccessError, match=says):
        access_for("127.0.0.1", environment=environment)


def test_the_address_is_one_of_the_names_unless_it_stands_for_all():
    assert "192.168.1.5" in access_for("192.168.1.5", ("localhost",), environment={}).hosts
    assert access_for("0.0.0.0", ("a.example",), environment={}).hosts == ("a.example",)


@pytest.mark.parametrize(("address", "here"), [("::1", True), ("127.8.8.8", True), ("localhost", True), ("::", False)])
def test_loopback_is_told_from_the_rest(address, here):
    assert is_loopback(address) is here


def test_where_people_log_in_there_is_no_token_and_a_cookie_without_a_log_in_is_nobody_s():
    access = access_for(
        "0.0.0.0", environment={OWNERS: "A@Lab.example, b@lab.example", VIEWERS: "@lab.example c@x.org"}
    )
    assert access.people == People(("a@lab.example", "b@lab.example"), ("@lab.example", "c@x.org"))
    for given in ("", access.token, access.viewer_token, access.cookie("owner"), access.cookie("viewer")):
        assert access.role_of_cookie(given) is None
        assert access.role_of_token(given) is None
    given = {"a@lab.example": "owner", "B@LAB.example": "owner", "z@lab.example": "viewer", "C@x.org": "viewer"}
    assert {address: access.role_of_person(address) for address in given} == given
    assert access_for("", environment={OWNERS: "a@b.c", READ_ONLY: "1"}).role_of_person("a@b.c") == "viewer"
    assert Access(GIVEN).role_of_person("a@lab.example") is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "@lab.example",
        "lab.example",
        "z@evil.lab.example",
        "z@lab.example.evil.org",
        "z@lab.example@evil.org",
        " a@lab.example",
        "a@lab.example\n",
        "\u212a@x.org",
        "\u00df@x.org",
        "\u00eb@lab.example",
    ],
)
def test_who_is_not_named_may_nothing(address):
    people = People(("a@lab.example", "k@x.org", "ss@x.org"), ("@lab.example",))
    assert people.role_of("k@x.org") == "owner"
    assert people.role_of(address) is None
