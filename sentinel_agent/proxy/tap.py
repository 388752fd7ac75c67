"""Tells the agent what the worker does: bounded, never waiting for it, and without it no request is any worse off."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from sentinel_agent.proxy.inflight import InFlightTable
from sentinel_agent.proxy.messages import (
    VERSION,
    Batch,
    ClusterHealth,
    Hello,
    Levels,
    decode,
    encode,
    receive,
)
from sentinel_agent.proxy.stats import counts_of

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.proxy.cluster import ClusterPool
    from sentinel_agent.proxy.records import RequestRecord
    from sentinel_agent.proxy.worker import Worker

BATCH_SECONDS = 0.25
SEND_SECONDS = 2.0
RETRY_SECONDS = (0.1, 0.5, 1.0, 2.0)
MAX_HELD = 1000
"""Records held for the next batch; the oldest make room and are counted."""


MAX_SERVERS = 64
"""Servers of a cluster that are named; all are counted."""


def _health(pool: ClusterPool) -> ClusterHealth:
    servers = tuple((server.address, server.fit) for server in pool.servers[:MAX_SERVERS])
    return ClusterHealth(pool.name, len(pool.servers), pool.fit, pool.panic, servers)


class Tap:
    """Sends batches to the agent's socket, and connects again whenever there is an agent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: deque[RequestRecord] = deque(maxlen=MAX_HELD)
        self.table = InFlightTable()
        self.dropped = 0
        self.connected = False
        self._anew = False

    def begin_anew(self) -> None:
        """The routes have changed: say hello again, with the next batch."""
        self._anew = True

    def keep(self, record: RequestRecord) -> None:
        """Tell of a request with the next batch."""
        if len(self._held) == MAX_HELD:
            self.dropped += 1
        self._held.append(record)

    async def run(self, worker: Worker) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._anew = False
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, str(self._path))
                    socket.send_fds(sock, [encode(self._hello(worker))], [self.table.descriptor])
                    failures = 0
                    self.connected = True
                    await self._talk(sock, worker)
                except (OSError, TimeoutError):
                    failures += 1
                finally:
                    self.connected = False
            if self._anew:
                continue
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])

    def _hello(self, worker: Worker) -> Hello:
        return Hello(VERSION, os.getpid(), worker.config.service, tuple(worker.routes.names))

    async def _talk(self, sock: socket.socket, worker: Worker) -> None:
        """Tell, and listen, until the agent is gone."""
        listening = asyncio.create_task(self._listen(sock, worker), name="tap: levels")
        try:
            await self._send_batches(sock, worker)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, sock: socket.socket, worker: Worker) -> None:
        with suppress(EOFError, OSError, ValueError):  # that the agent is gone is noticed when it is told
            while True:
                worker.shedding.told(decode(await receive(sock), Levels).levels)

    async def _send_batches(self, sock: socket.socket, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        while not self._anew:
            records = tuple(self._held)
            self._held.clear()
            counts = tuple(
                counts_of(listener.spec.name, route.name, cluster, stats)
                for listener in worker.http
                for route in listener.routes
                for cluster, stats in route.all_stats.items()
            )
            connections = sum(len(each.connections) for each in worker.http)
            connections += sum(len(each.connections) for each in worker.tcp)
            health = tuple(map(_health, worker.clusters.values()))
            limit = worker.shedding.state()
            batch = encode(Batch(worker.now(), counts, records, self.dropped, connections, limit, health))
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await loop.sock_sendall(sock, batch)
            except (OSError, TimeoutError):
                self.dropped += len(records)
                raise
            await asyncio.sleep(BATCH_SECONDS)

    def close(self) -> None:
        """Give the table back."""
        self.table.close()
