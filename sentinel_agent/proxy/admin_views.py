"""What the admin side shows, of all workers together, in the words and shapes of Envoy's admin interface. Pure.

Counters and gauges are sums over the workers. A server is as its worst worker sees it: each checks for itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from sentinel_agent.core.redact import redact_document
from sentinel_agent.proxy.stats import quantile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sentinel_agent.proxy.config import ProxyConfig
    from sentinel_agent.proxy.snapshot import ClusterFacts, HostFacts, ListenerFacts, WorkerFacts
    from sentinel_agent.proxy.stats import RouteCounts

State = Literal["PRE_INITIALIZING", "INITIALIZING", "LIVE", "DRAINING"]
"""Envoy's life cycle (admin.v3.ServerInfo.State)."""
HEALTHY: Final = "healthy"


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A worker and what it said of itself, or why it said nothing."""

    slot: int
    pid: int
    facts: WorkerFacts | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """A server over all workers; `flags` of any of them."""

    host: HostFacts
    flags: tuple[str, ...]
    usable: int
    workers: int
    active: int
    idle: int

    @property
    def health(self) -> str:
        """Its flags as Envoy writes them."""
        return "/".join(f"/{flag}" for flag in self.flags) if self.flags else HEALTHY


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster over all workers."""

    name: str
    type: str
    panic: bool
    servers: tuple[Server, ...]
    gauges: Mapping[str, int]
    counters: Mapping[str, int]


def clusters_of(workers: Iterable[WorkerAnswer]) -> list[Cluster]:
    """Every cluster that some worker has, in the order of the configuration."""
    found: dict[str, list[ClusterFacts]] = {}
    for facts in _spoken(workers):
        for each in facts.clusters:
            found.setdefault(each.name, []).append(each)
    return [_cluster(each) for each in found.values()]


def _cluster(views: Sequence[ClusterFacts]) -> Cluster:
    hosts: dict[str, list[HostFacts]] = {}
    counters: dict[str, int] = defaultdict(int)
    for view in views:
        for host in view.hosts:
            hosts.setdefault(host.address, []).append(host)
        for name, value in view.counters.items():
            counters[name] += value
    servers = tuple(_server(each) for each in hosts.values())
    gauges = {
        "membership_total": len(servers),
        "membership_healthy": sum(not each.flags for each in servers),
        "upstream_cx_active": sum(view.connections for view in views),
        "upstream_rq_active": sum(view.active for view in views),
        "upstream_rq_pending_active": sum(view.pending for view in views),
        "upstream_rq_retry_active": sum(view.retries for view in views),
    }
    return Cluster(views[0].name, views[0].type, any(v.panic for v in views), servers, gauges, dict(counters))


def _server(views: Sequence[HostFacts]) -> Server:
    flags = tuple(dict.fromkeys(flag for view in views for flag in view.flags))
    usable, active, idle = (
        sum(getattr(view, name) for view in views) for name in ("usable", "active", "idle")
    )
    return Server(views[0], flags, usable, len(views), active, idle)


def _spoken(workers: Iterable[WorkerAnswer]) -> Iterator[WorkerFacts]:
    return (each.facts for each in workers if each.facts is not None)


def server_info(
    *,
    version: str,
    state: State,
    uptime: float,
    service: str,
    config: str,
    fingerprint: str,
    workers: Sequence[WorkerAnswer],
    reloads: dict[str, Any],
) -> dict[str, Any]:
    """`/server_info` (admin.v3.ServerInfo); durations as protobuf's JSON has them."""
    return {
        "version": version,
        "state": state,
        "uptime_current_epoch": f"{uptime:.0f}s",
        "uptime_all_epochs": f"{uptime:.0f}s",
        "node": {"cluster": service},
        "command_line_options": {"config_path": config, "concurrency": len(workers)},
        "config_fingerprint": fingerprint,
        "config_reloads": reloads,
        "workers": [
            {
                "slot": each.slot,
                "pid": each.pid,
                "fault": each.fault,
                "draining": bool(each.facts and each.facts.draining),
            }
            for each in workers
        ],
    }


def config_dump(config: ProxyConfig, fingerprint: str) -> dict[str, Any]:
    """`/config_dump`: the configuration in force with every default, values that may be secrets taken out."""
    return {
        "configs": [{"version_info": fingerprint, "config": redact_document(msgspec.to_builtins(config))}]
    }


def clusters_text(clusters: Iterable[Cluster]) -> str:
    """`/clusters` as Envoy writes it: a line for each fact."""
    lines = []
    for cluster in clusters:
        lines += [f"{cluster.name}::{name}::{value}" for name, value in cluster.gauges.items()]
        lines.append(f"{cluster.name}::lb_healthy_panic::{str(cluster.panic).lower()}")
        for server in cluster.servers:
            at, host = f"{cluster.name}::{server.host.address}", server.host
            lines += [
                f"{at}::health_flags::{server.health}",
                f"{at}::usable_in_workers::{server.usable}/{server.workers}",
                f"{at}::weight::{host.weight}",
                f"{at}::rq_active::{server.active}",
                f"{at}::cx_idle::{server.idle}",
            ]
            lines += [f"{at}::metadata::{name}={value}" for name, value in host.metadata.items()]
    return "".join(f"{line}\n" for line in lines)


def clusters_json(clusters: Iterable[Cluster]) -> dict[str, Any]:
    """`/clusters?format=json` (admin.v3.Clusters)."""
    return {
        "cluster_statuses": [
            {
                "name": cluster.name,
                "discovery_type": cluster.type,
                "lb_healthy_panic": cluster.panic,
                "host_statuses": [_host_status(server) for server in cluster.servers],
            }
            for cluster in clusters
        ]
    }


def _host_status(server: Server) -> dict[str, Any]:
    host = server.host
    return {
        "address": {"socket_address": {"address": host.host, "port_value": host.port}},
        "hostname": host.address,
        "health_status": {
            "failed_active_health_check": "failed_active_hc" in server.flags,
            "failed_outlier_check": "failed_outlier_check" in server.flags,
            "eds_health_status": "HEALTHY",
        },
        "healthy": not server.flags,
        "usable_in_workers": server.usable,
        "workers": server.workers,
        "weight": host.weight,
        "metadata": host.metadata,
        "ejected_for": round(host.ejected_for, 3),
        "stats": [
            {"name": "rq_active", "value": str(server.active), "type": "GAUGE"},
            {"name": "cx_idle", "value": str(server.idle), "type": "GAUGE"},
        ],
    }


def stats(workers: Sequence[WorkerAnswer]) -> dict[str, int | float]:
    """`/stats`: every counter and gauge by Envoy's dotted name, sorted."""
    found: dict[str, int | float] = defaultdict(int)
    for cluster in clusters_of(workers):
        for name, value in (*cluster.gauges.items(), *cluster.counters.items()):
            found[f"cluster.{cluster.name}.{name}"] += value
        found[f"cluster.{cluster.name}.lb_healthy_panic_active"] = int(cluster.panic)
    found["server.workers"] = len(workers)
    found["server.workers_silent"] = sum(each.facts is None for each in workers)
    latency: dict[str, list[list[int]]] = defaultdict(list)
    for facts in _spoken(workers):
        for listener in facts.listeners:
            _listener_stats(listener, found)
        for counts in facts.routes:
            _route_stats(counts, found)
            latency[f"http.{counts.listener}.route.{counts.route}"].append(counts.latency)
        found["server.records_dropped"] += facts.records_dropped
    for name, lists in latency.items():
        merged = [sum(values) for values in zip(*(each for each in lists if each), strict=False)]
        for share in (0.5, 0.99):
            seconds = quantile(merged, share)
            if seconds is not None:
                found[f"{name}.rq_time_p{share * 100:.0f}_ms"] = round(seconds * 1000, 3)
    return dict(sorted(found.items()))


def _listener_stats(listener: ListenerFacts, found: dict[str, int | float]) -> None:
    kind = "http" if listener.protocol == "http" else "tcp"
    found[f"{kind}.{listener.name}.downstream_cx_active"] += listener.connections
    found[f"{kind}.{listener.name}.downstream_cx_overflow"] += listener.refused
    found[f"{kind}.{listener.name}.rate_limited"] += listener.limited
    for flag, count in listener.faults.items():
        found[f"{kind}.{listener.name}.downstream_fault.{flag}"] += count


def _route_stats(counts: RouteCounts, found: dict[str, int | float]) -> None:
    places = [f"http.{counts.listener}.downstream_rq", f"http.{counts.listener}.route.{counts.route}.rq"]
    if counts.cluster:
        places.append(f"cluster.{counts.cluster}.upstream_rq")
    for place in places:
        found[f"{place}_total"] += counts.requests
        for digit, count in enumerate(counts.classes):
            if digit:
                found[f"{place}_{digit}xx"] += count
    found[f"{places[1]}_error"] += counts.errors
    found[f"{places[1]}_active"] += counts.inflight
    for flag, count in counts.flags.items():
        found[f"{places[1]}_flag.{flag}"] += count
    for event, count in counts.events.items():
        found[f"{places[1]}_event.{event}"] += count


def stats_text(values: Mapping[str, int | float]) -> str:
    """`name: value`, a line each."""
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def stats_json(values: Mapping[str, int | float]) -> dict[str, Any]:
    """As Envoy's `/stats?format=json`."""
    return {"stats": [{"name": name, "value": value} for name, value in values.items()]}
