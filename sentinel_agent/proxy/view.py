"""What filters get to see: a request and a response, with edits that are collected and applied in one pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sentinel_agent.proxy.cluster import find_header
from sentinel_agent.proxy.filters import check_field
from sentinel_agent.proxy.subrequest import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.filters import Answer, Encoder
    from sentinel_agent.proxy.wire.head import ResponseHead

MAX_EDITS: Final = 50
MAX_SINKS: Final = 10


class Edits:
    """Headers that a filter sets, and those that it takes out (None)."""

    __slots__ = ("edits",)

    def __init__(self) -> None:
        self.edits: dict[str, str | None] = {}

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it.

        Raises:
            ValueError: no name or no value of a header, or one that frames the message.
        """
        check_field(name, value)
        self._edit(name, value)

    def remove_header(self, name: str) -> None:
        """Take a header out; raises like `set_header`."""
        check_field(name, "")
        self._edit(name, None)

    def _edit(self, name: str, value: str | None) -> None:
        if len(self.edits) >= MAX_EDITS:
            raise ValueError(f"more than {MAX_EDITS} headers edited")
        self.edits = {key: old for key, old in self.edits.items() if key.lower() != name.lower()}
        self.edits[name] = value

    def lines(self) -> bytes:
        """The header lines that are set."""
        return b"".join(
            b"%b: %b\r\n" % (name.encode(), value.encode())
            for name, value in self.edits.items()
            if value is not None
        )

    def names(self) -> list[bytes]:
        """The names whose lines are replaced or taken out."""
        return [name.lower().encode() for name in self.edits]


class RequestView(Edits):
    """A request, for filters; `sinks` get its body, piece by piece."""

    __slots__ = ("_exchange", "sinks")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange
        self.sinks: list[Callable[[bytes, bool], None]] = []

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

    @property
    def route(self) -> str:
        """The name of the route."""
        route = self._exchange.route
        return route.name if route is not None else ""

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas. Host is the one that counts (RFC 9112 section 3.2.2)."""
        head = self._exchange.head
        if name.lower() == "host":
            return head.fields.get(b"host")
        return find_header(head.raw, name.encode())

    def count(self, what: str) -> None:
        """Count something under the route."""
        route = self._exchange.route
        assert route is not None, "it was routed"
        route.stats.count(what)

    def head(self, cluster: str) -> bytes:
        """The head as a server of `cluster` would get it; nothing, where the route's rewrite makes no path."""
        return self._exchange.onward_head(cluster)

    def watch_body(self, sink: Callable[[bytes, bool], None]) -> None:
        """Call `sink` with each piece of the body; what has come already, at once.

        Raises:
            ValueError: too many are watching, or a part of the body is gone.
        """
        exchange = self._exchange
        if len(self.sinks) >= MAX_SINKS or exchange.body_gone:
            raise ValueError("nobody can watch this body any more")
        self.sinks.append(sink)
        if exchange.held_body or exchange.body_done:
            sink(b"".join(exchange.held_body or ()), exchange.body_done)

    async def call(
        self,
        cluster: str,
        message: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 - part of what is asked
        keep: int = 0,
        again: bool = False,
    ) -> Answer:
        """Send a whole request to a cluster.

        Raises:
            OSError, TimeoutError: there was no answer.
        """
        exchange = self._exchange
        worker = exchange.worker
        pool = worker.clusters.get(cluster)
        if pool is None:
            raise ConnectionError(f"there is no cluster {cluster} any more")
        key = pool.key(exchange.head, exchange.downstream.client)
        async with asyncio.timeout(timeout):
            return await ask(worker, pool, message, key=key, keep=keep, again=again)

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that the request does not wait for."""
        self._exchange.worker.spawn(work, f"{name} route={self.route}{self._exchange.trace_words()}")


class ResponseView(Edits):
    """A response, for filters; its body goes through `encoders`."""

    __slots__ = ("_has_body", "_head", "encoders", "status")

    def __init__(self, head: ResponseHead, *, has_body: bool) -> None:
        super().__init__()
        self._head = head
        self._has_body = has_body
        self.status = head.status
        self.encoders: list[Encoder] = []

    @property
    def length(self) -> int | None:
        """Bytes of its body, None if they are not known beforehand."""
        return self._head.length

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas."""
        return find_header(self._head.raw, name.encode())

    def encode(self, encoder: Encoder) -> None:
        """Send the body through `encoder`; where there is none, it is dropped at once."""
        if self._has_body:
            self.encoders.append(encoder)
        else:
            encoder.drop()
