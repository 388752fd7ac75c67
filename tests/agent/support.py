"""What the tests of the wiring share: a clock whose sleepers wait, made-up probes and captures, a process to watch."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentinel_agent.capture.base import Capture, CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.registry import LoadedCaptures
from sentinel_agent.capture.series import SeriesCapture
from sentinel_agent.core.model import Reading, Role
from sentinel_agent.probes.registry import Registry, build_probes
from sentinel_agent.sampler import TargetSeries
from sentinel_agent.target.identity import identify
from sentinel_agent.testing import FakeClock, make_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sentinel_agent.probes.base import Moment, Subject

ROLE = Role("shop", "here")
RING_BYTES = 64 * 1024


class HeldClock(FakeClock):
    """Sleepers wait until `let_pass` reaches their moment, each in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.monotonic() + max(0.0, seconds), next(self._order), waiting))
        await waiting

    async def let_pass(self, seconds: float) -> None:
        """Wake every sleeper whose moment comes within `seconds`, at that moment."""
        end = self.monotonic() + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, waiting = heapq.heappop(self._sleepers)
            if not waiting.done():
                self.advance(max(0.0, moment - self.monotonic()))
                waiting.set_result(None)
                await settle()
        self.advance(end - self.monotonic())


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a worker thread or the kernel; fails after 10 s."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@dataclass
class Gauge:
    """A probe that says what it is told to; what is an exception is raised."""

    values: dict[str, float | Exception]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.values)

    def __call__(self, _: Subject) -> Gauge:
        return self

    def read(self, now: Moment) -> Sequence[Reading]:
        found = []
        for metric, value in self.values.items():
            if isinstance(value, Exception):
                raise value
            found.append(Reading(metric, now.wall, value))
        return found


def series_of(*gauges: Gauge, ring_bytes: int = RING_BYTES, most_readings: int | None = None) -> TargetSeries:
    """This very process as a target, read by these probes. Close it."""
    target = make_target(identify(os.getpid()), ROLE)
    registry = Registry({f"gauge{number}": gauge for number, gauge in enumerate(gauges)})
    return TargetSeries(target, build_probes(target, registry), ring_bytes, most_readings)


@dataclass
class Made:
    """A capture whose doing is given; writes `<kind>.txt` first."""

    kind: str = "stacks"
    attaches: bool = False
    doing: Callable[[], asyncio.Future[None]] | None = None
    plans: list[CapturePlan] = field(default_factory=list)

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        self.plans.append(plan)
        name = f"{self.kind}.txt"
        (plan.folder / name).write_text("captured")
        if self.doing:
            await self.doing()
        return CaptureResult((CapturedFile(name, self.kind, "text"),))


def captures(*made: Made) -> LoadedCaptures:
    """These, and the readings, which are always there."""
    kinds: dict[str, Capture] = {"series": SeriesCapture()}
    return LoadedCaptures(kinds | {each.kind: each for each in made})


@contextmanager
def sleeper(*arguments: str, children: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A real Python process that ends when its input does, with `children` like it."""
    script = f"""if True:
        import subprocess, sys
        more = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=0) for _ in range({children})]
        print("ready", flush=True)
        sys.stdin.readline()
        for one in more:
            one.kill()
            one.wait()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("\n", timeout=10)
