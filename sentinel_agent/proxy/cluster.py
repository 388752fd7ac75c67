"""The servers of a cluster at run time: who is usable, what is under way, which connections wait for reuse."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sentinel_agent.proxy.balance import ewma, make_balancer
from sentinel_agent.proxy.tls import ClientTls

if TYPE_CHECKING:
    from random import Random

    from sentinel_agent.proxy.config import Cluster
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.wire.head import RequestHead

_SUCCESS_WEIGHT = 0.05


class Server:
    """One upstream server as this worker sees it; what balancers call a host. `room` is how many idle connections are kept."""

    __slots__ = (
        "active",
        "address",
        "host",
        "idle",
        "latency",
        "measured",
        "port",
        "room",
        "since",
        "success",
        "usable",
        "weight",
    )

    def __init__(self, address: str, weight: int, room: int, now: float) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.weight = weight
        self.active = 0
        self.usable = True
        self.latency = 0.0
        self.success = 1.0
        self.since = now
        self.measured = now
        self.room = room
        self.idle: list[UpstreamConnection] = []

    def leave(self) -> None:
        """It is no server of the cluster any more: idle connections end now, those in use after their request."""
        self.room = 0
        for connection in tuple(self.idle):
            connection.close()

    def measure(self, seconds: float, failed: bool, now: float) -> None:
        """One more answer, for balancing by latency and success."""
        self.latency = ewma(self.latency, seconds, now - self.measured)
        self.measured = now
        self.success += _SUCCESS_WEIGHT * ((not failed) - self.success)


class ClusterPool:
    """A cluster of one worker: its servers, its circuit breakers, its idle connections.

    `pick(key, now)` chooses a usable server; `most` requests may be under way at once.
    """

    __slots__ = (
        "active",
        "connections",
        "key_of",
        "measured",
        "most",
        "name",
        "pending",
        "pick",
        "retries",
        "servers",
        "spec",
        "tls",
    )

    def __init__(self, spec: Cluster, random: Random, now: float) -> None:
        self.name = spec.name
        self.spec = spec
        self.tls = ClientTls(spec.tls) if spec.tls is not None else None
        self.servers = [Server(each.address, each.weight, spec.max_idle, now) for each in spec.endpoints]
        self.pick = make_balancer(spec.load_balancer, self.servers, random).pick
        self.most = spec.circuit_breaker.requests or sys.maxsize
        self.measured = spec.load_balancer == "peak_ewma"
        self.active = 0
        self.connections = 0
        self.pending = 0
        self.retries = 0

    def key(self, head: RequestHead, client: str) -> bytes:
        """What `maglev` keeps together."""
        spec = self.spec
        if spec.load_balancer != "maglev":
            return b""
        if spec.hash.header is not None:
            return find_header(head.raw, spec.hash.header.encode()) or b""
        if spec.hash.cookie is not None:
            return find_cookie(head.raw, spec.hash.cookie.encode()) or b""
        return client.encode()

    @property
    def full(self) -> bool:
        """Whether one more request is one too many."""
        return self.active >= self.most

    @property
    def may_connect(self) -> bool:
        """Whether one more connection, and one more request that waits for one, are within the caps."""
        caps = self.spec.circuit_breaker
        return not (0 < caps.connections <= self.connections or 0 < caps.pending <= self.pending)

    @property
    def may_retry(self) -> bool:
        """Whether one more try again is within the budget (Envoy's: a share of what is under way, and some always)."""
        caps = self.spec.circuit_breaker
        return self.retries < max(caps.retries_at_least, caps.retry_ratio * self.active)

    def take(self, server: Server) -> UpstreamConnection | None:
        """The idle connection that was used last; it is the least likely to be closing."""
        idle = server.idle
        while idle:
            connection = idle.pop()
            if not connection.closing:
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> bool:
        """Keep a connection for reuse; False if there are enough."""
        server = connection.server
        if len(server.idle) >= server.room:
            return False
        server.idle.append(connection)
        return True


def find_header(raw: bytes, name: bytes) -> bytes | None:
    """The value of a header by its name, in a head whose lines are known to be sound."""
    low = raw.lower()
    values = []
    at = low.find(b"\n%b:" % name.lower())
    while at >= 0:
        end = raw.index(b"\r", at)
        values.append(raw[at + len(name) + 2 : end].strip(b" \t"))
        at = low.find(b"\n%b:" % name.lower(), end)
    return b", ".join(values) if values else None


def find_cookie(raw: bytes, name: bytes) -> bytes | None:
    """The value of a cookie."""
    for pair in (find_header(raw, b"cookie") or b"").split(b";"):
        key, found, value = pair.strip().partition(b"=")
        if found and key == name:
            return value
    return None
