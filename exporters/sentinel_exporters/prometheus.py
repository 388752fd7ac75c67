"""Prometheus: the newest readings of every target, rules and the agent itself, as text for `GET /metrics`.

Names: `sentinel_target_*` in base units with the labels `target` (the role's key) and `service`; no pid, path, trace id
or incident id is a label (the latter two are exemplars, which only OpenMetrics carries). What is observed goes into plain
tables on the agent's thread; prometheus_client is imported, and the text made, only when somebody asks.

A role outlives its process: when another process takes its place, a counter starts again from 0, as Prometheus expects
of a restart, and a reading of the old process that comes late is ignored (the process is told by pid and start time).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from msgspec import Meta

from sentinel_agent.core.event import IncidentSealed, LimitReached, TargetAppeared, TargetGone
from sentinel_agent.core.metrics import METRICS, unit_of
from sentinel_agent.export.base import (
    DURATION_BOUNDS,
    AgentReading,
    ClusterReading,
    ExporterOptions,
    ReadingSet,
    RequestDelta,
    Signal,
)
from sentinel_agent.export.registry import needs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

    from sentinel_agent.core.model import Target, TargetId
    from sentinel_agent.core.span import Span
    from sentinel_agent.export.base import ExporterContext, Item

_FORGET = 300.0
"""A target that is gone is shown as `up 0` for so many seconds, then no more."""

_SILENT = 30.0
"""The health of a cluster of which nothing was heard for so many seconds is not shown."""

_LONGEST_STEP = 60.0
"""Two readings further apart than this are not joined to one stretch of CPU time."""

_SCALE = {"percent": 0.01}
_SUFFIX = {
    "percent": "_ratio",
    "bytes": "_bytes",
    "seconds": "_seconds",
    "per_second": "_per_second",
    "bytes_per_second": "_bytes_per_second",
}


class Options(ExporterOptions, frozen=True, kw_only=True):
    """What can be set for the metrics page. Nothing is sent, so the options of queues have no effect."""

    max_series: Annotated[
        int, Meta(ge=100, le=1_000_000, description="series on the page at most; the rest is counted")
    ] = 20_000


class Exemplar(NamedTuple):
    """What links a value to where it is from: a trace id or an incident id."""

    labels: dict[str, str]
    value: float
    time: float


class Histogram:
    """Counts by bucket, their sum, and the newest exemplar of each bucket."""

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.total = 0.0
        self.exemplars: list[Exemplar | None] = [None] * (len(DURATION_BOUNDS) + 1)

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count one value in seconds."""
        at = bisect_left(DURATION_BOUNDS, value)
        self.counts[at] += 1
        self.total += value
        if exemplar is not None:
            self.exemplars[at] = exemplar


@dataclass(slots=True)
class _Seat:
    """One role: the process that fills it, its newest readings, and what is counted up."""

    target: Target
    values: dict[str, float] = field(default_factory=dict)
    time: float = 0.0
    cpu_seconds: float = 0.0
    gone: float | None = None
    stalls: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class _Route:
    """All requests of one route and cluster, by class of status and by duration."""

    classes: list[int] = field(default_factory=lambda: [0] * 6)
    durations: Histogram = field(default_factory=Histogram)


class PrometheusExporter:
    """The view; see the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("metrics", "spans", "events")

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        self._options = options
        self._version = context.version
        self._lock = Lock()
        self._seats: dict[str, _Seat] = {}
        self._requests: dict[tuple[str, ...], Histogram] = {}
        self._routes: dict[tuple[str, str, str, str], _Route] = {}
        self._clusters: dict[tuple[str, str], ClusterReading] = {}
        self._incidents: dict[tuple[str, str], tuple[int, float, Exemplar]] = {}
        self._limits: dict[tuple[str, str], int] = {}
        self._agent = AgentReading(0.0, {})
        self._left_out = 0
        self._registry: CollectorRegistry | None = None

    # -- observing -------------------------------------------------------------------------------------------

    def observe(self, item: Item) -> None:
        """Take note of an item."""
        with self._lock:
            if isinstance(item, ReadingSet):
                self._reading(item)
            elif isinstance(item, tuple):
                for span in item:
                    self._span(span)
            elif isinstance(item, RequestDelta):
                self._route(item)
            elif isinstance(item, ClusterReading):
                self._cluster(item)
            elif isinstance(item, AgentReading):
                self._agent = item
                self._forget(item.time)
            else:
                self._event(item)

    def _reading(self, item: ReadingSet) -> None:
        seat = self._seat(item.target)
        if seat is None or item.time < seat.time:
            return
        elapsed = item.time - seat.time
        if seat.time and elapsed < _LONGEST_STEP:
            seat.cpu_seconds += item.values.get("cpu", 0.0) / 100 * elapsed
        seat.values, seat.time = item.values, item.time
        stall = item.values.get("loop_stall")
        if stall:
            seat.stalls.observe(stall)

    def _seat(self, target: Target) -> _Seat | None:
        key = target.role.key
        seat = self._seats.get(key)
        if seat is not None and seat.target.id == target.id:
            return seat if seat.gone is None else None
        if seat is not None and _earlier(target.id, seat.target.id):
            return None  # of the process that was there before
        if seat is None and len(self._seats) >= self._options.max_series // 20:
            self._left_out += 1
            return None
        seat = self._seats[key] = _Seat(target)
        return seat

    def _route(self, item: RequestDelta) -> None:
        key = (item.service, item.listener, item.route, item.cluster)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= self._options.max_series // 60:
                self._left_out += 1
                return
            route = self._routes[key] = _Route()
        for index, count in enumerate(item.classes[: len(route.classes)]):
            route.classes[index] += count
        for index, count in enumerate(item.buckets[: len(route.durations.counts)]):
            route.durations.counts[index] += count
        route.durations.total += item.seconds

    def _cluster(self, item: ClusterReading) -> None:
        key = (item.service, item.cluster)
        if key not in self._clusters and len(self._clusters) >= self._options.max_series // 60:
            self._left_out += 1
            return
        self._clusters[key] = item

    def _span(self, span: Span) -> None:
        if span.kind == "internal":
            return
        status = span.attributes.get("http.response.status_code")
        code = f"{status // 100}xx" if isinstance(status, int) and 100 <= status <= 599 else "none"
        peer = span.remote.service or span.remote.address if span.kind == "client" and span.remote else ""
        key = (span.kind, span.service, code, peer)
        histogram = self._requests.get(key)
        if histogram is None:
            if len(self._requests) >= self._options.max_series // 60:
                self._left_out += 1
                return
            histogram = self._requests[key] = Histogram()
        seconds = span.duration / 1e9
        traced = Exemplar({"trace_id": span.trace_id}, seconds, span.start / 1e9) if span.sampled else None
        histogram.observe(seconds, traced)
        where = ("sentinel.listener", "http.route", "sentinel.cluster")
        listener, name, cluster = (str(span.attributes.get(each, "")) for each in where)
        route = self._routes.get((span.service, listener, name, cluster))
        if route is not None and traced is not None and span.kind == "server":
            route.durations.exemplars[bisect_left(DURATION_BOUNDS, seconds)] = traced

    def _event(self, event: object) -> None:
        match event:
            case TargetAppeared():
                self._seat(event.target)
            case TargetGone():
                seat = self._seats.get(event.target.role.key)
                if seat is not None and seat.target.id == event.target.id:
                    seat.gone, seat.values = event.time, {}
            case IncidentSealed():
                self._incident(event)
            case LimitReached():
                key = (event.rule, event.target.role.key)
                self._limits[key] = self._limits.get(key, 0) + 1

    def _incident(self, event: IncidentSealed) -> None:
        incident = event.incident
        key = (incident.rule, incident.target.role.key)
        count = self._incidents.get(key, (0, 0.0, None))[0] + 1
        link = Exemplar({"incident_id": incident.id}, 1.0, incident.time)
        self._incidents[key] = (count, incident.time, link)
        seat = self._seats.get(key[1])
        if incident.metric == "loop_stall" and incident.value is not None and seat is not None:
            at = bisect_left(DURATION_BOUNDS, incident.value)
            seat.stalls.exemplars[at] = link._replace(value=incident.value)

    def _forget(self, now: float) -> None:
        for key, seat in tuple(self._seats.items()):
            if seat.gone is not None and now - seat.gone > _FORGET:
                del self._seats[key]
        for name, reading in tuple(self._clusters.items()):
            if now - reading.time > _SILENT:
                del self._clusters[name]

    # -- rendering -------------------------------------------------------------------------------------------

    def render(self, accept: str | None) -> tuple[str, bytes]:
        """The page.

        Raises:
            OperatorError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import exposition  # noqa: PLC0415 - heavy, and most are never asked
        except ImportError:
            raise needs("prometheus_client", "prometheus") from None
        encoder, content_type = exposition.choose_encoder(accept or "")
        registry = self._registry
        if registry is None:
            registry = self._registry = self._make_registry()
        return content_type, encoder(registry)

    def _make_registry(self) -> CollectorRegistry:
        from prometheus_client import (  # noqa: PLC0415 - as above
            CollectorRegistry,
            GCCollector,
            PlatformCollector,
            ProcessCollector,
        )

        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)  # of the agent itself, by its usual names
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(self)
        return registry

    def describe(self) -> list[Metric]:
        """Nothing is known beforehand (prometheus_client asks when it registers a collector)."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family, made from the tables as they are now."""
        from sentinel_exporters import _families as make  # noqa: PLC0415 - imports prometheus_client

        with self._lock:
            seats = [
                _Seat(s.target, s.values, s.time, s.cpu_seconds, s.gone, _copy(s.stalls))
                for s in self._seats.values()
            ]
            requests = {key: _copy(histogram) for key, histogram in self._requests.items()}
            routes = {
                key: (list(route.classes), _copy(route.durations)) for key, route in self._routes.items()
            }
            clusters = dict(self._clusters)
            incidents, limits = dict(self._incidents), dict(self._limits)
            agent, left_out = self._agent, self._left_out
        room = make.Room(self._options.max_series)
        yield from room.filter(make.targets(_rows(seats)))
        yield from room.filter(make.stalls((_labels(s), s.stalls) for s in seats if sum(s.stalls.counts)))
        yield from room.filter(make.routes(routes))
        yield from room.filter(make.clusters(clusters))
        yield from room.filter(make.requests(requests))
        yield from room.filter(make.rules(agent, incidents, limits))
        yield from room.filter(make.agent(agent, self._version))
        yield from make.left_out(left_out + room.left_out)


def _labels(seat: _Seat) -> tuple[str, str]:
    return seat.target.role.key, seat.target.service


def _rows(seats: Iterable[_Seat]) -> list[tuple[tuple[str, str], dict[str, float], dict[str, Any]]]:
    """(labels, gauges by name, facts) of each target, in base units."""
    return [
        (
            _labels(seat),
            {
                metric_name(name): value * _SCALE.get(unit_of(name), 1.0)
                for name, value in seat.values.items()
            },
            {
                "up": 0.0 if seat.gone is not None else 1.0,
                "cpu_seconds": seat.cpu_seconds,
                "time": seat.time,
                "python": seat.target.python or "",
            },
        )
        for seat in seats
    ]


def metric_name(name: str) -> str:
    """`rss` -> `sentinel_target_rss_bytes`: the unit is part of the name, percentages become ratios."""
    suffix = _SUFFIX.get(unit_of(name), "")
    return f"sentinel_target_{name.removesuffix(suffix) if suffix else name}{suffix}"


def help_of(name: str) -> str:
    """What a metric of a target measures, in a sentence."""
    known = {metric_name(metric.name): metric.description for metric in METRICS.values()}
    return known.get(name, "Published by a plug-in.")


def _earlier(one: TargetId, other: TargetId) -> bool:
    return one.pid_namespace == other.pid_namespace and one.start_time < other.start_time


def _copy(histogram: Histogram) -> Histogram:
    copy = Histogram()
    copy.counts, copy.total = list(histogram.counts), histogram.total
    copy.exemplars = list(histogram.exemplars)
    return copy
