"""The servers of a cluster at run time: who is usable, what is under way, which connections wait for reuse."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.proxy.balance import ewma, make_balancer
from sentinel_agent.proxy.endpoints import DnsEndpoints, static_places
from sentinel_agent.proxy.health import ActiveHealth, Record, judge
from sentinel_agent.proxy.subsets import Subset, make_own
from sentinel_agent.proxy.tls import ClientTls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from sentinel_agent.proxy.balance import Balancer
    from sentinel_agent.proxy.config import Cluster
    from sentinel_agent.proxy.endpoints import Place
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.wire.head import RequestHead

_SUCCESS_WEIGHT = 0.05


class Server:
    """One upstream server as this worker sees it; what balancers call a host.

    `host` and `port` are where connections go, `name` is what the configuration calls the host. `room` is how many idle
    connections are kept: none of a server that is gone.
    """

    __slots__ = (
        "active",
        "address",
        "checks",
        "host",
        "idle",
        "latency",
        "measured",
        "metadata",
        "name",
        "port",
        "record",
        "room",
        "since",
        "success",
        "usable",
        "weight",
    )

    def __init__(self, place: Place, room: int, now: float) -> None:
        self.address = place.address
        self.host = place.host
        self.port = place.port
        self.name = place.name
        self.weight = place.weight
        self.metadata: Mapping[str, str] = place.metadata
        self.active = 0
        self.usable = True
        self.checks = ActiveHealth()
        self.record = Record()
        self.latency = 0.0
        self.success = 1.0
        self.since = now
        self.measured = now
        self.room = room
        self.idle: list[UpstreamConnection] = []

    @property
    def fit(self) -> bool:
        """Neither failed a check nor ejected."""
        return self.checks.healthy and self.record.until is None

    def measure(self, seconds: float, failed: bool, now: float) -> None:
        """One more answer, for balancing by latency and success, and for ejection."""
        self.latency = ewma(self.latency, seconds, now - self.measured)
        self.measured = now
        self.success += _SUCCESS_WEIGHT * ((not failed) - self.success)
        self.record.calls += 1
        self.record.failures += failed

    def leave(self) -> None:
        """It is no server of the cluster any more: idle connections end now, those in use after their request."""
        self.room = 0
        for connection in tuple(self.idle):
            connection.close()


@dataclass(slots=True)
class PoolStatistics:
    """What happened at a cluster, in Envoy's words for it. Counts of requests by status are with the routes."""

    upstream_cx_total: int = 0
    upstream_cx_connect_fail: int = 0
    upstream_cx_overflow: int = 0
    upstream_rq_pending_overflow: int = 0
    upstream_rq_overflow: int = 0
    upstream_rq_retry: int = 0
    upstream_rq_retry_overflow: int = 0
    health_check_attempt: int = 0
    health_check_failure: int = 0
    ejections_total: int = 0
    lb_healthy_panic: int = 0
    membership_change: int = 0


class Roster(NamedTuple):
    """Servers of a cluster and their balancers, made before they are adopted."""

    places: tuple[Place, ...]
    servers: list[Server]
    pick: Callable[[bytes, float], Server | None]
    subsets: dict[Subset[Server], Balancer[Server] | None]


class ClusterPool:
    """A cluster of one worker: its servers, its circuit breakers, its idle connections.

    `pick(key, now)` chooses a usable server; `most` requests may be under way at once; `fit` servers are neither ejected
    nor failed a check.
    """

    __slots__ = (
        "_make_balancer",
        "_subsets",
        "active",
        "connections",
        "fit",
        "measured",
        "most",
        "name",
        "names",
        "panic",
        "pending",
        "pick",
        "retries",
        "servers",
        "spec",
        "statistics",
        "tls",
    )

    def __init__(self, spec: Cluster, random: Random, now: float) -> None:
        self.name = spec.name
        self.spec = spec
        self.tls = ClientTls(spec.tls) if spec.tls is not None else None
        self.statistics = PoolStatistics()
        self.names = (
            None
            if spec.type == "static"
            else DnsEndpoints(
                spec.endpoints,
                logical=spec.type == "logical_dns",
                family=spec.dns_lookup_family,
                rate=spec.dns_refresh_rate,
                random=random,
                now=now,
            )
        )
        places = static_places(spec.endpoints) if self.names is None else self.names.places()
        self.servers = [Server(each, spec.max_idle, now) for each in places]
        self._make_balancer: Callable[[Sequence[Server]], Balancer[Server]] = lambda hosts: make_balancer(
            spec.load_balancer, hosts, random, spec.slow_start_window
        )
        self._subsets: dict[tuple[tuple[str, str], ...], Subset[Server]] = {}
        self.pick = self._balancer(self.servers)
        self.most = spec.circuit_breaker.requests or sys.maxsize
        self.measured = spec.load_balancer == "peak_ewma" or spec.outlier_detection is not None
        self.panic = False
        self.fit = len(self.servers)
        self.active = 0
        self.connections = 0
        self.pending = 0
        self.retries = 0

    # -- who is there --------------------------------------------------------------------------------------------

    def subset(self, labels: Mapping[str, str]) -> Subset[Server]:
        """The servers with these labels, with the cluster's fallback; the same object for the same labels."""
        rules = self.spec.lb_subset_config
        fallback = None
        if rules.fallback_policy == "any_endpoint" and labels:
            fallback = self._subset({}, None)
        elif rules.fallback_policy == "default_subset" and labels != rules.default_subset:
            fallback = self._subset(rules.default_subset, None)
        return self._subset(labels, fallback)

    def _subset(self, labels: Mapping[str, str], fallback: Subset[Server] | None) -> Subset[Server]:
        key = tuple(sorted(labels.items()))
        found = self._subsets.get(key)
        if found is None:
            found = self._subsets[key] = Subset(labels, fallback)
            found.take(make_own(found, self.servers, self._make_balancer))
        return found

    def replace(self, places: Sequence[Place], now: float) -> None:
        """Other servers from now on: those that stay keep their state and connections, those that go are drained."""
        self.adopt(self.prepare(places, now), now)

    def prepare(self, places: Sequence[Place], now: float) -> Roster:
        """The servers at these places and their balancers. Changes nothing, and may be called in a thread.

        A table of Maglev costs some 40 to 100 ms.
        """
        known = {server.address: server for server in self.servers}
        servers = []
        for place in places:
            server = known.get(place.address)
            if server is None or (server.weight, server.metadata) != (place.weight, place.metadata):
                server = Server(place, self.spec.max_idle, now)
            servers.append(server)
        subsets = {
            subset: make_own(subset, servers, self._make_balancer) for subset in tuple(self._subsets.values())
        }
        return Roster(tuple(places), servers, self._balancer(servers), subsets)

    def adopt(self, roster: Roster, now: float) -> None:
        """These are the servers from now on."""
        gone = {id(server): server for server in self.servers}
        for server, place in zip(roster.servers, roster.places, strict=True):
            gone.pop(id(server), None)
            server.host = place.host  # of a name, whose address may be another now
        self.servers = roster.servers
        self.pick = roster.pick
        for subset in self._subsets.values():
            known = subset in roster.subsets  # else it was made in the meantime
            subset.take(
                roster.subsets[subset] if known else make_own(subset, self.servers, self._make_balancer)
            )
        self.statistics.membership_change += 1
        for server in gone.values():
            server.leave()
        self.judge(now)

    def _balancer(self, servers: Sequence[Server]) -> Callable[[bytes, float], Server | None]:
        return self._make_balancer(servers).pick if servers else _nobody

    def judge(self, now: float) -> None:
        """Somebody's health has changed, or who is there: decide anew who is usable."""
        before = [server.usable for server in self.servers]
        self.fit = sum(server.fit for server in self.servers)
        panic = judge(self.servers, self.spec.healthy_panic_threshold)
        self.statistics.lb_healthy_panic += panic and not self.panic
        self.panic = panic
        for server, was in zip(self.servers, before, strict=True):
            if server.usable and not was:
                server.since = now

    # -- circuit breakers ----------------------------------------------------------------------------------------

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

    def may_request(self) -> bool:
        """Whether one more request is within the cap; counted where it is not, as in the next two."""
        if self.active < self.most:
            return True
        self.statistics.upstream_rq_overflow += 1
        return False

    def may_connect(self) -> bool:
        """Whether one more connection, and one more request that waits for one, are within the caps."""
        caps = self.spec.circuit_breaker
        if 0 < caps.connections <= self.connections + self.pending:
            self.statistics.upstream_cx_overflow += 1
            return False
        if 0 < caps.pending <= self.pending:
            self.statistics.upstream_rq_pending_overflow += 1
            return False
        return True

    def may_retry(self) -> bool:
        """Whether one more try again is within the budget (Envoy's: a share of what is under way, and some always)."""
        caps = self.spec.circuit_breaker
        if self.retries < max(caps.retries_at_least, caps.retry_ratio * self.active):
            return True
        self.statistics.upstream_rq_retry_overflow += 1
        return False

    # -- connections ---------------------------------------------------------------------------------------------

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


def _nobody(_key: bytes, _now: float) -> Server | None:
    return None


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
