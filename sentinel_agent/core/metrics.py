"""The metrics that this project knows: name, unit, and one sentence each.

A rule may name a metric that is not here, because probes can be plugged in; then it says that nothing
publishes it, until something does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["percent", "bytes", "count", "seconds", "per_second", "bytes_per_second"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a reading measures."""

    name: str
    unit: Unit
    description: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("cpu", "percent", "CPU time used since the last tick, in percent of one core"),
        Metric(
            "cpu_limit",
            "percent",
            "CPU time used since the last tick, in percent of the container's CPU limit",
        ),
        Metric("rss", "bytes", "resident memory"),
        Metric("rss_limit", "percent", "resident memory in percent of the container's memory limit"),
        Metric("threads", "count", "OS threads"),
        Metric("fds", "count", "open file descriptors"),
        Metric("ctx_voluntary", "per_second", "voluntary context switches: the process waited"),
        Metric(
            "ctx_involuntary",
            "per_second",
            "involuntary context switches: the process was pushed off its core",
        ),
        Metric("io_read", "bytes_per_second", "bytes fetched from storage"),
        Metric("io_write", "bytes_per_second", "bytes sent to storage"),
        Metric(
            "io_wait",
            "percent",
            "time spent waiting for block I/O since the last tick, in percent of one core",
        ),
        Metric(
            "throttled",
            "percent",
            "share of the cgroup's CPU periods since the last tick that were throttled",
        ),
        Metric("memory_events", "count", "times the cgroup hit its memory limit since the last tick"),
        Metric("oom_kills", "count", "processes of the cgroup killed for memory since the last tick"),
        Metric("tasks", "count", "asyncio tasks"),
        Metric("loop_stall", "seconds", "longest time that an event loop was seen in one callback"),
        *(
            Metric(
                f"gc_{name}_gen{generation}", "count", f"{what} generation {generation} since the last tick"
            )
            for name, what in (
                ("collections", "garbage collections of"),
                ("collected", "objects freed by collections of"),
                ("uncollectable", "objects that could not be freed by collections of"),
            )
            for generation in range(3)
        ),
        Metric("gc_pause", "seconds", "longest time that one garbage collection was seen at work"),
        Metric("gc_share", "percent", "share of time that garbage collections took, estimated from looks"),
        Metric("rps", "per_second", "requests through the embedded proxy"),
        Metric("error_rate", "percent", "share of the proxy's requests that failed"),
        Metric("latency_p99", "seconds", "99th percentile of the proxy's request duration"),
        Metric("inflight", "count", "requests in flight in the proxy"),
    )
}


def unit_of(metric: str) -> str:
    """The unit of a metric; a plug-in's metric that is not in the catalogue has none."""
    known = METRICS.get(metric)
    return known.unit if known else ""
