"""The rings: fixed bytes, order of arrival, windows under a clock that jumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.ring import READING_BYTES, HolmesRing, RingStatistics, SeriesRing


def ring_of(times: list[float], capacity: int = 8) -> SeriesRing:
    ring = SeriesRing(READING_BYTES * capacity)
    for index, time in enumerate(times):
        ring.push(time, float(index))
    return ring


def test_a_ring_for_less_than_one_reading_is_refused() -> None:
    """23 bytes hold nothing."""
    with pytest.raises(ValueError, match="at least 24"):
        SeriesRing(23)


def test_an_empty_ring_has_no_newest_time_and_an_empty_window() -> None:
    """Asking an empty ring is no error."""
    ring = SeriesRing(240)
    assert len(ring) == 0
    assert list(ring) == []
    assert ring.newest_time is None
    assert list(ring.window(0)) == []


def test_the_oldest_reading_is_overwritten_and_order_is_that_of_arrival() -> None:
    """P02: pushes 1..11 into 10 places read back as 2..11."""
    ring = SeriesRing(READING_BYTES * 10)
    for number in range(1, 12):
        ring.push(float(number), float(number))
    assert [value for _, value in ring] == [float(n) for n in range(2, 12)]
    assert ring.statistics() == RingStatistics(10, 10, 240, 1, 0)


@given(st.integers(1, 7), st.lists(st.integers(0, 3), max_size=20), st.integers(-2, 15))
def test_a_window_holds_what_a_list_would(capacity: int, steps: list[int], back: int) -> None:
    """With a clock that only goes on, a window is the stored readings at or after its beginning."""
    times = [float(sum(steps[: index + 1])) for index in range(len(steps))]
    since = sum(steps) - back
    ring = ring_of(times, capacity)
    stored = list(enumerate(times))[-capacity:]
    assert list(ring.window(since)) == [float(index) for index, time in stored if time >= since]
    assert ring.readings(since) == [(time, float(index)) for index, time in stored if time >= since]
    assert list(ring) == [(time, float(index)) for index, time in stored]


def test_a_clock_that_jumps_back_keeps_the_window_as_long_as_it_was() -> None:
    """After a jump from 103 to 50 the last 3 seconds are still the last 3 seconds of arrivals."""
    ring = ring_of([100, 101, 102, 103, 50, 51])
    assert list(ring.window(51 - 3)) == [1, 2, 3, 4, 5]
    assert list(ring.window(51 - 1)) == [3, 4, 5]  # 103 and 50 count as the same moment
    assert ring.statistics().jumps_back == 1
    assert ring.newest_time == 51


def test_a_window_may_begin_at_any_reading_of_a_ring_that_was_written_round() -> None:
    """Also at the one beside the seam: 5 readings into 3 places leave 2, 3, 4."""
    ring = ring_of([0, 1, 2, 3, 4], capacity=3)
    assert [list(ring.window(since)) for since in (1, 2, 2.5, 3, 4, 5)] == [
        [2, 3, 4],
        [2, 3, 4],
        [3, 4],
        [3, 4],
        [4],
        [],
    ]


def test_a_clock_that_jumps_forward_leaves_old_readings_out() -> None:
    """Nothing from before a jump of an hour is in the last minute."""
    ring = ring_of([0, 1, 2, 3602, 3603])
    assert list(ring.window(3603 - 60)) == [3, 4]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.floats(-2e9, 2e9))
def test_no_clock_breaks_a_ring(times: list[float], since: float) -> None:
    """Whatever the times, a window is the newest part of the ring, and never larger than it."""
    ring = ring_of(times)
    window = list(ring.window(since))
    assert window == [value for _, value in ring][len(ring) - len(window) :]
    assert len(window) <= 8


def test_holmes_ring_unit_tests() -> None:
    """The ring figures at the end of the reference's section 5."""

    def filled(size: int, values: range) -> HolmesRing:
        ring = HolmesRing(size)
        for value in values:
            ring.push(value)
        return ring

    assert filled(0, range(1, 4)).average() == 0
    assert filled(10, range(0)).average() == 0
    assert filled(10, range(1, 4)).average() == 2
    assert filled(1, range(1, 4)).average() == 3
    assert filled(5, range(1, 3)).values() == (1, 2)
    assert filled(5, range(1, 3)).average() == 1
    assert filled(5, range(1, 7)).values() == (2, 3, 4, 5, 6)
    assert filled(5, range(1, 11)).values() == (6, 7, 8, 9, 10)
