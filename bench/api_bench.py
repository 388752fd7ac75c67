"""What the HTTP API costs: listing 10,000 incidents, merging 1,000 incidents' stacks, memory, and what ticks feel of it.

Run: .venv/bin/python bench/api_bench.py [incidents] [merged]. Figures beside what is aimed at, not a test.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from sentinel_agent.api.incidents import IncidentProfiles
from sentinel_agent.api.messages import STACKTRACES, STACKTRACES_REPLY, decode, encode
from sentinel_agent.api.querier import Querier
from sentinel_agent.api.work import Workers
from sentinel_agent.clock import SystemClock
from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.profile import speedscope
from sentinel_agent.profile.record import ProfileRecord, RecordBuilder
from sentinel_agent.store import digests
from sentinel_agent.store.files import Files
from sentinel_agent.store.index import IncidentFilter
from sentinel_agent.store.store import Store
from tests.store.helpers import START, incident_of

CPU = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
STACKS, DEPTH, SAMPLES = 120, 25, 1500
HOUR = 3600.0


def row(what: str, figure: str, goal: str = "") -> None:
    print(f"{what:<58} {figure:>26}  {goal}", flush=True)


def recording(start: float, seed: int) -> ProfileRecord:
    """Two minutes of a busy service: 1,500 runs of 120 stacks, 25 frames deep, of 300 functions."""
    chance = random.Random(seed % 7)
    builder = RecordBuilder(start=start, period=1 / 19, source="bench")
    thread = builder.thread(1, "MainThread")
    frames = [builder.frame(f"function_{n}", f"/app/module_{n % 40}.py", n) for n in range(300)]
    stacks = [[frames[(chance.randrange(300))] for _ in range(DEPTH - 8)] + frames[:8] for _ in range(STACKS)]
    for number in range(SAMPLES):
        builder.add(thread, chance.choice(stacks), offset=number * 0.08, weight=0.08, on_cpu=number % 3 != 0)
    return builder.build()


def fill(data_dir: Path, incidents: int, merged: int, apart: float) -> Store:
    """Incident folders written straight, without fsync, so many seconds apart; the last `merged` have a timeline."""
    settings = StoreSettings(max_incidents=10**6, max_bytes=2**50, max_age=1e10, min_free_bytes=0)
    store = Store(data_dir, settings, SystemClock())
    for number in range(incidents):
        moment = START + number * apart
        incident_id = store.new_id(moment)
        folder = data_dir / "incidents" / incident_id
        folder.mkdir(parents=True)
        incident = incident_of(incident_id, time=moment, rule=f"rule-{number % 7}")
        (folder / "incident.json").write_bytes(msgspec.json.encode(incident))
        if number >= incidents - merged:
            (folder / "stacks.speedscope.json").write_bytes(
                speedscope.encode(recording(moment - 120, number), since=moment)
            )
    return store.open()


def digest_all(store: Store) -> None:
    """What sealing does for each; the time and the bytes of one."""
    seconds, timelines, sizes = [], 0, 0
    for listed in store.list():
        folder = store.path(listed.id)
        if not (folder / digests.TIMELINE_NAME).exists():
            continue
        began = time.thread_time()
        digests.keep(folder, digests.make(folder), Files())
        seconds.append(time.thread_time() - began)
        sizes += (folder / digests.DIGEST_NAME).stat().st_size
        timelines += (folder / digests.TIMELINE_NAME).stat().st_size
    row("a digest made, at sealing: CPU, median", f"{statistics.median(seconds) * 1e3:.1f} ms")
    row(
        "its size, share of the timeline's", f"{sizes / len(seconds) / 1024:.0f} KiB, {sizes / timelines:.0%}"
    )


def memory(pid: int | str = "self") -> float:
    """PSS in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) / 1024


def listing(store: Store) -> None:
    """The list with filters, as the API makes it."""
    filters = [
        IncidentFilter(limit=1000),
        IncidentFilter(rule="rule-3", limit=1000),
        IncidentFilter(target="gateway", limit=200),
        IncidentFilter(since=START + HOUR * 5000, limit=1000),
    ]
    time.sleep(1)  # what was written a moment ago is looked at again: see Files.stamp
    store.list(filters[0])
    for name, busy in (("list with filters", False), ("the same, an incident saved before each", True)):
        wall, cpu = [], []
        for number in range(200):
            if busy:
                folder = store.data_dir / "incidents" / store.new_id(START - number)
                folder.mkdir()
                (folder / "incident.json").write_bytes(msgspec.json.encode(incident_of(folder.name)))
            began, used = time.perf_counter(), time.thread_time()
            msgspec.json.encode(store.list(filters[number % 4]))
            wall.append(time.perf_counter() - began)
            cpu.append(time.thread_time() - used)
        wall.sort()
        cpu.sort()
        row(
            f"{name}: median, p99",
            f"{statistics.median(wall) * 1e3:.1f}, {wall[197] * 1e3:.1f} ms",
            "p99 <= 50 ms",
        )
        row(f"{name}: CPU median, p99", f"{statistics.median(cpu) * 1e3:.1f}, {cpu[197] * 1e3:.1f} ms")


async def merging(name: str, store: Store, most: str = "<= 1 s", times: int = 7) -> None:
    """A flame graph of everything in the worker, while a ticker of 10 ms notes how late it is."""
    workers = Workers()
    request = decode(STACKTRACES, msgspec.json.encode({"profileTypeID": CPU, "maxNodes": 8192}), json=True)
    late: list[float] = []

    async def ticker() -> None:
        planned = time.monotonic()
        while True:
            planned += 0.01
            await asyncio.sleep(planned - time.monotonic())
            late.append(time.monotonic() - planned)
            planned = max(planned, time.monotonic() - 0.01)

    ticking = asyncio.create_task(ticker())
    await asyncio.sleep(1)
    quiet = sorted(late)
    late.clear()
    before = memory()
    figures: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for _ in range(times):
        querier = Querier(IncidentProfiles(store), time.time)
        for found in figures.values():
            began, used = time.perf_counter(), time.process_time()
            reply = await workers.merge(querier.flame_graph, request, [])
            body = await workers.merge(encode, STACKTRACES_REPLY, reply, json=False)
            found.append((time.perf_counter() - began, time.process_time() - used))
    for state, found in figures.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        row(f"{name}, {state}, median of {times}: wall, CPU", f"{wall:.2f} s, {cpu:.2f} s", most)
    row(f"{name}: the answer", f"{len(body) / 1024:.0f} KiB, {int(reply['flamegraph']['total']) / 1e9:.0f} s")
    ticking.cancel()
    loud = sorted(late)
    row(
        f"{name}: memory before, after",
        f"{before:.1f}, {memory():.1f} MiB",
        "bounded: digests 8 MiB, stacks 64 MiB at most",
    )
    row(
        f"{name}: ticks late, p99: quiet, merging",
        f"{quiet[int(len(quiet) * 0.99)] * 1e3:.1f}, {loud[int(len(loud) * 0.99)] * 1e3:.1f} ms",
    )
    workers.close()


IMPORTS = """
import sys
from pathlib import Path
def pss(): return int(Path("/proc/self/smaps_rollup").read_text().split("\\nPss:")[1].split()[0]) / 1024
import sentinel_agent.agent
at = pss()
for name in {names!r}:
    __import__(name)
    now = pss()
    print(f"{{name}} {{now - at:.1f}}")
    at = now
"""


def imports() -> None:
    """What the first request makes the agent import."""
    names = ("email.parser", "aiohttp", "aiohttp.web", "sentinel_agent.api.app")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(names=names)], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        name, figure = line.split()
        row(f"first request: importing {name}", f"{figure} MiB")


def main() -> None:
    incidents, merged = (int(each) for each in (*sys.argv[1:], *("10000", "1000")[len(sys.argv) - 1 :]))
    imports()
    with tempfile.TemporaryDirectory(prefix="sentinel-bench-") as folder:
        store = fill(Path(folder), incidents, merged, HOUR)
        row("incidents, of them with stacks", f"{incidents}, {merged}")
        listing(store)
        asyncio.run(merging(f"merge of {merged}, without digests", store, "not aimed at: made once", 1))
        digest_all(store)
        asyncio.run(merging(f"merge of {merged}", store))
    with tempfile.TemporaryDirectory(prefix="sentinel-bench-") as folder:
        store = fill(Path(folder), merged, merged, 60)
        digest_all(store)
        asyncio.run(merging(f"merge of {merged} that overlap by half", store))


if __name__ == "__main__":
    main()
