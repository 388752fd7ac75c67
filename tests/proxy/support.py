"""A worker in the test's own loop, scripted upstreams, raw clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.proxy.config import parse_proxy
from sentinel_agent.proxy.filters import loading
from sentinel_agent.proxy.tap import Tap
from sentinel_agent.proxy.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import pytest

    from sentinel_agent.proxy.filters import Hooks
    from sentinel_agent.proxy.records import RequestRecord

Script = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"
PATIENCE = 20.0


def bound() -> socket.socket:
    """A socket on a free port of the loopback."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


def copy(sock: socket.socket) -> socket.socket:
    """A descriptor of the same socket, for another owner; `dup` would make it a blocking one, for both."""
    return socket.socket(fileno=os.dup(sock.fileno()))


@asynccontextmanager
async def upstream(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that does to every connection what the script says; its port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A head with its empty line."""
    return await reader.readuntil(b"\r\n\r\n")


def answering(
    *answers: bytes, heads: list[bytes] | None = None
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A script that reads a head without a body and writes the next answer, then begins anew with the last one."""
    left = list(answers)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if heads is not None:
                heads.append(head)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Proxy:
    """A worker under test."""

    def __init__(
        self,
        worker: Worker,
        port: int,
        records: list[RequestRecord],
        log: Path,
        sockets: dict[str, socket.socket],
    ) -> None:
        self.worker = worker
        self.sockets = sockets
        self.port = port
        self.kept = records
        self._log = log

    async def log(self, count: int = 1) -> list[dict[str, Any]]:
        """The access log, once it has `count` lines."""
        async with asyncio.timeout(PATIENCE):
            while len(lines := self._log.read_text().splitlines()) < count:
                await asyncio.sleep(0.02)
        return [json.loads(line) for line in lines]

    async def idle(self) -> None:
        """Until no request is under way."""
        async with asyncio.timeout(PATIENCE):
            while self.worker.exchanges:
                await asyncio.sleep(0.01)

    async def ask(self, data: bytes, *, until_close: bool = True) -> bytes:
        """Send bytes on a new connection; all that comes back until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(data)
                return await reader.read(-1) if until_close else await read_head(reader)
        except ConnectionError as error:
            return repr(error).encode()
        finally:
            writer.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection to the proxy."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                yield reader, writer
        finally:
            writer.close()


@asynccontextmanager
async def proxy(
    tmp_path: Path,
    *ports: int,
    route: str = "",
    listener: str = "",
    cluster: str = "",
    more: str = "",
    **others: int,
) -> AsyncIterator[Proxy]:
    """A worker with one HTTP listener and a cluster `back` of these ports; the strings are further YAML keys.

    `others` are further clusters, each with its port.
    """
    beside = "".join(
        f'\n  - {{name: {name}, endpoints: [{{address: "127.0.0.1:{port}"}}]}}'
        for name, port in others.items()
    )
    endpoints = ", ".join(f'{{address: "127.0.0.1:{port}"}}' for port in ports)
    log = tmp_path / "access.log"
    text = f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    {listener}
    routes:
      - {{name: all, cluster: back, {route}}}
clusters:
  - {{name: back, endpoints: [{endpoints}], {cluster}}}{beside}
access_log: {{path: {log}}}
{more}
"""
    async with serving(parse_text(text), log) as running:
        yield running


def parse_text(text: str) -> Any:
    """A configuration."""
    return parse_proxy("test.yaml", text.encode())


@asynccontextmanager
async def serving(config: Any, log: Path, *, copied: bool = False) -> AsyncIterator[Proxy]:
    """A worker with a configuration; its first listener's port is that of `Proxy`.

    With `copied`, its sockets have a second owner, as those that a supervisor hands down.
    """
    sockets = {each.name: bound() for each in config.listeners}
    copies = {name: copy(sock) for name, sock in sockets.items()} if copied else {}
    records: list[RequestRecord] = []
    tap = Tap(log.parent / "nobody-listens.sock")
    monitor = tap.keep

    def keep(record: RequestRecord) -> None:
        records.append(record)
        monitor(record)

    tap.keep = keep  # type: ignore[method-assign]  # what the agent would be told
    worker = Worker(config, sockets, tap=tap)
    await worker.start()
    first = sockets[config.listeners[0].name]
    try:
        yield Proxy(worker, first.getsockname()[1], records, log, copies)
    finally:
        await worker.stop(0.0)
        await asyncio.sleep(0.05)  # transports close in the loop's next rounds
        for sock in (*sockets.values(), *copies.values()):
            sock.close()


class NoOptions(msgspec.Struct):
    """Of a filter that takes none."""


def install(monkeypatch: pytest.MonkeyPatch, **hooks: Hooks) -> None:
    """Let these filters be installed, beside those that are."""

    def plug(each: Hooks) -> Any:
        factory = lambda _: SimpleNamespace(hooks=each)  # noqa: E731 - it gets an attribute
        factory.Options = NoOptions  # type: ignore[attr-defined]
        return SimpleNamespace(load=lambda: factory)

    found = {**loading.installed(), **{name: plug(each) for name, each in hooks.items()}}
    monkeypatch.setattr(loading, "installed", lambda: found)


def status_of(answer: bytes) -> int:
    """The status of an answer; 0 if it is none."""
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and answer.startswith(b"HTTP/1.1 ") else 0


GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
