"""Ticks the probes of every watched target and keeps the recent past of each metric.

A tick is synchronous and short: nothing in it waits, no capture runs in it. A tick that comes late is done
late and says so; ticks that were missed altogether (the machine slept, the agent was starved) are counted
and skipped, never made up for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.core.ring import READING_BYTES, SeriesRing
from sentinel_agent.probes.base import Moment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sentinel_agent.clock import Clock
    from sentinel_agent.core.model import Reading, Target
    from sentinel_agent.probes.live import LiveReader
    from sentinel_agent.probes.registry import ProbeSet


@dataclass(frozen=True, slots=True)
class SamplerStatistics:
    """What sampling has cost and missed so far. Times in seconds."""

    ticks: int
    missed_ticks: int
    last_late: float
    max_late: float
    last_read: float
    read_errors: int


class TargetSeries:
    """One target's probes, its latest readings and their recent past.

    All metrics share `ring_bytes`; none keeps more than `most_readings`.
    """

    def __init__(
        self, target: Target, probes: ProbeSet, ring_bytes: int, most_readings: int | None = None
    ) -> None:
        self.target = target
        self.latest: dict[str, Reading] = {}
        self.errors: Counter[str] = Counter()
        self._set = probes
        names = [name for probe in probes.probes for name in probe.metrics]
        share = ring_bytes // max(1, len(names))
        if most_readings is not None:
            share = min(share, most_readings * READING_BYTES)
        share = max(share, 16 * READING_BYTES)
        self.rings: dict[str, SeriesRing] = {name: SeriesRing(share) for name in names}

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that this target's probes publish."""
        return frozenset(self.rings)

    @property
    def reader(self) -> LiveReader:
        """The reader of the target's memory, which the probes use once it is open."""
        return self._set.subject.reader

    def read(self, moment: Moment) -> dict[str, Reading]:
        """Read every probe once; what failed is in the readings as an error and counted."""
        readings: dict[str, Reading] = {}
        for probe in self._set.probes:
            for reading in probe.read(moment):
                readings[reading.metric] = reading
                if reading.value is None:
                    self.errors[reading.metric] += 1
                else:
                    self.rings[reading.metric].push(reading.time, reading.value)
        self.latest = readings
        return readings

    def window(self, start: float, end: float) -> dict[str, list[tuple[float, float]]]:
        """Readings by metric as (time, value), oldest first, both ends included."""
        return {
            name: [(time, value) for time, value in ring.readings(start) if time <= end]
            for name, ring in self.rings.items()
        }

    def oom_kills(self, monotonic: float) -> int:
        """How many processes of the target's cgroup the kernel has killed for memory just now; asked at its end."""
        return self._set.subject.oom.just_now(monotonic)

    def close(self) -> None:
        """Give back what the probes hold; the rings stay readable."""
        self._set.close()


class Sampler:
    """Calls `on_tick(now, series, readings)` for every target at a steady interval, which may change at any time."""

    def __init__(
        self,
        clock: Clock,
        interval: float,
        on_tick: Callable[[float, TargetSeries, Mapping[str, Reading]], None],
    ) -> None:
        self.interval = interval
        self.targets: dict[int, TargetSeries] = {}
        self._clock = clock
        self._on_tick = on_tick
        self._ticks = self._missed = 0
        self._last_late = self._max_late = self._last_read = 0.0

    def add(self, series: TargetSeries) -> None:
        """Watch one more target from the next tick on."""
        self.targets[series.target.id.pid] = series

    def remove(self, pid: int) -> TargetSeries | None:
        """Stop watching; the series is returned, because the past outlives the target."""
        return self.targets.pop(pid, None)

    def tick(self, late: float = 0.0) -> None:
        """Read every target once and hand its readings on."""
        started = self._clock.monotonic()
        for series in tuple(self.targets.values()):
            moment = Moment(self._clock.wall(), self._clock.monotonic(), late)
            readings = series.read(moment)
            self._on_tick(moment.wall, series, readings)
        self._ticks += 1
        self._last_late, self._max_late = late, max(self._max_late, late)
        self._last_read = self._clock.monotonic() - started

    async def run(self, after_tick: Callable[[], Awaitable[None]] | None = None) -> None:
        """Tick for ever. The schedule is absolute, so that lateness does not add up."""
        planned = self._clock.monotonic()
        while True:
            late = self._clock.monotonic() - planned
            missed = int(late // self.interval)
            if missed > 0:
                self._missed += missed
                planned += missed * self.interval
            self.tick(max(0.0, late))
            if after_tick is not None:
                await after_tick()
            planned += self.interval
            await self._clock.sleep(planned - self._clock.monotonic())

    def statistics(self) -> SamplerStatistics:
        """Counters since the start."""
        return SamplerStatistics(
            ticks=self._ticks,
            missed_ticks=self._missed,
            last_late=self._last_late,
            max_late=self._max_late,
            last_read=self._last_read,
            read_errors=sum(sum(series.errors.values()) for series in self.targets.values()),
        )
