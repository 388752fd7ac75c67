"""Who may ask what, decided from the headers alone."""

from __future__ import annotations

import pytest

from sentinel_agent.api.guard import Address, Guard, parse_address
from sentinel_agent.errors import OperatorError

READ, CAPTURE = "r" * 20, "c" * 20
OPEN = Guard(Address("127.0.0.1", 9477))
CLOSED = Guard(Address("0.0.0.0", 9477), (READ,), (CAPTURE,))


def test_addresses() -> None:
    """IPv4, IPv6 in brackets, a name, and none at all."""
    assert parse_address("127.0.0.1:9477") == Address("127.0.0.1", 9477)
    assert parse_address("[::1]:80") == Address("::1", 80)
    assert parse_address("off") is None
    assert Address("::1", 80).url == "http://[::1]:80/"
    for text in ("9477", ":9477", "localhost:http", "localhost:70000"):
        with pytest.raises(OperatorError):
            parse_address(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    """Without one the agent does not start; loopback needs none."""
    with pytest.raises(OperatorError, match="needs a token"):
        Guard(Address(host, 9477))
    Guard(Address(host, 9477), read=(READ,))
    for local in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        Guard(Address(local, 9477))


def test_a_short_token_is_no_secret() -> None:
    """It is refused, and not shown."""
    with pytest.raises(OperatorError, match="fewer than 16") as error:
        Guard(Address("127.0.0.1", 9477), read=("short-one",))
    assert "short-one" not in str(error.value)


@pytest.mark.parametrize(
    "host", ["localhost:9477", "127.0.0.1:9477", "[::1]:9477", "gateway.localhost", "127.0.0.1"]
)
def test_this_machines_own_names_are_answered(host: str) -> None:
    """With or without a port."""
    assert OPEN.check("GET", {"Host": host}, "read") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:9477", "", "[", "localhost.evil.example"]
)
def test_a_name_of_the_web_that_resolves_here_is_not(host: str) -> None:
    """DNS rebinding: the browser sends the page's own name."""
    refusal = OPEN.check("GET", {"Host": host}, "read")
    assert refusal is not None
    assert refusal.code == "wrong_host"


def test_a_page_of_another_site_changes_nothing() -> None:
    """Neither with the browser's own words about it nor with only an origin; a program sends none of them."""
    host = {"Host": "localhost:9477"}
    assert OPEN.check("POST", host, "capture") is None
    assert (
        OPEN.check(
            "POST", host | {"Origin": "http://localhost:9477", "Sec-Fetch-Site": "same-origin"}, "capture"
        )
        is None
    )
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
    ):
        refusal = OPEN.check("POST", host | headers, "capture")
        assert refusal is not None
        assert refusal.code == "cross_site"


def test_tokens_and_their_scopes() -> None:
    """One that may read may not capture; one that may capture may read too; anything else is unknown."""

    def status(token: str | None, scope: str) -> int:
        headers = {"Host": "agent.example"} | (
            {"Authorization": f"Bearer {token}"} if token is not None else {}
        )
        refusal = CLOSED.check("GET", headers, "capture" if scope == "capture" else "read")
        return refusal.status if refusal else 200

    assert [status(READ, "read"), status(CAPTURE, "read"), status(CAPTURE, "capture")] == [200, 200, 200]
    assert status(READ, "capture") == 403
    assert [status(None, "read"), status("", "read"), status("x" * 20, "read"), status("\udcff", "read")] == [
        401
    ] * 4
    basic = CLOSED.check("GET", {"Authorization": f"Basic {READ}"}, "read")
    assert basic is not None
    assert basic.status == 401
