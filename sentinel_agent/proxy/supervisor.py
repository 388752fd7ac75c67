"""Starts the workers and the agent, keeps them running, and ends them in order. No request passes through here.

The supervisor owns the listening sockets: a worker that dies leaves them open, its successor takes them over, and what
waits to be accepted stays in the kernel's queue. The agent is one more child: either side lives on when the other dies.

It also watches the configuration's files. A change is checked whole, then given to one worker after the other; where one
refuses it, those before it get the old one back. Only one thing happens at a time: a start, a reload, or an upgrade.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.config.files import fingerprint
from sentinel_agent.config.watch import FileWatch, changed
from sentinel_agent.errors import OperatorError, SentinelError
from sentinel_agent.proxy.administration import Administration, Reloads
from sentinel_agent.proxy.children import END_SECONDS, Served, end_all, start_worker
from sentinel_agent.proxy.config import load_proxy
from sentinel_agent.proxy.expiry import warnings_of
from sentinel_agent.proxy.sockets import bind, close
from sentinel_agent.proxy.tls import files_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from sentinel_agent.clock import Clock
    from sentinel_agent.proxy.admin_views import State
    from sentinel_agent.proxy.children import WorkerProcess
    from sentinel_agent.proxy.upgrade import Door, Successor

log = logging.getLogger(__name__)

RESTART_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Wait before a child is started again, by how often it died young."""
YOUNG_SECONDS = 30.0
LOOK_SECONDS = 1.0
"""How often the files are looked at. A change is taken in when the next look finds them the same."""
WARN_SECONDS = 86400.0


class Supervisor:
    """Runs `count_of(configuration)` workers and, if `agent_command` is given, the agent.

    `admin` is the path of the admin socket. `tell` gets a line of text for people. `token` marks the workers' command lines, so that the agent finds them.
    """

    def __init__(
        self,
        config_path: Path,
        served: Served,
        *,
        count_of: Callable[[Served], int],
        token: str,
        tap: Path | None,
        agent_command: Sequence[str] | None,
        agent_socket: socket.socket | None,
        door: Door,
        admin: Path,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self._path = config_path
        self.served = served
        self._count_of = count_of
        self._token = token
        self._tap = tap
        self._agent_command = agent_command
        self._agent_socket = agent_socket
        self._door = door
        self._clock = clock
        self.tell = tell
        self.reloads = Reloads(time=clock.wall())
        self.changing = asyncio.Lock()
        self._asked = asyncio.Event()
        self._stopping = asyncio.Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._leaving: set[WorkerProcess] = set()
        self._agent: asyncio.subprocess.Process | None = None
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._agent_keeper: asyncio.Task[None] | None = None
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._started = False
        self._drained = False
        self._administration = Administration(admin, self, clock)

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, successor: Successor | None = None) -> None:
        """Until `stop` is set, or another supervisor has taken over; then every child is ended.

        With `successor` this is that other one, and takes over.

        Raises:
            SentinelError: no worker came up at the start.
        """
        self._stopping = stop
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                duties = [group.create_task(self._administration.run())]
                try:
                    await self._start_workers()
                    self._started = True
                    if successor is not None:
                        await successor.ready(self.tell)
                    self.start_agent()
                    self._open_door()
                    duties += [group.create_task(self._watch()), group.create_task(self._door.run(self))]
                    if successor is not None:
                        duties.append(group.create_task(successor.settle()))
                    await stop.wait()
                finally:
                    stop.set()
                    self._door.close()
                    await self._end()
                    for task in (*duties, *self._keepers.values()):
                        task.cancel()
        except* SentinelError as found:
            raise found.exceptions[0] from None
        finally:
            await self._end()
            for descriptor in (self._lifeline_read, self._lifeline_write):
                os.close(descriptor)

    async def _end(self) -> None:
        processes = [each.process for each in (*self._workers.values(), *self._leaving)]
        if self._agent is not None:
            processes.append(self._agent)
        await end_all(processes, self.served.config.drain + END_SECONDS)
        for worker in (*self._workers.values(), *self._leaving):
            await worker.wait()
        self._workers.clear()
        self._leaving.clear()
        self._agent = None

    # -- for the admin side --------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where in its life the proxy is."""
        if not self._started:
            return "INITIALIZING"
        draining = self._drained or self._stopping.is_set() or (self._leaving and not self._workers)
        return "DRAINING" if draining else "LIVE"

    def workers(self) -> list[WorkerProcess]:
        """Those that serve, and those that leave."""
        return [*self._workers.values(), *self._leaving]

    async def drain_listeners(self) -> None:
        """Let nothing new in: no change, no successor, no other worker, and no connection once the workers know of it."""
        if self.state == "DRAINING":
            return
        async with self.changing:
            self._drained = True
            close(self.served.bound)
        self.tell("the listeners are drained: nothing new is accepted")

    # -- workers -------------------------------------------------------------------------------------------------

    async def _start_workers(self) -> None:
        """Start those that are missing, end those that are too many.

        Raises:
            SentinelError: one of them did not come up.
        """
        count = self._count_of(self.served)
        for slot in range(count):
            if slot not in self._workers:
                worker = await start_worker(slot, self._token, self.served, self._tap)
                self._workers[slot] = worker
                self._keepers[slot] = self._group.create_task(self._keep_worker(worker))
        for slot in [slot for slot in self._workers if slot >= count]:
            self._let_go(slot, self.served.config.drain)

    def _let_go(self, slot: int, seconds: float) -> None:
        """Let a worker drain for `seconds` and end; it gets no successor."""
        worker = self._workers.pop(slot)
        self._keepers.pop(slot).cancel()
        self._leaving.add(worker)
        worker.drain(seconds)
        self._group.create_task(self._gone(worker))

    async def _gone(self, worker: WorkerProcess) -> None:
        await worker.wait()
        self._leaving.discard(worker)

    async def _keep_worker(self, worker: WorkerProcess) -> None:
        slot, young = worker.slot, 0
        while True:
            born = self._clock.monotonic()
            status = await worker.wait()
            if self._stopping.is_set():
                return
            if self._drained:
                self.tell(f"worker {slot} (pid {worker.pid}) ended with status {status}, drained")
                return
            young = young + 1 if self._clock.monotonic() - born < YOUNG_SECONDS else 0
            self.tell(f"worker {slot} (pid {worker.pid}) ended with status {status}: starting another")
            while True:
                await self._pause(RESTART_SECONDS[min(young, len(RESTART_SECONDS) - 1)])
                if self._stopping.is_set():
                    return
                async with self.changing:
                    try:
                        worker = await start_worker(slot, self._token, self.served, self._tap)
                    except SentinelError as error:
                        young += 1
                        self.tell(error.message)
                    else:
                        self._workers[slot] = worker
                        break

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # -- the agent -----------------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """Run the agent from now on, if one is wanted."""
        if self._agent_command is not None:
            self._agent_keeper = self._group.create_task(self._keep_agent(self._agent_command))

    async def end_agent(self) -> None:
        """End the agent."""
        if self._agent_keeper is not None:
            self._agent_keeper.cancel()
            self._agent_keeper = None
        if self._agent is not None:
            await end_all([self._agent], END_SECONDS)
            self._agent = None

    async def _keep_agent(self, words: Sequence[str]) -> None:
        young = 0
        keep = [self._lifeline_read]
        if self._agent_socket is not None:
            keep.append(self._agent_socket.fileno())
        command = [*words, f"--lifeline={self._lifeline_read}"]
        while not self._stopping.is_set():
            born = self._clock.monotonic()
            process = self._agent = await asyncio.create_subprocess_exec(*command, pass_fds=keep)
            status = await process.wait()
            if self._stopping.is_set():
                return
            young = young + 1 if self._clock.monotonic() - born < YOUNG_SECONDS else 0
            self.tell(f"the agent (pid {process.pid}) ended with status {status}: starting another")
            await self._pause(RESTART_SECONDS[min(young, len(RESTART_SECONDS) - 1)])

    # -- upgrade -------------------------------------------------------------------------------------------------

    async def leave(self, seconds: float) -> None:
        """Somebody else accepts from now on: the agent ends, the workers drain."""
        for slot in tuple(self._workers):
            self._let_go(slot, seconds)
        await self.end_agent()

    async def resume(self) -> None:
        """Nobody else accepts after all: serve as before."""
        try:
            await self._start_workers()
        except SentinelError as error:
            self.tell(f"cannot serve again: {error.message}")
            self._stopping.set()
            return
        self.start_agent()
        self._open_door()

    def _open_door(self) -> None:
        try:
            self._door.open()
        except OperatorError as error:
            self.tell(f"nobody can take over from this proxy with --upgrade: {error.message}")

    async def gone(self) -> None:
        """Until the last worker that leaves has left; then stop."""
        while self._leaving:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(0.1)
        self._stopping.set()

    # -- reload --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at the files: whatever has changed, once it is at rest, is taken in."""
        await self._warn()
        watch = FileWatch()
        # The file may say something else: after an upgrade, or by now.
        served = fingerprint(self.served.content)
        accepted = before = {**await self._look(watch), self._path: served}
        warned = self._clock.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            if self._clock.monotonic() - warned > WARN_SECONDS:
                warned = self._clock.monotonic()
                await self._warn()
            seen = await self._look(watch)
            if asked or changed(seen, before, accepted):
                await self.reload()
                after = await self._look(watch)  # of other files, if it names others
                seen = accepted = {path: seen.get(path, mark) for path, mark in after.items()}
            before = seen

    async def _look(self, watch: FileWatch) -> dict[Path, str]:
        paths = (self._path, *map(Path, files_of(self.served.config)))
        return dict(await asyncio.to_thread(watch.snapshot, paths, self._clock.wall()))

    async def _warn(self) -> None:
        for line in await asyncio.to_thread(warnings_of, self.served.config, self._clock.wall()):
            self.tell(line)

    def reload_soon(self) -> None:
        """Read the files anew without waiting for them to change."""
        self._asked.set()

    async def reload(self) -> None:
        """Read the configuration and its files anew, and serve them if nothing is wrong with them."""
        async with self.changing:
            try:
                await self._reload()
            except SentinelError as error:
                self.reloads.refused += 1
                self.reloads.fault = error.message
                self.tell(f"the configuration stays as it was: {error.message}")
            except Exception as error:  # a fault of ours must not end what serves
                self.reloads.refused += 1
                self.reloads.fault = f"internal fault: {error!r}"
                log.exception("internal fault in a reload")
            else:
                self.reloads.taken += 1
                self.reloads.fault = ""
                self.tell("the configuration was taken in")
            self.reloads.time = self._clock.wall()

    async def _reload(self) -> None:
        """Take the configuration in.

        Raises:
            SentinelError: it is as it was.
        """
        if self._drained:
            raise OperatorError("the listeners are drained")
        loaded = await asyncio.to_thread(load_proxy, self._path)
        old = self.served
        bound = tuple(bind(loaded.config, old.bound))
        new = Served(str(self._path), loaded.content, loaded.config, bound)
        given: list[WorkerProcess] = []
        try:
            for worker in tuple(self._workers.values()):
                given.append(worker)
                await worker.configure(new)
        except SentinelError as error:
            for worker in given:  # the last one too: it may only have been late
                with suppress(SentinelError):  # it has ended: its successor gets the old one
                    await worker.configure(old)
            close(bound, keep=old.bound)
            raise OperatorError(error.message) from None
        self.served = new
        close(old.bound, keep=bound)
        try:
            await self._start_workers()
        except SentinelError as error:
            self.tell(error.message)
        await self._warn()
