"""The recordings of all targets: one loop looks at each as often as the common budget allows, the ring keeps it.

The loop runs beside the sampling of metrics, on the same thread: one look takes some 0.1 ms. Spooling runs on the
disk's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from time import process_time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sentinel_agent.recorder.codec import decode_header
from sentinel_agent.recorder.flight import Flight
from sentinel_agent.recorder.rate import Load, Rate, RateSettings, plan, smoothed
from sentinel_agent.recorder.ring import Ring
from sentinel_agent.recorder.spool import Spool
from sentinel_agent.recorder.window import window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.config.settings import RecorderSettings, Settings
    from sentinel_agent.core.model import Target, TargetId
    from sentinel_agent.probes.live import LiveReader
    from sentinel_agent.recorder.ring import Batch
    from sentinel_agent.recorder.window import Window

log = logging.getLogger(__name__)

PLAN_SECONDS = 1.0
SPOOL_SECONDS = 2.0
CLOSED_SECONDS = 0.25
"""How often a target is tried whose reader is not open."""
_FIRST_COST = 0.0002
_OUTLIER = 4.0
"""A look counts for at most so many times the mean: the first one, which reads all code, must not blind for minutes."""
_OTHERS_AT_FIRST = 0.4
"""Share of the overhead that the rest of the agent is taken to use before it was measured: its first second is no rule."""
_IDLE_RATE = 19.0
"""An idle target is looked at as often as another: what a burst loses at its begin is up to one period."""
_CALM = 0.6
"""Share of the overhead that the agent keeps to while no target does more than it usually does; the rest is for when one does."""
_USUAL = 0.05
"""Weight of the last second in what a target usually uses: some 20 seconds count."""
_LEAST_SHARE = 0.3
"""Of the whole overhead the recorder may always take this much, whatever the rest of the agent costs."""
_LONGEST_SLEEP = 0.25
_SHARE_OF_LIMIT = 8
"""All rings together have at most this part (one eighth) of the agent's own memory limit; the rest of the window is on the disk."""
_HELD_SECONDS = 30.0
_MOST_HELD = 8
"""The rings of so many targets that have ended are kept, for so long: their last stacks are what one asks for."""


@dataclass(slots=True)
class _Seat:
    """One target on the deck. `due` is on the monotonic clock, `cost` in CPU seconds for one look, `usual` in cores."""

    target: Target
    flight: Flight
    due: float
    cost: float = _FIRST_COST
    rate: Rate | None = None
    usual: float | None = None


class FlightDeck:
    """Records every target that is added.

    `trouble` is told what goes wrong, in words. `cores` says how many cores a process (by pid) uses just now, as its last reading told; `overhead` is what the
    whole agent may cost, in cores. What the rest of it does not use is for looking.
    """

    def __init__(
        self,
        clock: Clock,
        settings: RecorderSettings,
        overhead: float,
        cores: Callable[[int], float],
        spool: Spool | None,
        trouble: Callable[[str], None] = log.warning,
    ) -> None:
        self.settings = settings
        self.overhead = overhead
        self._clock = clock
        self._cores = cores
        self._spool = spool
        self._trouble = trouble
        self._seats: dict[int, _Seat] = {}
        self._held: dict[TargetId, tuple[Ring, float]] = {}  # until when
        self._planned = clock.monotonic()
        self._cpu_before = process_time()
        self._spent = 0.0
        self._others = overhead * _OTHERS_AT_FIRST
        self._past: Counter[str] = Counter(whole=0, partial=0, failed=0)  # of targets that are gone

    def add(self, target: Target, reader: LiveReader) -> None:
        """Record one more target from now on."""
        run = int(self._clock.wall() * 1e9)
        ring = Ring(
            target.role,
            target.id,
            run,
            max_bytes=self.settings.ring_bytes,
            max_age=self.settings.window,
            spooled=self._spool is not None,
        )
        flight = Flight(target.pid, reader, ring, now=self._clock.monotonic)
        self._seats[target.pid] = _Seat(target, flight, self._clock.monotonic())
        self._share_bytes()

    def remove(self, pid: int) -> None:
        """Stop recording; `ring` finds what was recorded for a while, and it is still spooled."""
        seat = self._seats.pop(pid, None)
        if seat is not None:
            _count(self._past, seat.flight.ring)
            seat.flight.close()
            self._held[seat.target.id] = (seat.flight.ring, self._clock.monotonic() + _HELD_SECONDS)
        while len(self._held) > _MOST_HELD:
            del self._held[next(iter(self._held))]
        self._share_bytes()

    def _share_bytes(self) -> None:
        """All rings together have `max_bytes`, those of targets that have just ended included."""
        share = self.settings.max_bytes // max(1, len(self._seats) + len(self._held))
        for seat in self._seats.values():
            seat.flight.ring.bound(min(share, self.settings.ring_bytes))

    def ring(self, target: TargetId) -> Ring | None:
        """The ring of a target, also of one that has just ended."""
        seat = self._seats.get(target.pid)
        if seat is not None and seat.target.id == target:
            return seat.flight.ring
        return self._held[target][0] if target in self._held else None

    def samples_taken(self) -> dict[str, float]:
        """How many stacks were taken since the start, by result: `samples_whole`, `samples_partial`, `samples_failed`."""
        counts = self._past.copy()
        for seat in self._seats.values():
            _count(counts, seat.flight.ring)
        return {f"samples_{result}": float(count) for result, count in counts.items()}

    async def run(self) -> None:
        """Look at every target when it is due, for ever."""
        while True:
            now = self._clock.monotonic()
            if now - self._planned >= PLAN_SECONDS:
                self._plan_rates(now - self._planned)
                self._planned = now
                self._held = {target: held for target, held in self._held.items() if held[1] > now}
            for seat in tuple(self._seats.values()):
                if seat.due <= now:
                    self._look_guarded(seat)
            due = min((seat.due for seat in self._seats.values()), default=now + _LONGEST_SLEEP)
            await self._clock.sleep(min(due - self._clock.monotonic(), _LONGEST_SLEEP))

    def _look_guarded(self, seat: _Seat) -> None:
        """A fault of ours in reading one target ends the recording of that one only, and is told."""
        try:
            self._look(seat)
        except Exception as error:
            log.exception("internal fault")
            self.remove(seat.target.pid)
            self._trouble(
                f"stacks of process {seat.target.pid} are not recorded any more, internal fault, please report it: "
                f"{type(error).__name__}: {error}"
            )

    def _look(self, seat: _Seat) -> None:
        now = self._clock.monotonic()
        rate = seat.rate.rate if seat.rate else RateSettings().base
        period = 1 / rate
        if seat.flight.sample(self._clock.wall(), now, period, max(0.0, now - seat.due)):
            seat.cost = smoothed(seat.cost, min(seat.flight.cost, _OUTLIER * seat.cost))
            self._spent += seat.flight.cost
            seat.due = max(seat.due + period, now)
        else:
            seat.due = now + CLOSED_SECONDS

    def _plan_rates(self, elapsed: float) -> None:
        loads = {}
        for pid, seat in self._seats.items():
            cores = self._cores(pid)
            seat.usual = smoothed(seat.usual, cores, _USUAL)
            loads[pid] = Load(seat.cost, cores, seat.usual)
        before = {pid: seat.rate for pid, seat in self._seats.items() if seat.rate is not None}
        for pid, rate in plan(loads, self._rate_settings(elapsed), before).items():
            self._seats[pid].rate = rate

    def _rate_settings(self, elapsed: float) -> RateSettings:
        """With what looking may cost: the overhead, or the calm part of it, less what the rest of the agent has used lately."""
        cpu = process_time()
        others = max(0.0, cpu - self._cpu_before - self._spent) / elapsed
        self._cpu_before, self._spent = cpu, 0.0
        self._others = smoothed(self._others, min(others, self.overhead))
        least = self.overhead * _LEAST_SHARE
        return RateSettings(
            budget=max(self.overhead - self._others, least),
            calm=max(_CALM * self.overhead - self._others, _CALM * least),
            idle=_IDLE_RATE,
        )

    def _flush(self) -> None:
        """Whoever holds a ring sees every look."""
        for seat in self._seats.values():
            seat.flight.flush()

    async def spool(self, write: Callable[[Spool, Sequence[Batch], float], Awaitable[None]]) -> None:
        """Hand what the spool has not got yet to `write`, which is to bring it to the disk off this thread."""
        if self._spool is None:
            return
        rings = [
            *(seat.flight.ring for seat in self._seats.values()),
            *(ring for ring, _ in self._held.values()),
        ]
        batches = [batch for ring in rings for batch in ring.take()]
        if batches:
            await write(self._spool, batches, self._clock.wall())

    async def window(self, target: Target, ring: Ring | None, since: float, until: float) -> Window:
        """What was recorded of a target between two times (seconds since the epoch), from the ring and from the spool.

        The spool has also what an agent before this one recorded of it, and nothing of who filled its role before.

        Raises:
            ValueError: the window is empty.
        """
        self._flush()
        pieces = ring.snapshot(since) if ring is not None else []
        oldest = ring.statistics().oldest if ring is not None else None
        spool = None if oldest is not None and oldest <= since else self._spool
        return await asyncio.to_thread(recorded, spool, target, pieces, since, until)


def recorded(
    spool: Spool | None, target: Target, pieces: Sequence[bytes], since: float, until: float
) -> Window:
    """What the spool and these pieces of a ring have of a target between two times (seconds since the epoch).

    Raises:
        ValueError: the window is empty.
    """
    older = spool.read(target.role, since) if spool is not None else ()
    own = [data for data in older if decode_header(data)[0].target == target.id]
    return window([*pieces, *own], since, until)


def _count(counts: Counter[str], ring: Ring) -> None:
    found = ring.statistics()
    counts.update(whole=found.whole, partial=found.partial, failed=found.failed)


def make_deck(
    settings: Settings,
    data_dir: Path,
    clock: Clock,
    cores: Callable[[int], float],
    trouble: Callable[[str], None],
    limit: int | None = None,
) -> FlightDeck | None:
    """The flight recorder as the settings have it; None where it is switched off. `limit` is the agent's own memory limit in bytes."""
    recorder = settings.recorder
    if not recorder.enabled:
        return None
    if limit is not None:
        recorder = replace(recorder, max_bytes=min(recorder.max_bytes, limit // _SHARE_OF_LIMIT))
    spool = make_spool(settings, data_dir) if recorder.spool else None
    return FlightDeck(clock, recorder, settings.overhead.cpu / 100, cores, spool, trouble)


def make_spool(settings: Settings, data_dir: Path) -> Spool:
    """The spool of a data directory; several may read it while one writes."""
    recorder = settings.recorder
    return Spool(
        data_dir / "recorder",
        max_role_bytes=recorder.spool_bytes // 4,
        max_bytes=recorder.spool_bytes,
        max_age=2 * recorder.window,
        min_free_bytes=settings.store.min_free_bytes,
    )
