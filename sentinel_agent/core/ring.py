"""Recent readings in fixed bytes: the series ring of one metric, and holmes' ring of ten integers."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

READING_BYTES = 24
"""What one reading takes: its time, its value and its place on the ring's own clock, 8 bytes each."""


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """What a ring holds: `stored` of `capacity` readings in `bytes`; `overwritten` left it, `jumps_back` of the clock."""

    capacity: int
    stored: int
    bytes: int
    overwritten: int
    jumps_back: int


class SeriesRing:
    """The newest readings of one metric, in the order of their arrival; the oldest is overwritten.

    Times may jump back. Beside each time the ring keeps the reading's place on a clock of its own, on which
    a jump back counts as no time at all; windows are cut on that clock. So a jump neither empties a window
    nor lets readings into it that are older than it is long.
    """

    __slots__ = ("_capacity", "_jumps", "_places", "_pushed", "_shift", "_times", "_values")

    def __init__(self, capacity_bytes: int) -> None:
        """Room for `capacity_bytes` // 24 readings, taken at once.

        Raises:
            ValueError: not even one reading fits.
        """
        self._capacity = capacity_bytes // READING_BYTES
        if self._capacity < 1:
            raise ValueError(f"{capacity_bytes} bytes hold no reading: at least {READING_BYTES} are needed")
        self._times = array("d", bytes(8 * self._capacity))
        self._values = array("d", bytes(8 * self._capacity))
        self._places = array("d", bytes(8 * self._capacity))
        self._pushed = 0
        self._shift = 0.0
        self._jumps = 0

    def push(self, time: float, value: float) -> None:
        """Add a reading; `time` in seconds, on the same clock as all others of this ring."""
        if self._pushed:
            newest = self._places[(self._pushed - 1) % self._capacity]
            if time + self._shift < newest:
                self._shift = newest - time
                self._jumps += 1
        index = self._pushed % self._capacity
        self._times[index] = time
        self._values[index] = value
        self._places[index] = time + self._shift
        self._pushed += 1

    def __len__(self) -> int:
        return min(self._pushed, self._capacity)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        """(time, value) of every reading, oldest arrival first."""
        return zip(self._slice(self._times, 0), self._slice(self._values, 0), strict=True)

    @property
    def newest_time(self) -> float | None:
        """The time of the reading that arrived last; None while there is none."""
        return self._times[(self._pushed - 1) % self._capacity] if self._pushed else None

    def window(self, since: float) -> array[float]:
        """The values from time `since` on, oldest first."""
        return self._slice(self._values, self._first_at(since))

    def readings(self, since: float) -> list[tuple[float, float]]:
        """The (time, value) pairs from time `since` on, oldest first."""
        first = self._first_at(since)
        return list(zip(self._slice(self._times, first), self._slice(self._values, first), strict=True))

    def statistics(self) -> RingStatistics:
        """Figures for the agent's own metrics."""
        return RingStatistics(
            capacity=self._capacity,
            stored=len(self),
            bytes=READING_BYTES * self._capacity,
            overwritten=max(0, self._pushed - self._capacity),
            jumps_back=self._jumps,
        )

    def _first_at(self, since: float) -> int:
        """How many of the stored readings, from the oldest on, lie before `since`."""
        place = since + self._shift
        split = self._pushed % self._capacity if self._pushed > self._capacity else 0
        older = self._capacity - split  # the part of the array that was written one round ago
        if split and place <= self._places[-1]:
            return bisect_left(self._places, place, split) - split
        if split:
            return older + bisect_left(self._places, place, 0, split)
        return bisect_left(self._places, place, 0, len(self))

    def _slice(self, column: array[float], first: int) -> array[float]:
        """The stored part of a column without its oldest `first` entries, in order of arrival."""
        if self._pushed <= self._capacity:
            return column[first : self._pushed]
        start = self._pushed % self._capacity + first
        if start >= self._capacity:
            return column[start - self._capacity : self._pushed % self._capacity]
        return column[start:] + column[: self._pushed % self._capacity]


class HolmesRing:
    """holmes' ring: the last `size` integers with their running sum (mosn/holmes, ring.go; sizes other than 10 are for its unit tests)."""

    __slots__ = ("_next", "_size", "_sum", "_values")

    def __init__(self, size: int = 10) -> None:
        self._size = size
        self._values: list[int] = []
        self._next = 0
        self._sum = 0

    def push(self, value: int) -> None:
        """Add a value in place of the oldest; a ring of size 0 keeps nothing."""
        if not self._size:
            return
        if len(self._values) < self._size:
            self._values.append(value)
        else:
            self._sum -= self._values[self._next]
            self._values[self._next] = value
            self._next = (self._next + 1) % self._size
        self._sum += value

    def values(self) -> tuple[int, ...]:
        """The values, oldest first."""
        return (*self._values[self._next :], *self._values[: self._next])

    def average(self) -> int:
        """Their mean, rounded down; 0 of none."""
        return self._sum // len(self._values) if self._values else 0
