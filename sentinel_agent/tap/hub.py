"""Takes in what the proxy's workers tell, and keeps the recent past of each: bounded, and none of it trusted.

A worker is known by the process id that the kernel gives for its connection (unix(7), SO_PEERCRED), never by what it
says. What it told stays for a while after its end, so that an incident of a worker that died still has its requests.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import socket
import struct
from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING

from sentinel_agent.proxy.flags import REFUSALS
from sentinel_agent.proxy.inflight import InFlight, InFlightView
from sentinel_agent.proxy.messages import (
    HEADER_BYTES,
    MAX_LEVELS,
    VERSION,
    Batch,
    Hello,
    Levels,
    decode,
    encode,
    frame_length,
    receive,
    receive_exactly,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sentinel_agent.clock import Clock
    from sentinel_agent.proxy.messages import TargetLevel
    from sentinel_agent.proxy.records import RequestRecord

MAX_WORKERS = 256
"""Connections at once, and workers remembered; the one that was heard of last is kept the longest."""
RECENT_SECONDS = 300.0
KEPT = 50
"""Failed, sampled and slowest requests kept of each worker."""
HISTORY = 60
HISTORY_SECONDS = 0.5
"""How many counts by route are kept, and how far apart they are."""
TELL_SECONDS = 0.25
"""How often it is looked whether there is something to tell to a worker."""
TELL_PATIENCE = 1.0
"""A worker that does not take it in for so long is told no more."""
_TELL_AT_LEAST = 4
_REFUSALS = frozenset(flag.code for flag in REFUSALS)
_CREDENTIALS = struct.Struct("iII")


@dataclass(slots=True)
class WorkerView:
    """What is known of one worker. `heard` is when its last batch came, on the agent's monotonic clock."""

    pid: int
    hello: Hello
    table: InFlightView | None
    heard: float
    batch: Batch | None = None
    failed: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=KEPT))
    sampled: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=KEPT))
    _history: deque[tuple[float, array[int]]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _slowest: list[tuple[float, int, RequestRecord]] = field(default_factory=list)
    _number: int = 0

    def take(self, batch: Batch, now: float) -> None:
        """A batch has come."""
        self.batch = batch
        self.heard = now
        if not self._history or batch.time - self._history[-1][0] >= HISTORY_SECONDS:
            self._history.append((batch.time, _requests(batch)))
        for record in batch.records:
            if record.status >= 500 or (record.flags and record.flags not in _REFUSALS):
                self.failed.append(record)
            if record.sampled:
                self.sampled.append(record)
            self._number += 1
            entry = (record.seconds, self._number, record)
            if len(self._slowest) < KEPT:
                heapq.heappush(self._slowest, entry)
            else:
                heapq.heappushpop(self._slowest, entry)

    def slowest(self, since: float) -> list[RequestRecord]:
        """The slowest requests that began after `since` (seconds since the epoch), the slowest first."""
        self._slowest = [entry for entry in self._slowest if entry[2].time >= since]
        heapq.heapify(self._slowest)
        return [entry[2] for entry in sorted(self._slowest, reverse=True)]

    def rates(self, seconds: float) -> list[tuple[float, float | None]]:
        """Requests a second of each of the batch's routes, over the last `seconds` and over what is remembered from before.

        The latter is None where nothing is.
        """
        if self.batch is None or not self._history:
            return []
        end, last = self.batch.time, _requests(self.batch)
        begin, first = self._history[0]
        edge, middle = next(
            (entry for entry in reversed(self._history) if entry[0] <= end - seconds), (begin, first)
        )
        return [
            (
                max(0.0, (count - earlier) / (end - edge)) if end > edge else 0.0,
                max(0.0, (earlier - earliest) / (edge - begin)) if edge > begin else None,
            )
            for count, earlier, earliest in zip(last, middle, first, strict=False)
        ]

    def in_flight(self) -> list[InFlight]:
        """The requests under way, the oldest first; read from shared memory, even if the worker is stuck."""
        return self.table.read() if self.table is not None else []

    def route_name(self, number: int) -> str:
        """The name of a route by its number."""
        routes = self.hello.routes
        return routes[number] if number < len(routes) else ""

    def close(self) -> None:
        """Unmap the table."""
        if self.table is not None:
            self.table.close()
            self.table = None


def _requests(batch: Batch) -> array[int]:
    """Of each route, over its clusters."""
    found: dict[tuple[str, str], int] = {}
    for each in batch.counts:
        key = (each.listener, each.route)
        found[key] = found.get(key, 0) + each.requests
    return array("Q", found.values())


class TapHub:
    """Listens on `listener`, a bound Unix socket, which it takes over. `refused` messages were no messages of a worker.

    `on_records` gets the records of every batch; `levels` says how loaded the agent's targets are, which the workers are told.
    """

    def __init__(
        self,
        listener: socket.socket,
        clock: Clock,
        on_records: Callable[[WorkerView, tuple[RequestRecord, ...]], None] = lambda _view, _records: None,
    ) -> None:
        self._listener = listener
        self._clock = clock
        self.on_records = on_records
        self.levels: Callable[[], Iterable[TargetLevel]] = lambda: ()
        self._workers: dict[int, WorkerView] = {}
        self._connections = 0
        self.refused = 0

    def worker(self, pid: int) -> WorkerView | None:
        """What is known of the worker with this process id."""
        return self._workers.get(pid)

    @property
    def pids(self) -> frozenset[int]:
        """The process ids of the workers that are known."""
        return frozenset(self._workers)

    async def run(self) -> None:
        """Take in until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    connection, _ = await loop.sock_accept(self._listener)
                    if self._connections >= MAX_WORKERS:
                        connection.close()
                        self.refused += 1
                        continue
                    self._connections += 1
                    group.create_task(self._listen(connection))
        finally:
            self.close()

    def close(self) -> None:
        """Listen no more, forget everything."""
        self._listener.close()
        for view in self._workers.values():
            view.close()
        self._workers.clear()

    async def _listen(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            teller: asyncio.Task[None] | None = None
            try:
                view = await self._welcome(connection)
                teller = asyncio.create_task(self._tell_levels(connection), name=f"levels for {view.pid}")
                while True:
                    batch = decode(await receive(connection), Batch)
                    if any(each.requests < 0 for each in batch.counts):
                        raise ValueError("a negative count")  # noqa: TRY301
                    view.take(batch, self._clock.monotonic())
                    self.on_records(view, batch.records)
            except EOFError:
                pass
            except (OSError, ValueError):
                self.refused += 1
            finally:
                self._connections -= 1
                if teller is not None:
                    teller.cancel()
                    await asyncio.gather(teller, return_exceptions=True)

    async def _tell_levels(self, connection: socket.socket) -> None:
        """Tell a worker how loaded the targets are, until it is gone or does not listen."""
        loop = asyncio.get_running_loop()
        told: tuple[TargetLevel, ...] = ()
        with suppress(OSError, TimeoutError):
            for number in count():
                levels = tuple(islice(self.levels(), MAX_LEVELS))
                if levels and (levels != told or number % _TELL_AT_LEAST == 0):
                    async with asyncio.timeout(TELL_PATIENCE):
                        await loop.sock_sendall(connection, encode(Levels(levels)))
                told = levels
                await self._clock.sleep(TELL_SECONDS)

    async def _welcome(self, connection: socket.socket) -> WorkerView:
        """Read the first frame, which brings a descriptor.

        Raises:
            EOFError, OSError, ValueError: it is none.
        """
        await _readable(connection)
        data, descriptors, _, _ = socket.recv_fds(connection, HEADER_BYTES, 4)
        try:
            if not data:
                raise EOFError
            data += await receive_exactly(connection, HEADER_BYTES - len(data))
            hello = decode(await receive_exactly(connection, frame_length(data)), Hello)
            if hello.version != VERSION:
                raise ValueError(f"a worker that speaks version {hello.version}: expected {VERSION}")
            table = InFlightView(descriptors[0]) if descriptors else None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(credentials)[0]
        before = self._workers.pop(pid, None)
        if before is not None:
            before.close()
        while len(self._workers) >= MAX_WORKERS:
            self._workers.pop(min(self._workers, key=lambda each: self._workers[each].heard)).close()
        view = self._workers[pid] = WorkerView(pid, hello, table, self._clock.monotonic())
        return view


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def came() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, came)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
