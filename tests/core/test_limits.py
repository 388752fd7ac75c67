"""Cooldown, count in a sliding window, the worse spike, and a clock that jumps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.limits import (
    FIRES_KEPT,
    LimitRecord,
    finished,
    fired,
    fires_within,
    free_again,
    high_water,
    permission,
    settled,
    used_up,
)
from sentinel_agent.core.rule import Limit

EMPTY = LimitRecord("role", "rule")


def fired_at(limit: Limit, *times: float, cooldown: float = 0.0, value: float | None = 50.0) -> LimitRecord:
    record = EMPTY
    for time in times:
        record = fired(record, limit, cooldown, time, value)
    return record


def test_a_fresh_record_allows() -> None:
    """Nothing has been used."""
    assert permission(EMPTY, Limit(count=1), 0) == "free"
    assert permission(EMPTY, Limit(count=0), 0) == "limit"


def test_the_cooldown_starts_at_the_firing_and_again_at_the_end_of_the_capture() -> None:
    """An agent that dies in the capture comes back to a cooling rule; at its end it is judged again."""
    record = fired_at(Limit(), 100, cooldown=60)
    assert permission(record, Limit(), 159.9) == "cooldown"
    assert permission(record, Limit(), 160) == "free"
    record = finished(record, 105)
    assert permission(record, Limit(), 164.9) == "cooldown"
    assert permission(record, Limit(), 165) == "free"


def test_the_count_is_of_any_stretch_of_per_seconds() -> None:
    """Three in ten seconds: the fourth when the first is ten seconds old, not at a full ten."""
    limit = Limit(count=3, per=10)
    record = fired_at(limit, 0, 4, 8)
    assert permission(record, limit, 9.9) == "limit"
    assert free_again(record, limit, 9.9) == 10
    assert permission(record, limit, 10) == "free"
    record = fired(record, limit, 0, 10, 50.0)
    assert free_again(record, limit, 10) == 14
    assert permission(record, limit, 13) == "limit"
    assert fires_within(record, limit, 14) == 2


def test_a_count_of_nothing_is_never_free_again() -> None:
    """`count: 0` and a limit that is not used up have no such time."""
    assert free_again(EMPTY, Limit(count=0), 0) is None
    assert free_again(EMPTY, Limit(), 0) is None
    assert free_again(EMPTY, Limit(count=1), 0) is None
    assert not used_up(EMPTY, Limit(), 0)


@pytest.mark.parametrize(
    ("value", "answer"),
    [(50.0, "cooldown"), (59.9, "cooldown"), (60.0, "rearmed"), (None, "cooldown")],
)
def test_only_a_spike_that_is_so_much_higher_passes_the_cooldown(value: float | None, answer: str) -> None:
    """rearm_above 1.2 after a firing at 50: the same spike again does not pass, 60 does."""
    limit = Limit(rearm_above=1.2)
    assert permission(fired_at(limit, 0, cooldown=60), limit, 1, value) == answer


def test_the_high_water_is_of_the_firings_within_per() -> None:
    """A higher one from before counts no more; without any there is nothing to be higher than."""
    limit = Limit(per=10, rearm_above=1.2)
    record = fired(fired_at(limit, 0, value=100.0), limit, 60, 9, 50.0)
    assert high_water(record, limit, 9) == 100
    assert high_water(record, limit, 10) == 50
    assert permission(record, limit, 9, 70) == "cooldown"
    assert permission(record, limit, 10, 70) == "rearmed"
    assert permission(record, limit, 30, 70) == "cooldown"
    assert high_water(fired_at(limit, 0, value=None), limit, 0) is None


def test_an_equal_spike_at_zero_is_not_worse() -> None:
    """1.2 times 0 is 0; the value must still be over it."""
    limit = Limit(rearm_above=1.2)
    record = fired_at(limit, 0, cooldown=60, value=0.0)
    assert permission(record, limit, 1, 0.0) == "cooldown"
    assert permission(record, limit, 1, 0.1) == "rearmed"


def test_nothing_passes_the_count() -> None:
    """A spike ten times as high inside the cooldown of a used-up limit stays out."""
    limit = Limit(count=1, rearm_above=1.2)
    assert permission(fired_at(limit, 0, cooldown=60), limit, 1, 500.0) == "cooldown"
    assert permission(fired_at(limit, 0, cooldown=0), limit, 1, 500.0) == "limit"


def test_the_record_is_bounded() -> None:
    """A thousand firings within `per` leave 256; a larger count is taken as that."""
    limit = Limit(count=10_000)
    record = fired_at(limit, *range(1000))
    assert len(record.fires) == FIRES_KEPT
    assert permission(record, limit, 1000) == "limit"


def test_a_clock_that_jumps_back_a_day_silences_for_one_cooldown_at_most() -> None:
    """The end moves to now + cooldown, once; firings of the future are forgotten."""
    limit = Limit(count=1, per=3600)
    record = fired_at(limit, 100_000, cooldown=60)
    jumped = settled(record, 13_600)
    assert jumped.cooldown_until == 13_660
    assert settled(jumped, 13_630) is jumped
    assert permission(jumped, limit, 13_659) == "cooldown"
    assert permission(jumped, limit, 13_660) == "free"


def test_a_small_step_back_changes_nothing() -> None:
    """NTP moves the clock by a second: the firing still counts, in order of time."""
    limit = Limit(count=2, per=3600)
    record = finished(fired_at(limit, 100, cooldown=60), 100)
    assert settled(record, 99.5).fires == record.fires
    again = fired(record, limit, 60, 99.5, 1.0)
    assert [time for time, _ in again.fires] == [99.5, 100]


@given(
    st.lists(st.floats(-1e6, 1e6), max_size=20),
    st.floats(0, 1e5),
    st.floats(-1e6, 1e6),
    st.integers(1, 3),
)
def test_after_any_jump_a_rule_is_free_within_cooldown_of_what_the_limit_says(
    times: list[float], cooldown: float, now: float, count: int
) -> None:
    """However the clock ran before: one look later the cooldown ends within its length."""
    limit = Limit(count=count, per=100)
    record = settled(fired_at(limit, *times, cooldown=cooldown), now)
    assert record.cooldown_until <= max(now + record.cooldown, 0.0)
    assert all(time <= now + record.cooldown for time, _ in record.fires)


def test_a_record_survives_writing_and_reading() -> None:
    """MessagePack and JSON, as the store keeps it."""
    record = fired(fired_at(Limit(), 1.5, cooldown=60), Limit(), 30, 2.5, None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=LimitRecord) == record
    assert msgspec.json.decode(msgspec.json.encode(record), type=LimitRecord) == record
