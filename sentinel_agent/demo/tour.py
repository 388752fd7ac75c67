"""The tour's parts: the two processes of the service, its ordinary traffic, and the three faults."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, ClientTimeout

from sentinel_agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

START_SECONDS = 15.0
LEAKED_TASKS = 300
CACHED_ANSWERS = 12
REQUESTS_PER_SECOND = 40


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: the rule that must notice, what a person is told, and how it is caused."""

    rule: str
    words: str
    cause: Callable[[ClientSession, str], Coroutine[None, None, None]]


async def _compute(client: ClientSession, base: str) -> None:
    async with client.get(f"{base}/report?seconds=3") as response:
        await response.read()


async def _leak(client: ClientSession, base: str) -> None:
    for _ in range(LEAKED_TASKS):
        async with client.get(f"{base}/subscribe") as response:
            await response.read()


async def _grow(client: ClientSession, base: str) -> None:
    for _ in range(CACHED_ANSWERS):
        async with client.get(f"{base}/cached?mib=8") as response:
            await response.read()


FAULTS = (
    Fault("cpu-spike", "a report is computed on the event loop for three seconds", _compute),
    Fault("task-leak", f"{LEAKED_TASKS} requests each leave a task behind, with its connection", _leak),
    Fault("memory-growth", f"a cache keeps {CACHED_ANSWERS} answers of 8 MiB for ever", _grow),
)


@dataclass(frozen=True, slots=True)
class Service:
    """The gateway under watch: its pid and where it listens."""

    pid: int
    base: str


@asynccontextmanager
async def running_service() -> AsyncIterator[Service]:
    """Upstream and gateway, each a process of its own, ended with the context.

    Raises:
        PeerError: one of them did not come up.
    """
    async with (
        _process("upstream") as (_, behind),
        _process("gateway", "--upstream", f"http://127.0.0.1:{behind}") as (pid, port),
    ):
        yield Service(pid, f"http://127.0.0.1:{port}")


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[tuple[int, int]]:
    command = (sys.executable, "-m", "sentinel_agent.demo.service", *arguments)
    # A session of its own: Ctrl-C at the terminal ends the tour, which then ends these.
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        if not line.strip().isdigit():
            raise PeerError(f"the demo's {arguments[0]} did not start: it said {line[:200]!r}")
        yield process.pid, int(line)
    except TimeoutError:
        raise PeerError(f"the demo's {arguments[0]} did not start within {START_SECONDS:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(3):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def traffic(service: Service) -> AsyncIterator[ClientSession]:
    """A client, and steady ordinary requests beside whatever is done with it."""
    async with ClientSession(timeout=ClientTimeout(total=20)) as client:
        task = asyncio.create_task(_requests(client, service.base))
        try:
            yield client
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _requests(client: ClientSession, base: str) -> None:
    while True:
        with contextlib.suppress(ClientError, TimeoutError):
            async with client.get(f"{base}/hello") as response:
                await response.read()
        await asyncio.sleep(1 / REQUESTS_PER_SECOND)
