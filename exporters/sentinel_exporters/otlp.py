"""OTLP over HTTP with protobuf bodies (OTLP 1.x), encoded with OpenTelemetry's own message classes.

Spans go to /v1/traces, readings to /v1/metrics, events to /v1/logs as log records with `event.name`. Names follow the
semantic conventions 1.44 where they have one (`process.*`, `service.*`, `network.*`), else they begin with `sentinel.`.

The SDK's exporters are not used: they block for up to 20 s when a collector stalls and drop what their queue has no room
for without a word. The messages are the same (package opentelemetry-proto), queue and patience are `export.line`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from sentinel_agent.core.event import IncidentLost, IncidentOpened, IncidentSealed, LimitReached
from sentinel_agent.core.metrics import METRICS, unit_of
from sentinel_agent.export.base import (
    AgentReading,
    ClusterReading,
    ExporterOptions,
    ReadingSet,
    RequestDelta,
    SendError,
    Signal,
)
from sentinel_agent.export.registry import needs
from sentinel_exporters._common import (
    event_facts,
    event_name,
    event_target,
    event_words,
    incident_ids,
    ip_version,
    target_facts,
)
from sentinel_exporters.http import HttpOptions, HttpSender, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sentinel_agent.core.model import Target
    from sentinel_agent.core.span import AttributeValue, Span
    from sentinel_agent.export.base import ExportedEvent, ExporterContext, Item

_PATHS: dict[Signal, str] = {"spans": "/v1/traces", "metrics": "/v1/metrics", "events": "/v1/logs"}
_KINDS = {"internal": 1, "server": 2, "client": 3}
_STATUS = {"unset": 0, "ok": 1, "error": 2}
_TARGETS_KEPT = 1000
"""Targets whose last tick is remembered, from which a counter's next value is counted."""
_INFO, _WARN, _ERROR = (9, "INFO"), (13, "WARN"), (17, "ERROR")


Shape = Literal["gauge", "updown", "counter", "total"]


class Named(NamedTuple):
    """A metric by OpenTelemetry's conventions: `factor` converts our unit; `shape` is the instrument.

    A counter's value is what was counted since the tick before (delta temporality).
    """

    name: str
    unit: str
    factor: float = 1.0
    shape: Shape = "gauge"
    generation: int | None = None


NAMES: dict[str, Named] = {
    "cpu_limit": Named("process.cpu.utilization", "1", 0.01),
    "rss": Named("process.memory.usage", "By", shape="updown"),
    "threads": Named("process.thread.count", "{thread}", shape="updown"),
    "fds": Named("process.unix.file_descriptor.count", "{file_descriptor}", shape="updown"),
    "cpu": Named("sentinel.cpu.usage", "{cpu}", 0.01),
    "tasks": Named("sentinel.asyncio.task.count", "{task}"),
    **{
        f"gc_{ours}_gen{number}": Named(f"cpython.gc.{theirs}", unit, shape="counter", generation=number)
        for number in range(3)
        for ours, theirs, unit in (
            ("collections", "collections", "{collection}"),
            ("collected", "collected_objects", "{object}"),
            ("uncollectable", "uncollectable_objects", "{object}"),
        )
    },
}
"""What has a name by convention, or a better one than ours. `process.cpu.utilization` is of the CPUs that the process may
use, which is our `cpu_limit`; `cpu` is in cores."""

_UNITS = {
    "percent": ("1", 0.01),
    "bytes": ("By", 1.0),
    "count": ("1", 1.0),
    "seconds": ("s", 1.0),
    "per_second": ("1/s", 1.0),
    "bytes_per_second": ("By/s", 1.0),
}


class Options(HttpOptions, frozen=True, kw_only=True):
    """The base of the collector: `http://collector:4318`."""


class OtlpExporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("metrics", "spans", "events")

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        try:
            from sentinel_exporters import _otlp_messages  # noqa: PLC0415 - imports protobuf
        except ImportError:
            raise needs("opentelemetry-proto", "otlp") from None
        self._make = _otlp_messages
        self._http = HttpSender(options, context)
        self._base = options.url.rstrip("/")
        self._ticked: dict[Any, float] = {}
        self._agent = {
            "service.name": "sentinel-agent",
            "service.version": context.version,
            "service.instance.id": context.host,
        }

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """One export request."""
        if signal == "spans":
            found = [span for item in items if isinstance(item, tuple) for span in item if span.sampled]
            return self._make.traces(_by_service(found)) if found else None
        if signal == "metrics":
            requests = [item for item in items if isinstance(item, RequestDelta)]
            points = [*self._target_points(items), *self._agent_points(items), *_cluster_points(items)]
            return self._make.metrics(points, requests)
        events: list[ExportedEvent] = [
            item
            for item in items
            if not isinstance(item, tuple | ReadingSet | AgentReading | RequestDelta | ClusterReading)
        ]
        return self._make.logs(_records(events))

    async def send(self, signal: Signal, body: bytes) -> str:
        """POST; a success may say that some items were rejected, which is then counted."""
        words, answer = await self._http.post(f"{self._base}{_PATHS[signal]}", body, "application/x-protobuf")
        rejected, why = self._make.rejected(signal, answer)
        if rejected:
            raise SendError(f"{words}, but {rejected} rejected: {printable(why)}", "rejected", lost=rejected)
        return words + (f": {printable(why)}" if why else "")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _target_points(self, items: Iterable[Item]) -> list[tuple[dict[str, AttributeValue], list[Points]]]:
        targets: dict[Any, tuple[Target, dict[str, Points]]] = {}
        for item in items:
            if not isinstance(item, ReadingSet):
                continue
            key = (item.target.id, item.target.role)
            before = self._ticked.pop(key, item.time)
            _, series = targets.setdefault(key, (item.target, {}))
            for metric, value in item.values.items():
                known = named(metric)
                generation: dict[str, AttributeValue] = (
                    {} if known.generation is None else {"cpython.gc.generation": known.generation}
                )
                since = before if known.shape == "counter" else 0.0
                points = series.setdefault(known.name, Points(known, _description(metric), []))
                points.points.append(Point(item.time, value * known.factor, generation, since))
            self._ticked[key] = item.time
        while len(self._ticked) > _TARGETS_KEPT:
            del self._ticked[next(iter(self._ticked))]
        return [(target_facts(target), list(series.values())) for target, series in targets.values()]

    def _agent_points(self, items: Iterable[Item]) -> list[tuple[dict[str, AttributeValue], list[Points]]]:
        own = [item for item in items if isinstance(item, AgentReading)]
        if not own:
            return []
        names = sorted({name for item in own for name in item.values})
        points = [
            Points(
                Named(f"sentinel.agent.{name}", "1"),
                "What the agent says of itself.",
                [Point(item.time, item.values[name]) for item in own if name in item.values],
            )
            for name in names
        ]
        lost = [
            Point(own[-1].time, float(count), {"exporter": exporter, "signal": signal, "reason": reason})
            for exporter, signal, reason, count in own[-1].exports
        ]
        if lost:
            points.append(
                Points(
                    Named("sentinel.export.dropped", "{item}", shape="total"), "Items lost, by reason.", lost
                )
            )
        return [(dict(self._agent), points)]


class Point(NamedTuple):
    """A value at one time; `since` is where it began to be counted. Seconds since the epoch."""

    time: float
    value: float
    attributes: Mapping[str, AttributeValue] = {}
    since: float = 0.0


class Points(NamedTuple):
    """A metric with its points."""

    metric: Named
    description: str
    points: list[Point]


def _cluster_points(items: Iterable[Item]) -> list[tuple[dict[str, AttributeValue], list[Points]]]:
    """The health of the embedded proxy's clusters, by the proxy that says so."""
    found: dict[tuple[str, str], list[ClusterReading]] = {}
    for item in items:
        if isinstance(item, ClusterReading):
            found.setdefault((item.service, item.instance), []).append(item)
    return [
        ({"service.name": service, "service.instance.id": instance}, _health_of(readings))
        for (service, instance), readings in found.items()
    ]


def _health_of(readings: list[ClusterReading]) -> list[Points]:
    counts = [
        Point(each.time, float(count), {"sentinel.cluster": each.cluster, "sentinel.state": state})
        for each in readings
        for state, count in (("healthy", each.healthy), ("unhealthy", max(0, each.endpoints - each.healthy)))
    ]
    servers = [
        Point(each.time, float(fit), {"sentinel.cluster": each.cluster, "server.address": address})
        for each in readings
        for address, fit in each.servers
    ]
    return [
        Points(Named("sentinel.proxy.cluster.endpoints", "{endpoint}"), "Servers of a cluster.", counts),
        Points(Named("sentinel.proxy.endpoint.healthy", "1"), "1 while a server is healthy.", servers),
    ]


def named(metric: str) -> Named:
    """By convention, or `sentinel.<ours>` in a unit of UCUM."""
    known = NAMES.get(metric)
    if known is not None:
        return known
    unit, factor = _UNITS.get(unit_of(metric), ("1", 1.0))
    return Named(f"sentinel.{metric}", unit, factor)


def _description(metric: str) -> str:
    known = METRICS.get(metric)
    return known.description if known else "published by a plug-in"


def _by_service(spans: Iterable[Span]) -> list[tuple[dict[str, AttributeValue], list[SpanFacts]]]:
    groups: dict[tuple[str, str], list[SpanFacts]] = {}
    for span in spans:
        groups.setdefault((span.service, span.instance), []).append(_facts(span))
    return [
        ({"service.name": service, **({"service.instance.id": instance} if instance else {})}, found)
        for (service, instance), found in groups.items()
    ]


class SpanFacts(NamedTuple):
    """A span in the numbers of OTLP, with its remote endpoint among the attributes."""

    span: Span
    kind: int
    status: int
    attributes: dict[str, AttributeValue]


def _facts(span: Span) -> SpanFacts:
    attributes = span.attributes
    if span.remote is not None:
        remote = span.remote
        found: dict[str, AttributeValue] = {}
        if remote.address:
            name = (
                "network.peer"
                if ip_version(remote.address)
                else "server"
                if span.kind == "client"
                else "client"
            )
            found[f"{name}.address"] = remote.address
            if remote.port:
                found[f"{name}.port"] = remote.port
        if remote.service:
            found["peer.service"] = remote.service
        attributes = {**found, **attributes}
    return SpanFacts(span, _KINDS[span.kind], _STATUS[span.status], attributes)


class Record(NamedTuple):
    """An event as a log record."""

    time: float
    severity: tuple[int, str]
    name: str
    body: str
    attributes: dict[str, AttributeValue]
    ids: tuple[str, str] | None


def _records(events: Iterable[ExportedEvent]) -> list[tuple[dict[str, AttributeValue], list[Record]]]:
    targets: dict[Any, tuple[Target, list[Record]]] = {}
    for event in events:
        target = event_target(event)
        incident = (
            event.incident.id
            if isinstance(event, IncidentSealed)
            else event.id
            if isinstance(event, IncidentOpened)
            else None
        )
        record = Record(
            event.time,
            _severity(event),
            event_name(event),
            event_words(event),
            event_facts(event),
            incident_ids(incident) if incident else None,
        )
        targets.setdefault((target.id, target.role), (target, []))[1].append(record)
    return [(target_facts(target), records) for target, records in targets.values()]


def _severity(event: ExportedEvent) -> tuple[int, str]:
    match event:
        case IncidentLost():
            return _ERROR
        case IncidentOpened() | IncidentSealed() | LimitReached():
            return _WARN
    return _INFO
