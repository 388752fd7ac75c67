"""The newest stacks of one target in fixed bytes: an open segment that grows, and sealed ones as their bytes.

The ring drops whole segments, an eighth of it each, so it holds between all and an eighth more of its age while the bytes
allow. Not for use by several threads at once; what `snapshot` and `take` return may go to another one.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.recorder.codec import Header
from sentinel_agent.recorder.segment import FullError, OpenSegment

if TYPE_CHECKING:
    from sentinel_agent.core.model import Role, TargetId
    from sentinel_agent.recorder.sample import ThreadSample, Tick

MIN_BYTES = 1024**2
MAX_BYTES = 64 * 1024**2
_PARTS = 8
_MAX_TAKEN = 1024**2
"""Bytes of a segment's file after which the next one is begun."""
_PENDING = 4
_MIN_LATE = 0.5  # of a period


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes to append to segment `number` of the ring `run`; `first` says that they begin it."""

    role: Role
    run: int
    number: int
    first: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class RecorderStatistics:
    """What a ring has taken and lost since it was made, and what it holds.

    Thread samples by kind; `late` ticks (by half a period or more); `dropped` samples, gone before their age for the
    bytes; `untaken` batches, which `take` did not fetch in time. `oldest` is in seconds since the epoch.
    """

    whole: int
    partial: int
    failed: int
    late: int
    dropped: int
    untaken: int
    oldest: float | None
    bytes: int


@dataclass(frozen=True, slots=True)
class _Sealed:
    data: bytes
    first_wall: float
    last_wall: float
    last_monotonic: float
    samples: int


class Ring:
    """The flight recorder of one target.

    `run` tells this ring's segments from those of an earlier one of the same role and must be greater than
    theirs (nanoseconds since the epoch do). With `spooled`, `take` must be called regularly.
    """

    def __init__(
        self,
        role: Role,
        target: TargetId,
        run: int,
        *,
        max_bytes: int = 10 * 1024**2,
        max_age: float = 120.0,
        spooled: bool = False,
    ) -> None:
        """An empty ring; it takes memory as it fills.

        Raises:
            ValueError: `max_bytes` is out of bounds.
        """
        if not MIN_BYTES <= max_bytes <= MAX_BYTES:
            raise ValueError(f"a ring has {MIN_BYTES} to {MAX_BYTES} bytes, found {max_bytes}")
        self._header = Header(sys.byteorder, role, target, run, 0, 0.0)
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._spooled = spooled
        self._sealed: deque[_Sealed] = deque()
        self._sealed_bytes = 0
        self._open: OpenSegment | None = None
        self._number = -1
        self._first: Tick | None = None  # of the open segment
        self._last: Tick | None = None
        self._pending: deque[Batch] = deque()
        self._whole = self._partial = self._failed = self._late = self._dropped = self._untaken = 0

    def bound(self, max_bytes: int) -> None:
        """Another bound for the bytes, in force from the next look on; what is out of bounds is moved to the nearest."""
        self._max_bytes = min(max(max_bytes, MIN_BYTES), MAX_BYTES)

    def put(self, tick: Tick) -> None:
        """Add one look at the target. Ticks must come in the order of their monotonic time."""
        self._failed += tick.failed
        self._late += tick.late >= tick.period * _MIN_LATE
        segment = self._open
        if segment is None or self._is_due(segment, tick):
            segment = self._roll(tick)
        segment.begin(tick, tick.failed)
        self._last = msgspec.structs.replace(tick, threads=())
        for sample in tick.threads:
            if sample.kind == "partial":
                self._partial += 1
            else:
                self._whole += 1
            try:
                segment.put(sample)
            except FullError:
                segment = self._put_elsewhere(segment, tick, sample)
        self._trim(tick.monotonic)

    def _put_elsewhere(self, segment: OpenSegment, tick: Tick, sample: ThreadSample) -> OpenSegment:
        """Try the next segment; a stack that needs more than half of one is dropped. Returns the open segment."""
        try:
            if segment.held_bytes >= self._max_bytes // _PARTS // 2:
                segment = self._roll(tick)
                segment.begin(tick, 0)
                segment.put(sample)
                return segment
        except FullError:
            pass
        self._dropped += 1
        return segment

    def take(self) -> list[Batch]:
        """What the spool has not been given, oldest first."""
        batches = [*self._pending]
        self._pending.clear()
        if self._open is not None:
            batch = self._take_open(self._open)
            if batch is not None:
                batches.append(batch)
        return batches

    def snapshot(self, since: float = 0.0) -> list[bytes]:
        """The segments that reach past `since` (seconds since the epoch), newest first, for `window`."""
        pieces = [] if self._open is None else [self._open.whole()]
        pieces += [sealed.data for sealed in reversed(self._sealed) if sealed.last_wall >= since]
        return pieces

    def statistics(self) -> RecorderStatistics:
        """Figures for the agent's own metrics."""
        oldest = self._sealed[0].first_wall if self._sealed else self._first.wall if self._first else None
        return RecorderStatistics(
            whole=self._whole,
            partial=self._partial,
            failed=self._failed,
            late=self._late,
            dropped=self._dropped,
            untaken=self._untaken,
            oldest=oldest,
            bytes=self._bytes(),
        )

    def _bytes(self) -> int:
        pending = sum(sys.getsizeof(batch.data) for batch in self._pending)
        return self._sealed_bytes + pending + (self._open.held_bytes if self._open else 0)

    def _is_due(self, segment: OpenSegment, tick: Tick) -> bool:
        assert self._first is not None
        return (
            tick.monotonic - self._first.monotonic >= self._max_age / _PARTS
            or segment.held_bytes >= self._max_bytes // _PARTS
            or segment.taken_bytes >= _MAX_TAKEN
        )

    def _roll(self, tick: Tick) -> OpenSegment:
        """Seal the open segment and begin one at `tick`."""
        if self._open is not None:
            self._seal(self._open)
        self._number += 1
        header = msgspec.structs.replace(self._header, number=self._number, start=tick.wall)
        self._open = OpenSegment(header, self._max_bytes // _PARTS)
        self._first = msgspec.structs.replace(tick, threads=())
        self._trim(tick.monotonic)
        return self._open

    def _seal(self, segment: OpenSegment) -> None:
        assert self._first is not None
        assert self._last is not None
        if self._spooled:
            self._keep_for_spool(segment)
        data = segment.whole()
        self._sealed.append(
            _Sealed(data, self._first.wall, self._last.wall, self._last.monotonic, segment.samples)
        )
        self._sealed_bytes += sys.getsizeof(data)

    def _keep_for_spool(self, segment: OpenSegment) -> None:
        batch = self._take_open(segment)
        if batch is not None:
            self._pending.append(batch)
        while len(self._pending) > _PENDING:
            self._pending.popleft()
            self._untaken += 1

    def _take_open(self, segment: OpenSegment) -> Batch | None:
        first = segment.taken_bytes == 0
        data = segment.take()
        return (
            Batch(self._header.role, self._header.run, segment.header.number, first, data) if data else None
        )

    def _trim(self, now: float) -> None:
        """Drop what is too old, then what is too much."""
        while self._sealed and now - self._sealed[0].last_monotonic > self._max_age:
            self._sealed_bytes -= sys.getsizeof(self._sealed.popleft().data)
        while self._sealed and self._bytes() > self._max_bytes:
            left = self._sealed.popleft()
            self._sealed_bytes -= sys.getsizeof(left.data)
            self._dropped += left.samples
