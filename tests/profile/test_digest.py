"""Folding for merges: views, phases, seconds, the table of stacks, and the gaps between what was counted already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.profile import digest as digests
from sentinel_agent.profile import packed, speedscope
from sentinel_agent.profile.digest import Costs, Digest, StackTable, digest, gaps
from tests.api.support import recording
from tests.profile.records import records

if TYPE_CHECKING:
    from sentinel_agent.profile.digest import Interval, View
    from sentinel_agent.profile.flamegraph import Folded
    from sentinel_agent.profile.record import ProfileRecord

NANO = 1_000_000_000
INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (float(min(pair)), float(max(pair)))),
    max_size=6,
)


def stacks(table: StackTable, costs: Costs) -> Folded:
    names = table.stacks()
    return {names[number]: cost for number, cost in costs.items()}


def digest_timeline(
    file: speedscope.File, view: View, table: StackTable, inside: list[Interval] | None = None
) -> Digest:
    """Packed, written, read back, folded."""
    return packed.fold(packed.decode(packed.encode(packed.pack(file))), view, table, inside)


def whole(found: Digest) -> int:
    return sum(cost for _, cost in found.before.items()) + sum(cost for _, cost in found.during.items())


def test_phases_and_views() -> None:
    """The spike is in `during`, what was before it in `before`; waiting is only in the view of all threads."""
    table, file = (
        StackTable(),
        speedscope.read(speedscope.encode(recording(1000.0, 20, spike=15), since=1015.0)),
    )
    cpu = digest_timeline(file, "cpu", table)
    burning = ("main (app/gateway.py)", "handle (app/gateway.py)", "checksum (app/rows.py)")
    assert stacks(table, cpu.during) == {burning: 5 * NANO}
    assert sum(stacks(table, cpu.before).values()) == round(15 * 0.25 * NANO)
    wall = digest_timeline(file, "wall", table)
    assert sum(stacks(table, wall.before).values()) == 15 * NANO
    assert {stack[0] for stack in stacks(table, wall.before)} == {"MainThread"}
    assert (cpu.start, cpu.end, cpu.since, dict(cpu.seconds.items())[1016]) == (1000.0, 1020.0, 1015.0, NANO)


def test_only_what_is_inside() -> None:
    """A sample belongs to the interval in which it begins."""
    record, inside = recording(1000.0, 20, spike=15), [(1016.0, 1018.0)]
    assert whole(digest(record, "cpu", StackTable(), inside)) == 2 * NANO
    file = speedscope.read(speedscope.encode(record))
    assert whole(digest_timeline(file, "cpu", StackTable(), inside)) == 2 * NANO


@pytest.mark.parametrize("view", ["cpu", "wall"])
@given(record=records())
def test_the_short_way_is_the_long_way(view: digests.View, record: ProfileRecord) -> None:
    """Folding the file gives what folding its record gives, whatever the names are; no time is invented."""
    table = StackTable()
    file = speedscope.encode(record)
    long = digest(speedscope.decode(file), view, table)
    short = digest_timeline(speedscope.read(file), view, table)
    if view == "cpu":
        assert stacks(table, short.during) == stacks(table, long.during)
    everything = digest_timeline(speedscope.read(file), view, table, [(0.0, 1e12)])
    for part in ("before", "during", "seconds"):
        assert dict(getattr(everything, part).items()) == dict(getattr(short, part).items())
    assert whole(short) == whole(long) == sum(cost for _, cost in short.seconds.items())


@pytest.mark.parametrize("bound", [{"MAX_STACKS": 2}, {"MAX_BYTES": 2 * (5 + 2 * 8)}])
def test_a_full_table_keeps_the_roots(monkeypatch: pytest.MonkeyPatch, bound: dict[str, int]) -> None:
    """Beyond its size, in stacks or in bytes, it is bounded, and what was left out is seen."""
    for name, value in bound.items():
        monkeypatch.setattr(digests, name, value)
    table = StackTable()
    numbers = [table.number(("root", name)) for name in "abcd"]
    assert table.filled >= 1
    assert [table.stacks()[number] for number in numbers] == [
        ("root", "a"),
        ("root", "b"),
        ("root", "other"),
        ("root", "other"),
    ]


def test_not_even_all_roots_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target can make up as many as it likes."""
    monkeypatch.setattr(digests, "MAX_STACKS", 2)
    table = StackTable()
    for number in range(5000):
        table.number((f"root {number}", "a"))
    assert len(table.stacks()) == 2 + digests._ROOTS + 1


def test_a_file_that_contradicts_itself_is_refused() -> None:
    """By an error that the reader of incidents knows."""
    file = speedscope.read(speedscope.encode(recording(1000.0)))
    file.shared.frames.clear()
    with pytest.raises(IndexError):
        digest_timeline(file, "cpu", StackTable())
    file.sentinel = None
    with pytest.raises(ValueError, match="no times"):
        digest_timeline(file, "cpu", StackTable())


@given(st.data())
def test_a_damaged_digest_is_refused(data: st.DataObject) -> None:
    """Whatever byte is changed, and wherever it ends: it is never half used."""
    whole_one = packed.encode(packed.pack(speedscope.read(speedscope.encode(recording(1000.0)))))
    at = data.draw(st.integers(0, len(whole_one) - 1))
    flipped = bytearray(whole_one)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(flipped), whole_one[:at], b""):
        with pytest.raises(ValueError, match="a digest"):
            packed.decode(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": []},
        {"stacks": []},
        {"places": []},
        {"runs": b"\1"},
        {"costs": b""},
    ],
)
def test_a_digest_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """One that somebody else wrote, with a good checksum, leads nowhere: an error that the reader knows."""
    good = packed.pack(speedscope.read(speedscope.encode(recording(1000.0))))
    bad = packed.decode(packed.encode(msgspec.structs.replace(good, **change)))
    with pytest.raises((ValueError, IndexError)):
        packed.fold(bad, "wall", StackTable(), [(0.0, 1e12)])


def test_times_that_cannot_be_are_refused() -> None:
    """Numbers that no clock shows do not come further."""
    for change in ({"start": 1e300}, {"weight": 1e300}):
        file = speedscope.read(speedscope.encode(recording(1000.0)))
        assert file.sentinel is not None
        file.sentinel.start = change.get("start", file.sentinel.start)
        file.profiles[0].weights[3] = change.get("weight", file.profiles[0].weights[3])
        with pytest.raises(ValueError, match="time"):
            packed.pack(file)


@given(INTERVALS)
def test_gaps_are_what_is_not_covered(covered: list[tuple[float, float]]) -> None:
    """Second by second, an interval is covered or in a gap, never both."""
    free = gaps((5.0, 25.0), covered)
    for second in range(5, 25):
        taken = any(begin <= second < end for begin, end in covered)
        assert any(begin <= second < end for begin, end in free) != taken
