"""The budget over all rules: how many incidents at once, how many incidents and bytes an hour.

Limits of a rule say how often it may fire; this says what all of them together may cost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sentinel_agent.core.units import format_size

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """What is under way, what the last hour has taken, and how often the budget said no."""

    running: int
    incidents: int
    bytes: int
    refused: int


class Budget:
    """Admits incidents as long as none of the three bounds is reached. Keeps one small entry for each of the last hour."""

    def __init__(self, *, concurrency: int, incidents_per_hour: int, bytes_per_hour: int) -> None:
        self._concurrency = concurrency
        self._incidents_per_hour = incidents_per_hour
        self._bytes_per_hour = bytes_per_hour
        self._admitted: deque[float] = deque(maxlen=incidents_per_hour)
        self._sizes: deque[tuple[float, int]] = deque(maxlen=incidents_per_hour + concurrency)
        self._running = 0
        self._refused = 0

    def rebound(self, *, incidents_per_hour: int, bytes_per_hour: int) -> None:
        """Other bounds from here on; what the last hour has taken stays counted."""
        self._incidents_per_hour = incidents_per_hour
        self._bytes_per_hour = bytes_per_hour
        self._admitted = deque(self._admitted, maxlen=incidents_per_hour)
        self._sizes = deque(self._sizes, maxlen=incidents_per_hour + self._concurrency)

    def admit(self, now: float) -> str | None:
        """None: it may begin, and `finished` must follow. Else why not. `now` in seconds, of a clock that never jumps."""
        self._forget(now)
        reason = self._refusal()
        if reason is None:
            self._running += 1
            self._admitted.append(now)
        else:
            self._refused += 1
        return reason

    def finished(self, now: float, size: int) -> None:
        """One that was admitted has ended, well or not, and left `size` bytes.

        Raises:
            ValueError: none is under way.
        """
        if not self._running:
            raise ValueError("no admitted incident is under way")
        self._running -= 1
        self._sizes.append((now, size))

    def statistics(self, now: float) -> BudgetStatistics:
        """Figures for the agent's own metrics."""
        self._forget(now)
        return BudgetStatistics(self._running, len(self._admitted), self._bytes(), self._refused)

    def _refusal(self) -> str | None:
        if self._running >= self._concurrency:
            return f"{self._running} incidents are under way already"
        if len(self._admitted) >= self._incidents_per_hour:
            return (
                f"{len(self._admitted)} incidents in the last hour "
                f"(capture.max_incidents_per_hour {self._incidents_per_hour})"
            )
        used = self._bytes()
        if used >= self._bytes_per_hour:
            return (
                f"{format_size(used)} captured in the last hour "
                f"(capture.max_bytes_per_hour {format_size(self._bytes_per_hour)})"
            )
        return None

    def _bytes(self) -> int:
        return sum(size for _, size in self._sizes)

    def _forget(self, now: float) -> None:
        while self._admitted and now - self._admitted[0] >= HOUR:
            self._admitted.popleft()
        while self._sizes and now - self._sizes[0][0] >= HOUR:
            self._sizes.popleft()
