"""What the HTTP API costs: listing 10,000 incidents, merging 1,000 incidents' stacks, memory, and what ticks feel of it.

Run: .venv/bin/python bench/api_bench.py [incidents] [merged]. Figures, not a test.
"""

from __future__ import annotations

import asyncio
import random
import statistics
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
from sentinel_agent.store.index import IncidentFilter
from sentinel_agent.store.store import Store
from tests.store.helpers import START, incident_of

CPU = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
STACKS, DEPTH, SAMPLES = 120, 25, 1500


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


def fill(data_dir: Path, incidents: int, merged: int) -> Store:
    """Incident folders written straight, without fsync; `merged` of them with a timeline, an hour apart."""
    settings = StoreSettings(max_incidents=10**6, max_bytes=2**50, max_age=1e10, min_free_bytes=0)
    store = Store(data_dir, settings, SystemClock())
    for number in range(incidents):
        moment = START + number * 3600
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


def memory() -> float:
    """PSS in MiB."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) / 1024


def listing(store: Store) -> None:
    """The list with filters, as the API makes it."""
    filters = [
        IncidentFilter(limit=1000),
        IncidentFilter(rule="rule-3", limit=1000),
        IncidentFilter(target="gateway", limit=200),
        IncidentFilter(since=START + 3600 * 5000, limit=1000),
    ]
    store.list(filters[0])
    wall, cpu = [], []
    for number in range(200):
        began, used = time.perf_counter(), time.thread_time()
        msgspec.json.encode(store.list(filters[number % 4]))
        wall.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - used)
    wall.sort()
    print(
        f"list: median {statistics.median(wall) * 1e3:.1f} ms, p99 {wall[197] * 1e3:.1f} ms, CPU median {statistics.median(cpu) * 1e3:.1f} ms"
    )


async def merging(store: Store, merged: int) -> None:
    """A flame graph of everything, cold and warm, in the worker, while a ticker of 10 ms notes how late it is."""
    querier, workers = Querier(IncidentProfiles(store), time.time), Workers()
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
    for name in ("cold", "warm", "warm"):
        began, used = time.perf_counter(), time.process_time()
        reply = await workers.merge(querier.flame_graph, request, [])
        body = await workers.merge(encode, STACKTRACES_REPLY, reply, json=False)
        print(
            f"merge of {merged}, {name}: {time.perf_counter() - began:.2f} s wall, {time.process_time() - used:.2f} s CPU, {len(body) / 1024:.0f} KiB, total {reply['flamegraph']['total'] / 1e9:.0f} s"
        )
    ticking.cancel()
    loud = sorted(late)
    print(f"memory: {before:.1f} MiB before, {memory():.1f} MiB after")
    print(
        f"ticks late, p99 and worst: quiet {quiet[int(len(quiet) * 0.99)] * 1e3:.1f} and {quiet[-1] * 1e3:.1f} ms, while merging {loud[int(len(loud) * 0.99)] * 1e3:.1f} and {loud[-1] * 1e3:.1f} ms"
    )
    workers.close()


def main() -> None:
    incidents, merged = (int(each) for each in (*sys.argv[1:], *("10000", "1000")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="sentinel-bench-") as folder:
        began = time.perf_counter()
        store = fill(Path(folder), incidents, merged)
        print(f"{incidents} incidents, {merged} with stacks, made in {time.perf_counter() - began:.0f} s")
        listing(store)
        asyncio.run(merging(store, merged))


if __name__ == "__main__":
    main()
