"""What the API's tests share: incidents with real timelines, a made-up agent, and a client of the real application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from sentinel_agent.api.app import make_app
from sentinel_agent.api.context import Context
from sentinel_agent.api.guard import Address, Guard
from sentinel_agent.capture.base import Series, SeriesWindow
from sentinel_agent.capture.heap import HeapCensus, HeapDocument, TypeTotal
from sentinel_agent.capture.injected import Injection
from sentinel_agent.capture.stacks import StackFrame
from sentinel_agent.capture.task_groups import TaskEntry, TaskGroup, TasksDocument
from sentinel_agent.capture.tracemalloc import LineGrowth, TracemallocDocument
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.profile.heap import HeapLine, HeapSite
from sentinel_agent.profile.record import ProfileRecord, RecordBuilder, clean_name
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.testing import make_target
from tests.profile.records import HOSTILE
from tests.store.helpers import START, incident_of, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sentinel_agent.core.model import Incident, Target
    from sentinel_agent.core.rule import CaptureSpec
    from sentinel_agent.store.store import Store

LOOPBACK = Guard(Address("127.0.0.1", 0))
CPU = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
WALL = "wall:wall:nanoseconds:wall:nanoseconds"
TASKS = "asyncio:task:count:task:count"
THREADS = "threads:thread:count:thread:count"
DUMPS = "incident:dumps:count:incident:count"


def recording(
    start: float, seconds: int = 20, *, spike: float | None = None, hot: str = "checksum"
) -> ProfileRecord:
    """A second of waiting and a quarter of work in turn; from `spike` on only `hot` runs. Offsets in seconds after the start."""
    builder = RecordBuilder(start=start, period=0.05, source="made up")
    thread = builder.thread(4711, "MainThread")
    main, work = builder.frame("main", "/app/gateway.py", 10), builder.frame("handle", "/app/gateway.py", 20)
    wait, burn = (
        builder.frame("select", "/usr/lib/python3.11/selectors.py", 5),
        builder.frame(hot, "/app/rows.py", 7),
    )
    for second in range(seconds):
        if spike is not None and second >= spike:
            builder.add(thread, [burn, work, main], offset=second, weight=1.0, on_cpu=True, count=20)
        else:
            builder.add(thread, [wait, main], offset=second, weight=0.75, on_cpu=False, count=15)
            builder.add(thread, [work, main], offset=second + 0.75, weight=0.25, on_cpu=True, count=5)
    return builder.build()


def readings(start: float, seconds: int = 20, spike: float = 15) -> SeriesWindow:
    """The readings that go with it."""
    times = [start + second for second in range(seconds)]
    cpu = [95.0 if second >= spike else 25.0 for second in range(seconds)]
    rss = [(100 + second) * 2.0**20 for second in range(seconds)]
    return SeriesWindow(
        start,
        start + seconds,
        1.0,
        {"cpu": Series("percent", times, cpu), "rss": Series("bytes", times, rss)},
    )


def files_of(record: ProfileRecord, since: float) -> dict[str, bytes]:
    """The artifacts of a CPU spike."""
    frames = [
        {"function": "checksum", "file": "/app/rows.py", "line": 7},
        {"function": "main", "file": "/app/gateway.py", "line": 10},
    ]
    group = {
        "count": 40,
        "coroutine": "wait_for_events",
        "states": {"pending": 40},
        "frames": frames[::-1],
        "waiting_on": "Future",
        "names": ["Task-1"],
    }
    return {
        "stacks.speedscope.json": speedscope.encode(record, since=since),
        "stacks.pb.gz": pprof.encode(record),
        "stacks.json": msgspec.json.encode(
            {
                "threads": [
                    {
                        "native_id": 4711,
                        "name": "MainThread",
                        "state": "running",
                        "gil": True,
                        "frames": frames,
                    }
                ]
            }
        ),
        "tasks.json": msgspec.json.encode({"count": 40, "groups": [group], "tasks": []}),
        "series.json": msgspec.json.encode(readings(record.start)),
    }


def save_spike(store: Store, time: float = START, **changes: Any) -> str:
    """Save a CPU spike whose recording covers the 15 s before `time` and the 5 s after; its id."""
    record = recording(time - 15, spike=15)
    return save(store, time, files=files_of(record, since=time), **changes)


class MadeUpAgent:
    """`api.live.Live` with one target, pid 4711, that is recorded from `start` on."""

    recorder_window = 120.0
    capture_kinds = frozenset({"stacks", "tasks", "process"})

    def __init__(self, start: float = START, record: ProfileRecord | None = None) -> None:
        self.target = make_target(TargetId(4711, 123), Role("gateway", "host-a"), python="3.11")
        self.record = record or recording(start)
        self.start = start
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.captured: Any = None  # a future that a capture waits for

    def targets(self) -> Sequence[Target]:
        return (self.target,)

    def series(self, pid: int, since: float) -> SeriesWindow | None:
        return readings(max(self.start, since)) if pid == 4711 else None

    async def recorded(self, pid: int, since: float, until: float) -> ProfileRecord | None:
        if pid != 4711:
            return None
        kept = tuple(
            sample for sample in self.record.samples if since <= self.record.start + sample.offset < until
        )
        return msgspec.structs.replace(self.record, samples=kept)

    async def capture(self, pid: int, specs: Sequence[CaptureSpec]) -> Incident | str:
        if pid != 4711:
            raise NoSuchTargetError(f"process {pid} is not watched")
        self.asked.append((pid, tuple(spec.kind for spec in specs)))
        if self.captured is not None:
            await self.captured
        return incident_of("20231114T221320.000Z-0001")


@asynccontextmanager
async def client_of(store: Store, clock: Any, **parts: Any) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of the application over this store."""
    context = Context(store, clock, parts.pop("guard", LOOPBACK), **parts)
    async with TestClient(TestServer(make_app(context))) as client:
        yield client


@asynccontextmanager
async def served(store: Store, clock: Any, live: Any = None) -> AsyncIterator[str]:
    """The address of the application over this store, on a socket of its own."""
    runner = web.AppRunner(make_app(Context(store, clock, LOOPBACK, live)), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def hostile_recording(start: float) -> ProfileRecord:
    """A second of one stack whose functions, files and thread have every hostile name."""
    builder = RecordBuilder(start=start, period=0.05, source="made up")
    frames = [builder.frame(name, name, 1) for name in HOSTILE if name]
    for number, name in enumerate(HOSTILE):
        builder.add(
            builder.thread(number + 1, name), frames, offset=float(number), weight=1.0, on_cpu=True, count=20
        )
    return builder.build()


def evidence_files(names: Sequence[str] = ("Session",), start: float = START) -> dict[str, bytes]:
    """The documents of a leak in the proxy, made of the types that the captures write; names of types, files and paths are `names`."""
    types = tuple(TypeTotal(clean_name(name), 5000 - n, 2**20 - n) for n, name in enumerate(names))
    census = HeapCensus(start, 120_000, types, torn=0, cut=False)
    heap = HeapDocument(types, 10.0, True, msgspec.structs.replace(census, types=()), census, {"heap": 2**26})
    lines = [HeapLine(clean_name(name), 7) for name in names]
    growth = TracemallocDocument(
        seconds=3.0,
        ended_by="time",
        was_on=False,
        frames=1,
        traces=400,
        grown_bytes=len(names) * 2**20,
        tracebacks=len(names),
        overhead_bytes=2**20,
        holds_us={},
        lines=tuple(LineGrowth(line.file, line.line, 2**20, 512) for line in lines),
        sites=tuple(HeapSite(2**20, 512, 2**21, 1024, (line,)) for line in lines),
        injection=Injection("remote_exec", "0" * 64, 100, (50,)),
    )
    frame = StackFrame("fetch", "/app/gateway.py", 12)
    waiting = TaskEntry("main", "pending", "serve", (frame,), "Task-2", 1, ())
    children = [
        TaskEntry(clean_name(name), "pending", clean_name(name) or "handle", (frame,), "Future", n, (1,))
        for n, name in enumerate((*names, *names), 2)
    ]
    tasks = TasksDocument(
        count=1 + len(children),
        groups=(
            TaskGroup(len(children), "handle", {"pending": len(children)}, (frame,), "Future", ("Task-2",)),
        ),
        tasks=(waiting, *children),
    )
    records = [
        RequestRecord(
            time=start - 2,
            listener="main",
            route="orders",
            cluster="orders",
            upstream="127.0.0.1:9000",
            client="127.0.0.1",
            method="GET",
            path=clean_name(name),
            host="shop",
            status=504,
            seconds=1.5,
            upstream_seconds=1.4,
            bytes_in=0,
            bytes_out=100,
            flags="UT",
            trace="4bf92f3577b34da6a3ce929d0e0e4736",
        )
        for name in names
    ]
    requests = {
        "time": start,
        "last_heard_seconds": 0.1,
        "in_flight_count": 1,
        "in_flight": [
            {
                "request": f"GET {clean_name(names[0])}",
                "route": "orders",
                "on_loop": True,
                "seconds": 0.4,
                "trace": "",
            }
        ],
        "slowest": records,
        "failed": records,
        "routes": [
            {
                "listener": "main",
                "route": "orders",
                "requests": 1000,
                "errors": 12,
                "in_flight": 1,
                "rate": 120.0,
                "rate_before": 80.0,
                "flags": {"UT": 12},
                "latency_p50": 0.004,
                "latency_p99": 1.5,
                "own_p99": None,
            }
        ],
        "records_dropped": 0,
    }
    documents = {"heap": heap, "tracemalloc": growth, "tasks": tasks, "requests": requests}
    return {f"{name}.json": msgspec.json.encode(document) for name, document in documents.items()}
