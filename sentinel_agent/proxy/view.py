"""What filters get to see: a request and a response, with edits that are collected and applied in one pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sentinel_agent.proxy.cluster import find_header

if TYPE_CHECKING:
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.wire.head import ResponseHead

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
_FRAMING = frozenset(
    ("content-length", "transfer-encoding", "connection", "upgrade", "host", "te", "trailer")
)
MAX_EDITS = 50


class Edits:
    """Headers that a filter sets."""

    __slots__ = ("edits",)

    def __init__(self) -> None:
        self.edits: dict[str, str] = {}

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it.

        Raises:
            ValueError: no name or no value of a header, or one that frames the message.
        """
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"{name!r:.100}: no header name, or its value is not printable ASCII")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name} frames the message and cannot be set")
        if len(self.edits) >= MAX_EDITS:
            raise ValueError(f"more than {MAX_EDITS} headers set")
        self.edits[name] = value

    def lines(self) -> bytes:
        """The header lines that are set."""
        return b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in self.edits.items())

    def names(self) -> list[bytes]:
        """The names whose lines they replace."""
        return [name.lower().encode() for name in self.edits]


class RequestView(Edits):
    """A request, for filters."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    @property
    def method(self) -> bytes:
        """The method."""
        return self._exchange.head.method

    @property
    def target(self) -> bytes:
        """Path and query, dot segments resolved."""
        return self._exchange.head.target

    @property
    def client(self) -> str:
        """The address of the client."""
        return self._exchange.downstream.client

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas."""
        return find_header(self._exchange.head.raw, name.encode())


class ResponseView(Edits):
    """A response, for filters."""

    __slots__ = ("status",)

    def __init__(self, head: ResponseHead) -> None:
        super().__init__()
        self.status = head.status
