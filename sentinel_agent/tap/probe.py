"""`rps error_rate latency_p99 inflight`: readings of a worker of the embedded proxy, from what it told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.proxy.stats import BUCKETS, difference, quantile

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading
    from sentinel_agent.proxy.messages import Batch
    from sentinel_agent.tap.hub import TapHub


class ProxyProbe:
    """Requests that ended since the last tick, and those under way at this moment.

    A process that is no worker of the proxy has no readings. A worker that tells nothing, because its event loop is
    blocked, ends no requests either; those under way are read from shared memory.
    """

    metrics = ("rps", "error_rate", "latency_p99", "inflight")

    def __init__(self, hub: TapHub, subject: Subject) -> None:
        self._hub = hub
        self._pid = subject.target.pid
        self._before: Batch | None = None

    def read(self, now: Moment) -> list[Reading]:
        """The readings of this tick."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        view = self._hub.worker(self._pid)
        if view is None or view.batch is None:
            return {}
        values = {} if view.table is None else {"inflight": float(view.table.count())}
        before, self._before = self._before, view.batch
        if before is None:
            return values
        return values | _between(before, view.batch)


def _between(before: Batch, after: Batch) -> dict[str, float]:
    """What happened from one batch to a later one of the same worker."""
    seconds = after.time - before.time
    known = {(each.listener, each.route, each.cluster): each for each in before.counts}
    requests = errors = 0
    latency = [0] * BUCKETS
    for each in after.counts:
        earlier = known.get((each.listener, each.route, each.cluster))
        requests += each.requests - (earlier.requests if earlier else 0)
        errors += each.errors - (earlier.errors if earlier else 0)
        for index, count in enumerate(difference(each.latency[:BUCKETS], earlier.latency if earlier else [])):
            latency[index] += count
    if requests < 0:  # a worker of the same process id that began anew
        return {}
    values = {
        "rps": requests / seconds if seconds > 0 else 0.0,
        "error_rate": 100 * errors / requests if requests else 0.0,
    }
    p99 = quantile(latency, 0.99)
    return values if p99 is None else values | {"latency_p99": p99}
