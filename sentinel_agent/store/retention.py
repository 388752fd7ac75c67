"""Which incidents must go: the oldest, until count, age and bytes are within their bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What retention has to know of an incident: its id (they sort by time), its time (s since the epoch), its bytes."""

    id: str
    time: float
    bytes: int


def expired(
    rows: Iterable[Stored], now: float, max_incidents: int, max_age: float, max_bytes: int
) -> list[str]:
    """Ids of the incidents to remove, oldest first; what is left is within all three bounds.

    Incidents stamped more than a day after `now` come from a clock that was wrong. They count as the oldest, or
    they would push out every incident that follows.
    """
    newest_first = sorted(rows, key=lambda row: (row.time <= now + _DAY, row.id), reverse=True)
    kept_count = kept_bytes = 0
    gone: list[str] = []
    full = False
    for row in newest_first:
        if now - row.time > max_age:
            gone.append(row.id)
            continue
        full = full or kept_count + 1 > max_incidents or kept_bytes + row.bytes > max_bytes
        if full:
            gone.append(row.id)
        else:
            kept_count += 1
            kept_bytes += row.bytes
    return gone[::-1]
