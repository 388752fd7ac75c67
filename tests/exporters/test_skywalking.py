"""SkyWalking: the official messages decode our bytes, a grpcio server takes our calls, and its answers are understood."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from grpclib.const import Cardinality, Handler
from grpclib.server import Server

from sentinel_agent.core.event import IncidentOpened, IncidentSealed, LimitReached, TargetAppeared, TargetGone
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.span import SegmentReference, SkyWalking, SpanEvent
from sentinel_agent.export.base import AgentReading, SendError, Signal
from sentinel_exporters import skywalking as module
from sentinel_exporters._grpc import _codec, blame
from sentinel_exporters._skywalking_messages import meters
from sentinel_exporters.skywalking import Options, SkyWalkingExporter, placed
from tests.export.support import NOW, TARGET, group, readings, span
from tests.exporters.support import context, free_port, incident, options, oracle, serving, status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCRIPT = Path(__file__).parent / "oracle_env" / "skywalking_oracle.py"


def decoded(kind: str, messages: Sequence[bytes]) -> list[dict[str, Any]]:
    """The messages as the official stubs read them."""
    return judged("decode", kind, [message.hex() for message in messages])


def judged(how: str, kind: str, lines: Sequence[str]) -> list[dict[str, Any]]:
    """What the official stubs make of messages in hex (`decode`) or in JSON (`parse`), one a line."""
    done = subprocess.run(
        [oracle(), SCRIPT, how, kind],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def segments(calls: dict[str, list[bytes]]) -> list[dict[str, Any]]:
    """The segments of a batch's only message."""
    (collection,) = decoded("SegmentCollection", calls["TraceSegmentReportService"])
    found: list[dict[str, Any]] = collection["segments"]
    return found


def made(port: int = 11800, **changes: Any) -> SkyWalkingExporter:
    return SkyWalkingExporter(options(Options, address=f"127.0.0.1:{port}", **changes), context())


def calls(signal: Signal, *items: Any) -> dict[str, list[bytes]]:
    """Messages by method."""
    body = made().encode(signal, items)
    assert body is not None
    return {
        method.rpartition("/")[0].rpartition(".")[2]: found
        for method, found in msgspec.msgpack.decode(body)[0]
    }


def test_a_proxied_request_is_one_segment() -> None:
    """An Entry and an Exit, one below the other, with the tags that SkyWalking looks for and the peer that was dialled."""
    server, client = group(7)
    (found,) = segments(calls("spans", (server, client)))
    assert found["traceId"] == server.trace_id
    assert found["traceSegmentId"] == client.span_id
    assert (found["service"], found["serviceInstance"]) == ("gateway", "host-1")
    entry, leave = found["spans"]
    assert (entry["spanId"], entry["parentSpanId"], entry["spanType"]) == (0, -1, "Entry")
    assert (leave["spanId"], leave["parentSpanId"], leave["spanType"]) == (1, 0, "Exit")
    assert leave["peer"] == "10.0.0.7:8080"
    assert entry["operationName"] == "GET /orders"
    assert (entry["spanLayer"], entry["componentId"]) == ("Http", 7000)
    assert int(entry["startTime"]) == int(NOW * 1000)
    assert {"key": "http.status_code", "value": "200"} in entry["tags"]
    assert {"key": "url", "value": "/orders"} in entry["tags"]
    assert entry["refs"] == []


def test_a_caller_that_speaks_sw8_is_referred_to() -> None:
    """The ids of the header need not be hexadecimal, and every part of the reference is there."""
    ref = SegmentReference("trace.7", "segment.9", 3, "shop", "shop-1", "/buy", "gateway:8000")
    entry = span(
        1,
        skywalking=SkyWalking("trace.7", "mine.1", 0, -1, (ref,), {"k": "v"}, skip_analysis=True),
        parent_id=None,
    )
    leave = span(
        2,
        kind="client",
        status="error",
        status_message="reset",
        skywalking=SkyWalking("trace.7", "mine.1", 1, 0),
    )
    (found,) = segments(calls("spans", (entry, leave)))
    assert (found["traceId"], found["traceSegmentId"]) == ("trace.7", "mine.1")
    assert found["spans"][0]["refs"] == [
        {
            "refType": "CrossProcess",
            "traceId": "trace.7",
            "parentTraceSegmentId": "segment.9",
            "parentSpanId": 3,
            "parentService": "shop",
            "parentServiceInstance": "shop-1",
            "parentEndpoint": "/buy",
            "networkAddressUsedAtPeer": "gateway:8000",
        }
    ]
    assert found["spans"][0]["skipAnalysis"] is True
    assert found["spans"][1]["isError"] is True
    assert found["spans"][1]["logs"][0]["data"][1] == {"key": "message", "value": "reset"}
    assert found["spans"][1]["parentSpanId"] == 0


def test_what_a_caller_correlates_is_a_tag_where_it_is_asked_for() -> None:
    """Keys that the settings name, on the span that has them; nothing else of the header is told."""
    carried = SkyWalking("t", "mine", 0, correlation={"tenant": "a", "secret": "b"})
    entry = span(1, skywalking=carried)
    for asked, tags in ((["tenant", "other"], {"tenant": "a"}), ([], {})):
        found = made(correlation_tags=asked).encode("spans", [(entry,)])
        assert found is not None
        ((_, messages),) = msgspec.msgpack.decode(found)[0]
        (segment,) = decoded("SegmentCollection", messages)[0]["segments"]
        told = {each["key"]: each["value"] for each in segment["spans"][0]["tags"]}
        assert {key: told[key] for key in ("tenant", "secret", "other") if key in told} == tags


def test_places_within_a_segment() -> None:
    """A retried request has two Exit spans below its Entry; an internal span alone is a segment of its own."""
    server, client = group(7)
    retry = span(9, kind="client", parent_id=server.span_id)
    assert placed((server, client, retry)) == (server.trace_id, retry.span_id, [(0, -1), (1, 0), (2, 0)])
    alone = span(3, kind="internal", parent_id=f"{99:016x}")
    assert placed((alone,)) == (alone.trace_id, alone.span_id, [(0, -1)])


def test_meters_have_the_names_of_the_stock_dashboard() -> None:
    """Percent, not ratios (the server rounds to whole numbers); the machine's figures come from the agent; ours are `sentinel_*`."""
    host = AgentReading(
        NOW,
        {
            "host_cpu_percent": 40.0,
            "host_memory_percent": 60.0,
            "host_memory_bytes": 2.0**30,
            "cpu_ratio": 0.1,
        },
    )
    first, second = decoded(
        "MeterDataCollection",
        calls(
            "metrics",
            host,
            readings(NOW, cpu=37.5, rss=2.0**28, threads=9.0),
            readings(NOW + 1, rss_limit=80.0),
        )["MeterReportService"],
    )
    values = {each["singleValue"]["name"]: each["singleValue"]["value"] for each in first["meterData"]}
    assert values == {
        "instance_pvm_process_cpu_utilization": 37.5,
        "instance_pvm_process_mem_utilization": 25.0,
        "instance_pvm_thread_active_count": 9.0,
        "instance_pvm_total_cpu_utilization": 40.0,
        "instance_pvm_total_mem_utilization": 60.0,
        "sentinel_rss": 2.0**28,
    }
    head, *rest = first["meterData"]
    assert (head["service"], head["serviceInstance"], int(head["timestamp"])) == (
        "gateway",
        "host-1",
        int(NOW * 1000),
    )
    assert {each["service"] for each in rest} == {""}
    assert second["meterData"][0]["singleValue"] == {
        "name": "instance_pvm_process_mem_utilization",
        "labels": [],
        "value": 80.0,
    }


def test_the_time_in_collections_only_grows() -> None:
    """Milliseconds so far: a tick's share of its time is added, a gap of an hour adds a minute's, a clock set back none."""
    exporter = made()
    who = ("gateway", "host-1")
    found = [exporter._gc_time(who, NOW + at, 10.0) for at in (0.0, 1.0, 3.0, 3603.0, 3000.0)]
    assert found == pytest.approx([0.0, 100.0, 300.0, 6300.0, 6300.0])
    body = exporter.encode("metrics", [readings(NOW, gc_share=50.0), readings(NOW + 1, gc_share=50.0)])
    assert body is not None
    ((_, messages),) = msgspec.msgpack.decode(body)[0]
    told = [
        {each["singleValue"]["name"]: each["singleValue"]["value"] for each in one["meterData"]}
        for one in decoded("MeterDataCollection", messages)
    ]
    assert told[1] == {"sentinel_gc_share": 50.0, "instance_pvm_gc_time": 6800.0}


def test_an_incident_is_an_event_that_begins_and_ends_and_a_log() -> None:
    """Opened and sealed have one uuid; a layer is always said; the words are one line; the log has the trace."""
    sealed = incident(summary="cpu is\nhigh")
    found = calls(
        "events",
        IncidentOpened(NOW, sealed.id, "cpu-spike", TARGET, "cpu is high"),
        IncidentSealed(NOW + 1, sealed, "folder"),
        TargetAppeared(NOW, TARGET),
        TargetGone(NOW, TARGET, "killed by signal 9"),
        LimitReached(NOW, "cpu-spike", TARGET),
    )
    opened, told, start, end, limit = decoded("Event", found["EventService"])
    assert opened["uuid"] == told["uuid"]
    assert (opened["endTime"], told["endTime"]) == ("0", str(int((NOW + 1) * 1000)))
    assert told["startTime"] == str(int(NOW * 1000))
    assert told["message"] == "cpu-spike fired: cpu is high"
    assert (told["name"], told["type"], told["layer"]) == ("Incident", "Error", "GENERAL")
    assert told["parameters"]["incident.value"] == "95.0"
    assert told["parameters"]["pid"] == str(TARGET.pid)
    assert [(each["name"], each["type"]) for each in (start, end, limit)] == [
        ("Start", "Normal"),
        ("Shutdown", "Error"),
        ("RuleLimitReached", "Normal"),
    ]
    assert len({each["uuid"] for each in (told, start, end, limit)}) == 4
    (log,) = decoded("LogData", found["LogReportService"])
    assert log["body"] == {"type": "TEXT", "text": {"text": "cpu-spike fired: cpu is\nhigh"}}
    assert log["traceContext"]["traceId"] == told["uuid"]
    assert {"key": "level", "value": "WARN"} in log["tags"]["data"]


def test_nothing_to_say_is_no_call() -> None:
    """A batch of unsampled spans, or of the agent's own figures alone, is not sent."""
    assert made().encode("spans", [(span(1, sampled=False),)]) is None
    assert made().encode("metrics", [AgentReading(NOW, {"host_cpu_percent": 1.0})]) is None


def test_every_metric_has_a_rule_on_the_server() -> None:
    """The shipped MAL file names every metric that is sent under a name of ours."""
    path = Path(module.__file__).with_name("skywalking-meters.yaml")
    document = yaml.safe_load(path.read_text())
    assert {rule["name"] for rule in document["metricsRules"]} == {
        f"sentinel_{name}" for name in METRICS if name not in module._PVM
    }
    assert all(rule["exp"] == rule["name"] for rule in document["metricsRules"])


def test_whatever_a_target_names_it_is_a_message() -> None:
    """Hostile names, empty texts, negative and huge numbers decode, and come back where they can be said at all."""
    names = ["", "\x00", "\udcff", "é" * 3000, '"\n']
    groups = [
        (
            span(
                1,
                name=name,
                service=name,
                instance=name,
                attributes={name: name, "n": -1, "f": 1e308},
                events=(SpanEvent(-5, name),),
            ),
        )
        for name in names
    ]
    found = segments(calls("spans", *groups))
    assert [each["service"] for each in found] == ["", "\x00", "?", "é" * 3000, '"\n']
    (collection,) = decoded("MeterDataCollection", [meters("s", "i", 2**60, {"zero": 0.0, "minus": -1.5})])
    assert [each["singleValue"]["value"] for each in collection["meterData"]] == [0.0, -1.5]


@contextmanager
def official_server() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A grpcio server on the official stubs: its port, and after the block what it got."""
    server = subprocess.Popen([oracle(), SCRIPT, "serve"], stdin=-1, stdout=-1, text=True)
    got: list[dict[str, Any]] = []
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline()), got
    finally:
        text, _ = server.communicate(timeout=20)
        got += [json.loads(line) for line in text.splitlines()]


async def test_a_grpcio_server_takes_every_call() -> None:
    """The instance is introduced once, the token is there, streams arrive whole; a handler that is off is a refusal."""
    with official_server() as (port, got):
        exporter = made(port, token="s3cret")
        for signal, items in (
            ("spans", [group(number) for number in range(1, 301)]),
            ("metrics", [readings(NOW + each) for each in range(3)]),
            ("events", [TargetGone(NOW, TARGET, "ended")]),
        ):
            body = exporter.encode(signal, items)  # type: ignore[arg-type]  # all three are signals
            assert body is not None
            async with asyncio.timeout(30):
                answer = await exporter.send(signal, body)  # type: ignore[arg-type]  # as above
            assert answer == ("OK: 3 messages" if signal == "metrics" else "OK: 1 message")
        body = exporter.encode("events", [IncidentSealed(NOW, incident(), "folder")])
        assert body is not None
        with pytest.raises(SendError, match="LogReportService/collect: UNIMPLEMENTED") as raised:
            await exporter.send("events", body)
        assert raised.value.blame == "refused"
        await exporter.close()
    assert len(got) == 1 + 1 + 3 + 1 + 1
    assert [each["method"] for each in got].count("properties") == 1
    assert got[0]["method"] == "properties"
    facts = {each["key"]: each["value"] for each in got[0]["message"]["properties"]}
    assert facts["language"] == "python"
    assert {each["metadata"]["authentication"] for each in got} == {"s3cret"}
    (batch,) = [each["message"]["segments"] for each in got if each["method"] == "segments"]
    assert [each["traceId"] for each in batch] == [f"{number:032x}" for number in range(1, 301)]


async def test_over_http_every_message_is_the_same() -> None:
    """What the endpoints get is, for the official parser of ProtoJSON, the message that gRPC gets; readings ping."""
    async with serving() as server:
        exporter = made(server.port, protocol="http", token="s3cret")
        served = group(7)
        served = (
            msgspec.structs.replace(
                served[0], status="error", status_message="é", events=(SpanEvent(5, "x"),)
            ),
            served[1],
        )
        joined = span(
            9,
            skywalking=SkyWalking(
                "t",
                "mine",
                0,
                -1,
                (SegmentReference("t", "s", 3, "shop", "i", "/buy", "gate:1"),),
                skip_analysis=True,
            ),
        )
        sent: dict[str, list[bytes]] = {}
        for signal, items in (
            ("spans", [served, (joined,)]),
            (
                "events",
                [IncidentOpened(NOW, "x", "cpu", TARGET, "high"), IncidentSealed(NOW, incident(), "folder")],
            ),
        ):
            body = exporter.encode(signal, items)  # type: ignore[arg-type]  # both are signals
            assert body is not None
            sent |= msgspec.msgpack.decode(body)[0]
            assert (await exporter.send(signal, body)).startswith("OK")  # type: ignore[arg-type]  # as above
        readings_body = exporter.encode("metrics", [readings()])
        assert readings_body is not None
        exporter._clock.advance(60.0)  # type: ignore[attr-defined]  # a FakeClock
        assert "no readings" in await exporter.send("metrics", readings_body)
        server.answers.append(status(401))
        with pytest.raises(SendError) as raised:
            await exporter.send("spans", exporter.encode("spans", [served]) or b"")
        assert raised.value.blame == "refused"
        await exporter.close()
    got = {each.path: json.loads(each.body) for each in server.requests[:-1]}
    assert list(got) == [
        "/v3/management/reportProperties",
        "/v3/segments",
        "/v3/events",
        "/v3/logs",
        "/v3/management/keepAlive",
    ]
    assert {each.headers["authentication"] for each in server.requests} == {"s3cret"}
    for path, kind, method in (
        ("/v3/events", "Event", module._EVENTS),
        ("/v3/logs", "LogData", module._LOGS),
    ):
        assert judged("parse", kind, [json.dumps(each) for each in got[path]]) == decoded(kind, sent[method])
    (collection,) = decoded("SegmentCollection", sent[module._SEGMENTS])
    assert (
        judged("parse", "SegmentObject", [json.dumps(each) for each in got["/v3/segments"]])
        == collection["segments"]
    )
    (properties,) = judged(
        "parse", "InstanceProperties", [json.dumps(got["/v3/management/reportProperties"])]
    )
    assert {"key": "language", "value": "python"} in properties["properties"]
    (ping,) = judged("parse", "InstancePingPkg", [json.dumps(got["/v3/management/keepAlive"])])
    assert (ping["service"], ping["serviceInstance"], ping["layer"]) == ("gateway", "host-1", "GENERAL")


async def test_an_instance_is_kept_alive() -> None:
    """After a minute of batches it is pinged, after five introduced again; not with every batch."""
    sent: list[str] = []
    exporter = made()
    clock = exporter._clock

    async def call(method: str, messages: Sequence[bytes]) -> None:
        sent.append(method.rpartition("/")[2])

    exporter._wire.call = call  # type: ignore[method-assign]
    body = exporter.encode("metrics", [readings()])
    assert body is not None
    for _ in range(36):
        await exporter.send("metrics", body)
        clock.advance(10.0)  # type: ignore[attr-defined]  # a FakeClock
    assert sent.count("reportInstanceProperties") == 2
    assert sent.count("keepAlive") == 6
    assert sent.count("collectBatch") == 36


async def test_a_server_that_is_none() -> None:
    """Nobody listens, or something that speaks no HTTP/2: a passing fault with words, within its time."""
    exporter = made(free_port())
    body = exporter.encode("spans", [group()])
    assert body is not None
    with pytest.raises(SendError, match=r"cannot connect to 127.0.0.1:[0-9]+: Connection refused") as raised:
        await exporter.send("spans", body)
    assert raised.value.blame == "passing"

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    other = made(listening.sockets[0].getsockname()[1])
    with pytest.raises(SendError) as raised:
        async with asyncio.timeout(20):
            await other.send("spans", body)
    assert raised.value.blame == "passing"
    await other.close()
    await exporter.close()
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize(
    ("status", "whose"),
    [
        ("UNIMPLEMENTED", "refused"),
        ("UNAUTHENTICATED", "refused"),
        ("INVALID_ARGUMENT", "rejected"),
        ("UNAVAILABLE", "passing"),
        ("DEADLINE_EXCEEDED", "passing"),
    ],
)
def test_whose_fault_a_status_is(status: str, whose: str) -> None:
    """A handler that is off or a wrong token stays so; a batch may be bad; the rest may pass."""
    assert blame(status) == whose


async def test_an_answer_of_64_megabytes_is_not_taken_in() -> None:
    """The server never gets rid of it: the connection's window is small and nobody reads. The call runs into its time."""
    accepted = False

    async def answer(stream: Any) -> None:
        nonlocal accepted
        await stream.recv_message()
        await stream.send_message(b"x" * 64 * 2**20)
        accepted = True

    class Huge:
        def __mapping__(self) -> dict[str, Any]:
            return {module._PROPERTIES: Handler(answer, Cardinality.STREAM_STREAM, bytes, bytes)}

    server, port = Server([Huge()], codec=_codec()), free_port()
    await server.start("127.0.0.1", port)
    exporter = made(port)
    body = exporter.encode("spans", [group()])
    assert body is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await exporter.send("spans", body)
    assert not accepted
    await exporter.close()
    server.close()
    await server.wait_closed()
