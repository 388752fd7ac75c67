"""A real SkyWalking OAP server: service, topology, trace, meters and events, seen through its GraphQL.

Its settings are in no registry, so nothing fetches it: SENTINEL_OAP names the address (`127.0.0.1:12800`) of the REST port
of a server that runs on this machine with its storage empty; the gRPC port is 1000 below.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import urllib.request
from functools import partial
from typing import Any

import pytest

from sentinel_agent.core.event import IncidentOpened, IncidentSealed, TargetAppeared
from sentinel_agent.core.span import Endpoint, SegmentReference, SkyWalking
from sentinel_agent.export.base import AgentReading
from sentinel_exporters.skywalking import Options, SkyWalkingExporter
from tests.export.support import TARGET, readings, span
from tests.exporters.support import context, incident, options
from tests.interop.support import CLOCK, wait_for

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

ADDRESS = os.environ.get("SENTINEL_OAP", "")


def ask(query: str, **variables: Any) -> Any:
    request = urllib.request.Request(
        f"http://{ADDRESS}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    assert not found.get("errors"), found["errors"]
    return found["data"]["found"]


@pytest.mark.skipif(
    not ADDRESS, reason="SENTINEL_OAP names no SkyWalking server; no registry has a whole one"
)
async def test_a_real_server_shows_everything() -> None:
    """shop -> gateway -> orders:8080 in the topology, the trace in one piece, percent in the dashboard, the incident."""
    host, _, rest_port = ADDRESS.rpartition(":")
    exporter = SkyWalkingExporter(options(Options, address=f"{host}:{int(rest_port) - 1000}"), context())
    now = CLOCK.wall()
    trace = f"{int(now * 1000):032x}"
    called = Endpoint("", "10.0.0.1", 8000)
    shop = span(
        1,
        at=now,
        trace_id=trace,
        kind="client",
        service="shop",
        instance="shop-1",
        remote=called,
        skywalking=SkyWalking(trace, f"shop-{trace}", 1, 0),
    )
    front = span(
        2,
        at=now,
        trace_id=trace,
        service="shop",
        instance="shop-1",
        skywalking=SkyWalking(trace, f"shop-{trace}", 0),
    )
    ref = SegmentReference(trace, f"shop-{trace}", 1, "shop", "shop-1", "GET /orders", "10.0.0.1:8000")
    entry = span(3, at=now, trace_id=trace, skywalking=SkyWalking(trace, f"gate-{trace}", 0, -1, (ref,)))
    leave = span(
        4,
        at=now,
        trace_id=trace,
        kind="client",
        status="error",
        status_message="503",
        remote=Endpoint("", "10.0.0.7", 8080),
        skywalking=SkyWalking(trace, f"gate-{trace}", 1, 0),
    )
    sealed = incident(time=now, id=f"incident-{trace}")
    machine = AgentReading(
        now, {"host_cpu_percent": 40.0, "host_memory_percent": 60.0, "host_memory_bytes": 2.0**30}
    )
    for signal, items in (
        ("spans", [(front, shop), (entry, leave)]),
        (
            "metrics",
            [
                machine,
                *(readings(now + each, cpu=37.0, rss=2.0**28, threads=9.0, tasks=17.0) for each in range(3)),
            ],
        ),
        (
            "events",
            [
                TargetAppeared(now, TARGET),
                IncidentOpened(now, sealed.id, "cpu-spike", TARGET, "cpu is high"),
                IncidentSealed(now + 1, sealed, "folder"),
            ],
        ),
    ):
        body = exporter.encode(signal, items)  # type: ignore[arg-type]  # all three are signals
        assert body is not None
        async with asyncio.timeout(60):
            assert (await exporter.send(signal, body)).startswith("OK")  # type: ignore[arg-type]  # as above
    await exporter.close()

    moment = datetime.datetime.fromtimestamp(now, datetime.UTC).astimezone()
    duration = {
        "start": (moment - datetime.timedelta(minutes=5)).strftime("%Y-%m-%d %H%M"),
        "end": (moment + datetime.timedelta(minutes=5)).strftime("%Y-%m-%d %H%M"),
        "step": "MINUTE",
    }
    services = wait_for(
        lambda: (
            [
                each
                for each in ask('query { found: listServices(layer: "GENERAL") { id name } }')
                if each["name"] in {"shop", "gateway"}
            ][1:]
            and ask('query { found: listServices(layer: "GENERAL") { id name } }')
        )
    )
    ids = {each["name"]: each["id"] for each in services}
    (instance,) = ask(
        "query ($d: Duration!, $s: ID!) { found: listInstances(duration: $d, serviceId: $s) { name language attributes { name value } } }",
        d=duration,
        s=ids["gateway"],
    )
    assert (instance["name"], instance["language"]) == ("host-1", "PYTHON")

    spans = wait_for(
        lambda: (
            (
                found := ask(
                    "query ($t: ID!) { found: queryTrace(traceId: $t) { spans { segmentId spanId type peer isError serviceCode refs { parentSegmentId } } } }",
                    t=trace,
                )["spans"]
            )
            and len(found) == 4
            and found
        )
    )
    linked = next(each for each in spans if each["serviceCode"] == "gateway" and each["type"] == "Entry")
    assert linked["refs"] == [{"parentSegmentId": f"shop-{trace}"}]
    assert next(each for each in spans if each["peer"] == "10.0.0.7:8080")["isError"] is True

    def edges() -> Any:
        graph = ask(
            "query ($d: Duration!, $s: ID!) { found: getServiceTopology(duration: $d, serviceId: $s) { nodes { id name } calls { source target } } }",
            d=duration,
            s=ids["gateway"],
        )
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return {(names[call["source"]], names[call["target"]]) for call in graph["calls"]}

    assert wait_for(
        lambda: (found := edges()) >= {("shop", "gateway"), ("gateway", "10.0.0.7:8080")} and found
    )

    def meter(name: str) -> Any:
        answer = ask(
            "query ($e: String!, $n: Entity!, $d: Duration!) { found: execExpression(expression: $e, entity: $n, duration: $d) { error results { values { value } } } }",
            e=f"meter_{name}",
            n={"serviceName": "gateway", "normal": True, "serviceInstanceName": "host-1"},
            d=duration,
        )
        assert not answer["error"], answer["error"]
        return [
            each["value"]
            for result in answer["results"]
            for each in result["values"]
            if each["value"] is not None
        ]

    for name, value in (
        ("process_cpu_utilization", "37"),
        ("process_mem_utilization", "25"),
        ("total_cpu_utilization", "40"),
        ("total_mem_utilization", "60"),
        ("thread_active_count", "9"),
    ):
        assert wait_for(partial(meter, f"instance_pvm_{name}")) == [value], name

    def told() -> Any:
        return [
            each
            for each in ask(
                "query ($c: EventQueryCondition) { found: queryEvents(condition: $c) { events { uuid name type message startTime endTime layer } } }",
                c={
                    "source": {"service": "gateway"},
                    "time": duration,
                    "paging": {"pageNum": 1, "pageSize": 50},
                },
            )["events"]
            if each["startTime"] == int(now * 1000) and each["name"] == "Incident"
        ]

    (event,) = wait_for(told)
    assert event["type"] == "Error"
    assert event["endTime"] == int((now + 1) * 1000)
    assert event["layer"] == "GENERAL"
