"""A connection to an upstream server: one request at a time, then back to the pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from sentinel_agent.proxy.lean import LeanExchange, end
from sentinel_agent.proxy.wheel import NOWHERE
from sentinel_agent.proxy.wire.buffer import HeadBuffer

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.subrequest import Subrequest
    from sentinel_agent.proxy.worker import Worker

MAX_HEAD = 256 * 1024


class UpstreamConnection(asyncio.Protocol):
    """Hands what comes to the exchange that it serves; what comes while it serves none ends it."""

    __slots__ = (
        "closing",
        "cluster",
        "deadline",
        "ended",
        "exchange",
        "full",
        "heads",
        "paused",
        "served",
        "server",
        "slot",
        "transport",
        "worker",
    )

    transport: asyncio.Transport

    def __init__(self, worker: Worker, cluster: ClusterPool, server: Server) -> None:
        self.worker = worker
        self.cluster = cluster
        self.server = server
        self.exchange: Exchange | Subrequest | None = None
        self.heads = HeadBuffer(MAX_HEAD, 502)
        self.closing = False
        self.ended = False
        self.served = 0
        self.full = False
        self.paused = False
        self.deadline = 0.0
        self.slot = NOWHERE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It counts from now on."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self.transport = transport
        self.cluster.connections += 1

    def data_received(self, data: bytes) -> None:
        """A piece of the answer."""
        exchange = self.exchange
        if exchange is None:  # nobody asked: a second answer, or what belongs to none
            self.close()
        elif type(exchange) is not LeanExchange or exchange.response is not None or not end(exchange, data):
            exchange.answered(data)

    def eof_received(self) -> None:
        """The server says no more; asyncio closes the connection. Over TLS this is its close_notify, and nothing else is."""
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over; the exchange decides what that means."""
        self.cluster.connections -= 1
        self.worker.wheel.drop(self)
        self.closing = True
        if self in self.server.idle:
            self.server.idle.remove(self)
        exchange = self.exchange
        if exchange is not None:
            exchange.upstream_lost(exc)

    def pause_writing(self) -> None:
        """The server does not read: the client is not read from either."""
        self.full = True
        if self.exchange is not None:
            self.exchange.pause_sender()

    def resume_writing(self) -> None:
        """The server reads again."""
        self.full = False
        if self.exchange is not None:
            self.exchange.resume_sender()

    def pause_reading(self) -> None:
        """The client does not read."""
        if not self.paused and not self.closing:
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client reads again."""
        if self.paused and not self.closing:
            self.paused = False
            self.transport.resume_reading()

    def release(self, now: float) -> None:
        """Its exchange is over and left it clean: back to the pool, or closed if there are enough."""
        self.exchange = None
        self.resume_reading()
        if self.closing or not self.cluster.give_back(self):
            self.close()
        else:
            self.worker.wheel.arm(self, now + self.cluster.spec.idle_timeout)

    def expire(self, now: float) -> None:
        """Nobody used it for long."""
        if self.exchange is None:
            self.close()

    def close(self) -> None:
        """End it at once: whatever is still on its way is of no use."""
        self.exchange = None
        if not self.closing:
            self.closing = True
            self.transport.abort()
