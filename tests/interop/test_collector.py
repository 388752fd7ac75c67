"""A real OpenTelemetry collector: what it decoded, and hands on as JSON, is what was sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.core.event import IncidentSealed
from sentinel_exporters._common import incident_ids
from sentinel_exporters.otlp import Options, OtlpExporter
from tests.export.support import group, readings
from tests.exporters.support import context, free_port, incident, options, serving
from tests.interop.support import CLOCK, artifact, started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

CONFIG = """\
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters:
  otlp_http: {{endpoint: "{out}", encoding: json, compression: none, tls: {{insecure: true}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [otlp_http]}}
    metrics: {{receivers: [otlp], exporters: [otlp_http]}}
    logs: {{receivers: [otlp], exporters: [otlp_http]}}
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


async def test_what_a_collector_decodes_is_what_was_sent(tmp_path: Path) -> None:
    """Traces, metrics and logs through its OTLP receiver, each answered 200 with no remarks."""
    binary = artifact("collector/otelcol-interop")
    port, now = free_port(), CLOCK.wall()
    async with serving() as sink:
        config = tmp_path / "collector.yaml"
        config.write_text(CONFIG.format(port=port, out=sink.url))
        running, ended = threading.Event(), threading.Event()

        def collector() -> None:
            try:
                with started([binary, "--config", config], tmp_path, lambda: listens(port)):
                    running.set()
                    ended.wait(120)
            finally:
                running.set()

        server = asyncio.create_task(asyncio.to_thread(collector))
        try:
            await asyncio.to_thread(running.wait, 180)
            exporter = OtlpExporter(
                options(Options, url=f"http://127.0.0.1:{port}", compression="gzip"), context()
            )
            sealed = incident(time=now)
            for signal, item in (
                ("spans", group(0xABCDEF, at=now)),
                ("metrics", readings(now, cpu=150.0, rss=1e9)),
                ("events", IncidentSealed(now, sealed, "folder")),
            ):
                body = exporter.encode(signal, [item])  # type: ignore[arg-type]  # all three are signals
                assert body is not None
                assert await exporter.send(signal, body) == "200 OK"  # type: ignore[arg-type]  # as above
            await exporter.close()
            async with asyncio.timeout(60):
                while len(sink.requests) < 3:
                    await asyncio.sleep(0.1)
        finally:
            ended.set()
            await server
        found = {each.path: json.loads(each.body) for each in sink.requests}

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
