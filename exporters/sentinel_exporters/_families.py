"""The metric families of the Prometheus page, made with prometheus_client from plain tables."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import samples
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from sentinel_agent.export.base import DURATION_BOUNDS
from sentinel_exporters.prometheus import Exemplar, Histogram, help_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from sentinel_agent.export.base import AgentReading, ClusterReading

_TARGET = ("target", "service")

_AGENT: dict[str, tuple[str, str]] = {
    "cpu_ratio": ("sentinel_self_cpu_ratio", "CPU time the agent uses, of one core, since it started."),
    "rss_bytes": ("sentinel_self_rss_bytes", "Resident memory of the agent."),
    "lateness_seconds": (
        "sentinel_sampler_lateness_seconds",
        "How long after its planned moment the last tick began.",
    ),
    "max_lateness_seconds": (
        "sentinel_sampler_max_lateness_seconds",
        "How long after its planned moment the latest tick of all began.",
    ),
}
_AGENT_TOTALS: dict[str, tuple[str, str]] = {
    "ticks": ("sentinel_sampler_ticks", "Ticks of the sampler."),
    "missed_ticks": ("sentinel_sampler_missed_ticks", "Ticks that were skipped because the agent was late."),
    "incidents_lost": ("sentinel_incidents_lost", "Firings of which nothing was kept."),
    "read_errors": ("sentinel_sampler_read_errors", "Readings that failed."),
}
_SAMPLES = "samples_"


class Room:
    """Lets families pass until `max_series` samples have; the rest of them is left out and counted."""

    def __init__(self, max_series: int) -> None:
        self._room = max_series
        self.left_out = 0

    def filter(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """The families, cut where there is no room left."""
        for family in families:
            if len(family.samples) > self._room:
                kept = 0 if family.type == "histogram" else self._room  # half a histogram is none
                self.left_out += len(family.samples) - kept
                del family.samples[kept:]
            self._room -= len(family.samples)
            yield family


def targets(rows: list[tuple[tuple[str, str], dict[str, float], dict[str, Any]]]) -> Iterator[Metric]:
    """What was last read of each target."""
    up = GaugeMetricFamily("sentinel_target_up", "Whether the target runs.", labels=_TARGET)
    cpu = CounterMetricFamily(
        "sentinel_target_cpu_seconds", "CPU time used while it was watched.", labels=_TARGET
    )
    read = GaugeMetricFamily(
        "sentinel_target_last_reading_timestamp_seconds", "When it was last read.", labels=_TARGET
    )
    info = GaugeMetricFamily(
        "sentinel_target_python_info", "The interpreter it runs on.", labels=(*_TARGET, "python")
    )
    gauges: dict[str, GaugeMetricFamily] = {}
    for labels, values, facts in rows:
        up.add_metric(labels, facts["up"])
        cpu.add_metric(labels, facts["cpu_seconds"])
        if facts["time"]:
            read.add_metric(labels, facts["time"])
        if facts["python"]:
            info.add_metric((*labels, facts["python"]), 1.0)
        for name, value in values.items():
            family = gauges.get(name)
            if family is None:
                family = gauges[name] = GaugeMetricFamily(name, help_of(name), labels=_TARGET)
            family.add_metric(labels, value)
    yield from (up, cpu, read, info, *(gauges[name] for name in sorted(gauges)))


def stalls(rows: Iterable[tuple[tuple[str, str], Histogram]]) -> Iterator[Metric]:
    """How long event loops have been in one callback."""
    family = HistogramMetricFamily(
        "sentinel_target_loop_stalls_seconds",
        "How long the event loop had been in one callback when it was read.",
        labels=_TARGET,
    )
    for labels, histogram in rows:
        family.add_metric(labels, _buckets(histogram), histogram.total)
    yield family


def routes(rows: Mapping[tuple[str, str, str, str], tuple[list[int], Histogram]]) -> Iterator[Metric]:
    """All requests of the embedded proxy."""
    labels = ("service", "listener", "route", "cluster")
    total = CounterMetricFamily(
        "sentinel_proxy_requests", "Requests of the embedded proxy.", labels=(*labels, "code")
    )
    durations = HistogramMetricFamily(
        "sentinel_proxy_request_duration_seconds",
        "Duration of requests of the embedded proxy, within 25 percent.",
        labels=labels,
    )
    for key, (classes, histogram) in sorted(rows.items(), key=lambda row: row[0]):
        for digit, count in enumerate(classes):
            if count:
                total.add_metric((*key, f"{digit}xx" if digit else "none"), float(count))
        durations.add_metric(key, _buckets(histogram), histogram.total)
    yield from (total, durations)


def clusters(rows: Mapping[tuple[str, str], ClusterReading]) -> Iterator[Metric]:
    """Health of the clusters of the embedded proxy."""
    count = GaugeMetricFamily(
        "sentinel_proxy_cluster_endpoints",
        "Servers of a cluster of the embedded proxy.",
        labels=("service", "cluster", "state"),
    )
    panic = GaugeMetricFamily(
        "sentinel_proxy_cluster_panic",
        "1 while so few servers are healthy that all are used.",
        labels=("service", "cluster"),
    )
    healthy = GaugeMetricFamily(
        "sentinel_proxy_endpoint_healthy",
        "1 while a server passes its checks and is not ejected; the first 64 of a cluster.",
        labels=("service", "cluster", "endpoint"),
    )
    for key, reading in sorted(rows.items()):
        count.add_metric((*key, "healthy"), float(reading.healthy))
        count.add_metric((*key, "unhealthy"), float(max(0, reading.endpoints - reading.healthy)))
        panic.add_metric(key, float(reading.panic))
        for address, fit in reading.servers:
            healthy.add_metric((*key, address), float(fit))
    yield from (count, panic, healthy)


def requests(rows: Mapping[tuple[str, ...], Histogram]) -> Iterator[Metric]:
    """Durations of requests, from spans."""
    server = HistogramMetricFamily(
        "sentinel_http_server_request_duration_seconds",
        "Duration of sampled requests that were served, by service and class of status code.",
        labels=("service", "code"),
    )
    client = HistogramMetricFamily(
        "sentinel_http_client_request_duration_seconds",
        "Duration of sampled requests that were sent on, by service, class of status code and peer.",
        labels=("service", "code", "peer"),
    )
    for (kind, service, code, peer), histogram in sorted(rows.items()):
        if kind == "server":
            server.add_metric((service, code), _buckets(histogram), histogram.total)
        else:
            client.add_metric((service, code, peer), _buckets(histogram), histogram.total)
    yield from (server, client)


def _buckets(histogram: Histogram) -> list[Any]:
    bounds = [*(str(bound) for bound in DURATION_BOUNDS), "+Inf"]
    return [
        (bound, float(count), _exemplar(exemplar)) if exemplar else (bound, float(count))
        for bound, count, exemplar in zip(
            bounds, accumulate(histogram.counts), histogram.exemplars, strict=True
        )
    ]


def _exemplar(exemplar: Exemplar) -> samples.Exemplar:
    return samples.Exemplar(exemplar.labels, exemplar.value, exemplar.time)


def rules(
    agent: AgentReading,
    incidents: Mapping[tuple[str, str], tuple[int, float, Exemplar]],
    limits: Mapping[tuple[str, str], int],
) -> Iterator[Metric]:
    """States of rules, and incidents."""
    state = GaugeMetricFamily(
        "sentinel_rule_state",
        "1 for the state that a rule is in on a target, as Prometheus' own ALERTS has it.",
        labels=("rule", "target", "state"),
    )
    for rule, target, name in agent.rules:
        state.add_metric((rule, target, name), 1.0)
    total = CounterMetricFamily(
        "sentinel_incidents", "Incidents saved; the exemplar names the newest.", labels=("rule", "target")
    )
    last = GaugeMetricFamily(
        "sentinel_incident_last_timestamp_seconds",
        "When the newest incident fired.",
        labels=("rule", "target"),
    )
    for labels, (count, time, link) in sorted(incidents.items()):
        total.add_metric(labels, float(count), exemplar=_exemplar(link))
        last.add_metric(labels, time)
    reached = CounterMetricFamily(
        "sentinel_rule_limits_reached", "Times a rule used up its limit.", labels=("rule", "target")
    )
    for labels, count in sorted(limits.items()):
        reached.add_metric(labels, float(count))
    yield from (state, total, last, reached)


def agent(reading: AgentReading, version: str) -> Iterator[Metric]:
    """What the agent costs, and what it missed and lost."""
    yield InfoMetricFamily("sentinel_agent", "The agent.", value={"version": version})
    for key, (name, words) in _AGENT.items():
        if key in reading.values:
            yield GaugeMetricFamily(name, words, value=reading.values[key])
    for key, (name, words) in _AGENT_TOTALS.items():
        if key in reading.values:
            yield CounterMetricFamily(name, words, value=reading.values[key])
    recorded = CounterMetricFamily(
        "sentinel_recorder_samples", "Stacks that the flight recorder took, by result.", labels=("result",)
    )
    for key, value in sorted(reading.values.items()):
        if key.startswith(_SAMPLES):
            recorded.add_metric((key.removeprefix(_SAMPLES),), value)
    yield recorded
    dropped = CounterMetricFamily(
        "sentinel_export_dropped",
        "Items that were lost on their way to a backend, by reason.",
        labels=("exporter", "signal", "reason"),
    )
    for exporter, signal, reason, count in reading.exports:
        dropped.add_metric((exporter, signal, reason), float(count))
    yield dropped


def left_out(count: int) -> Iterator[Metric]:
    """What the bound on series has cost."""
    yield CounterMetricFamily(
        "sentinel_metrics_left_out", "Series and observations beyond `max_series`.", value=float(count)
    )
