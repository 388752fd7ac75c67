"""What a worker tells the agent: over the socket, through shared memory, and what becomes of nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from sentinel_agent.capture.base import CapturePlan
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.model import Target
from sentinel_agent.errors import TargetError
from sentinel_agent.findings.requests import RequestsDocument, in_words
from sentinel_agent.probes.base import Moment, Subject
from sentinel_agent.proxy.config import parse_proxy
from sentinel_agent.proxy.inflight import SLOTS, InFlightTable, InFlightView
from sentinel_agent.proxy.level import TOLD_SECONDS
from sentinel_agent.proxy.messages import (
    HEADER_BYTES,
    VERSION,
    Batch,
    Hello,
    TargetLevel,
    decode,
    encode,
    frame_length,
)
from sentinel_agent.proxy.tap import MAX_HELD, Tap
from sentinel_agent.proxy.worker import Worker
from sentinel_agent.tap.capture import RequestsCapture
from sentinel_agent.tap.hub import TapHub
from sentinel_agent.tap.probe import ProxyProbe
from tests.proxy.support import GET, OK, Proxy, answering, bound, read_head, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@asynccontextmanager
async def hub_on(path: Path) -> AsyncIterator[TapHub]:
    """The agent's end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    hub = TapHub(listener, SystemClock())
    task = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        hub.close()
        path.unlink()


@asynccontextmanager
async def worker_telling(path: Path, port: int, route: str = "", more: str = "") -> AsyncIterator[Proxy]:
    """A worker that tells the socket at `path`."""
    config = parse_proxy(
        "p.yaml",
        f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes: [{{name: first, match: {{prefix: /first}}, response: {{status: 200}}}}, {{name: all, cluster: back, {route}}}]
clusters: [{{name: back, endpoints: [{{address: "127.0.0.1:{port}"}}]}}]
tracing: {{sampling: 100}}
{more}
""".encode(),
    )
    sock = bound()
    worker = Worker(config, {"web": sock}, tap=Tap(path))
    await worker.start()
    try:
        yield Proxy(worker, sock.getsockname()[1], [], path, {})
    finally:
        await worker.stop(0)
        await asyncio.sleep(0.05)
        sock.close()


async def until(condition: Callable[[], Any]) -> None:
    """Poll, for 20 s at most."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def told(hub: TapHub) -> bool:
    """Whether a batch of this process has come."""
    view = hub.worker(os.getpid())
    return view is not None and view.batch is not None


def target() -> Target:
    """This process, as a target."""
    return Target(os.getpid(), 1, 0, "proxy", "here", "main", "proxy", ())


async def test_readings_and_requests_reach_the_agent(tmp_path: Path) -> None:
    """Rates between two ticks, requests under way from shared memory, and the capture with route and trace."""
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"/slow" in head:
                await release.wait()
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" if b"/bad" in head else OK)

    path = tmp_path / "tap"
    async with hub_on(path) as hub, upstream(script) as port, worker_telling(path, port) as running:
        await until(partial(told, hub))
        probe = ProxyProbe(hub, cast(Subject, type("S", (), {"target": target()})()))
        now = Moment(wall=0.0, monotonic=0.0)
        assert {each.metric: each.value for each in probe.read(now)} == {"inflight": 0.0}
        for ending in (b"good", b"good", b"good", b"bad"):
            await running.ask(GET.replace(b"/ ", b"/%b " % ending, 1))
        slow = asyncio.create_task(running.ask(GET.replace(b"/ ", b"/slow?x=1 ", 1)))
        view = hub.worker(os.getpid())
        assert view is not None
        await until(lambda: view.batch and sum(each.requests for each in view.batch.counts) == 4)
        await until(view.in_flight)
        values = {each.metric: each.value for each in probe.read(now)}
        assert values["inflight"] == 1.0
        assert values["error_rate"] == 25.0
        assert values["rps"] is not None
        assert values["rps"] > 0
        assert values["latency_p99"] is not None
        plan = CapturePlan(target(), tmp_path, 0.0, cast(Any, None), 10.0, 1 << 20, cast(Any, None))
        result = await RequestsCapture(hub, SystemClock()).capture(plan)
        assert [file.name for file in result.files] == ["requests.json"]
        document = json.loads((tmp_path / "requests.json").read_text())
        (under_way,) = document["in_flight"]
        assert under_way["request"] == "GET /slow?x=1"
        assert under_way["route"] == "all"
        assert len(under_way["trace"]) == 32
        assert [each["status"] for each in document["failed"]] == [500]
        assert {each["path"] for each in document["slowest"]} == {"/good", "/bad"}
        lines = in_words(
            msgspec.json.decode((tmp_path / "requests.json").read_bytes(), type=RequestsDocument)
        )
        assert re.match(
            r"under way for \d+(\.\d)?m?s: GET /slow\?x=1, route all, trace [0-9a-f]{32}", lines[0]
        )
        assert any(
            re.fullmatch(r"slowest: GET /\w+, route \w+, .* trace [0-9a-f]{32}", line) for line in lines
        )
        assert any(
            re.fullmatch(r"failed: GET /bad, route all, 5\d\d.*, trace [0-9a-f]{32}", line) for line in lines
        )
        assert document["adaptive_limit"] is None
        release.set()
        await slow


async def test_a_worker_lives_without_an_agent_and_finds_the_next(tmp_path: Path) -> None:
    """No agent at the start, one that goes, one that comes: requests are served throughout, counts go on."""
    path = tmp_path / "tap"
    async with upstream(answering(OK)) as port, worker_telling(path, port) as running:
        await running.ask(GET)
        for _ in range(2):
            async with hub_on(path) as hub:
                await until(partial(told, hub))
                await running.ask(GET)
        assert (await running.ask(GET)).endswith(b"ok")
        async with hub_on(path) as hub:
            await until(partial(told, hub))
            view = hub.worker(os.getpid())
            assert view is not None
            assert view.batch is not None
            assert sum(each.requests for each in view.batch.counts) == 4


def test_what_is_held_for_the_agent_is_bounded(tmp_path: Path) -> None:
    """The oldest make room and are counted."""
    tap = Tap(tmp_path / "none")
    try:
        for _ in range(MAX_HELD + 5):
            tap.keep(cast(Any, None))
        assert tap.dropped == 5
    finally:
        tap.close()


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01x",
        encode(Batch(0.0, (), (), 0, 0)),
        encode(Hello(99, 1, "s", ())),
        encode(Hello(VERSION, 1, "s", ())) + encode(Hello(VERSION, 1, "s", ())),
        encode(Hello(VERSION, 1, "s", ())) + b"\x00\x00\x00\x05\xc1\xc1\xc1\xc1\xc1",
    ],
    ids=["huge", "garbage", "no hello", "version", "two hellos", "bad batch"],
)
async def test_nonsense_ends_its_connection_only(tmp_path: Path, frames: bytes) -> None:
    """It is counted; the next worker is heard."""
    path = tmp_path / "tap"
    async with hub_on(path) as hub, upstream(answering(OK)) as port:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(frames)
        await until(lambda: hub.refused == 1)
        writer.close()
        async with worker_telling(path, port):
            await until(partial(told, hub))


async def test_a_worker_is_known_by_the_kernels_word(tmp_path: Path) -> None:
    """Whatever process id it writes."""
    path = tmp_path / "tap"
    async with hub_on(path) as hub:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(encode(Hello(VERSION, 1, "s", ())))
        await until(lambda: hub.worker(os.getpid()))
        assert hub.worker(1) is None
        writer.close()


async def test_another_process_has_no_requests(tmp_path: Path) -> None:
    """The capture says so in words."""
    async with hub_on(tmp_path / "tap") as hub:
        plan = CapturePlan(target(), tmp_path, 0.0, cast(Any, None), 10.0, 1 << 20, cast(Any, None))
        with pytest.raises(TargetError, match="no worker of the embedded proxy"):
            await RequestsCapture(hub, SystemClock()).capture(plan)


def test_the_table_holds_what_is_under_way() -> None:
    """Entered, left, one too many, long request lines cut, and read through a mapping of its own."""
    table = InFlightTable()
    view = InFlightView(table.descriptor)
    try:
        slots = [table.enter(1e9 + n, n, n, b"GET /%d HTTP/1.1\r\nHost: x" % n) for n in range(SLOTS)]
        assert table.enter(1e9, 0, 0, b"GET / HTTP/1.1\r\n") == -1
        assert table.left_out == 1
        assert view.count() == SLOTS
        for slot in slots[2:]:
            table.leave(slot)
        assert [(each.route, each.line) for each in view.read()] == [(0, "GET /0"), (1, "GET /1")]
        assert view.read()[1].trace == f"{1:032x}"
        table.hold_loop(slots[1], holds=True)
        assert [each.on_loop for each in view.read()] == [False, True]
        assert view.count() == 2
        table.leave(slots[0])
        table.enter(2e9, 5, 0, b"GET /" + b"x" * 1000)
        assert len(view.read()[1].line) < 256
    finally:
        view.close()
        table.close()


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    """A descriptor is not trusted either."""
    with (tmp_path / "f").open("wb") as file, pytest.raises(ValueError, match="not that of"):
        InFlightView(file.fileno())


def test_messages_are_what_they_were() -> None:
    """One round through the encoding."""
    hello = Hello(1, 2, "s", ("a", "b"))
    data = encode(hello)
    assert frame_length(data[:HEADER_BYTES]) == len(data) - HEADER_BYTES
    assert decode(data[HEADER_BYTES:], Hello) == hello
    with pytest.raises(msgspec.ValidationError):
        decode(data[HEADER_BYTES:], Batch)


async def test_the_agent_tells_how_loaded_its_targets_are(tmp_path: Path) -> None:
    """A worker hears it, and goes by its own again when the agent is gone."""
    path = tmp_path / "tap.sock"
    more = "adaptive_limit: {mode: observe, lag: 10s}"
    async with upstream(answering(OK)) as port, worker_telling(path, port, more=more) as running:
        meter = running.worker.shedding._meter
        assert meter is not None
        async with hub_on(path) as hub:
            hub.levels = lambda: iter([TargetLevel("shop (pid 7)", "cpu", 7.5)])
            await until(lambda: meter._told)
            assert meter.measure(running.worker.now(), 0.0) == (7.5, "cpu of shop (pid 7)")
            await until(lambda: told(hub))
            view = hub.worker(os.getpid())
            assert view is not None
            assert view.batch is not None
            assert view.batch.limit is not None
            assert view.batch.limit.mode == "observe"
        assert meter.measure(running.worker.now() + TOLD_SECONDS + 1, 0.0).value < 7.5
