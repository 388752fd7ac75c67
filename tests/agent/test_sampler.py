"""The sampler keeps its schedule, says how late it was, and outlives every probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.ring import READING_BYTES
from sentinel_agent.probes.base import Moment
from sentinel_agent.sampler import Sampler
from tests.agent.support import Gauge, series_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from sentinel_agent.core.model import Reading
    from sentinel_agent.sampler import TargetSeries
    from sentinel_agent.testing import FakeClock


class EnoughError(Exception):
    """Ends the endless loop of the sampler."""


def ending_after(ticks: int, doing: Callable[[int], None] = lambda _: None) -> Callable[[], Awaitable[None]]:
    """What `Sampler.run` calls after each tick; `doing` gets the number of the tick, the first is 1."""
    done = 0

    async def after_tick() -> None:
        nonlocal done
        done += 1
        doing(done)
        if done == ticks:
            raise EnoughError

    return after_tick


class Ticks:
    """Keeps what the sampler hands on."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.readings: list[dict[str, Reading]] = []

    def __call__(self, now: float, _: TargetSeries, readings: Mapping[str, Reading]) -> None:
        self.times.append(now)
        self.readings.append(dict(readings))

    def gaps(self) -> list[float]:
        return [round(b - a, 6) for a, b in zip(self.times, self.times[1:], strict=False)]


@pytest.fixture
def gauge() -> Gauge:
    return Gauge({"cpu": 5.0})


@pytest.fixture
def series(gauge: Gauge) -> Iterator[TargetSeries]:
    made = series_of(gauge)
    yield made
    made.close()


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def sampler(fake_clock: FakeClock, ticks: Ticks, series: TargetSeries) -> Sampler:
    made = Sampler(fake_clock, 1.0, ticks)
    made.add(series)
    return made


async def test_the_schedule_is_absolute_so_that_slow_ticks_do_not_add_up(
    sampler: Sampler, ticks: Ticks, fake_clock: FakeClock
) -> None:
    """Each tick costs 0.3 s, and still one comes every second."""
    with pytest.raises(EnoughError):
        await sampler.run(ending_after(5, lambda _: fake_clock.advance(0.3)))
    assert ticks.gaps() == [1.0] * 4
    assert sampler.statistics().missed_ticks == 0


async def test_a_late_tick_says_so_and_missed_ones_are_counted_and_skipped(
    sampler: Sampler, ticks: Ticks, fake_clock: FakeClock
) -> None:
    """After 3.4 s without the processor one tick comes 2.4 s late; two are missed; the third is on time again."""
    stall = {2: 3.4}
    with pytest.raises(EnoughError):
        await sampler.run(ending_after(4, lambda tick: fake_clock.advance(stall.get(tick, 0.0))))
    assert ticks.gaps() == [1.0, 3.4, 0.6]
    found = sampler.statistics()
    assert (found.ticks, found.missed_ticks, found.last_late) == (4, 2, 0.0)
    assert found.max_late == pytest.approx(2.4)


async def test_another_interval_is_in_force_by_the_next_tick(sampler: Sampler, ticks: Ticks) -> None:
    """holmes parity P21: set from 1 s to 2 s while running, the gap doubles; no tick is missed or made up for."""

    def change(tick: int) -> None:
        sampler.interval = {3: 2.0, 6: 0.5}.get(tick, sampler.interval)

    with pytest.raises(EnoughError):
        await sampler.run(ending_after(8, change))
    assert ticks.gaps() == [1.0, 1.0, 2.0, 2.0, 2.0, 0.5, 0.5]
    assert sampler.statistics().missed_ticks == 0


async def test_a_jump_of_the_wall_clock_moves_no_tick(
    sampler: Sampler, ticks: Ticks, fake_clock: FakeClock
) -> None:
    with pytest.raises(EnoughError):
        await sampler.run(ending_after(3, lambda tick: fake_clock.jump(-3600.0 if tick == 1 else 0.0)))
    assert ticks.gaps() == [1.0 - 3600.0, 1.0]
    assert sampler.statistics().missed_ticks == 0


async def test_a_failing_probe_is_a_reading_with_an_error_and_the_others_go_on(fake_clock: FakeClock) -> None:
    """It is counted, it stops nothing, and its value is back at the next tick that it works."""
    good, bad = Gauge({"cpu": 5.0}), Gauge({"rss": ZeroDivisionError("oops"), "fds": 3.0})
    ticks = Ticks()
    series = series_of(good, bad)
    sampler = Sampler(fake_clock, 1.0, ticks)
    sampler.add(series)

    def repair(tick: int) -> None:
        if tick == 2:
            bad.values["rss"] = 7.0

    with pytest.raises(EnoughError):
        await sampler.run(ending_after(3, repair))
    first, last = ticks.readings[0], ticks.readings[-1]
    assert (first["cpu"].value, first["rss"].value) == (5.0, None)
    assert "ZeroDivisionError" in (first["rss"].error or "")
    assert last["rss"].value == 7.0
    assert series.errors == {"rss": 2, "fds": 2}
    assert sampler.statistics().read_errors == 4
    assert len(series.rings["rss"]) == 1
    series.close()


def test_the_rings_of_a_target_stay_within_their_bytes() -> None:
    """However long it runs: together they hold what was allowed, and the newest readings are the ones kept."""
    gauge = Gauge({"cpu": 0.0, "rss": 0.0})
    series = series_of(gauge, ring_bytes=2 * 100 * READING_BYTES)
    for number in range(1000):
        gauge.values = {"cpu": float(number), "rss": float(number)}
        series.read(Moment(wall=1000.0 + number, monotonic=float(number)))
    assert {name: len(ring) for name, ring in series.rings.items()} == {"cpu": 100, "rss": 100}
    assert [value for _, value in series.window(0.0, 1e12)["cpu"]] == [float(n) for n in range(900, 1000)]
    series.close()


def test_no_more_is_remembered_than_the_history_asks_for() -> None:
    """With bytes to spare, a ring holds as many readings as `sampler.history` has at the interval, and no more."""
    gauge = Gauge({"cpu": 0.0})
    series = series_of(gauge, ring_bytes=1000 * READING_BYTES, most_readings=60)
    for number in range(200):
        series.read(Moment(wall=1000.0 + number, monotonic=float(number)))
    assert len(series.rings["cpu"]) == 60
    series.close()


def test_a_window_has_both_its_ends(series: TargetSeries) -> None:
    for number in range(10):
        series.read(Moment(wall=1000.0 + number, monotonic=float(number)))
    assert [time for time, _ in series.window(1003.0, 1006.0)["cpu"]] == [1003.0, 1004.0, 1005.0, 1006.0]


def test_a_target_that_was_removed_is_read_no_more_and_its_past_stays(
    sampler: Sampler, ticks: Ticks, series: TargetSeries
) -> None:
    sampler.tick()
    pid = series.target.pid
    assert sampler.remove(pid) is series
    assert sampler.remove(pid) is None
    sampler.tick()
    assert len(ticks.times) == 1
    assert len(series.window(0.0, 1e12)["cpu"]) == 1


def test_a_target_may_be_removed_in_the_middle_of_a_tick(fake_clock: FakeClock, series: TargetSeries) -> None:
    """Its end may be noticed by what a tick calls."""

    def remove(_: float, found: TargetSeries, __: Mapping[str, Reading]) -> None:
        made.remove(found.target.pid)

    made = Sampler(fake_clock, 1.0, remove)
    made.add(series)
    made.tick()
    assert made.targets == {}
