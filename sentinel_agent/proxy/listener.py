"""A listener at run time: its routes compiled, its connections counted, what clients did wrong noted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, Self

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.bucket import TokenBucket
from sentinel_agent.proxy.downstream import Downstream
from sentinel_agent.proxy.filters.loading import make_filter
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.proxy.relay import Waiting
from sentinel_agent.proxy.routes import CompiledRoute, RouteTable, Way, request_pattern
from sentinel_agent.proxy.stats import RouteStats
from sentinel_agent.proxy.tls import ServerTls
from sentinel_agent.proxy.tunnel import TcpSession
from sentinel_agent.proxy.wire.faults import Limits

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from sentinel_agent.proxy.cluster import ClusterPool
    from sentinel_agent.proxy.config import Listener, ProxyConfig, Route
    from sentinel_agent.proxy.flags import Flag
    from sentinel_agent.proxy.relay import Relay
    from sentinel_agent.proxy.worker import Worker


class Connection(Protocol):
    """What a listener has many of."""

    def end(self) -> None:
        """End it, its time is over."""
        ...


class BaseListener(ABC):
    """What every listener has. `refused` connections were one too many, those in `opening` have no protocol yet.

    While it is `draining`, every answer says that it is its connection's last. `faults` counts by flag what clients did wrong before there was a request.
    """

    connections: AbstractSet[Connection]

    def __init__(self, worker: Worker, spec: Listener) -> None:
        """Read the files that it needs.

        Raises:
            OperatorError: one of them is of no use.
        """
        self.worker = worker
        self.spec = spec
        self.tls = ServerTls(spec.tls) if spec.tls is not None else None
        self.refused = 0
        self.opening = 0
        self.draining = False
        self.faults: dict[str, int] = {}

    @abstractmethod
    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""

    def adopt(self, fresh: Self) -> None:
        """Be as `fresh` is from the next request on; connections and counts stay."""
        self.spec, self.tls = fresh.spec, fresh.tls

    def count_fault(self, flag: Flag) -> None:
        """What a client did wrong, where a line would say no more."""
        self.faults[flag.code] = self.faults.get(flag.code, 0) + 1

    def note_fault(self, client: str, flag: Flag, status: int, detail: str) -> None:
        """What a client did wrong before there was a request: counted, and a line of the access log."""
        self.count_fault(flag)
        worker = self.worker
        record = RequestRecord(
            time=worker.wall(),
            listener=self.spec.name,
            route="",
            cluster="",
            upstream="",
            client=client,
            method="",
            path="",
            host="",
            status=status,
            seconds=0.0,
            upstream_seconds=0.0,
            bytes_in=0,
            bytes_out=0,
            flags=flag.code,
            detail=detail,
        )
        worker.keep(record, notable=True)


class HttpListener(BaseListener):
    """Where requests come in; `limited` ones met a rate limit."""

    def __init__(
        self, worker: Worker, spec: Listener, clusters: Mapping[str, ClusterPool], config: ProxyConfig
    ) -> None:
        """Compile the routes of a listener of `config`.

        Raises:
            OperatorError: a filter cannot be made, or a file is of no use.
        """
        super().__init__(worker, spec)
        self.limits = Limits(spec.limits.head, spec.limits.target, spec.limits.headers)
        self.lean_bytes = min(spec.limits.head, spec.limits.target, 16 * 1024)
        mark = config.adaptive_limit.load_test
        self.pattern = request_pattern(spec, config.coloring, *([mark.name] if mark is not None else []))
        self.routes = [CompiledRoute(spec, route, config) for route in spec.routes]
        for route in self.routes:
            route.ways = _ways(route.spec, clusters)
            route.unmarked = _unmarked(route.ways)
            route.lean = (
                route.lean
                and len(route.ways) == 1
                and route.ways[0].subset is None
                and route.ways[0].pool.spec.load_balancer != "maglev"
            )
            route.filters = tuple(make_filter(use) for use in route.spec.filters)
            if route.spec.rate_limit is not None:
                route.bucket = TokenBucket(
                    route.spec.rate_limit.rate, route.spec.rate_limit.burst, worker.now()
                )
        self.table = RouteTable(self.routes)
        self.plain_route = self.table.plain
        self.connections: set[Downstream] = set()
        self.limited = 0

    def adopt(self, fresh: HttpListener) -> None:
        """Be as `fresh` is from the next request on; a route that was there keeps its counts, its limit if that is the same."""
        super().adopt(fresh)
        known = {route.name: route for route in self.routes}
        for route in fresh.routes:
            before = known.get(route.name)
            if before is not None:
                route.take_counts(before)
                route.held = before.held
                if before.spec.rate_limit == route.spec.rate_limit:
                    route.bucket = before.bucket
        self.limits, self.lean_bytes, self.pattern = fresh.limits, fresh.lean_bytes, fresh.pattern
        self.routes, self.table, self.plain_route = fresh.routes, fresh.table, fresh.plain_route
        for client in self.connections:
            client.forget()

    def __call__(self) -> Downstream:
        """The protocol of a new connection."""
        return Downstream(self)


def _ways(route: Route, clusters: Mapping[str, ClusterPool]) -> tuple[Way, ...]:
    """Where a route's requests go, each with the end of its share of 1; one of weight 0 is for those with its mark."""
    if route.cluster is not None:
        pool = clusters[route.cluster]
        subset = pool.subset(route.metadata_match) if route.metadata_match else None
        return (Way(1.0, pool, subset, None, RouteStats()),)
    total = sum(each.weight for each in route.clusters)
    stats = {each.name: RouteStats() for each in route.clusters}
    end, found = 0, []
    for each in route.clusters:
        if each.weight or each.mark is not None:
            pool = clusters[each.name]
            end += each.weight
            subset = pool.subset(each.metadata_match) if each.metadata_match else None
            mark = None if each.mark is None else each.mark.encode()
            found.append(Way(end / total, pool, subset, mark, stats[each.name]))
    return tuple(found)


def _unmarked(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """The ways without a mark, their shares made whole; where each has one, all."""
    end, found, total = 0.0, [], 0.0
    for way in ways:
        if way.mark is None:
            total += way.end - end
            found.append(way._replace(end=total))
        end = way.end
    return tuple(way._replace(end=way.end / total) for way in found) if total > 0 else ways


class TcpListener(BaseListener):
    """Where bytes come in that go to a cluster as they are."""

    def __init__(self, worker: Worker, spec: Listener, cluster: ClusterPool) -> None:
        super().__init__(worker, spec)
        self.cluster = cluster
        self.connections: set[Relay] = set()
        self.waiting = 0

    def adopt(self, fresh: TcpListener) -> None:
        """Be as `fresh` is from the next connection on."""
        super().adopt(fresh)
        self.cluster = fresh.cluster

    def __call__(self) -> Waiting:
        """The protocol of a new connection."""
        return Waiting(self._arrived)

    def _arrived(self, client: Waiting) -> None:
        if len(self.connections) + self.waiting >= self.spec.limits.connections:
            self.refused += 1
            client.transport.abort()
        elif self.tls is not None and (stranger := self.tls.stranger(client.transport)):
            peer = client.transport.get_extra_info("peername")
            self.note_fault(peer[0] if peer else "local", flags.TLS_FAILED, 0, stranger)
            client.transport.abort()
        else:
            self.waiting += 1
            session = TcpSession(self.worker, self, client)
            self.worker.spawn(session.run(), f"connect {self.cluster.name}")
