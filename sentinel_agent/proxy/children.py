"""A worker process as its supervisor sees it: started with a control socket, given a configuration, told to leave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.errors import SentinelError
from sentinel_agent.proxy import control
from sentinel_agent.proxy.control import Configure, Drain, Ready, Refused
from sentinel_agent.proxy.questions import WorkerLine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentinel_agent.proxy.config import ProxyConfig
    from sentinel_agent.proxy.sockets import Bound

ANSWER_SECONDS = 20.0
"""How long a worker may take to be ready."""
END_SECONDS = 5.0
"""How long a child may take to end, beside the drain, before it is killed."""


@dataclass(frozen=True, slots=True)
class Served:
    """What all workers serve: a configuration that was checked, its text, and the sockets of its listeners."""

    name: str
    content: bytes
    config: ProxyConfig
    bound: tuple[Bound, ...]

    def send(self, sock: socket.socket, number: int = 0) -> None:
        """Hand it over, with copies of the sockets.

        Raises:
            OSError: the other side is gone.
        """
        listeners = tuple((each.name, each.address) for each in self.bound)
        text = control.text_file(self.content)
        try:
            descriptors = (text, *(each.sock.fileno() for each in self.bound))
            control.send(sock, Configure(control.VERSION, number, self.name, listeners), descriptors)
        finally:
            os.close(text)


class WorkerProcess:
    """A worker that serves; `line` is for questions to it."""

    def __init__(
        self, slot: int, process: asyncio.subprocess.Process, sock: socket.socket, line: WorkerLine
    ) -> None:
        self.slot = slot
        self.process = process
        self.line = line
        self._sock = sock
        self._number = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def configure(self, served: Served) -> None:
        """Let it serve this.

        Raises:
            SentinelError: it does not; it serves what it served before, or has ended.
        """
        try:
            self._number += 1
            served.send(self._sock, self._number)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._answer()
        except TimeoutError:
            raise SentinelError(f"worker {self.slot} did not answer within {ANSWER_SECONDS:.0f} s") from None
        except (EOFError, OSError, ValueError):
            raise SentinelError(f"worker {self.slot} has ended") from None
        if isinstance(answer, Refused):
            raise SentinelError(answer.reason)

    async def _answer(self) -> Ready | Refused:
        """The answer to what was sent last; those to what it was too late for are left."""
        while True:
            letter = await receive(self._sock)
            letter.close()
            if isinstance(letter.message, Ready | Refused) and letter.message.number == self._number:
                return letter.message

    def drain(self, seconds: float) -> None:
        """Let it come to its end without anybody noticing."""
        with suppress(OSError):
            control.send(self._sock, Drain(seconds))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        status = await self.process.wait()
        self._sock.close()
        self.line.close()
        return status


async def start_worker(slot: int, token: str, served: Served, tap: Path | None) -> WorkerProcess:
    """Start a worker and wait until it accepts connections.

    Raises:
        SentinelError: it did not come up.
    """
    ours, theirs = control.pair()
    ours.setblocking(False)
    asking, answering = socket.socketpair()
    command = (
        *(sys.executable, "-m", "sentinel_agent.proxy.process"),
        *("--name", f"{token}-{slot}", f"--control={theirs.fileno()}", f"--questions={answering.fileno()}"),
        *((f"--tap={tap}",) if tap is not None else ()),
    )
    try:
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(theirs.fileno(), answering.fileno())
        )
    except BaseException:
        ours.close()
        asking.close()
        raise
    finally:
        theirs.close()
        answering.close()
    worker = WorkerProcess(slot, process, ours, WorkerLine(asking))
    try:
        await worker.configure(served)
    except BaseException as error:
        worker.signal(signal.SIGKILL)
        status = await worker.wait()
        if isinstance(error, SentinelError):
            raise SentinelError(
                f"worker {slot} did not start: {error.message} (exit status {status})"
            ) from None
        raise
    return worker


async def end_all(workers: Sequence[asyncio.subprocess.Process], seconds: float) -> None:
    """SIGTERM, then SIGKILL for those that are there after `seconds`."""
    for process in workers:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    if not workers:
        return
    waits = [asyncio.create_task(process.wait()) for process in workers]
    _, late = await asyncio.wait(waits, timeout=seconds)
    if late:
        for process in workers:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.wait(waits)


async def receive(sock: socket.socket) -> control.Letter:
    """The next message of a socket that does not block.

    Raises:
        EOFError, OSError, ValueError: as `control.receive`.
    """
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock)
    return control.receive(sock)
