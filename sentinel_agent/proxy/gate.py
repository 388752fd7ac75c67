"""The global gate: how many requests a worker can have under way without a queue, on all routes together. Pure.

After the BBR-like limiter of Kratos (go-kratos/aegis, ratelimit/bbr): of the last ten seconds in buckets of a tenth, the one
that ended most requests and the one with the shortest mean time; by Little's law the product of the two is what can be
under way. Here by route, and added up: over all routes at once, the time of the quick ones and the number of the slow ones
would say nothing of either.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BUCKETS: Final = 100
BUCKET_SECONDS: Final = 0.1


class InflightGate:
    """Fed with what happened in each tenth of a second."""

    def __init__(self) -> None:
        self._buckets: deque[Mapping[str, tuple[int, float]]] = deque(maxlen=BUCKETS)

    def bucket(self, ended: Mapping[str, tuple[int, float]]) -> None:
        """A tenth of a second is over: of each route, how many requests ended and how many seconds they took together."""
        self._buckets.append({route: each for route, each in ended.items() if each[0]})

    @property
    def limit(self) -> int | None:
        """Requests that may be under way, at least 1; None where nothing ended in ten seconds."""
        best: dict[str, tuple[int, float]] = {}
        for bucket in self._buckets:
            for route, (ended, seconds) in bucket.items():
                most, shortest = best.get(route, (0, float("inf")))
                best[route] = (max(most, ended), min(shortest, seconds / ended))
        if not best:
            return None
        return max(1, round(sum(most * shortest for most, shortest in best.values()) / BUCKET_SECONDS))
