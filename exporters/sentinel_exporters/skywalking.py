"""SkyWalking 9 and 10 over gRPC or HTTP: segments, meters, events, logs, and the instance they belong to.

A request is one segment with its Entry and Exit spans, because traces that come as OTLP are shown but give SkyWalking no
topology and no figures of services. Meters are those that its own Python dashboard shows (`instance_pvm_*`, percent) and
ours as `sentinel_*`, which the server keeps only with the rules in `skywalking-meters.yaml` beside this module. grpclib
carries the bytes; a reply is empty or commands that we do not take, so none is read. Over HTTP the protocol has no meters:
readings then only keep their instance alive.

Sources: skywalking-data-collect-protocol v3; SkyWalking's Cross Process Propagation Headers Protocol v3 (sw8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    LimitReached,
    TargetAppeared,
    TargetGone,
)
from sentinel_agent.core.units import Duration
from sentinel_agent.export.base import (
    AgentReading,
    ClusterReading,
    ExporterOptions,
    ReadingSet,
    RequestDelta,
    Secret,
    Signal,
)
from sentinel_agent.profile.protobuf import block
from sentinel_exporters import _skywalking_messages as make
from sentinel_exporters._common import as_text, event_facts, event_target, event_words, incident_ids, sound
from sentinel_exporters._grpc import GrpcSender
from sentinel_exporters._skywalking_rest import rest_call
from sentinel_exporters.http import HttpOptions, HttpSender

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sentinel_agent.core.model import Target
    from sentinel_agent.core.span import Span
    from sentinel_agent.export.base import ExportedEvent, ExporterContext, Item

_SEGMENTS = "/skywalking.v3.TraceSegmentReportService/collectInSync"
"""One message with all segments of a batch, where `collect` would take a frame of HTTP/2 for each."""
_METERS = "/skywalking.v3.MeterReportService/collectBatch"
_EVENTS = "/skywalking.v3.EventService/collect"
_LOGS = "/skywalking.v3.LogReportService/collect"
_PROPERTIES = "/skywalking.v3.ManagementService/reportInstanceProperties"
_PING = "/skywalking.v3.ManagementService/keepAlive"

PROPERTIES_SECONDS = 300.0
PING_SECONDS = 50.0
"""The server takes an instance for dead that was silent for a minute or two; upstream agents say something each minute."""
_INSTANCES_KEPT = 1000

_PVM = {
    "cpu": "instance_pvm_process_cpu_utilization",
    "rss_limit": "instance_pvm_process_mem_utilization",
    "threads": "instance_pvm_thread_active_count",
    **{f"gc_collected_gen{generation}": f"instance_pvm_gc_g{generation}" for generation in range(3)},
}
"""What the stock dashboard shows, beside `_GC_TIME`."""
_GC_TIME = "instance_pvm_gc_time"
"""Milliseconds in all collections so far, of which the dashboard shows the increase within a minute. CPython keeps no such
sum that could be read, so it is estimated: the recorder's looks tell what share of the time the collector was at work."""
_LONGEST_TICK = 60.0
_HOST = {
    "host_cpu_percent": "instance_pvm_total_cpu_utilization",
    "host_memory_percent": "instance_pvm_total_mem_utilization",
}


class Options(ExporterOptions, frozen=True, kw_only=True):
    """Where the OAP server is: `oap:11800`, or `oap:12800` over HTTP."""

    address: Annotated[
        str,
        Meta(
            pattern=r"^.+:\d{1,5}$",
            extra={"unit": "address"},
            description="host and port of the receiver",
        ),
    ]
    protocol: Annotated[
        Literal["grpc", "http"], Meta(description="how it is spoken to; over HTTP it takes no readings")
    ] = "grpc"
    token: Annotated[
        Secret | None, Meta(description="sent as `authentication`, in the metadata or a header field")
    ] = None
    tls: Annotated[bool, Meta(description="whether the connection is encrypted")] = False
    ca_file: Annotated[
        str | None, Meta(description="certificates to trust, PEM; unset: those of the system")
    ] = None
    layer: Annotated[
        str, Meta(min_length=1, max_length=50, description="SkyWalking's layer of the services")
    ] = "GENERAL"
    component: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="component id of spans: 7000 is Python, 5003 MOSN")
    ] = 7000
    correlation_tags: Annotated[
        tuple[str, ...],
        Meta(description="keys of a caller's sw8-correlation that become tags of the request's Entry span"),
    ] = ()
    interval: Annotated[
        Duration, Meta(ge=0.05, le=300, description="time in which items become one batch")
    ] = 5.0


class _Body(msgspec.Struct, array_like=True):
    """A batch: messages by method, and who they are about, as (service, instance, properties)."""

    calls: list[tuple[str, list[bytes]]]
    instances: list[tuple[str, str, dict[str, str]]]


class SkyWalkingExporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("metrics", "spans", "events")

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        self._options = options
        self._clock = context.clock
        self._host = context.host
        metadata = {"authentication": options.token} if options.token else {}
        self._wire: GrpcSender | _RestSender
        if options.protocol == "http":
            self._wire = _RestSender(options, metadata, context)
        else:
            self._wire = GrpcSender(options.address, metadata, tls=options.tls, ca_file=options.ca_file)
        self._known: dict[tuple[str, str], float] = {}
        self._heard: dict[tuple[str, str], float] = {}
        self._machine: dict[str, float] = {}
        self._memory = 0.0
        self._collected: dict[
            tuple[str, str], tuple[float, float]
        ] = {}  # (time of the reading, milliseconds so far)

    # -- encoding --------------------------------------------------------------------------------------------

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """The calls to make, with the instances that they are about."""
        if signal == "spans":
            body = self._segments(item for item in items if isinstance(item, tuple))
        elif signal == "metrics":
            body = self._meters(items)
        else:
            body = self._events(
                [
                    each
                    for each in items
                    if not isinstance(each, tuple | ReadingSet | AgentReading | RequestDelta | ClusterReading)
                ]
            )
        calls = [(method, messages) for method, messages in body.calls if messages]
        return msgspec.msgpack.encode(_Body(calls, body.instances)) if calls else None

    def _segments(self, groups: Iterable[tuple[Span, ...]]) -> _Body:
        found: list[bytes] = []
        instances: dict[tuple[str, str], dict[str, str]] = {}
        for group in groups:
            spans = [span for span in group if span.sampled]
            if not spans:
                continue
            trace_id, segment_id, places = placed(spans)
            found.append(
                make.segment(
                    spans,
                    places,
                    trace_id=trace_id,
                    segment_id=segment_id,
                    component=self._options.component,
                    correlated=self._options.correlation_tags,
                )
            )
            who = _named_so(spans[0].service, spans[0].instance)
            instances.setdefault(who, self._properties(None))
        collection = b"".join(block(1, each) for each in found)
        return _Body(
            [(_SEGMENTS, [collection] if found else [])], [(*who, facts) for who, facts in instances.items()]
        )

    def _meters(self, items: Iterable[Item]) -> _Body:
        found: list[bytes] = []
        instances: dict[tuple[str, str], dict[str, str]] = {}
        for item in items:
            if isinstance(item, AgentReading):
                self._machine = {_HOST[name]: item.values[name] for name in _HOST if name in item.values}
                self._memory = item.values.get("host_memory_bytes", 0.0)
            elif isinstance(item, ReadingSet) and item.values:
                who = _who(item.target)
                values = {_PVM.get(name, f"sentinel_{name}"): value for name, value in item.values.items()}
                if self._memory and "rss" in item.values:  # no limit of a container: percent of the machine
                    values.setdefault(_PVM["rss_limit"], item.values["rss"] / self._memory * 100)
                if "gc_share" in item.values:
                    values[_GC_TIME] = self._gc_time(who, item.time, item.values["gc_share"])
                found.append(make.meters(*who, int(item.time * 1000), values | self._machine))
                instances.setdefault(who, self._properties(item.target))
        return _Body([(_METERS, found)], [(*who, facts) for who, facts in instances.items()])

    def _gc_time(self, who: tuple[str, str], time: float, share: float) -> float:
        """Milliseconds that the collector has taken since this instance was first heard of."""
        before, total = self._collected.pop(who, (time, 0.0))
        passed = min(max(0.0, time - before), _LONGEST_TICK)
        total += share / 100 * passed * 1000
        self._collected[who] = (time, total)
        if len(self._collected) > _INSTANCES_KEPT:
            self._collected.pop(next(iter(self._collected)))
        return total

    def _events(self, events: Iterable[ExportedEvent]) -> _Body:
        found: list[bytes] = []
        logs: list[bytes] = []
        instances: dict[tuple[str, str], dict[str, str]] = {}
        for event in events:
            found.append(self._event(event))
            if isinstance(event, IncidentSealed):
                logs.append(self._log(event))
            target = event_target(event)
            instances.setdefault(_who(target), self._properties(target))
        return _Body([(_EVENTS, found), (_LOGS, logs)], [(*who, facts) for who, facts in instances.items()])

    def _event(self, event: ExportedEvent) -> bytes:
        service, instance = _who(event_target(event))
        start = end = int(event.time * 1000)
        incident = ""
        if isinstance(event, IncidentOpened):
            incident, end = event.id, 0
        elif isinstance(event, IncidentSealed):
            incident, start = event.incident.id, int(event.incident.time * 1000)
        name, error = _named(event)
        key = incident or f"{service}/{instance}/{name}/{event.time}"
        parameters = {
            field.removeprefix("sentinel."): as_text(value) for field, value in event_facts(event).items()
        }
        return make.event(
            uuid=incident_ids(key)[0],
            service=service,
            instance=instance,
            name=name,
            error=error,
            words=" ".join(event_words(event).split()),
            parameters={"pid": str(event_target(event).pid), **parameters},
            start=start,
            end=end,
            layer=self._options.layer,
        )

    def _log(self, event: IncidentSealed) -> bytes:
        service, instance = _who(event.incident.target)
        return make.log(
            time=int(event.incident.time * 1000),
            service=service,
            instance=instance,
            words=event_words(event),
            trace_id=incident_ids(event.incident.id)[0],
            tags={"level": "WARN", **{key: as_text(value) for key, value in event_facts(event).items()}},
            layer=self._options.layer,
        )

    def _properties(self, target: Target | None) -> dict[str, str]:
        facts = {"language": "python", "hostname": self._host}
        if target is not None:
            facts["Process No."] = str(target.pid)
            if target.python:
                facts["python_version"] = target.python
        return facts

    # -- sending ---------------------------------------------------------------------------------------------

    async def send(self, signal: Signal, body: bytes) -> str:
        """Make the calls of the batch, after telling the server of instances that it may not know."""
        batch = msgspec.msgpack.decode(body, type=_Body)
        now = self._clock.monotonic()
        for service, instance, facts in batch.instances:
            await self._introduce(service, instance, facts, now)
        for method, messages in batch.calls:
            if method == _METERS and self._options.protocol == "http":
                return "OK: the instance is kept alive; over HTTP SkyWalking takes no readings"
            await self._wire.call(method, messages)
        count = sum(len(messages) for _, messages in batch.calls)
        return f"OK: {count} message{'s' * (count != 1)}"

    async def _introduce(self, service: str, instance: str, facts: dict[str, str], now: float) -> None:
        who = (service, instance)
        if now - self._known.get(who, -PROPERTIES_SECONDS) >= PROPERTIES_SECONDS:
            about = make.properties(service, instance, facts, self._options.layer)
            await self._wire.call(_PROPERTIES, [about])
            self._known[who] = self._heard[who] = now
        elif now - self._heard.get(who, 0.0) >= PING_SECONDS:
            await self._wire.call(_PING, [make.ping(service, instance, self._options.layer)])
            self._heard[who] = now
        while len(self._known) > _INSTANCES_KEPT:
            oldest = min(self._known, key=lambda each: self._known[each])
            self._known.pop(oldest)
            self._heard.pop(oldest, None)

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()


class _RestSender:
    """The calls of `GrpcSender` over HTTP, for the methods that have an endpoint."""

    def __init__(self, options: Options, headers: Mapping[str, str], context: ExporterContext) -> None:
        self._url = f"{'https' if options.tls else 'http'}://{options.address}"
        made = HttpOptions(
            url=self._url, headers=dict(headers), ca_file=options.ca_file, timeout=options.timeout
        )
        self._http = HttpSender(made, context)

    async def call(self, method: str, messages: Sequence[bytes]) -> None:
        """POST the messages.

        Raises:
            SendError: the status is no success, or there is none.
        """
        path, body = rest_call(method, messages)
        await self._http.post(self._url + path, body, "application/json")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def placed(spans: Sequence[Span]) -> tuple[str, str, list[tuple[int, int]]]:
    """(trace id, segment id, (span id, parent span id) of each span) of the spans of one request.

    Where the spans do not say their place themselves, they are numbered in order, and the segment is called by its
    client span, which is what our proxy writes into `sw8`; so the next service's reference leads here.
    """
    own = spans[0].skywalking
    if own is not None:
        places = [
            (each.span_id, each.parent_span_id) for span in spans if (each := span.skywalking) is not None
        ]
        if len(places) == len(spans):
            return own.trace_id, own.segment_id, places
    index = {span.span_id: number for number, span in enumerate(spans)}
    clients = [span for span in spans if span.kind == "client"]
    segment = own.segment_id if own is not None else (clients[-1] if clients else spans[0]).span_id
    trace = own.trace_id if own is not None else spans[0].trace_id
    return trace, segment, [(index[span.span_id], index.get(span.parent_id or "", -1)) for span in spans]


def _who(target: Target) -> tuple[str, str]:
    instance = target.instance if target.worker == "main" else f"{target.instance}/{target.worker}"
    return _named_so(target.service, instance)


def _named_so(service: str, instance: str) -> tuple[str, str]:
    return sound(service), sound(make.instance_of(service, instance))


def _named(event: Any) -> tuple[str, bool]:
    """SkyWalking's name of an event (`Start` and `Shutdown` are known to its screens), and whether it is an error."""
    match event:
        case TargetAppeared():
            return "Start", False
        case TargetGone():
            return "Shutdown", "signal" in event.how
        case IncidentLost():
            return "IncidentLost", True
        case LimitReached():
            return "RuleLimitReached", False
    return "Incident", True
