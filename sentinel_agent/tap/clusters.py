"""The health of the proxy's clusters, put together from what its workers say, once a second. Pure but for what it remembers.

Each worker checks for itself, so they may differ for a moment; a server is as the worst of them sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sentinel_agent.export.base import ClusterReading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.proxy.messages import Batch, ClusterHealth
    from sentinel_agent.tap.hub import WorkerView

EVERY: Final = 1.0
STALE_SECONDS: Final = 10.0
"""What a worker said so long ago is not true any more."""
_WORKERS_KEPT: Final = 512
_CLUSTERS: Final = 1000
_SERVERS: Final = 64
_LONGEST: Final = 200


class ClusterMeter:
    """Remembers what each worker said last."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[float, str, Batch]] = {}
        self._told = 0.0

    def readings(self, worker: WorkerView, now: float, instance: str) -> Iterator[ClusterReading]:
        """The clusters of all workers of a service, at most once a second; `now` is in seconds since the epoch."""
        if worker.batch is None:
            return
        self._said.pop(worker.pid, None)
        self._said[worker.pid] = (now, worker.hello.service, worker.batch)
        while len(self._said) > _WORKERS_KEPT:
            del self._said[next(iter(self._said))]
        if 0 <= now - self._told < EVERY:
            return
        self._told = now
        views: dict[tuple[str, str], list[ClusterHealth]] = {}
        for pid, (when, service, batch) in tuple(self._said.items()):
            if not 0 <= now - when < STALE_SECONDS:
                del self._said[pid]
                continue
            for each in batch.clusters[:_CLUSTERS]:
                views.setdefault((service, each.name[:_LONGEST]), []).append(each)
        for (service, cluster), found in views.items():
            servers: dict[str, bool] = {}
            for view in found:
                for address, fit in view.servers[:_SERVERS]:
                    servers[address[:_LONGEST]] = servers.get(address[:_LONGEST], True) and fit
            yield ClusterReading(
                time=now,
                service=service,
                instance=instance,
                cluster=cluster,
                endpoints=max(view.total for view in found),
                healthy=min(view.fit for view in found),
                panic=any(view.panic for view in found),
                servers=tuple(servers.items())[:_SERVERS],
            )
