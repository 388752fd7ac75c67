"""What a worker is at one moment: listeners, clusters with the health of each server, counters. For the admin side.

Times are in seconds, counts since the worker's start. `host` is where connections go, `address` what the server is called.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.proxy.stats import RouteCounts, counts_of

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.listener import HttpListener, TcpListener
    from sentinel_agent.proxy.worker import Worker


class HostFacts(msgspec.Struct, frozen=True):
    """A server. `flags` are Envoy's health flags; none of them: it is healthy."""

    address: str
    host: str
    port: int
    weight: int
    metadata: dict[str, str]
    usable: bool
    flags: tuple[str, ...]
    active: int
    idle: int
    latency: float
    success: float
    ejected_for: float


class ClusterFacts(msgspec.Struct, frozen=True):
    """A cluster. `counters` and `breakers` are by Envoy's names."""

    name: str
    type: str
    panic: bool
    active: int
    connections: int
    pending: int
    retries: int
    hosts: tuple[HostFacts, ...]
    counters: dict[str, int]


class ListenerFacts(msgspec.Struct, frozen=True):
    """A listener: what is open, what was refused, what clients did wrong."""

    name: str
    protocol: str
    connections: int
    refused: int
    limited: int
    faults: dict[str, int]


class WorkerFacts(msgspec.Struct, frozen=True):
    """A worker."""

    pid: int
    draining: bool
    listeners: tuple[ListenerFacts, ...]
    clusters: tuple[ClusterFacts, ...]
    routes: tuple[RouteCounts, ...]
    records_dropped: int


def snapshot(worker: Worker) -> WorkerFacts:
    """The worker as it is now."""
    now = worker.now()
    return WorkerFacts(
        pid=os.getpid(),
        draining=all(each.draining for each in (*worker.http, *worker.tcp)),
        listeners=(*map(_listener, worker.http), *map(_listener, worker.tcp)),
        clusters=tuple(cluster_facts(each, now) for each in worker.clusters.values()),
        routes=tuple(
            counts_of(listener.spec.name, route.name, cluster, stats)
            for listener in worker.http
            for route in listener.routes
            for cluster, stats in route.all_stats.items()
        ),
        records_dropped=worker.tap.dropped if worker.tap is not None else 0,
    )


def _listener(listener: HttpListener | TcpListener) -> ListenerFacts:
    return ListenerFacts(
        name=listener.spec.name,
        protocol=listener.spec.protocol,
        connections=len(listener.connections),
        refused=listener.refused,
        limited=getattr(listener, "limited", 0),
        faults=dict(getattr(listener, "faults", {})),
    )


def cluster_facts(pool: ClusterPool, now: float) -> ClusterFacts:
    """A cluster as it is at `now`."""
    counters: dict[str, Any] = asdict(pool.statistics)
    if pool.names is not None:
        counters |= asdict(pool.names.statistics)
    return ClusterFacts(
        name=pool.name,
        type=pool.spec.type,
        panic=pool.panic,
        active=pool.active,
        connections=pool.connections,
        pending=pool.pending,
        retries=pool.retries,
        hosts=tuple(_host(each, now) for each in pool.servers),
        counters=counters,
    )


def _host(server: Server, now: float) -> HostFacts:
    until = server.record.until
    flags = []
    if not server.checks.healthy:
        flags.append("failed_active_hc")
    if until is not None:
        flags.append("failed_outlier_check")
    return HostFacts(
        address=server.address,
        host=server.host,
        port=server.port,
        weight=server.weight,
        metadata=dict(server.metadata),
        usable=server.usable,
        flags=tuple(flags),
        active=server.active,
        idle=len(server.idle),
        latency=server.latency,
        success=server.success,
        ejected_for=max(0.0, until - now) if until is not None else 0.0,
    )
