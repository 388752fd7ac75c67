"""Folding for merges: views, phases, seconds, and the gaps between what was counted already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.profile.digest import digest, gaps
from tests.api.support import recording
from tests.profile.records import records

if TYPE_CHECKING:
    from sentinel_agent.profile.record import ProfileRecord

NANO = 1_000_000_000
INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (float(min(pair)), float(max(pair)))),
    max_size=6,
)


def test_phases_and_views() -> None:
    """The spike is in `during`, what was before it in `before`; waiting is only in the view of all threads."""
    record = recording(1000.0, 20, spike=15)
    cpu = digest(record, "cpu", since=1015.0)
    assert cpu.during == {
        ("main (app/gateway.py)", "handle (app/gateway.py)", "checksum (app/rows.py)"): 5 * NANO
    }
    assert sum(cpu.before.values()) == round(15 * 0.25 * NANO)
    wall = digest(record, "wall", since=1015.0)
    assert sum(wall.before.values()) == 15 * NANO
    assert {stack[0] for stack in wall.before} == {"MainThread"}
    assert (cpu.start, cpu.end, cpu.seconds[1016]) == (1000.0, 1020.0, NANO)


def test_only_what_is_inside() -> None:
    """A sample belongs to the interval in which it begins."""
    record = recording(1000.0, 20, spike=15)
    assert sum(digest(record, "cpu", inside=[(1016.0, 1018.0)]).during.values()) == 2 * NANO


@given(records())
def test_no_time_is_invented(record: ProfileRecord) -> None:
    """Both phases together have what the samples have, whatever the names are."""
    found = digest(record, "wall", since=record.start + 1)
    whole = sum(round(sample.weight * NANO) for sample in record.samples)
    assert sum(found.before.values()) + sum(found.during.values()) == whole == sum(found.seconds.values())


@given(INTERVALS)
def test_gaps_are_what_is_not_covered(covered: list[tuple[float, float]]) -> None:
    """Second by second, an interval is covered or in a gap, never both."""
    free = gaps((5.0, 25.0), covered)
    for second in range(5, 25):
        taken = any(begin <= second < end for begin, end in covered)
        assert any(begin <= second < end for begin, end in free) != taken
