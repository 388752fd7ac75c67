"""A real Zipkin server: what was sent is what its API gives back, and the dependency graph is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.span import Endpoint
from sentinel_agent.export.base import SendError
from sentinel_exporters._common import incident_ids
from sentinel_exporters.zipkin import Options, ZipkinExporter
from tests.export.support import span
from tests.exporters.support import context, free_port, incident, options
from tests.interop.support import CLOCK, answers, artifact, get, started, wait_for
from tests.needs import program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

WIDE = f"{2**100 + 99:032x}"


async def test_spans_come_back_and_the_graph_has_its_edges(tmp_path: Path) -> None:
    """client -> gateway -> orders: two edges with their counts, the 5xx as an error; nothing rejected, nothing debug."""
    jar = artifact("zipkin-server-exec.jar")
    port, now = free_port(), CLOCK.wall()
    url = f"http://127.0.0.1:{port}"
    command = [program("java"), "-Xmx256m", "-jar", str(jar)]
    with started(command, tmp_path, lambda: answers(f"{url}/health"), {"QUERY_PORT": str(port)}):
        exporter = ZipkinExporter(options(Options, url=url), context())
        caller = span(
            1,
            trace_id=WIDE,
            at=now,
            kind="client",
            service="shop",
            remote=Endpoint("gateway", "127.0.0.1", 80),
        )
        server = span(2, trace_id=WIDE, at=now, parent_id=caller.span_id)
        upstream = span(
            3,
            trace_id=WIDE,
            at=now,
            parent_id=server.span_id,
            kind="client",
            status="error",
            status_message="503",
            remote=Endpoint("orders", "10.0.0.7", 8080),
        )
        shared = span(1, trace_id=f"{5:032x}", at=now, shared=True, service="gateway2")
        sealed = incident(time=now, sealed_time=now + 0.5)
        for signal, items in (
            ("spans", [(caller,), (server, upstream), (shared,)]),
            ("events", [IncidentSealed(now, sealed, "folder")]),
        ):
            body = exporter.encode(signal, items)  # type: ignore[arg-type]  # both are signals
            assert body is not None
            assert await exporter.send(signal, body) == "202 Accepted"  # type: ignore[arg-type]  # as above

        found = wait_for(lambda: get(f"{url}/api/v2/trace/{WIDE}"))
        spans = {each["id"]: each for each in found}
        assert spans.keys() == {caller.span_id, server.span_id, upstream.span_id}
        back = spans[upstream.span_id]
        assert back["remoteEndpoint"] == {"serviceName": "orders", "ipv4": "10.0.0.7", "port": 8080}
        assert back["tags"]["error"] == "503"
        assert back["timestamp"] == upstream.start // 1000
        assert back["duration"] == 1500
        assert spans[server.span_id]["parentId"] == caller.span_id
        assert not any(each.get("debug") for each in found)
        assert get(f"{url}/api/v2/trace/{5:016x}")[0]["shared"] is True

        edges = wait_for(
            lambda: get(f"{url}/api/v2/dependencies", endTs=int(now * 1000) + 60_000, lookback=3_600_000)
        )
        graph = {(edge["parent"], edge["child"]): edge for edge in edges}
        assert graph["shop", "gateway"]["callCount"] == 1
        assert graph["gateway", "orders"] == {
            "parent": "gateway",
            "child": "orders",
            "callCount": 1,
            "errorCount": 1,
        }
        assert "orders" in get(f"{url}/api/v2/remoteServices", serviceName="gateway")

        trace, _ = incident_ids(sealed.id)
        (told,) = wait_for(lambda: get(f"{url}/api/v2/trace/{trace}"))
        assert told["name"] == "incident cpu-spike"
        assert [note["value"] for note in told["annotations"]][1] == f"saved as {sealed.id}"

        with pytest.raises(SendError) as raised:
            await exporter.send("spans", b'[{"traceId": "x"}]')
        assert raised.value.blame == "rejected"
        await exporter.close()
        lost = options(Options, url=f"{url}/api/v1/nowhere")
        elsewhere = ZipkinExporter(lost, context())
        with pytest.raises(SendError) as raised:
            await elsewhere.send("spans", b"[]")
        assert raised.value.blame == "refused"
        await elsewhere.close()
