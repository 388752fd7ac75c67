"""A stretch of the recording as a profile record.

A sample stands for the time to the next sample of its thread, two planned periods or STANDS at most, so that a gap stays a
gap; and for the time before it that its thread was already on a CPU, where the kernel's clock tells that.
Equal samples that follow each other are merged up to `MERGED` seconds: the time is the same, the record is smaller.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

from sentinel_agent.profile.record import MAX_DEPTH, MAX_SECONDS, ProfileRecord, RecordBuilder
from sentinel_agent.recorder.codec import SegmentError
from sentinel_agent.recorder.segment import StoredSegment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sentinel_agent.recorder.sample import Place
    from sentinel_agent.recorder.segment import StoredTick

SOURCE = "flight recorder"
MERGED = 1.0
STANDS = 0.25
"""Seconds that a sample may stand for however short the planned period: an agent that comes late has still looked."""
MAX_READ = 500_000
"""Most thread samples that are read for one window."""
MAX_PLACES = 4_000_000
"""Most frames of all stacks of a window, each counted once per segment; 16 bytes each."""
_MAX_PERIODS = 2

View = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class Window:
    """A profile with what one must know to judge it.

    `coverage` is the share of the window's wall time, 0 to 1, for which some thread's sample stands (of the view:
    in the CPU view of those on CPU). `damaged` counts corrupt places in segments and segments that were refused.
    """

    record: ProfileRecord
    coverage: float
    damaged: int


class _Run(NamedTuple):
    """One thread in one state at `ticks`, as a segment has them; `stack` is a number of `_Collected.stacks`, -1 the empty one."""

    ticks: list[StoredTick]
    stack: int
    on_cpu: bool | None


@dataclass(slots=True)
class _Collected:
    """What the segments hold of a window, by the ring's run and the thread."""

    threads: defaultdict[tuple[int, int, str], list[_Run]] = field(default_factory=lambda: defaultdict(list))
    stacks: dict[tuple[Place, ...], int] = field(default_factory=dict)
    periods: Counter[float] = field(default_factory=Counter)
    places: int = 0
    read: int = 0
    lost: int = 0


def window(pieces: Iterable[bytes], since: float, until: float, *, view: View = "wall") -> Window:
    """The samples taken in [since, until), seconds since the epoch, from segments: `[*ring.snapshot(), *spool.read(role)]`.

    Of a segment that is there twice the first is used. Where there is more than may be read, the segments that come
    last are lost, and counted. The "cpu" view has only samples known to be on CPU.

    Raises:
        ValueError: the window is empty or unbounded.
    """
    if not 0 <= since < until <= MAX_SECONDS:
        raise ValueError(f"a window needs a start before its end, found {since} to {until}")
    collected, damaged = _Collected(), 0
    used: set[tuple[int, int]] = set()
    for data in pieces:
        try:
            segment = StoredSegment(data)
        except SegmentError:
            damaged += 1
            continue
        identity = (segment.header.run, segment.header.number)
        if identity not in used:
            used.add(identity)
            damaged += segment.damaged
            _collect(segment, since, until, collected)
    period = collected.periods.most_common(1)[0][0] if collected.periods else 0.0
    builder = RecordBuilder(start=since, period=min(period, MAX_SECONDS), source=SOURCE, lost=collected.lost)
    covered = _emit(collected, builder, since, until, view)
    return Window(builder.build(), _union(covered) / (until - since), damaged)


def _collect(segment: StoredSegment, since: float, until: float, collected: _Collected) -> None:
    """Add what a segment holds of the window; what it names but does not hold is lost."""
    ticks = {
        number: tick
        for number, tick in segment.ticks.items()
        if since <= tick[0] < until and math.isfinite(tick[1]) and 0 < tick[2] < math.inf and tick[3] >= 0
    }
    for tick in ticks.values():
        collected.lost += tick[4]
        collected.periods[tick[2]] += 1
    newest = max(ticks, default=-1)
    oldest = min(ticks, default=0)
    stacks: dict[int, int | None] = {}
    for thread_number, node, on_cpu, _, begin, count in segment.runs():
        first, last = max(begin, oldest), min(begin + count - 1, newest)
        if last < first:
            continue
        collected.read += last - first + 1
        if collected.read > MAX_READ:
            collected.lost += last - first + 1
            continue
        if node not in stacks:
            stacks[node] = _stack(segment, node, collected)
        stack, thread = stacks[node], segment.thread(thread_number)
        times = [ticks[number] for number in range(first, last + 1) if number in ticks]
        if stack is None or thread is None:
            collected.lost += len(times)
            continue
        if times:
            collected.threads[segment.header.run, *thread].append(_Run(times, stack, on_cpu))


def _stack(segment: StoredSegment, node: int, collected: _Collected) -> int | None:
    if collected.places > MAX_PLACES:
        return None
    places = segment.stack(node)
    collected.places += MAX_DEPTH if places is None else len(places)
    if not places:
        return None if places is None else -1
    return collected.stacks.setdefault(places, len(collected.stacks))


def _emit(
    collected: _Collected, builder: RecordBuilder, since: float, until: float, view: View
) -> list[tuple[float, float]]:
    """Give every sample its weight and add it to the record; returns the stretches of time that they stand for."""
    stacks = list(collected.stacks)
    known: dict[int, tuple[int | None, ...]] = {}
    covered: list[tuple[float, float]] = []
    for (_, native_id, name), runs in collected.threads.items():
        runs.sort(key=_first_moment)
        thread: int | None = None
        for wall, weight, count, run in _merged(runs, since, until):
            if run.stack < 0 or (view == "cpu" and run.on_cpu is not True):
                continue
            thread = builder.thread(native_id, name) if thread is None else thread
            if run.stack not in known:
                known[run.stack] = tuple(builder.frame(*place) for place in stacks[run.stack])
            builder.add(
                thread,
                known[run.stack],
                offset=wall - since,
                weight=weight,
                on_cpu=run.on_cpu,
                count=count,
            )
            covered.append((wall, min(wall + weight, until)))
    return covered


def _first_moment(run: _Run) -> float:
    return run.ticks[0][1]


def _merged(runs: list[_Run], since: float, until: float) -> Iterator[tuple[float, float, int, _Run]]:
    """(wall, weight, count, run) of one thread's samples in order; those of equal runs without a gap as one."""
    start, weight, count, previous = 0.0, 0.0, 0, None
    for run, following in zip_longest(runs, runs[1:]):
        leads = [_lead(run, tick, since) for tick in run.ticks] + [
            _lead(following, following.ticks[0], since) if following else 0.0
        ]
        after = [*run.ticks[1:], following.ticks[0] if following else None]
        for (wall, monotonic, period, *_), next_tick, lead, next_lead in zip(
            run.ticks, after, leads[:-1], leads[1:], strict=True
        ):
            to_next = next_tick[1] - next_lead - monotonic if next_tick else period
            own = max(0.0, min(to_next, max(_MAX_PERIODS * period, STANDS), until - wall)) + lead
            began = wall - lead
            if previous is not None and (
                weight + own > MERGED
                or abs(began - start - weight) > period / 2
                or (previous is not run and (previous.stack, previous.on_cpu) != (run.stack, run.on_cpu))
            ):
                yield start, weight, count, previous
                previous = None
            if previous is None:
                start, weight, count, previous = began, 0.0, 0, run
            weight += own
            count += 1
    if previous is not None:
        yield start, weight, count, previous


def _lead(run: _Run, tick: StoredTick, since: float) -> float:
    """Seconds before its moment for which a sample stands."""
    return min(tick[3], STANDS, tick[0] - since) if run.on_cpu else 0.0


def _union(stretches: list[tuple[float, float]]) -> float:
    """Length of the union."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
