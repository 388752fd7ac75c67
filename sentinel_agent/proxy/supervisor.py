"""Starts the workers and the agent, keeps them running, and ends them in order. No request passes through here.

The supervisor owns the listening sockets: a worker that dies leaves them open, its successor takes them over, and what
waits to be accepted stays in the kernel's queue. The agent is one more child: either side lives on when the other dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.errors import OperatorError, SentinelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.proxy.config import ProxyConfig

log = logging.getLogger(__name__)

RESTART_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Wait before a child is started again, by how often it died young."""
YOUNG_SECONDS = 30.0
START_SECONDS = 20.0
END_SECONDS = 5.0
"""How long a child may take to end, beside the drain, before it is killed."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener's socket and the address that it has."""

    name: str
    sock: socket.socket
    address: str


def bind(config: ProxyConfig) -> list[Bound]:
    """The sockets of all listeners.

    Raises:
        OperatorError: with every address that cannot be had, and why.
    """
    found: list[Bound] = []
    faults: list[str] = []
    for listener in config.listeners:
        host, _, port = listener.address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, int(port)))
            sock.listen(1024)
        except (OSError, OverflowError) as error:
            sock.close()
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            faults.append(f"{listener.name}: {listener.address}: {reason}")
            continue
        name = sock.getsockname()
        found.append(Bound(listener.name, sock, f"{host}:{name[1]}"))
    if faults:
        for each in found:
            each.sock.close()
        raise OperatorError("cannot listen on\n  " + "\n  ".join(faults))
    return found


class Supervisor:
    """Runs `count` workers and, if `agent_command` is given, the agent.

    `tell` gets a line of text for people. `token` marks the workers' command lines, so that the agent finds them.
    """

    def __init__(
        self,
        config_path: Path,
        bound: Sequence[Bound],
        *,
        count: int,
        drain: float,
        token: str,
        tap: Path | None,
        agent_command: Sequence[str] | None,
        agent_socket: socket.socket | None,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self._config_path = config_path
        self._bound = bound
        self._count = count
        self._drain = drain
        self._token = token
        self._tap = tap
        self._agent_command = agent_command
        self._agent_socket = agent_socket
        self._clock = clock
        self._tell = tell
        self._stopping = asyncio.Event()
        self._children: set[asyncio.subprocess.Process] = set()
        self._lifeline_read, self._lifeline_write = os.pipe()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then every child is ended.

        Raises:
            SentinelError: no worker came up at the start.
        """
        self._stopping = stop
        try:
            first = [await self._start_worker(slot) for slot in range(self._count)]
            async with asyncio.TaskGroup() as group:
                for slot, process in enumerate(first):
                    group.create_task(self._keep_worker(slot, process))
                if self._agent_command is not None:
                    group.create_task(self._keep_agent())
                await stop.wait()
                await self._end_children()
        finally:
            await self._end_children()
            for descriptor in (self._lifeline_read, self._lifeline_write):
                os.close(descriptor)

    # -- children ------------------------------------------------------------------------------------------------

    async def _start_worker(self, slot: int) -> asyncio.subprocess.Process:
        """Start a worker and wait until it accepts connections.

        Raises:
            SentinelError: it did not come up.
        """
        ready_read, ready_write = os.pipe()
        listen = [f"--listen={each.name}={each.sock.fileno()}" for each in self._bound]
        command = [
            *(sys.executable, "-m", "sentinel_agent.proxy.process"),
            *("--name", f"{self._token}-{slot}", "--config", str(self._config_path), *listen),
            *(f"--lifeline={self._lifeline_read}", f"--ready={ready_write}"),
            *((f"--tap={self._tap}",) if self._tap is not None else ()),
        ]
        keep = (*(each.sock.fileno() for each in self._bound), self._lifeline_read, ready_write)
        try:
            process = await asyncio.create_subprocess_exec(*command, pass_fds=keep)
            self._children.add(process)
        finally:
            os.close(ready_write)
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await _read_pipe(ready_read)
        except TimeoutError:
            said = b""
        finally:
            os.close(ready_read)
        if not said:
            with suppress(ProcessLookupError):
                process.kill()
            status = await process.wait()
            self._children.discard(process)
            raise SentinelError(
                f"worker {slot} did not start: exit status {status}; see above for its reason"
            )
        return process

    async def _keep_worker(self, slot: int, process: asyncio.subprocess.Process) -> None:
        young = 0
        while True:
            born = self._clock.monotonic()
            status = await process.wait()
            self._children.discard(process)
            if self._stopping.is_set():
                return
            young = young + 1 if self._clock.monotonic() - born < YOUNG_SECONDS else 0
            self._tell(f"worker {slot} (pid {process.pid}) ended with status {status}: starting another")
            while True:
                await self._pause(RESTART_SECONDS[min(young, len(RESTART_SECONDS) - 1)])
                if self._stopping.is_set():
                    return
                try:
                    process = await self._start_worker(slot)
                    break
                except SentinelError as error:
                    young += 1
                    self._tell(error.message)

    async def _keep_agent(self) -> None:
        assert self._agent_command is not None, "it is wanted"
        young = 0
        keep = [self._lifeline_read]
        if self._agent_socket is not None:
            keep.append(self._agent_socket.fileno())
        command = [*self._agent_command, f"--lifeline={self._lifeline_read}"]
        while not self._stopping.is_set():
            born = self._clock.monotonic()
            process = await asyncio.create_subprocess_exec(*command, pass_fds=keep)
            self._children.add(process)
            status = await process.wait()
            self._children.discard(process)
            if self._stopping.is_set():
                return
            young = young + 1 if self._clock.monotonic() - born < YOUNG_SECONDS else 0
            self._tell(f"the agent (pid {process.pid}) ended with status {status}: starting another")
            await self._pause(RESTART_SECONDS[min(young, len(RESTART_SECONDS) - 1)])

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _end_children(self) -> None:
        children = tuple(self._children)
        for process in children:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if not children:
            return
        waits = [asyncio.create_task(process.wait()) for process in children]
        _, late = await asyncio.wait(waits, timeout=self._drain + END_SECONDS)
        if late:
            for process in children:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
            await asyncio.wait(waits)
        self._children.difference_update(children)


async def _read_pipe(descriptor: int) -> bytes:
    """What comes out of a pipe first; nothing if its other end is closed."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(descriptor, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 64)
