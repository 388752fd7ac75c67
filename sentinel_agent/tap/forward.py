"""Hands on what the proxy's workers tell: requests by route, and as spans where sampled; health of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.tap.clusters import ClusterMeter
from sentinel_agent.tap.requests import RequestMeter
from sentinel_agent.tap.spans import spans_of

if TYPE_CHECKING:
    from sentinel_agent.clock import Clock
    from sentinel_agent.export.hub import Hub
    from sentinel_agent.proxy.records import RequestRecord
    from sentinel_agent.tap.hub import WorkerView


class RequestForwarder:
    """Takes the records of a `TapHub` (its `on_records`) to the exporters; `instance` is what the spans are said to be of."""

    def __init__(self, exports: Hub, clock: Clock, instance: str) -> None:
        self._exports = exports
        self._clock = clock
        self._instance = instance
        self._meter = RequestMeter()
        self._clusters = ClusterMeter()

    def __call__(self, worker: WorkerView, records: tuple[RequestRecord, ...]) -> None:
        """Requests of `worker` are over."""
        if self._exports.wants("metrics"):
            now = self._clock.wall()
            for delta in self._meter.deltas(worker, now, self._instance):
                self._exports.offer("metrics", delta)
            for reading in self._clusters.readings(worker, now, self._instance):
                self._exports.offer("metrics", reading)
        if not self._exports.wants("spans"):
            return
        for record in records:
            try:
                spans = spans_of(record, worker.hello.service, self._instance)
            except ValueError:  # no worker of ours says such a thing, and the others' spans are sound
                continue
            self._exports.offer("spans", spans)
