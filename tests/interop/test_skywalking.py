"""A real SkyWalking OAP server: service, topology, trace, meters, events and logs, seen through its GraphQL.

The server is version 10.1 with its storage in memory; its jars come from Maven (`make interop`). What its distribution would
bring as settings is in no registry, so the few that are needed are ours, in `oap`; our own meters' rules are those we ship.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import shutil
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

import sentinel_exporters.skywalking
from sentinel_agent.core.event import IncidentOpened, IncidentSealed, TargetAppeared
from sentinel_agent.core.span import Endpoint, SegmentReference, SkyWalking
from sentinel_agent.export.base import AgentReading, ReadingSet, SendError
from sentinel_exporters._common import incident_ids
from sentinel_exporters.skywalking import Options, SkyWalkingExporter
from tests.export.support import TARGET, span
from tests.exporters.support import context, free_port, incident, options
from tests.interop.support import CLOCK, artifact, started, wait_for
from tests.needs import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.core.span import Span
    from sentinel_agent.export.base import Item

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

TOKEN = "interop"


class Oap(NamedTuple):
    """Where the server is."""

    rest: int
    grpc: int

    def ask(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rest}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        assert not found.get("errors"), found["errors"]
        return found["data"]["found"]

    def ready(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(self.ask("query { found: version }"))
        return False


@pytest.fixture(scope="module")
def oap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oap]:
    """A server with an empty storage."""
    jars = artifact("oap")
    folder = tmp_path_factory.mktemp("oap")
    shutil.copytree(Path(__file__).with_name("oap"), folder / "config")
    shipped = Path(sentinel_exporters.skywalking.__file__).with_name("skywalking-meters.yaml")
    shutil.copy(shipped, folder / "config" / "meter-analyzer-config" / "sentinel.yaml")
    found = Oap(free_port(), free_port())
    environment = {"OAP_REST_PORT": str(found.rest), "OAP_GRPC_PORT": str(found.grpc), "OAP_TOKEN": TOKEN}
    command = [program("java"), "-Xmx512m", "-cp", f"config:{jars}/*"]
    main = "org.apache.skywalking.oap.server.starter.OAPServerStartUp"
    with started([*command, main], folder, found.ready, environment):
        yield found


async def test_a_wrong_token_is_a_refusal(oap: Oap) -> None:
    """The server's own authentication: no batch is worth another try until somebody changes it."""
    exporter = SkyWalkingExporter(options(Options, address=f"127.0.0.1:{oap.grpc}", token="wrong"), context())
    body = exporter.encode("spans", [(span(1),)])
    assert body is not None
    with pytest.raises(SendError) as raised:
        await exporter.send("spans", body)
    assert raised.value.blame == "refused"
    await exporter.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_real_server_shows_everything(oap: Oap, protocol: str) -> None:
    """shop -> gateway -> orders:8080 in the topology, the trace in one piece, percent in the dashboard, the incident."""
    now = CLOCK.wall()
    story = Story(protocol, now)
    port = oap.grpc if protocol == "grpc" else oap.rest
    given = options(Options, address=f"127.0.0.1:{port}", protocol=protocol, token=TOKEN)
    exporter = SkyWalkingExporter(given, context())
    for signal, items in (
        ("spans", story.spans()),
        ("metrics", story.readings()),
        ("events", story.events()),
    ):
        body = exporter.encode(signal, items)  # type: ignore[arg-type]  # all three are signals
        assert body is not None
        async with asyncio.timeout(60):
            assert (await exporter.send(signal, body)).startswith("OK")  # type: ignore[arg-type]  # as above
    await exporter.close()

    seen = Seen(oap, now)
    ids = wait_for(lambda: (found := seen.services()).keys() >= {story.gateway, story.shop} and found)
    (instance,) = seen.instances(ids[story.gateway])
    assert (instance["name"], instance["language"]) == ("host-1", "PYTHON")

    spans = wait_for(lambda: len(found := seen.trace(story.trace)) == 4 and found)
    linked = next(each for each in spans if each["serviceCode"] == story.gateway and each["type"] == "Entry")
    assert linked["refs"] == [{"parentSegmentId": f"shop-{story.trace}"}]
    assert next(each for each in spans if each["peer"] == story.upstream)["isError"] is True
    edges = {(story.shop, story.gateway), (story.gateway, story.upstream)}
    assert wait_for(lambda: (found := seen.edges(ids[story.gateway])) >= edges and found)

    (event,) = wait_for(partial(seen.incidents, story.gateway))
    assert event["type"] == "Error"
    assert event["endTime"] == int((now + 1) * 1000)
    assert event["layer"] == "GENERAL"
    (log,) = wait_for(partial(seen.logs, ids[story.gateway]))
    assert log["content"] == "cpu-spike fired: cpu 95 % is over 90 %"
    assert log["traceId"] == incident_ids(story.incident)[0]

    if protocol == "grpc":
        for name, value in (
            ("instance_pvm_process_cpu_utilization", "37"),
            ("instance_pvm_process_mem_utilization", "25"),
            ("instance_pvm_total_cpu_utilization", "40"),
            ("instance_pvm_total_mem_utilization", "60"),
            ("instance_pvm_thread_active_count", "9"),
            ("instance_pvm_gc_g0", "11"),
            ("instance_pvm_gc_g1", "12"),
            ("instance_pvm_gc_g2", "13"),
            ("sentinel_tasks", "17"),
        ):
            assert wait_for(partial(seen.meter, story.gateway, name)) == [value], name
        assert wait_for(partial(seen.meter, story.gateway, "instance_pvm_gc_time"))


class Story:
    """What is told: a request through two services, three ticks, an incident."""

    def __init__(self, name: str, now: float) -> None:
        self.now = now
        self.gateway, self.shop = f"gateway-{name}", f"shop-{name}"
        self.trace = f"{name}-{now}"
        self.incident = f"incident-{self.trace}"
        self.upstream = f"{name}.orders:8080"
        self._called = Endpoint("", f"{name}.gateway", 8000)
        self._target = msgspec.structs.replace(TARGET, service=self.gateway)

    def _span(self, number: int, place: int, service: str, **changes: Any) -> Span:
        segment = f"{service.partition('-')[0]}-{self.trace}"
        refs = changes.pop("refs", ())
        sky = SkyWalking(self.trace, segment, place, place - 1, refs)
        instance = "host-1" if service == self.gateway else "shop-1"
        return span(number, at=self.now, service=service, instance=instance, skywalking=sky, **changes)

    def spans(self) -> list[tuple[Span, ...]]:
        address = f"{self._called.address}:{self._called.port}"
        ref = SegmentReference(
            self.trace, f"shop-{self.trace}", 1, self.shop, "shop-1", "GET /orders", address
        )
        orders = Endpoint("", self.upstream.partition(":")[0], 8080)
        failed = {"status": "error", "status_message": "503"}
        return [
            (
                self._span(1, 0, self.shop),
                self._span(2, 1, self.shop, kind="client", remote=self._called),
            ),
            (
                self._span(3, 0, self.gateway, refs=(ref,)),
                self._span(4, 1, self.gateway, kind="client", remote=orders, **failed),
            ),
        ]

    def readings(self) -> list[Item]:
        machine = {"host_cpu_percent": 40.0, "host_memory_percent": 60.0, "host_memory_bytes": 2.0**30}
        objects = {"gc_collected_gen0": 11.0, "gc_collected_gen1": 12.0, "gc_collected_gen2": 13.0}
        values = {"cpu": 37.0, "rss": 2.0**28, "threads": 9.0, "tasks": 17.0, "gc_share": 10.0, **objects}
        return [
            AgentReading(self.now, machine),
            *(ReadingSet(self.now + each, self._target, values) for each in range(3)),
        ]

    def events(self) -> list[Item]:
        sealed = incident(time=self.now, id=self.incident, target=self._target)
        return [
            TargetAppeared(self.now, self._target),
            IncidentOpened(self.now, self.incident, "cpu-spike", self._target, "cpu is high"),
            IncidentSealed(self.now + 1, sealed, "folder"),
        ]


class Seen:
    """What the server shows of the minutes around `now`."""

    def __init__(self, oap: Oap, now: float) -> None:
        self._ask = oap.ask
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC).astimezone()
        self._start = int(now * 1000)
        self._duration = {
            "start": (moment - datetime.timedelta(minutes=5)).strftime("%Y-%m-%d %H%M"),
            "end": (moment + datetime.timedelta(minutes=5)).strftime("%Y-%m-%d %H%M"),
            "step": "MINUTE",
        }

    def services(self) -> dict[str, str]:
        found = self._ask('query { found: listServices(layer: "GENERAL") { id name } }')
        return {each["name"]: each["id"] for each in found}

    def instances(self, service: str) -> Any:
        query = "{ found: listInstances(duration: $d, serviceId: $s) { name language } }"
        return self._ask(f"query ($d: Duration!, $s: ID!) {query}", d=self._duration, s=service)

    def trace(self, trace: str) -> list[dict[str, Any]]:
        shape = "type peer isError serviceCode refs { parentSegmentId }"
        query = f"query ($t: ID!) {{ found: queryTrace(traceId: $t) {{ spans {{ {shape} }} }} }}"
        found: list[dict[str, Any]] = self._ask(query, t=trace)["spans"]
        return found

    def edges(self, service: str) -> set[tuple[str, str]]:
        shape = "nodes { id name } calls { source target }"
        query = f"{{ found: getServiceTopology(duration: $d, serviceId: $s) {{ {shape} }} }}"
        graph = self._ask(f"query ($d: Duration!, $s: ID!) {query}", d=self._duration, s=service)
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return {(names[call["source"]], names[call["target"]]) for call in graph["calls"]}

    def meter(self, service: str, name: str) -> list[str]:
        shape = "error results { values { value } }"
        query = f"{{ found: execExpression(expression: $e, entity: $n, duration: $d) {{ {shape} }} }}"
        answer = self._ask(
            f"query ($e: String!, $n: Entity!, $d: Duration!) {query}",
            e=f"meter_{name}",
            n={"serviceName": service, "normal": True, "serviceInstanceName": "host-1"},
            d=self._duration,
        )
        assert not answer["error"], answer["error"]
        values = [each["value"] for result in answer["results"] for each in result["values"]]
        return [value for value in values if value is not None]

    def incidents(self, service: str) -> list[dict[str, Any]]:
        shape = "name type startTime endTime layer"
        query = f"{{ found: queryEvents(condition: $c) {{ events {{ {shape} }} }} }}"
        paging = {"pageNum": 1, "pageSize": 50}
        found = self._ask(
            f"query ($c: EventQueryCondition) {query}",
            c={"source": {"service": service}, "time": self._duration, "paging": paging},
        )
        return [each for each in found["events"] if each["name"] == "Incident" and each["endTime"]]

    def logs(self, service: str) -> Any:
        query = "{ found: queryLogs(condition: $c) { logs { content traceId } } }"
        paging = {"pageNum": 1, "pageSize": 50}
        found = self._ask(
            f"query ($c: LogQueryCondition) {query}",
            c={"serviceId": service, "queryDuration": self._duration, "paging": paging},
        )
        return found["logs"]
