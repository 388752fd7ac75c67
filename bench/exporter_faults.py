"""What a backend can do to the agent: accept and never answer, and be away for ten minutes of a clock that obeys.

Stalled: the real Zipkin exporter against a socket that accepts and is never read, 20 ticks and 200 spans a second, in turns
with an agent that exports nothing; the lateness of ticks, the time that a stop takes, and what is on disk after it. Away: 200 spans a second and
a reading set a second for 600 simulated seconds, then the backend is back; memory, and what was lost and counted.
Run with `make bench-exporters`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from sentinel_agent.clock import SystemClock
from sentinel_agent.export.base import ExporterContext, ExporterOptions, SendError
from sentinel_agent.export.hub import STOP_SECONDS, Hub
from sentinel_agent.export.line import Line
from sentinel_agent.export.registry import installed, make
from sentinel_agent.export.spool import Spool
from sentinel_agent.sampler import Sampler
from tests.agent.support import Gauge, HeldClock, series_of, settle
from tests.export.support import Scripted, group, readings, span

ROUNDS, SECONDS = 5, 2.0
CLOCK = SystemClock()


def say(what: str, figure: float, unit: str, goal: float) -> None:
    """A figure beside what it should be at most."""
    print(f"{figure:9.1f} {unit:4} (goal: at most {goal:g})  {'met' if figure <= goal else 'MISSED'}  {what}")


def rss() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def lateness(hub: Hub, series: Any) -> list[float]:
    """Of the ticks of one round, in milliseconds."""
    late: list[float] = []

    def read(now: float, _series: object, _readings: object) -> None:
        hub.offer("metrics", readings(now))

    async def after() -> None:
        late.append(ticker.statistics().last_late * 1000)
        for number in range(5):
            hub.offer("spans", group(number + 1, at=CLOCK.wall()))

    ticker = Sampler(CLOCK, 0.05, read)
    ticker.add(series)
    task = asyncio.create_task(ticker.run(after))
    await asyncio.sleep(SECONDS)
    task.cancel()
    await asyncio.wait([task])
    return late


async def stalled(folder: Path) -> None:
    """A backend that accepts and never answers."""
    series = series_of(Gauge({"cpu": 1.0}))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        factory = installed()["zipkin"]
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = msgspec.convert({"url": url}, factory.Options)
        made = make("zipkin", options, ExporterContext("zipkin", CLOCK, "0", "host"), {"zipkin": factory})
        hub, nothing = Hub([made], folder, CLOCK), Hub([], None, CLOCK)
        hub.start()
        without, beside = [], []
        for _ in range(ROUNDS):
            without += await lateness(nothing, series)
            beside += await lateness(hub, series)
        begin = CLOCK.monotonic()
        await asyncio.to_thread(hub.stop)
        took = CLOCK.monotonic() - begin
    series.close()
    print(f"{max(without):9.1f} ms   the latest of {len(without)} ticks without exporters")
    say(
        f"the latest of {len(beside)} ticks beside a backend that accepts and never answers",
        max(beside),
        "ms",
        50,
    )
    say("a stop then takes", took, "s", STOP_SECONDS + 1)
    spans = next(each for each in hub.statistics() if each.signal == "spans")
    print(f"{spans.waiting:9d} spans on disk after it, {sum(spans.lost.values())} lost")


async def away(folder: Path) -> None:
    """Ten minutes without a backend."""
    backend, clock = Scripted(), HeldClock()
    backend.down = SendError("connection refused")
    options = ExporterOptions(spool_bytes=8 * 2**20)
    rng = random.Random(5)
    line = Line(
        "away", "spans", backend, options, clock=clock, chance=rng.random, spool=Spool(folder, 8 * 2**20)
    )
    task = asyncio.create_task(line.run())
    await settle()
    before, most, number = rss(), 0.0, 0
    for _ in range(600):
        for _ in range(200):
            number += 1
            line.offer((span(number, at=clock.wall()),))
        await clock.let_pass(1.0)
        most = max(most, rss() - before)
    backend.down = None
    await clock.let_pass(120.0)
    task.cancel()
    await asyncio.wait([task])
    status, ids = line.status(), backend.ids()
    lost = sum(status.lost.values())
    say("RSS more at most, with 1 MiB of memory and 8 MiB of disk for the backlog", most, "MiB", 8)
    say("spans neither delivered nor counted as lost", float(abs(number - len(ids) - lost)), "", 0)
    say("spans out of order, or twice", float(len(ids) - len(set(ids)) + (ids != sorted(ids))), "", 0)
    say(
        "of the newest 10,000 not delivered",
        float(10_000 - sum(each > number - 10_000 for each in ids)),
        "",
        0,
    )
    print(f"{number:9d} spans offered, {len(ids)} delivered, {lost} lost: {status.lost}")


def main() -> None:
    """Measure and print."""
    for measure in (stalled, away):
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
