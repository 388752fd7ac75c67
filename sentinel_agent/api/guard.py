"""Who may ask what: decided from the request's headers alone.

- On a loopback address no token is needed, but the request must be meant for this machine: a page of the web whose name was
  made to resolve to 127.0.0.1 (DNS rebinding) says its own name in `Host`. Whoever brings a token is no such page.
- Anywhere else a token is needed (RFC 6750, `Authorization: Bearer`). One for captures may read too.
- What changes something must come from our own page or from no page at all: `Sec-Fetch-Site` (W3C, Fetch Metadata) and
  `Origin` (RFC 6454) say so, and its body must be JSON, which a form cannot send.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Scope = Literal["read", "capture"]
MIN_TOKEN = 16
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: the HTTP status, a code for programs, words for people."""

    status: int
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


def parse_address(text: str) -> Address | None:
    """The address in `host:port`; None for `off`.

    Raises:
        OperatorError: it is no address.
    """
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise OperatorError(
            f"{text!r} is no address to listen on", hint="write for example 127.0.0.1:9477, [::1]:9477 or off"
        )
    return Address(host, int(port))


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine itself."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules of one listening address, with its tokens."""

    address: Address
    read: Sequence[str] = ()
    capture: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse an address that others reach without a token.

        Raises:
            OperatorError: there is none, or one is too short to be a secret.
        """
        tokens = [*self.read, *self.capture]
        if any(len(token) < MIN_TOKEN for token in tokens):
            raise OperatorError(
                f"a token of the `api` settings has fewer than {MIN_TOKEN} characters",
                hint="make one with: openssl rand -hex 32",
            )
        if not self.address.loopback and not tokens:
            raise OperatorError(
                f"listening on {self.address.host}, which other machines reach, needs a token",
                hint="set api.read_tokens (SENTINEL_API_READ_TOKENS), or listen on 127.0.0.1",
            )

    def check(self, method: str, headers: Mapping[str, str], scope: Scope) -> Refusal | None:
        """Whether a request may not be answered, and why."""
        trusted = self._authorised(headers, scope)
        if isinstance(trusted, Refusal):
            return trusted
        if not trusted:
            name = _host_of(headers.get("Host", ""))
            if name is None or not (is_loopback(name) or name == self.address.host):
                return Refusal(
                    421,
                    "wrong_host",
                    f"this address is not called {headers.get('Host', '')[:100]!r}",
                    "use http://localhost or 127.0.0.1, or bring a token",
                )
        return None if method in _SAFE else _cross_site(headers)

    def _authorised(self, headers: Mapping[str, str], scope: Scope) -> bool | Refusal:
        """True with a token that is good for the scope, False without one where none is needed."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if not (self.read or self.capture):
            return False
        if scheme.lower() != "bearer" or not given:
            return (
                False
                if self.address.loopback
                else Refusal(401, "unauthenticated", "a token is needed", "send Authorization: Bearer TOKEN")
            )
        if _among(given, self.capture) or (scope == "read" and _among(given, self.read)):
            return True
        if _among(given, self.read):
            return Refusal(403, "forbidden", "this token may only read", "use one of api.capture_tokens")
        return Refusal(401, "unauthenticated", "the token is not known", "see `api` in the configuration")


def _among(given: str, tokens: Sequence[str]) -> bool:
    """Compares all of them, each in constant time."""
    secret = given.strip().encode("utf-8", "surrogateescape")
    return sum(hmac.compare_digest(secret, token.encode()) for token in tokens) > 0


def _host_of(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _cross_site(headers: Mapping[str, str]) -> Refusal | None:
    site = headers.get("Sec-Fetch-Site", "none")
    origin = headers.get("Origin")
    own = origin is None or urlsplit(origin).netloc == headers.get("Host", "")
    if site in {"none", "same-origin"} and own:
        return None
    return Refusal(
        403,
        "cross_site",
        "a page of another site may not change anything here",
        "use this agent's own page, or a program",
    )
