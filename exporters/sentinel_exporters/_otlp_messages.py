"""OTLP's messages filled in: plain facts to bytes. The only module that imports protobuf."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from sentinel_agent.export.base import DURATION_BOUNDS
from sentinel_exporters._common import sound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sentinel_agent.core.span import AttributeValue
    from sentinel_agent.export.base import RequestDelta, Signal
    from sentinel_exporters.otlp import Points, Record, SpanFacts

Facts = dict[str, "AttributeValue"]

_SCOPE = InstrumentationScope(name="sentinel_agent")
_LARGEST = 2**63 - 1
_LONG = 100
"""Characters of a value that are worth keeping for the next span."""


def traces(groups: Iterable[tuple[Facts, list[SpanFacts]]]) -> bytes:
    """An ExportTraceServiceRequest."""
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=_resource(facts),
                scope_spans=[ScopeSpans(scope=_SCOPE, spans=[_span(found) for found in spans])],
            )
            for facts, spans in groups
        ]
    ).SerializeToString()


def metrics(groups: Iterable[tuple[Facts, list[Points]]], requests: Iterable[RequestDelta] = ()) -> bytes:
    """An ExportMetricsServiceRequest."""
    made = [(facts, [_metric(each) for each in found]) for facts, found in groups]
    served: dict[tuple[str, str], list[HistogramDataPoint]] = {}
    for each in requests:
        served.setdefault((each.service, each.instance), []).append(_durations(each))
    for (service, instance), points in served.items():
        who: Facts = {"service.name": service, "service.instance.id": instance}
        made.append((who, [_served(points)]))
    return ExportMetricsServiceRequest(
        resource_metrics=[
            ResourceMetrics(
                resource=_resource(facts), scope_metrics=[ScopeMetrics(scope=_SCOPE, metrics=found)]
            )
            for facts, found in made
        ]
    ).SerializeToString()


def _served(points: list[HistogramDataPoint]) -> Metric:
    found = Metric(
        name="http.server.request.duration", unit="s", description="Duration of HTTP server requests."
    )
    delta = Histogram(data_points=points, aggregation_temporality=AGGREGATION_TEMPORALITY_DELTA)
    found.histogram.CopyFrom(delta)
    return found


def _durations(each: RequestDelta) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=_attributes(
            {
                "http.route": each.route,
                "sentinel.listener": each.listener,
                **({"sentinel.cluster": each.cluster} if each.cluster else {}),
            }
        ),
        start_time_unix_nano=int(each.since * 1e9),
        time_unix_nano=int(each.time * 1e9),
        count=sum(each.buckets),
        sum=each.seconds,
        bucket_counts=each.buckets,
        explicit_bounds=DURATION_BOUNDS,
    )


def logs(groups: Iterable[tuple[Facts, list[Record]]]) -> bytes:
    """An ExportLogsServiceRequest."""
    return ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=_resource(facts),
                scope_logs=[ScopeLogs(scope=_SCOPE, log_records=[_record(each) for each in records])],
            )
            for facts, records in groups
        ]
    ).SerializeToString()


def rejected(signal: Signal, answer: bytes) -> tuple[int, str]:
    """How many items a successful answer says were rejected, and why; an answer that is none of OTLP's says nothing."""
    try:
        if signal == "spans":
            traced = ExportTraceServiceResponse.FromString(answer).partial_success
            return traced.rejected_spans, traced.error_message
        if signal == "metrics":
            measured = ExportMetricsServiceResponse.FromString(answer).partial_success
            return measured.rejected_data_points, measured.error_message
        logged = ExportLogsServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return 0, ""
    return logged.rejected_log_records, logged.error_message


def _span(found: SpanFacts) -> Span:
    span = found.span
    return Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id) if span.parent_id else b"",
        trace_state=span.trace_state,
        flags=1,
        name=sound(span.name),
        kind=found.kind,  # type: ignore[arg-type]  # the number of SpanKind
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.start + span.duration,
        attributes=_attributes(found.attributes),
        events=[
            Span.Event(
                time_unix_nano=each.time, name=sound(each.name), attributes=_attributes(each.attributes)
            )
            for each in span.events
        ],
        status=Status(code=found.status, message=sound(span.status_message)) if found.status else None,  # type: ignore[arg-type]  # the number of StatusCode
    )


def _metric(each: Points) -> Metric:
    points = [
        NumberDataPoint(
            attributes=_attributes(point.attributes),
            start_time_unix_nano=int(point.since * 1e9),
            time_unix_nano=int(point.time * 1e9),
            as_double=point.value,
        )
        for point in each.points
    ]
    described = Metric(name=each.metric.name, unit=each.metric.unit, description=each.description)
    shape = each.metric.shape
    if shape == "gauge":
        described.gauge.CopyFrom(Gauge(data_points=points))
        return described
    temporality = AGGREGATION_TEMPORALITY_DELTA if shape == "counter" else AGGREGATION_TEMPORALITY_CUMULATIVE
    total = Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=shape != "updown")
    described.sum.CopyFrom(total)
    return described


def _record(each: Record) -> LogRecord:
    number, word = each.severity
    trace_id, span_id = each.ids or ("", "")
    return LogRecord(
        time_unix_nano=int(each.time * 1e9),
        observed_time_unix_nano=int(each.time * 1e9),
        severity_number=number,  # type: ignore[arg-type]  # the number of SeverityNumber
        severity_text=word,
        event_name=each.name,
        body=AnyValue(string_value=sound(each.body)),
        attributes=_attributes({"event.name": each.name, **each.attributes}),
        trace_id=bytes.fromhex(trace_id),
        span_id=bytes.fromhex(span_id),
    )


def _resource(facts: Facts) -> Resource:
    return Resource(attributes=_attributes(facts))


def _attributes(facts: Mapping[str, AttributeValue]) -> list[KeyValue]:
    return [
        _pair(name, value) if isinstance(value, str) and len(value) > _LONG else _known_pair(name, value)
        for name, value in facts.items()
    ]


def _pair(name: str, value: AttributeValue) -> KeyValue:
    return KeyValue(key=sound(name), value=_value(value))


_known_pair = lru_cache(maxsize=4096, typed=True)(_pair)
"""Most attributes of most spans are the same few. Typed, because True == 1 == 1.0."""


def _value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=sound(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value) if abs(value) <= _LARGEST else AnyValue(string_value=str(value))
    return AnyValue(double_value=value)
