"""A real OpenTelemetry collector: what it decoded, and hands on as JSON, is what was sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.core.event import IncidentSealed
from sentinel_exporters._common import incident_ids
from sentinel_exporters.otlp import Options, OtlpExporter
from sentinel_exporters.zipkin import Options as ZipkinOptions
from sentinel_exporters.zipkin import ZipkinExporter
from tests.export.support import group, readings
from tests.exporters.support import context, free_port, incident, options, serving
from tests.interop.support import CLOCK, artifact, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.exporters.support import Server

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

CONFIG = """\
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
  zipkin: {{endpoint: "127.0.0.1:{zipkin}"}}
exporters:
  otlp_http: {{endpoint: "{out}", encoding: json, compression: none, tls: {{insecure: true}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp, zipkin], exporters: [otlp_http]}}
    metrics: {{receivers: [otlp], exporters: [otlp_http]}}
    logs: {{receivers: [otlp], exporters: [otlp_http]}}
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


@asynccontextmanager
async def collecting(folder: Path) -> AsyncIterator[tuple[int, int, Server]]:
    """A collector: its ports for OTLP and Zipkin, and the server that gets what it decoded."""
    binary = artifact("otelcol")
    port, zipkin = free_port(), free_port()
    async with serving() as sink:
        config = folder / "collector.yaml"
        config.write_text(CONFIG.format(port=port, zipkin=zipkin, out=sink.url))
        running, ended = threading.Event(), threading.Event()

        def collector() -> None:
            try:
                command = (str(binary), "--config", str(config))
                with started(command, folder, lambda: listens(port) and listens(zipkin)):
                    running.set()
                    ended.wait(120)
            finally:
                running.set()

        server = asyncio.create_task(asyncio.to_thread(collector))
        try:
            await asyncio.to_thread(running.wait, 180)
            yield port, zipkin, sink
        finally:
            ended.set()
            await server


async def got(sink: Server, number: int) -> dict[str, Any]:
    """What was handed on, by path, once there are so many requests."""
    async with asyncio.timeout(60):
        while len(sink.requests) < number:
            await asyncio.sleep(0.1)
    return {each.path: json.loads(each.body) for each in sink.requests}


async def test_what_a_collector_decodes_is_what_was_sent(tmp_path: Path) -> None:
    """Traces, metrics and logs through its OTLP receiver, each answered 200 with no remarks."""
    now = CLOCK.wall()
    sealed = incident(time=now)
    async with collecting(tmp_path) as (port, _, sink):
        given = options(Options, url=f"http://127.0.0.1:{port}", compression="gzip")
        exporter = OtlpExporter(given, context())
        for signal, item in (
            ("spans", group(0xABCDEF, at=now)),
            ("metrics", readings(now, cpu=150.0, rss=1e9)),
            ("events", IncidentSealed(now, sealed, "folder")),
        ):
            body = exporter.encode(signal, [item])  # type: ignore[arg-type]  # all three are signals
            assert body is not None
            assert await exporter.send(signal, body) == "200 OK"  # type: ignore[arg-type]  # as above
        await exporter.close()
        found = await got(sink, 3)

    (resource,) = found["/v1/traces"]["resourceSpans"]
    assert plain(resource["resource"]["attributes"]) == {
        "service.name": "gateway",
        "service.instance.id": "host-1",
    }
    server_span, client_span = resource["scopeSpans"][0]["spans"]
    assert server_span["traceId"] == f"{0xABCDEF:032x}"
    assert (server_span["kind"], client_span["kind"]) == (2, 3)
    assert client_span["parentSpanId"] == server_span["spanId"]
    assert int(server_span["startTimeUnixNano"]) == int(now * 1e9)
    assert plain(client_span["attributes"])["peer.service"] == "orders"
    metrics = found["/v1/metrics"]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert {each["name"] for each in metrics} == {"sentinel.cpu.usage", "process.memory.usage"}
    (record,) = found["/v1/logs"]["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert record["eventName"] == "sentinel.incident.sealed"
    assert record["traceId"] == incident_ids(sealed.id)[0]


async def test_what_its_zipkin_receiver_decodes_is_what_was_sent(tmp_path: Path) -> None:
    """Ids, kinds, times, the service and the peer of each span are back; so is an error."""
    now = CLOCK.wall()
    async with collecting(tmp_path) as (_, zipkin, sink):
        exporter = ZipkinExporter(options(ZipkinOptions, url=f"http://127.0.0.1:{zipkin}"), context())
        served, called = group(0xABCDEF, at=now)
        failed = msgspec.structs.replace(called, status="error", status_message="503")
        body = exporter.encode("spans", [(served, failed)])
        assert body is not None
        assert await exporter.send("spans", body) == "202 Accepted"
        await exporter.close()
        found = await got(sink, 1)
    (resource,) = found["/v1/traces"]["resourceSpans"]
    assert plain(resource["resource"]["attributes"])["service.name"] == "gateway"
    spans = {each["spanId"]: each for scope in resource["scopeSpans"] for each in scope["spans"]}
    assert spans.keys() == {served.span_id, called.span_id}
    server_span, client_span = spans[served.span_id], spans[called.span_id]
    assert {each["traceId"] for each in spans.values()} == {f"{0xABCDEF:032x}"}
    assert (server_span["kind"], client_span["kind"]) == (2, 3)
    assert client_span["parentSpanId"] == served.span_id
    assert int(server_span["startTimeUnixNano"]) // 1000 == served.start // 1000
    attributes = plain(client_span["attributes"])
    assert attributes["network.peer.address"] == "10.0.0.7"
    assert attributes["service.peer.name"] == "orders"
    assert (client_span["status"], attributes["error"]) == ({"code": 2}, "503")
