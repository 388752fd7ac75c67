"""A child process whose every output is bounded, and which never outlives the block it was started in.

Its pipes are read by the event loop. A third pipe is offered for the file that a program insists on writing:
`OUTPUT` in the arguments becomes its path, so that nothing is written to disk that has not been looked at.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sentinel_agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

OUTPUT = "{output}"
_CHUNK = 65536
_REAP_SECONDS = 5.0
_POLL_SECONDS = 0.002
# No backtraces, no colours, nothing of the agent's own environment.
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "RUST_BACKTRACE": "0", "NO_COLOR": "1"}


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended; `returncode` is negative for a signal."""

    returncode: int
    stdout: bytes
    stderr: bytes
    output: bytes


class _Pipe:
    """The reading end of a pipe, collected by the event loop up to a limit."""

    def __init__(self, limit: int, changed: asyncio.Event) -> None:
        self.data = bytearray()
        self.over = False
        self._limit = limit
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._readable)

    @property
    def closed(self) -> bool:
        return self._read_end < 0

    def _readable(self) -> None:
        try:
            chunk = os.read(self._read_end, _CHUNK)
        except BlockingIOError:
            return
        room = self._limit - len(self.data)
        self.data += chunk[:room]
        self.over = len(chunk) > room
        if not chunk or self.over:
            self.close()
        self._changed.set()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        if not self.closed:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1


class Child:
    """A running child; made by `running`."""

    def __init__(self, arguments: Sequence[str], limit: int) -> None:
        self._name = PurePath(arguments[0]).name
        self._changed = asyncio.Event()
        self._pipes: dict[str, _Pipe] = {}
        self._process = self._start(arguments, limit)

    def _start(self, arguments: Sequence[str], limit: int) -> subprocess.Popen[bytes]:
        try:
            for name in ("stdout", "stderr", "output"):
                self._pipes[name] = _Pipe(limit, self._changed)
            output = self._pipes["output"].write_end
            return subprocess.Popen(
                [f"/dev/fd/{output}" if item == OUTPUT else item for item in arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._pipes["stdout"].write_end,
                stderr=self._pipes["stderr"].write_end,
                pass_fds=(output,),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._close_pipes()
            raise PeerError(
                f"{self._name} cannot be started: {error.strerror}", hint=f"check {arguments[0]}"
            ) from error
        finally:
            for pipe in self._pipes.values():
                pipe.close_write_end()

    async def says(self, words: bytes) -> bool:
        """Wait until the child wrote `words` to stdout; False when it ended without."""
        while words not in self._pipes["stdout"].data:
            if self._all_read():
                return False
            await self._next_change()
        return True

    async def wait(self) -> Finished:
        """Wait until it ended and all it wrote is read.

        Raises:
            PeerError: it wrote more than the limit.
        """
        while not self._all_read():
            await self._next_change()
        return Finished(
            await self._exit(), *(bytes(self._pipes[name].data) for name in ("stdout", "stderr", "output"))
        )

    def interrupt(self) -> None:
        """Ask it to finish, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def _all_read(self) -> bool:
        for name, pipe in self._pipes.items():
            if pipe.over:
                raise PeerError(
                    f"{self._name} wrote more than {len(pipe.data)} bytes to its {name} and was ended"
                )
        return all(pipe.closed for pipe in self._pipes.values())

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _close_pipes(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()

    async def close(self) -> None:
        """Kill it and what it started, and take its exit status, whatever else is cancelled meanwhile."""
        # A pipe still open means that somebody of the group is alive, so the group's id is not yet another's.
        if self._process.poll() is None or not all(pipe.closed for pipe in self._pipes.values()):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._close_pipes()
        await _uninterrupted(self._reap())

    async def _reap(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                await self._exit()

    async def _exit(self) -> int:
        # Its pipes are closed: it ends within a moment.
        while (returncode := self._process.poll()) is None:  # noqa: ASYNC110 - nothing portable announces it
            await asyncio.sleep(_POLL_SECONDS)
        return returncode


@asynccontextmanager
async def running(arguments: Sequence[str], *, limit: int) -> AsyncIterator[Child]:
    """Start a child in a process group of its own; it is gone when the block is left.

    `limit` is the most bytes that each of its outputs may have.

    Raises:
        PeerError: it cannot be started.
    """
    child = Child(arguments, limit)
    try:
        yield child
    finally:
        await child.close()


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Finish `work` even when the caller is cancelled, and pass the cancellation on afterwards."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
