"""What objects each target had when all was well: so that the types of a slow leak can be told from what is always there.

Every ten minutes or so a healthy target's objects are counted by type, from outside (`cpython.census`), in a thread. One with more than
`MAX_OBJECTS` is left alone. All of it takes at most `SHARE` of the overhead that the agent may cost: what a count has cost is
measured, and the counts move apart for it. The last few are kept, and an incident is compared with the oldest of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.heap import HeapCensus, count
from sentinel_agent.cpython.census import CensusLimits
from sentinel_agent.cpython.process import open_process
from sentinel_agent.errors import TargetError
from sentinel_agent.target.liveness import is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentinel_agent.capture.task_snapshots import Watched
    from sentinel_agent.clock import Clock
    from sentinel_agent.core.model import TargetId

WARM_UP = 60.0
"""Seconds that a target is watched before it is counted: one that starts imports."""
PERIOD = 600.0
"""Seconds between two counts of a target, at least."""
MAX_OBJECTS = 500_000
SHARE = 0.1
"""Of the agent's overhead, for all targets together."""
KEPT = 3
TYPES = 300
"""Types of a census that are kept, those of which there are most."""


@dataclass(slots=True)
class _Seat:
    """What is kept of one target; `due` on the monotonic clock, `cost` in CPU seconds of the last count."""

    due: float
    cost: float = 0.0
    kept: deque[HeapCensus] = field(default_factory=lambda: deque(maxlen=KEPT))
    why_not: str = "its objects were not counted before"


class HeapSnapshots:
    """Counts every target's objects now and then. `overhead` is what the whole agent may cost, in cores."""

    def __init__(
        self,
        clock: Clock,
        overhead: float,
        watched: Callable[[], Sequence[Watched]],
        look: Callable[[TargetId, Clock], tuple[HeapCensus, float]] | None = None,
    ) -> None:
        self.overhead = overhead
        self._clock = clock
        self._watched = watched
        self._look = look or look_at
        self._seats: dict[TargetId, _Seat] = {}

    async def round(self) -> None:
        """Count the objects of the healthy targets that are due, one after the other; forget those that have gone."""
        watched = self._watched()
        now = self._clock.monotonic()
        self._seats = {each.target: self._seats.get(each.target) or _Seat(now + WARM_UP) for each in watched}
        for each in watched:
            seat = self._seats[each.target]
            if each.healthy and seat.due <= self._clock.monotonic():
                await self._visit(each.target, seat)

    def before(self, target: TargetId) -> HeapCensus | str:
        """The oldest census that is kept, or why there is none."""
        seat = self._seats.get(target)
        if seat is None:
            return "its objects were not counted before"
        return seat.kept[0] if seat.kept else seat.why_not

    async def _visit(self, target: TargetId, seat: _Seat) -> None:
        seat.due = self._clock.monotonic() + PERIOD
        try:
            census, seat.cost = await asyncio.to_thread(self._look, target, self._clock)
        except TargetError as error:
            seat.why_not = f"its objects could not be counted before: {error.message}"
            return
        seat.due = self._clock.monotonic() + self._period()
        if census.cut:
            seat.why_not = (
                f"it has more than {MAX_OBJECTS} objects: so many are not counted before an incident"
            )
        elif census.torn:
            seat.why_not = "its objects could not be counted before: the lists changed under the walk"
        else:
            seat.kept.append(_largest(census))

    def _period(self) -> float:
        """Seconds between two counts of a target, so that all of them together keep to their share."""
        return max(PERIOD, sum(seat.cost for seat in self._seats.values()) / (SHARE * self.overhead))


def look_at(target: TargetId, clock: Clock) -> tuple[HeapCensus, float]:
    """One census, and the CPU time in seconds that it took.

    Raises:
        TargetError: it has ended, may not be read, or is no CPython that the reader knows.
    """
    began = thread_time()
    census = count(open_process(target.pid), CensusLimits(MAX_OBJECTS), clock, attempts=2)
    if not is_running(target):
        raise TargetError("the process has ended")
    return census, thread_time() - began


def _largest(census: HeapCensus) -> HeapCensus:
    """The census with the `TYPES` types of which there are most."""
    order = sorted(census.types, key=lambda each: -each.count)
    left_out = order[TYPES].count if len(order) > TYPES else 0
    return msgspec.structs.replace(census, types=tuple(order[:TYPES]), left_out=left_out)
