"""What consecutive looks at a target tell that a single one does not: stalls of its event loops, pauses of its collector.

Of a loop that shows nothing of itself, the kernel tells one thing: a thread that was asleep in a callback at both looks, and has
used no CPU time between them, is still in it. So a call that blocks is seen there, and one that computes is not.

What share of its time the collector takes is an estimate that leans to neither side: the share of the looks that saw it at work.

A stall and a pause are lower bounds, never overstated: the time between the first and the last look that saw one and the same callback, or one
and the same collection. The resolution is one sampling period of the flight recorder, whose looks these are; what is
shorter than that may be seen as 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.cpython.loops import Callback
from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sentinel_agent.cpython.collector import Collector
    from sentinel_agent.cpython.loops import Doing
    from sentinel_agent.cpython.process import Interpreter
    from sentinel_agent.cpython.threads import ThreadStack

NOT_RECORDED = (
    "no stack was recorded since the last reading: see recorder.enabled, and `doctor` for what can be read"
)
OPAQUE = (
    "its event loop is not asyncio's own (uvloop is one in C): from outside one callback is not told from the next, "
    "and none was seen that slept"
)


class _Seen(NamedTuple):
    what: Hashable
    since: float


class Stretches:
    """The longest stretch of time over which the same thing was seen, in each of several places."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._longest = 0.0

    def see(self, place: int, what: Hashable, now: float, after: float | None = None) -> None:
        """`what` is there at some time between `now`, when the look began, and `after`, when it was over; None for nothing.

        In seconds; a look of no length if there is no `after`. A stretch is from the end of the first look to the begin of the last.
        """
        seen = self._seen.get(place)
        if what is None:
            self._seen.pop(place, None)
        elif seen is None or seen.what != what:
            self._seen[place] = _Seen(what, now if after is None else after)
        else:
            self._longest = max(self._longest, now - seen.since)

    def still(self, now: float) -> None:
        """Everywhere the same is there as before."""
        for seen in self._seen.values():
            self._longest = max(self._longest, now - seen.since)

    def keep(self, places: set[int]) -> None:
        """Forget all other places."""
        for place in self._seen.keys() - places:
            del self._seen[place]

    def take(self) -> float:
        """The longest since this was last asked; one that lasts goes on."""
        longest, self._longest = self._longest, 0.0
        return longest


class Pulse:
    """Fed with every look by the flight recorder, asked at every tick by the probes."""

    def __init__(self) -> None:
        self._stalls = Stretches()
        self._collections = Stretches()
        self._looks = self._loops = self._opaque = 0
        self._collector_looks = 0
        self._seen_at_work = self._looked_at = 0
        self._last: tuple[int, ...] = (0, 0, 0, 0, 0, 0)  # what the last look added to these
        self._unreadable: str | None = None

    def see(
        self,
        interpreter: Interpreter,
        threads: Sequence[ThreadStack],
        now: float,
        asleep: Callable[[ThreadStack], int | None] = lambda _: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """One look that began at `now`, in seconds of `clock`, which never jumps; without it the look has no length.

        `asleep` is asked after the look: how much CPU time a thread has used, if it sleeps; None if not, or unknown.
        """
        before = self._counts()
        self._looks += 1
        for thread in threads:
            doing = interpreter.loop(thread)
            slept = asleep(thread) if doing == "opaque callback" else None
            after = clock() if clock else now
            if doing == "opaque callback":
                self._stalls.see(thread.id, slept, now, after)
            self._see_loop(thread.id, doing, now, after)
        self._stalls.keep({thread.id for thread in threads})
        try:
            self._see_collector(interpreter.collector(), now, clock)
        except UnreadableError as error:
            self._unreadable = error.message
        self._last = tuple(count - was for count, was in zip(self._counts(), before, strict=True))

    def again(self, now: float) -> None:
        """A look at `now` found that nothing has run since the last one: the same is seen once more."""
        looks, loops, opaque, collector, at_work, looked_at = self._last
        self._looks += looks
        self._loops += loops
        self._opaque += opaque
        self._collector_looks += collector
        self._seen_at_work += at_work
        self._looked_at += looked_at
        self._stalls.still(now)
        self._collections.still(now)

    def _counts(self) -> tuple[int, ...]:
        gc = self._collector_looks, self._seen_at_work, self._looked_at
        return self._looks, self._loops, self._opaque, *gc

    def _see_loop(self, thread: int, doing: Doing, now: float, after: float) -> None:
        if doing is None:
            return
        self._loops += 1
        if doing in ("opaque", "opaque callback"):
            self._opaque += 1
        elif isinstance(doing, Callback):
            self._stalls.see(thread, doing, now, after)
        elif doing == "waiting":
            self._stalls.see(thread, None, now)

    def _see_collector(self, collector: Collector, now: float, clock: Callable[[], float] | None) -> None:
        """A collection counts when it ends: while the count stands still it is the same one."""
        state = None if collector.idle() else collector.read()
        self._collector_looks += 1
        after = clock() if clock else now
        at_work = state is not None and state.collecting
        self._looked_at += 1
        self._seen_at_work += at_work
        self._collections.see(0, state.collections if state and at_work else None, now, after)

    def stall(self) -> float | str | None:
        """Seconds of the longest stall since this was last asked; why it is not known; None where no loop runs."""
        looks, loops, opaque = self._looks, self._loops, self._opaque
        self._looks = self._loops = self._opaque = 0
        longest = self._stalls.take()
        if not looks:
            return NOT_RECORDED
        if not loops:
            return None
        return OPAQUE if opaque == loops and not longest else longest

    def pause(self) -> float | str:
        """Seconds of the longest collection since this was last asked, or why it is not known."""
        looks, self._collector_looks = self._collector_looks, 0
        longest = self._collections.take()
        return longest if looks else self._unreadable or NOT_RECORDED

    def share(self) -> float | str:
        """Percent of the looks since this was last asked that saw the collector at work, or why it is not known."""
        looks, seen = self._looked_at, self._seen_at_work
        self._looked_at = self._seen_at_work = 0
        return 100.0 * seen / looks if looks else self._unreadable or NOT_RECORDED
