"""A recording folded for merging: what each stack costs before and since the trigger, and what each second costs.

Stacks are tuples of labels, root first; in the view of all threads the root is the thread's name, without its id, so that
the same threads of several processes are merged. A table numbers the stacks, so that what is kept of a recording are a few
arrays of numbers: merging a thousand is adding numbers.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING, Literal

from sentinel_agent.profile.flamegraph import OTHER
from sentinel_agent.profile.names import printable, thread_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sentinel_agent.profile.flamegraph import Folded
    from sentinel_agent.profile.record import Frame, ProfileRecord

_NANO = 1_000_000_000
View = Literal["cpu", "wall"]
Interval = tuple[float, float]
"""A stretch of time, seconds since the epoch, the end not included."""

Stack = tuple[str, ...]
MAX_STACKS = 50_000
MAX_BYTES = 64 * 1024**2
"""Of a table, if no two stacks shared a label; most do, and it takes a tenth."""
_ROOTS = 1000


class StackTable:
    """Numbers for stacks. Of one that is full a new stack is only known by its root, and after many such not even by it."""

    def __init__(self) -> None:
        self._numbers: dict[Stack, int] = {}
        self._bytes = 0

    @property
    def filled(self) -> float:
        """How full it is: 1 is full."""
        return max(len(self._numbers) / MAX_STACKS, self._bytes / MAX_BYTES)

    def number(self, stack: Stack) -> int:
        """The number of a stack."""
        found = self._numbers.get(stack)
        if found is None:
            size = sum(map(len, stack)) + 8 * len(stack)
            if len(self._numbers) >= MAX_STACKS or self._bytes + size > MAX_BYTES:
                return self._shortened(stack[0])
            self._bytes += size
            found = self._numbers[stack] = len(self._numbers)
        return found

    def _shortened(self, root: str) -> int:
        known = (root, OTHER) in self._numbers or len(self._numbers) < MAX_STACKS + _ROOTS
        short = (root, OTHER) if known else (OTHER,)
        return self._numbers.setdefault(short, len(self._numbers))

    def stacks(self) -> Sequence[Stack]:
        """All of them, in the order of their numbers."""
        return list(self._numbers)


class Costs:
    """A cost for each of some numbers, in 16 bytes each."""

    __slots__ = ("_costs", "_numbers")

    def __init__(self, costs: Mapping[int, int]) -> None:
        self._numbers = array("q", costs)
        self._costs = array("q", costs.values())

    def items(self) -> Iterator[tuple[int, int]]:
        """(number, cost)."""
        return zip(self._numbers, self._costs, strict=True)

    def __len__(self) -> int:
        return len(self._costs)

    def add_to(self, sums: dict[int, int]) -> None:
        """Add the costs to `sums`."""
        for number, cost in zip(self._numbers, self._costs, strict=True):
            sums[number] = sums.get(number, 0) + cost


@dataclass(frozen=True, slots=True)
class Digest:
    """Costs by the number of the stack, in nanoseconds, or a count. `seconds` are by whole seconds since the epoch.

    `start` and `end` say what was recorded, `since` when the trigger's condition became true; without a trigger
    everything is `during`.
    """

    start: float
    end: float
    since: float
    before: Costs
    during: Costs
    seconds: Costs


def summed(runs: Iterable[tuple[float, int, int]], start: float, end: float, since: float) -> Digest:
    """The digest of runs: when each began, the number of its stack, what it cost."""
    before: dict[int, int] = {}
    during: dict[int, int] = {}
    seconds: dict[int, int] = {}
    for time, stack, cost in runs:
        into = during if time >= since else before
        into[stack] = into.get(stack, 0) + cost
        second = int(time)
        seconds[second] = seconds.get(second, 0) + cost
    return Digest(start, end, since, Costs(before), Costs(during), Costs(seconds))


def digest(
    record: ProfileRecord, view: View, table: StackTable, inside: Sequence[Interval] | None = None
) -> Digest:
    """Fold the samples of a view that begin in one of the intervals `inside` (None: all), all of them `during`.

    A sample without weight (a look, not a recording) costs nothing and is left out. In the view "cpu" are samples
    that are known to have been on a CPU.
    """
    start = record.start
    return summed(_runs(record, view, table, inside), start, start + record.end, start)


def _runs(
    record: ProfileRecord, view: View, table: StackTable, inside: Sequence[Interval] | None
) -> Iterator[tuple[float, int, int]]:
    wall = view == "wall"
    labels = [intern(frame_label(frame)) for frame in record.frames]
    threads = [intern(thread_name(thread.name, thread.native_id)) for thread in record.threads]
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for sample in record.samples:
        cost, time = round(sample.weight * _NANO), record.start + sample.offset
        if cost <= 0 or not (wall or sample.on_cpu) or not _within(time, inside):
            continue
        key = (sample.thread if wall else 0, sample.stack)
        number = known.get(key)
        if number is None:
            stack = tuple([labels[index] for index in reversed(sample.stack)])
            number = known[key] = table.number((threads[sample.thread], *stack) if wall else stack)
        yield time, number, cost


def counted(stacks: Folded, time: float, table: StackTable) -> Digest:
    """Stacks that were counted at one moment."""
    costs = Costs({table.number(stack): count for stack, count in stacks.items()})
    return Digest(time, time, time, Costs({}), costs, Costs({int(time): sum(stacks.values())}))


def frame_label(frame: Frame) -> str:
    """`function (folder/file.py)`: lines would tear a function apart, and a whole path would hide its name."""
    if not frame.file:
        return printable(frame.function)
    return printable(f"{frame.function} ({'/'.join(frame.file.rsplit('/', 2)[-2:])})")


def _within(time: float, inside: Sequence[Interval] | None) -> bool:
    return inside is None or any(begin <= time < end for begin, end in inside)


def gaps(interval: Interval, covered: Sequence[Interval]) -> list[Interval]:
    """What of `interval` is in none of `covered`, in order."""
    found: list[Interval] = []
    at, end = interval
    for begin, until in sorted(covered):
        if until <= at:
            continue
        if begin >= end:
            break
        if begin > at:
            found.append((at, begin))
        at = max(at, until)
    if at < end:
        found.append((at, end))
    return found
