"""The tour's parts: the two processes of the service, its ordinary traffic, and the three faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from asyncio import subprocess
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, ClientTimeout

from sentinel_agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

START_SECONDS = 15.0
LEAKED_TASKS = 300
CACHED_ANSWERS = 60
ANSWERS_PER_SECOND = 10  # so that it still grows while it is looked at
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
        async with client.get(f"{base}/cached?mib=2") as response:
            await response.read()
        await asyncio.sleep(1 / ANSWERS_PER_SECOND)


FAULTS = (
    Fault("cpu-spike", "a report is computed on the event loop for three seconds", _compute),
    Fault("task-leak", f"{LEAKED_TASKS} requests each leave a task behind, with its connection", _leak),
    Fault("memory-growth", f"a cache keeps {CACHED_ANSWERS} answers of 2 MiB for ever", _grow),
)


_CONFIG = """
listeners:
  - name: gateway
    address: 127.0.0.1:{port}
    routes:
      - {{name: report, match: {{exact: /report}}, cluster: upstream,
          filters: [{{name: demo-fault, config: {{kind: report}}}}]}}
      - {{name: subscribe, match: {{exact: /subscribe}}, cluster: upstream,
          filters: [{{name: demo-fault, config: {{kind: subscribe, upstream: "127.0.0.1:{upstream}"}}}}]}}
      - {{name: cached, match: {{exact: /cached}}, cluster: upstream,
          filters: [{{name: demo-fault, config: {{kind: cached}}}}]}}
      - {{name: rest, cluster: upstream}}
clusters:
  - {{name: upstream, endpoints: [{{address: "127.0.0.1:{upstream}"}}]}}
service: gateway
drain: 0
"""


@dataclass(frozen=True, slots=True)
class Service:
    """The proxy under watch: its pid, where it listens, and the socket to which it tells what it does."""

    pid: int
    base: str
    tap: socket.socket


@asynccontextmanager
async def running_service() -> AsyncIterator[Service]:
    """An upstream and a worker of the embedded proxy, each a process of its own, ended with the context.

    Raises:
        PeerError: one of them did not come up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sentinel-demo-")))
        tap = stack.enter_context(socket.socket(socket.AF_UNIX))
        tap.bind(str(folder / "tap.sock"))
        tap.listen(8)
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = door.getsockname()[1]
        async with _process("sentinel_agent.demo.upstream") as upstream:
            behind = await _said(upstream, "upstream")
            if not behind.isdigit():
                raise PeerError(f"the demo's upstream did not start: it said {behind[:200]!r}")
            config = folder / "proxy.yaml"
            config.write_text(_CONFIG.format(port=port, upstream=int(behind)))
            ready, said = os.pipe()
            stack.callback(os.close, ready)
            words = (
                "--config",
                str(config),
                f"--listen=gateway={door.fileno()}",
                f"--ready={said}",
                "--tap",
                str(folder / "tap.sock"),
            )
            async with _process("sentinel_agent.proxy.process", *words, keep=(door.fileno(), said)) as worker:
                os.close(said)
                if not await asyncio.to_thread(os.read, ready, 16):
                    raise PeerError("the demo's proxy did not start: see above for its reason")
                yield Service(worker.pid, f"http://127.0.0.1:{port}", tap.dup())


async def _said(process: subprocess.Process, name: str) -> bytes:
    """The first line of a process.

    Raises:
        PeerError: none came in time.
    """
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            return (await process.stdout.readline()).strip()
    except TimeoutError:
        raise PeerError(f"the demo's {name} did not start within {START_SECONDS:.0f} s") from None


@asynccontextmanager
async def _process(
    module: str, *arguments: str, keep: tuple[int, ...] = ()
) -> AsyncIterator[subprocess.Process]:
    command = (sys.executable, "-m", module, *arguments)
    # A session of its own: Ctrl-C at the terminal ends the tour, which then ends these.
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, start_new_session=True, pass_fds=keep
    )
    try:
        yield process
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
    async with ClientSession(timeout=ClientTimeout(total=60)) as client:
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
