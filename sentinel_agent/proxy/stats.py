"""Counters and latency histograms of routes and clusters: cumulative, of fixed size, cheap to add to. Pure."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUCKETS: Final = 128
MAX_EVENTS: Final = 64
"""Kinds of events that a route counts."""
OTHER: Final = "other"
_LARGEST: Final = (1 << 33) - 1


def bucket(microseconds: int) -> int:
    """The bucket of a duration: four to each doubling, so that its bounds are within 25 % of it."""
    if microseconds < 4:
        return max(0, microseconds)
    high = min(microseconds, _LARGEST).bit_length() - 3
    return (high << 2) + (min(microseconds, _LARGEST) >> high)


# Of each duration under 65,536 us; a bucket is as wide as its power of two says.
_BUCKET_OF: Final = b"".join(bytes((index,)) * (1 << max(0, index - 4 >> 2)) for index in range(60))


def bucket_of(seconds: float) -> int:
    """`bucket` of a duration in seconds; those under 65 ms, nearly all, are looked up."""
    microseconds = int(seconds * 1e6)
    return _BUCKET_OF[microseconds] if 0 <= microseconds < len(_BUCKET_OF) else bucket(microseconds)


def upper_bound(index: int) -> float:
    """The largest duration of a bucket, in seconds."""
    if index < 4:
        return (index + 1) / 1e6
    high, part = (index - 4) >> 2, (index & 3) + 4
    return ((part + 1) << high) / 1e6


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The duration in seconds under which `share` of all lie, rounded up to its bucket's bound; None of nothing."""
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return upper_bound(index)
    raise AssertionError("unreachable: the counts add up to the total")


class RouteStats:
    """What happened to a route's requests.

    `events` are those of filters and limits, by name; `own` is the proxy's share of the latency, upstream time taken out; `seconds` those spent in requests, added up.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "classes",
        "errors",
        "events",
        "flags",
        "inflight",
        "latency",
        "own",
        "requests",
        "seconds",
        "self_failed",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.self_failed = 0
        self.inflight = 0
        self.seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.classes = [0] * 6
        self.flags: dict[str, int] = {}
        self.events: dict[str, int] = {}
        self.latency = [0] * BUCKETS
        self.own = [0] * BUCKETS

    def count(self, event: str) -> None:
        """Count something that a filter or a limit did; of more kinds than there is room for, all are one."""
        if event not in self.events and len(self.events) >= MAX_EVENTS:
            event = OTHER
        self.events[event] = self.events.get(event, 0) + 1


class RouteCounts(msgspec.Struct, frozen=True, array_like=True):
    """`RouteStats` at one moment, as it is sent to the agent.

    Without a `cluster`: of the requests that were sent to none, but `inflight` is then of all of the route. Histograms are
    empty where there was no request.
    """

    listener: str
    route: str
    cluster: str
    requests: int
    errors: int
    self_failed: int
    inflight: int
    bytes_in: int
    bytes_out: int
    classes: list[int]
    flags: dict[str, int]
    latency: list[int]
    own: list[int]
    events: dict[str, int] = {}


def counts_of(listener: str, route: str, cluster: str, stats: RouteStats) -> RouteCounts:
    """A copy."""
    any_yet = stats.requests > 0
    return RouteCounts(
        listener,
        route,
        cluster,
        stats.requests,
        stats.errors,
        stats.self_failed,
        stats.inflight,
        stats.bytes_in,
        stats.bytes_out,
        list(stats.classes),
        dict(stats.flags),
        list(stats.latency) if any_yet else [],
        list(stats.own) if any_yet else [],
        dict(stats.events),
    )


def by_route(counts: Sequence[RouteCounts]) -> list[RouteCounts]:
    """The counts of each route over all its clusters, in the order of the first of each."""
    found: dict[tuple[str, str], list[RouteCounts]] = {}
    for each in counts:
        found.setdefault((each.listener, each.route), []).append(each)
    return [_together(rows) for rows in found.values()]


def _together(rows: Sequence[RouteCounts]) -> RouteCounts:
    return RouteCounts(
        rows[0].listener,
        rows[0].route,
        "",
        sum(row.requests for row in rows),
        sum(row.errors for row in rows),
        sum(row.self_failed for row in rows),
        sum(row.inflight for row in rows),
        sum(row.bytes_in for row in rows),
        sum(row.bytes_out for row in rows),
        added([row.classes for row in rows]),
        _tally([row.flags for row in rows]),
        added([row.latency for row in rows]),
        added([row.own for row in rows]),
        _tally([row.events for row in rows]),
    )


def _tally(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found


def added(lists: Sequence[Sequence[int]]) -> list[int]:
    """The sums place by place; a list that is shorter has zeros there."""
    return [sum(values) for values in zip_longest(*lists, fillvalue=0)]


def difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    """What came to each place of `after` since `before`, which may be shorter."""
    return [count - earlier for count, earlier in zip_longest(after, before[: len(after)], fillvalue=0)]
