"""The periodic duties of a cluster: names are looked up, servers checked, ejections begun and ended.

What is decided, and when, is in `endpoints` and `health`; here it is carried out. Each duty is a task of the worker, and
exists only where the configuration asks for it. Every change is a line of the log.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from sentinel_agent.errors import PeerError
from sentinel_agent.proxy.checker import check
from sentinel_agent.proxy.health import end_window, let_back, next_check
from sentinel_agent.proxy.resolver import SystemResolver, resolver_for

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.endpoints import DnsEndpoints
    from sentinel_agent.proxy.resolver import Resolver
    from sentinel_agent.proxy.worker import Worker

log = logging.getLogger(__name__)

FIRST_LOOKUP_SECONDS: Final = 3.0
"""How long a worker waits for the first addresses before it accepts connections all the same."""
CHECKS_AT_ONCE: Final = 64
_SHORTEST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 3600.0
_TICK: Final = 1.0
_MOST_NAMED: Final = 5


class Upkeep:
    """Runs the duties of the clusters of `worker`. `keep` may be called again, when the worker has others."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._system = SystemResolver()
        self._tasks: dict[ClusterPool, list[asyncio.Task[Any]]] = {}
        self._at_once = asyncio.Semaphore(CHECKS_AT_ONCE)

    def resolvers(self, pools: Iterable[ClusterPool]) -> dict[ClusterPool, Resolver]:
        """What looks the names of these clusters up.

        Raises:
            OperatorError: one cannot be had.
        """
        return {pool: resolver_for(pool.spec, self._system) for pool in pools if pool.names is not None}

    async def keep(self, pools: Collection[ClusterPool]) -> None:
        """Look names of new clusters up, wait a little for the first answers, and begin everything else.

        Clusters that are not among `pools` are left alone from now on.

        Raises:
            OperatorError: a resolver cannot be had; then everything is as it was.
        """
        new = [pool for pool in pools if pool not in self._tasks]
        resolvers = self.resolvers(new)
        for gone in self._tasks.keys() - set(pools):
            for task in self._tasks.pop(gone):
                task.cancel()
        await self._first(resolvers)
        start = self._worker.start_task
        for pool in new:
            tasks = self._tasks[pool] = []
            if pool in resolvers:
                tasks.append(start(self._discover(pool, resolvers[pool]), f"look up {pool.name}"))
            if pool.spec.health_check is not None:
                tasks.append(start(self._check(pool), f"check {pool.name}"))
            if pool.spec.outlier_detection is not None:
                tasks.append(start(self._watch(pool), f"ejection {pool.name}"))

    async def _first(self, resolvers: Mapping[ClusterPool, Resolver]) -> None:
        first = [
            asyncio.create_task(self._look_up(pool, resolver), name=f"look up {pool.name}")
            for pool, resolver in resolvers.items()
        ]
        if first:
            _, late = await asyncio.wait(first, timeout=FIRST_LOOKUP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*first, return_exceptions=True)

    async def close(self) -> None:
        """Lookups that hang are left."""
        await self._system.close()

    # -- names ---------------------------------------------------------------------------------------------------

    async def _discover(self, pool: ClusterPool, resolver: Resolver) -> None:
        assert pool.names is not None, "it is looked up"
        while True:
            wait = min(_LONGEST_WAIT, pool.names.next_due - self._worker.now())
            await asyncio.sleep(max(_SHORTEST_WAIT, wait))
            await self._look_up(pool, resolver)

    async def _look_up(self, pool: ClusterPool, resolver: Resolver) -> None:
        """Look up all that is due; the servers change once, at the end."""
        names = pool.names
        assert names is not None, "it is looked up"
        hosts = names.due(self._worker.now())
        changes = await asyncio.gather(*(self._look_up_one(host, names, resolver) for host in hosts))
        if any(changes):
            places, now = names.places(), self._worker.now()
            if pool.spec.load_balancer == "maglev":  # its table would hold the loop for too long
                roster = await asyncio.to_thread(pool.prepare, places, now)
            else:
                roster = pool.prepare(places, now)
            pool.adopt(roster, now)
            shown = ", ".join(server.address for server in pool.servers[:_MOST_NAMED])
            more = f" and {len(pool.servers) - _MOST_NAMED} more" if len(pool.servers) > _MOST_NAMED else ""
            log.warning("cluster %s is now %s%s", pool.name, shown, more)

    async def _look_up_one(self, host: str, names: DnsEndpoints, resolver: Resolver) -> bool:
        try:
            async with self._at_once:
                answer = await resolver.look_up(host)
        except PeerError as error:
            names.failed(host, self._worker.now())
            log.warning("servers stay as they are: %s", error.message)
            return False
        return names.learned(host, answer, self._worker.now())

    # -- health --------------------------------------------------------------------------------------------------

    async def _check(self, pool: ClusterPool) -> None:
        """Ask every server when its time has come, no server twice at once."""
        spec, worker = pool.spec.health_check, self._worker
        assert spec is not None, "it is asked for"
        due: dict[Server, float] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                now = worker.now()
                for gone in due.keys() - pool.servers:
                    del due[gone]
                for server in pool.servers:
                    if due.setdefault(server, now + next_check(spec, worker.random, first=True)) <= now:
                        due[server] = math.inf
                        group.create_task(
                            self._check_one(pool, server, due), name=f"check {pool.name} {server.address}"
                        )
                soonest = min(due.values(), default=now + _TICK) - worker.now()
                await asyncio.sleep(min(_TICK, spec.interval, max(_SHORTEST_WAIT, soonest)))

    async def _check_one(self, pool: ClusterPool, server: Server, due: dict[Server, float]) -> None:
        spec, worker, counts = pool.spec.health_check, self._worker, pool.statistics
        assert spec is not None, "it is asked for"
        async with self._at_once:
            fault = await check(lambda make: worker.dial(make, pool, server), spec, server.address)
        counts.health_check_attempt += 1
        counts.health_check_failure += bool(fault)
        due[server] = worker.now() + next_check(spec, worker.random)
        if server.checks.checked(not fault, spec):
            pool.judge(worker.now())
            words = f"fails its health checks: {fault}" if fault else "passes its health checks"
            log.warning("cluster %s: %s %s", pool.name, server.address, words)

    async def _watch(self, pool: ClusterPool) -> None:
        """Eject at the end of each window, let back when the time has come."""
        spec, worker = pool.spec.outlier_detection, self._worker
        assert spec is not None, "it is asked for"
        end = worker.now() + spec.interval
        while True:
            await asyncio.sleep(min(_TICK, spec.interval))
            now = worker.now()
            records = [server.record for server in pool.servers]
            out = {id(record) for record in records if record.ejected}
            if now >= end:
                end = now + spec.interval
                changed = end_window(records, spec, now)
            else:
                changed = let_back(records, now)
            if not changed:
                continue
            pool.judge(now)
            for server in pool.servers:
                record = server.record
                if record.ejected != (id(record) in out):
                    pool.statistics.ejections_total += record.ejected
                    words = "is ejected: its requests fail too often" if record.ejected else "is let back"
                    log.warning("cluster %s: %s %s", pool.name, server.address, words)
