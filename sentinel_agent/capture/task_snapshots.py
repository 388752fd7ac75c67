"""How the asyncio tasks of each target looked lately: so that a leak can be told from what is always there.

About once a minute the tasks of a target are read in a thread, by a reader of its own, and counted by group. At most `READ_AT_ONCE`
of them are read, each so-manieth of more; a target with more than `MAX_COUNTED` is left alone, since only listing its tasks would
cost too much. All of it takes at most `SHARE` of the overhead that the agent may cost: what a look has cost is measured, and
the looks move apart for it. Snapshots from healthy moments are kept for comparison, the newest one of all for showing.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING

from sentinel_agent.capture.task_groups import TaskGroup, TaskSnapshot, largest_groups, take_snapshot
from sentinel_agent.core.units import format_duration
from sentinel_agent.cpython.process import open_process
from sentinel_agent.errors import TargetError
from sentinel_agent.target.liveness import is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentinel_agent.clock import Clock
    from sentinel_agent.core.model import TargetId

PERIOD = 60.0
"""Seconds between two looks at a target, at least."""
READ_AT_ONCE = 4000
MAX_COUNTED = 200_000
SHARE = 0.1
"""Of the agent's overhead, for all targets together."""
KEPT = 10
"""Healthy snapshots of a target that are kept."""
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Watched:
    """A target as it stands: how many tasks its last reading counted (None: no asyncio, or not known), and whether all is well."""

    target: TargetId
    tasks: float | None
    healthy: bool


@dataclass(frozen=True, slots=True)
class LatestTasks:
    """The largest groups as they were at `time`; `every`: each so-manieth task was read, counts are estimates."""

    time: float
    count: int
    every: int
    groups: tuple[TaskGroup, ...]


@dataclass(frozen=True, slots=True)
class TaskSnapshotStatistics:
    """Since the start: looks, those that were sampled, that failed and that were left out; their CPU time in seconds."""

    taken: int
    sampled: int
    failed: int
    left_out: int
    cpu_seconds: float


@dataclass(slots=True)
class _Seat:
    """What is kept of one target; `due` on the monotonic clock, `cost` in CPU seconds of the last look."""

    due: float
    cost: float = 0.0
    healthy: deque[TaskSnapshot] = field(default_factory=lambda: deque(maxlen=KEPT))
    latest: LatestTasks | None = None
    why_not: str = "its tasks were not read before"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look brought, and the CPU time in seconds that it took."""

    snapshot: TaskSnapshot
    groups: tuple[TaskGroup, ...]
    cost: float


class TaskSnapshots:
    """Looks at every target now and then. `overhead` is what the whole agent may cost, in cores."""

    def __init__(
        self,
        clock: Clock,
        overhead: float,
        watched: Callable[[], Sequence[Watched]],
        look: Callable[[TargetId, float, int], Look] | None = None,
    ) -> None:
        self.overhead = overhead
        self._clock = clock
        self._watched = watched
        self._look = look or look_at
        self._seats: dict[TargetId, _Seat] = {}
        self._taken = self._sampled = self._failed = self._left_out = 0
        self._spent = 0.0

    async def round(self) -> None:
        """Look at the targets that are due, one after the other; forget those that have gone."""
        watched = self._watched()
        present = {each.target for each in watched}
        self._seats = {target: seat for target, seat in self._seats.items() if target in present}
        for each in watched:
            seat = self._seats.setdefault(each.target, _Seat(self._clock.monotonic()))
            if each.tasks and seat.due <= self._clock.monotonic():
                await self._visit(each, seat)

    def before(self, target: TargetId, usual: float | None = None) -> TaskSnapshot | str:
        """The healthy snapshot to compare with, or why there is none.

        With `usual`, the number of tasks that the rule calls usual, it is the one that comes nearest to it, so that a slow leak
        is not compared with what has leaked already; else the newest.
        """
        seat = self._seats.get(target)
        if seat is None or not seat.healthy:
            return seat.why_not if seat else "its tasks were not read before"
        if usual is None:
            return seat.healthy[-1]
        return min(reversed(seat.healthy), key=lambda snapshot: abs(snapshot.count - usual))

    def latest(self, target: TargetId) -> LatestTasks | None:
        """The groups as they were last seen, well or not."""
        seat = self._seats.get(target)
        return seat.latest if seat else None

    def statistics(self) -> TaskSnapshotStatistics:
        """What it has cost so far."""
        return TaskSnapshotStatistics(self._taken, self._sampled, self._failed, self._left_out, self._spent)

    async def _visit(self, each: Watched, seat: _Seat) -> None:
        count = each.tasks or 0.0
        seat.due = self._clock.monotonic() + PERIOD
        if count > MAX_COUNTED:
            self._left_out += 1
            seat.why_not = (
                f"it has {count:.0f} tasks: more than {MAX_COUNTED} are not read before an incident"
            )
            return
        every = max(1, math.ceil(count / READ_AT_ONCE))
        try:
            look = await asyncio.to_thread(self._look, each.target, self._clock.wall(), every)
        except TargetError as error:
            self._failed += 1
            seat.why_not = f"its tasks could not be read before: {error.message}"
            return
        self._taken += 1
        self._sampled += every > 1
        self._spent += look.cost
        seat.cost = look.cost
        seat.due = self._clock.monotonic() + self._period()
        snapshot = look.snapshot
        seat.latest = LatestTasks(snapshot.time, snapshot.count, every, look.groups)
        if each.healthy:
            seat.healthy.append(snapshot)
        elif not seat.healthy:
            seat.why_not = f"a rule was about to fire, or had just fired, each time its tasks were read (every {format_duration(self._period())})"

    def _period(self) -> float:
        """Seconds between two looks at a target, so that all looks together keep to their share."""
        return max(PERIOD, sum(seat.cost for seat in self._seats.values()) / (SHARE * self.overhead))


def look_at(target: TargetId, time: float, every: int) -> Look:
    """Read the tasks of a process, each `every`-th of them.

    Raises:
        TargetError: it has ended, may not be read, or is no CPython that the reader knows.
    """
    began = thread_time()
    dump = open_process(target.pid).tasks(2 * READ_AT_ONCE, every)
    if not is_running(target):
        raise TargetError("the process has ended")
    snapshot = take_snapshot(dump, time, every)
    return Look(snapshot, largest_groups(dump, _SHOWN, every), thread_time() - began)
