"""The global gate: how many requests a worker can have under way without a queue, whatever their routes. Pure.

After the BBR-like limiter of Kratos (go-kratos/aegis, ratelimit/bbr): of the last ten seconds in buckets of a tenth, the one
that ended most requests and the one with the shortest mean time; by Little's law the product of the two is what can be
under way. The bucket at this moment does not count, for it is not over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

BUCKETS: Final = 100
BUCKET_SECONDS: Final = 0.1


class InflightGate:
    """Fed with what happened in each tenth of a second."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, float]] = deque(maxlen=BUCKETS)

    def bucket(self, ended: int, seconds: float) -> None:
        """A tenth of a second is over, in which so many requests ended, which took so many seconds together."""
        self._buckets.append((ended, seconds))

    @property
    def limit(self) -> int | None:
        """Requests that may be under way, at least 1; None where nothing ended in ten seconds."""
        busy = [(ended, seconds / ended) for ended, seconds in self._buckets if ended]
        if not busy:
            return None
        most = max(ended for ended, _ in busy)
        shortest = min(mean for _, mean in busy)
        return max(1, int(most * shortest / BUCKET_SECONDS + 0.5))
