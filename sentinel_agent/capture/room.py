"""Memory for incidents: as many at once as the agent's own limit has room for, so that a storm of them does not end the agent.

An incident waits for those before it to end where memory is short, and where it is short for a single one its captures are
skipped and say so: the readings alone need next to nothing. The first one needs most, and what it leaves behind (modules,
free places in Python's heap) is used again by the others; what one of those needs is what the last one has taken, and half of
that after each that was skipped, so that a bad one does not count for ever.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FIRST_NEEDS = 16 * 1024**2
"""Bytes that the first incident is taken to need; one of a service with 5000 tasks took 15 MiB (bench/dump_storm.py)."""
LEAST_NEEDED = 8 * 1024**2
"""What any other is taken to need: a py-spy beside it is as large."""


class Room:
    """`left` tells how many bytes the agent may still use, None where nothing limits it; `give_back` returns free memory to the kernel."""

    def __init__(self, left: Callable[[], int | None], give_back: Callable[[], None]) -> None:
        self._left = left
        self._give_back = give_back
        self._needed = FIRST_NEEDS
        self._first = True
        self._inside = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[str | None]:
        """A place for one incident, when there is room for it; the value is why its captures must be skipped, None if they need not."""
        async with self._changed:
            while self._inside and self._lacking():
                await self._changed.wait()
            lacking = self._lacking()
            self._inside += 1
        before = self._left()
        try:
            yield lacking
        finally:
            self._inside -= 1
            if before is not None:
                self._learn(before, captured=lacking is None)
            await asyncio.shield(self._tell())

    def _learn(self, before: int, *, captured: bool) -> None:
        self._give_back()
        after = self._left()
        if not captured:
            self._needed = max(LEAST_NEEDED, self._needed // 2)
        elif after is not None:
            self._needed = LEAST_NEEDED if self._first else max(LEAST_NEEDED, before - after)
            self._first = False

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _lacking(self) -> str | None:
        """Why there is no room for one more, besides those that are being made."""
        left = self._left()
        if left is None or left >= (self._inside + 1) * self._needed:
            return None
        return (
            f"the agent has {format_size(left)} left of its own memory limit, "
            f"an incident may need {format_size(self._needed)}"
        )
