"""All requests of the proxy's routes, sampled or not, counted from one second to the next. Pure but for what it remembers.

A worker's counters only grow, until another worker has its process id; so what is handed on are differences, which
whoever takes them may add up over workers and restarts. Latencies have the worker's fine buckets (within 25 %) and are
put into the coarse ones of OpenTelemetry; their sum is that of the buckets' middles.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from sentinel_agent.export.base import DURATION_BOUNDS, RequestDelta
from sentinel_agent.proxy.stats import BUCKETS, difference, upper_bound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.proxy.messages import Batch
    from sentinel_agent.proxy.stats import RouteCounts
    from sentinel_agent.tap.hub import WorkerView

EVERY = 1.0
_WORKERS_KEPT = 512
_UPPER = tuple(upper_bound(index) for index in range(BUCKETS))
_COARSE = tuple(bisect_left(DURATION_BOUNDS, upper) for upper in _UPPER)
_MIDDLE = tuple((upper + lower) / 2 for lower, upper in zip((0.0, *_UPPER), _UPPER, strict=False))


class RequestMeter:
    """Remembers each worker's counters as they were handed on last."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, Batch]] = {}

    def deltas(self, worker: WorkerView, now: float, instance: str) -> Iterator[RequestDelta]:
        """What has ended since the last time, of each route and cluster that had requests; nothing within a second of it.

        `now` is in seconds since the epoch. The first time only sets the mark: what was before is not of this second.
        """
        batch = worker.batch
        if batch is None:
            return
        known = self._before.get(worker.pid)
        if known is not None and 0 <= batch.time - known[1].time < EVERY:
            return
        self._before.pop(worker.pid, None)
        self._before[worker.pid] = (now, batch)
        while len(self._before) > _WORKERS_KEPT:
            del self._before[next(iter(self._before))]
        if known is None:
            return
        since, before = known
        earlier = {(each.listener, each.route, each.cluster): each for each in before.counts}
        for counts in batch.counts:
            found = _delta(earlier.get((counts.listener, counts.route, counts.cluster)), counts)
            if found is not None:
                classes, buckets, seconds = found
                yield RequestDelta(
                    time=now,
                    since=since,
                    service=worker.hello.service,
                    instance=instance,
                    listener=counts.listener,
                    route=counts.route,
                    classes=classes,
                    buckets=buckets,
                    seconds=seconds,
                    cluster=counts.cluster,
                )


def _delta(
    before: RouteCounts | None, after: RouteCounts
) -> tuple[tuple[int, ...], tuple[int, ...], float] | None:
    """Requests by class of status, by bucket, and their seconds; None of no requests, or of a worker that began anew."""
    classes = difference(after.classes[:6], before.classes if before else [])
    latency = difference(after.latency[:BUCKETS], before.latency if before else [])
    if min(classes, default=0) < 0 or min(latency, default=0) < 0 or not any(latency):
        return None
    buckets = [0] * (len(DURATION_BOUNDS) + 1)
    seconds = 0.0
    for index, count in enumerate(latency):
        if count:
            buckets[_COARSE[index]] += count
            seconds += count * _MIDDLE[index]
    return tuple(classes), tuple(buckets), seconds
