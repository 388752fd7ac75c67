"""The only place that knows what time it is. Everything else is told, so that tests need not wait."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks and a way to wait."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump; used for stamps and for limits that outlive a process."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never jumps; used for intervals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative wait is none."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()  # noqa: TID251 - the one place where the clock is read

    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251 - the one place where the clock is read

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
