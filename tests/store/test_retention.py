"""Retention's plan: afterwards the bounds hold, the oldest went first, and no more went than had to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.store.ids import new_id
from sentinel_agent.store.retention import Stored, expired

NOW = 1_000_000.0
ROWS = st.lists(
    st.tuples(st.integers(0, int(NOW)), st.integers(0, 1000)), max_size=30, unique_by=lambda pair: pair[0]
).map(lambda pairs: [Stored(new_id(time, 0), float(time), size) for time, size in pairs])


@given(ROWS, st.integers(1, 20), st.floats(60, 2e6), st.integers(0, 5000))
def test_the_plan_is_the_shortest_run_of_oldest_that_satisfies_every_bound(
    rows: list[Stored], max_incidents: int, max_age: float, max_bytes: int
) -> None:
    """Checked against the definition: try to remove 0, 1, 2... oldest until the rest is within all bounds."""

    def within(rest: list[Stored]) -> bool:
        young = all(NOW - row.time <= max_age for row in rest)
        return young and len(rest) <= max_incidents and sum(row.bytes for row in rest) <= max_bytes

    by_time = sorted(rows, key=lambda row: row.time)
    fewest = next(count for count in range(len(rows) + 1) if within(by_time[count:]))
    planned = expired(rows, NOW, max_incidents, max_age, max_bytes)
    assert planned == [row.id for row in by_time[:fewest]]


def test_incidents_of_a_clock_that_was_ahead_do_not_push_out_what_follows() -> None:
    """Two incidents stamped years ahead and one of this moment, room for one: this moment's stays."""
    ahead = [Stored(new_id(NOW + 1e9 + i, 0), NOW + 1e9 + i, 1) for i in range(2)]
    present = Stored(new_id(NOW, 0), NOW, 1)
    assert expired([*ahead, present], NOW, 1, 60, 100) == [row.id for row in ahead]
