"""OTLP: decoded with OpenTelemetry's own messages by a server that the test holds, it is what was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sentinel_agent.core.event import IncidentLost, IncidentOpened, IncidentSealed, TargetGone
from sentinel_agent.core.span import Endpoint, SpanEvent
from sentinel_agent.export.base import (
    DURATION_BOUNDS,
    AgentReading,
    ClusterReading,
    RequestDelta,
    SendError,
    Signal,
)
from sentinel_exporters._common import incident_ids
from sentinel_exporters.otlp import Options, OtlpExporter
from tests.export.support import NOW, TARGET, group, readings, span
from tests.exporters.support import context, incident, options, serving, status

if TYPE_CHECKING:
    from sentinel_agent.core.span import Span


def made(url: str = "http://127.0.0.1:4318") -> OtlpExporter:
    return OtlpExporter(options(Options, url=url), context())


def body(signal: Signal, *items: Any) -> bytes:
    found = made().encode(signal, items)
    assert found is not None
    return found


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def spans(*groups: Any) -> list[Any]:
    request = ExportTraceServiceRequest.FromString(body("spans", *groups))
    return [
        each for resource in request.resource_spans for scope in resource.scope_spans for each in scope.spans
    ]


def test_spans_are_whole() -> None:
    """Ids as bytes, nanoseconds exactly, kinds, typed attributes, the remote side, status and events."""
    server, client = group(7)
    failed = span(
        9,
        status="error",
        status_message="reset",
        events=(SpanEvent(5, "retry", {"n": 2}),),
        trace_state="a=1",
    )
    first, second, third = spans((server, client), (failed,))
    assert first.trace_id.hex() == server.trace_id
    assert first.span_id.hex() == server.span_id
    assert first.parent_span_id == b""
    assert second.parent_span_id.hex() == server.span_id
    assert (first.kind, second.kind) == (2, 3)
    assert first.start_time_unix_nano == server.start
    assert first.end_time_unix_nano - first.start_time_unix_nano == server.duration
    assert plain(first.attributes) == {
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 50123,
        **server.attributes,
    }
    assert plain(second.attributes)["peer.service"] == "orders"
    assert (third.status.code, third.status.message, third.trace_state) == (2, "reset", "a=1")
    assert plain(third.events[0].attributes) == {"n": 2}
    assert first.status.code == 0


def test_a_service_is_a_resource() -> None:
    """Spans of two services are two resources; what is not sampled is not sent; a batch of nothing is no request."""
    request = ExportTraceServiceRequest.FromString(
        body("spans", group(1), (span(2, service="other", instance=""),), (span(3, sampled=False),))
    )
    assert [plain(each.resource.attributes) for each in request.resource_spans] == [
        {"service.name": "gateway", "service.instance.id": "host-1"},
        {"service.name": "other"},
    ]
    assert made().encode("spans", [(span(3, sampled=False),)]) is None


def test_opentelemetrys_sdk_would_send_the_same() -> None:
    """Its model and its encoder, given the same spans and readings, make the same messages but for flags and an empty status."""
    server, client = group(7)
    failed = span(
        9,
        status="error",
        status_message="reset",
        parent_id=server.span_id,
        events=(SpanEvent(5, "x", {"n": 2}),),
    )
    of = {"service.name": "gateway", "service.instance.id": "host-1"}
    ours = ExportTraceServiceRequest.FromString(body("spans", (server, client), (failed,)))
    (resource,) = ours.resource_spans
    scope = InstrumentationScope(resource.scope_spans[0].scope.name)

    def theirs(each: Span, found: Any) -> ReadableSpan:
        flags = TraceFlags(TraceFlags.SAMPLED)
        trace = int(each.trace_id, 16)
        return ReadableSpan(
            each.name,
            SpanContext(trace, int(each.span_id, 16), is_remote=False, trace_flags=flags),
            SpanContext(trace, int(each.parent_id, 16), is_remote=False, trace_flags=flags)
            if each.parent_id
            else None,
            Resource(of),
            plain(found.attributes),
            tuple(Event(event.name, event.attributes, event.time) for event in each.events),
            kind={"server": SpanKind.SERVER, "client": SpanKind.CLIENT}[each.kind],
            instrumentation_scope=scope,
            status=Status(StatusCode.ERROR, "reset") if each.status == "error" else Status(),
            start_time=each.start,
            end_time=each.start + each.duration,
        )

    made_by = zip((server, client, failed), resource.scope_spans[0].spans, strict=True)
    encoded = encode_spans([theirs(each, found) for each, found in made_by])
    for request in (encoded, ours):
        for each in request.resource_spans[0].scope_spans[0].spans:
            each.ClearField("flags")
            if not each.status.ByteSize():
                each.ClearField("status")
    assert encoded == ours

    ours_metrics = ExportMetricsServiceRequest.FromString(body("metrics", readings(NOW, threads=4.0)))
    (told,) = ours_metrics.resource_metrics
    (metric,) = told.scope_metrics[0].metrics
    point = NumberDataPoint({}, 0, int(NOW * 1e9), 4.0)
    same = Metric(
        "process.thread.count",
        metric.description,
        "{thread}",
        Sum([point], AggregationTemporality.CUMULATIVE, is_monotonic=False),
    )
    scoped = ScopeMetrics(InstrumentationScope(told.scope_metrics[0].scope.name), [same], "")
    data = MetricsData([ResourceMetrics(Resource(plain(told.resource.attributes)), [scoped], "")])
    assert encode_metrics(data) == ours_metrics


def test_readings_have_the_names_of_the_conventions() -> None:
    """Units are UCUM's, percentages are ratios, what has no convention begins with `sentinel.`, and time is kept."""
    request = ExportMetricsServiceRequest.FromString(
        body(
            "metrics",
            readings(NOW, cpu=150.0, cpu_limit=75.0, rss=1e9, threads=4.0, io_read=5.0, odd=1.0),
            readings(NOW + 1, cpu=50.0),
            AgentReading(NOW, {"cpu_ratio": 0.01}, exports=(("zipkin", "spans", "spool_full", 7),)),
        )
    )
    target, agent = request.resource_metrics
    assert plain(target.resource.attributes)["service.name"] == "gateway"
    assert plain(target.resource.attributes)["process.pid"] == TARGET.pid
    found = {each.name: each for each in target.scope_metrics[0].metrics}
    assert [point.as_double for point in found["sentinel.cpu.usage"].gauge.data_points] == [1.5, 0.5]
    assert [point.time_unix_nano for point in found["sentinel.cpu.usage"].gauge.data_points] == [
        int(NOW * 1e9),
        int((NOW + 1) * 1e9),
    ]
    assert found["process.cpu.utilization"].gauge.data_points[0].as_double == 0.75
    assert found["process.memory.usage"].unit == "By"
    assert found["process.memory.usage"].sum.data_points[0].as_double == 1e9
    assert not found["process.memory.usage"].sum.is_monotonic
    assert found["process.thread.count"].unit == "{thread}"
    assert found["sentinel.io_read"].unit == "By/s"
    assert found["sentinel.odd"].gauge.data_points[0].as_double == 1.0
    own = {each.name: each for each in agent.scope_metrics[0].metrics}
    assert plain(agent.resource.attributes)["service.name"] == "sentinel-agent"
    assert own["sentinel.agent.cpu_ratio"].gauge.data_points[0].as_double == 0.01
    (lost,) = own["sentinel.export.dropped"].sum.data_points
    assert (lost.as_double, plain(lost.attributes)["reason"]) == (7.0, "spool_full")


def test_what_is_counted_since_the_last_tick_is_a_delta() -> None:
    """Garbage collections: one metric with the generation as attribute, each value from the tick before to its own."""
    exporter = made()
    for second in (0, 1):
        exporter.encode("metrics", [readings(NOW + second, gc_collections_gen0=1.0)])
    found = exporter.encode("metrics", [readings(NOW + 2, gc_collections_gen0=3.0, gc_collections_gen2=1.0)])
    assert found is not None
    (resource,) = ExportMetricsServiceRequest.FromString(found).resource_metrics
    (metric,) = resource.scope_metrics[0].metrics
    assert (metric.name, metric.unit, metric.sum.is_monotonic) == (
        "cpython.gc.collections",
        "{collection}",
        True,
    )
    assert metric.sum.aggregation_temporality == 1  # delta
    youngest, oldest = metric.sum.data_points
    assert (youngest.as_double, plain(youngest.attributes)) == (3.0, {"cpython.gc.generation": 0})
    assert (oldest.as_double, plain(oldest.attributes)) == (1.0, {"cpython.gc.generation": 2})
    assert youngest.start_time_unix_nano == int((NOW + 1) * 1e9)
    assert youngest.time_unix_nano == int((NOW + 2) * 1e9)


def test_the_health_of_the_proxys_clusters_is_gauges() -> None:
    """Servers by state, and each by its address."""
    reading = ClusterReading(NOW, "gateway", "host-1", "back", 3, 2, False, (("a:1", True), ("b:1", False)))
    (resource,) = ExportMetricsServiceRequest.FromString(body("metrics", reading)).resource_metrics
    assert plain(resource.resource.attributes)["service.name"] == "gateway"
    count, servers = resource.scope_metrics[0].metrics
    found = {plain(each.attributes)["sentinel.state"]: each.as_double for each in count.gauge.data_points}
    assert (count.name, found) == ("sentinel.proxy.cluster.endpoints", {"healthy": 2.0, "unhealthy": 1.0})
    known = {plain(each.attributes)["server.address"]: each.as_double for each in servers.gauge.data_points}
    assert (servers.name, known) == ("sentinel.proxy.endpoint.healthy", {"a:1": 1.0, "b:1": 0.0})


def test_requests_of_the_proxy_are_a_histogram() -> None:
    """By the conventions' name and bounds, counted from one second to the next, with the route as attribute."""
    delta = RequestDelta(
        NOW + 1, NOW, "gateway", "host-1", "web", "all", (0, 0, 3, 0, 0, 0), (1, 2, *[0] * 13), 0.02, "back"
    )
    (resource,) = ExportMetricsServiceRequest.FromString(body("metrics", delta)).resource_metrics
    assert plain(resource.resource.attributes)["service.name"] == "gateway"
    (metric,) = resource.scope_metrics[0].metrics
    assert (metric.name, metric.unit, metric.histogram.aggregation_temporality) == (
        "http.server.request.duration",
        "s",
        1,
    )
    (point,) = metric.histogram.data_points
    assert (point.count, point.sum, list(point.bucket_counts)[:3]) == (3, 0.02, [1, 2, 0])
    assert list(point.explicit_bounds) == list(DURATION_BOUNDS)
    assert point.time_unix_nano - point.start_time_unix_nano == 10**9
    assert plain(point.attributes) == {
        "http.route": "all",
        "sentinel.listener": "web",
        "sentinel.cluster": "back",
    }


def test_events_are_log_records_with_a_name() -> None:
    """All records of an incident have one trace, the same that Zipkin shows; severity says what was lost."""
    sealed = incident()
    request = ExportLogsServiceRequest.FromString(
        body(
            "events",
            IncidentOpened(NOW, sealed.id, "cpu-spike", TARGET, "cpu is high"),
            IncidentSealed(NOW + 1, sealed, "folder"),
            IncidentLost(NOW + 2, "cpu-spike", TARGET, "the disk is full"),
            TargetGone(NOW + 3, TARGET, "killed by signal 9"),
        )
    )
    (resource,) = request.resource_logs
    opened, told, lost, gone = resource.scope_logs[0].log_records
    assert [each.event_name for each in (opened, told, lost, gone)] == [
        "sentinel.incident.opened",
        "sentinel.incident.sealed",
        "sentinel.incident.lost",
        "sentinel.target.gone",
    ]
    trace, root = incident_ids(sealed.id)
    for each in (opened, told):
        assert (each.trace_id.hex(), each.span_id.hex()) == (trace, root)
    assert plain(told.attributes)["sentinel.incident.value"] == 95.0
    assert told.body.string_value == "cpu-spike fired: cpu 95 % is over 90 %"
    assert [each.severity_text for each in (opened, lost, gone)] == ["WARN", "ERROR", "INFO"]
    assert lost.trace_id == b""


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans()),
    st.text(),
)
def test_whatever_a_target_names_it_is_a_message(attributes: dict[str, Any], text: str) -> None:
    """Lone surrogates, numbers beyond 64 bits and empty names: the body decodes and its readable values are unchanged."""
    (found,) = spans((span(1, attributes=attributes, name=text, remote=Endpoint(text, text, 1)),))
    back = plain(found.attributes)
    for name, value in attributes.items():
        if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            assert back[name] == value
    (surrogate,) = spans((span(1, name="\udcff", attributes={"\udcff": "\udcff"}),))
    assert surrogate.name == "?"


async def test_it_is_posted_to_the_path_of_its_signal() -> None:
    """Below the base that the settings name, also where that has a path of its own."""
    async with serving() as server:
        exporter = made(f"{server.url}/otlp/")
        for signal, item in (
            ("spans", group()),
            ("metrics", readings()),
            ("events", TargetGone(NOW, TARGET, "x")),
        ):
            found = exporter.encode(signal, [item])  # type: ignore[arg-type]  # all three are signals
            assert found is not None
            assert await exporter.send(signal, found) == "202 Accepted"  # type: ignore[arg-type]  # as above
        await exporter.close()
    assert [each.path for each in server.requests] == ["/otlp/v1/traces", "/otlp/v1/metrics", "/otlp/v1/logs"]
    assert {each.headers["content-type"] for each in server.requests} == {"application/x-protobuf"}


async def test_a_partial_success_is_a_loss_of_so_many() -> None:
    """A collector that takes a batch but for three spans: three are counted as rejected, with its reason."""
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    )
    answers = [status(200, partial.SerializeToString()), status(200, b"\xff\xffno message")]
    async with serving(answers=answers) as server:
        exporter = made(server.url)
        with pytest.raises(SendError) as raised:
            await exporter.send("spans", b"")
        assert (raised.value.blame, raised.value.lost) == ("rejected", 3)
        assert raised.value.message == "200 OK, but 3 rejected: too old"
        assert await exporter.send("spans", b"") == "200 OK"
        await exporter.close()
