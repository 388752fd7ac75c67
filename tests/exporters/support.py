"""What the tests of exporters share: an incident, and HTTP servers that answer as they are told."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.core.model import Artifact, CaptureReport, Incident, Window
from sentinel_agent.export.base import ExporterContext
from sentinel_agent.testing import FakeClock
from tests.export.support import NOW, TARGET
from tests.needs import missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sentinel_agent.export.base import ExporterOptions


def incident(**changes: Any) -> Incident:
    """A sealed incident of the target."""
    made = Incident(
        id="20231114T221320.000Z-cafe",
        rule="cpu-spike",
        target=TARGET,
        reason="above_abs",
        summary="cpu 95 % is over 90 %",
        metric="cpu",
        unit="percent",
        value=95.0,
        baseline=12.0,
        thresholds={"abs": 90.0},
        time=NOW,
        sealed_time=NOW + 0.7,
        window=Window(NOW - 120, NOW + 0.5),
        artifacts=(Artifact("stacks.pb.gz", "stacks", "pprof", 1234, "ab" * 32),),
        captures=(CaptureReport("stacks", "ok"),),
        lost_samples=2,
        longest_pause_us=0,
        agent_version="1.2.3",
        host="host-1",
    )
    return msgspec.structs.replace(made, **changes)


def context(name: str = "test") -> ExporterContext:
    """Where an exporter runs in a test."""
    return ExporterContext(name, FakeClock(), "1.2.3", "host-1")


@dataclass
class Request:
    """What a server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """An HTTP/1.1 server on loopback whose answers are raw bytes; with none left it says 202."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    hang: bool = False
    flood: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append(Request(method, path, headers, body))
                if self.hang:
                    await asyncio.sleep(3600)
                writer.write(self.answers.pop(0) if self.answers else status(202))
                for _ in range(self.flood):
                    writer.write(b"x" * 2**20)
                    await writer.drain()
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def status(code: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer."""
    lines = [
        f"HTTP/1.1 {code} Said",
        f"Content-Length: {len(body)}",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[Server]:
    """A server of the running loop."""
    server = Server(**changes)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await server._serve(reader, writer)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await listening.wait_closed()


def options(kind: type[ExporterOptions], **values: Any) -> ExporterOptions:
    """Options as a configuration file gives them."""
    return msgspec.convert(values, kind)


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


_ORACLE = Path(__file__).parents[2] / ".cache" / "oracle" / "bin" / "python"


def oracle() -> str:
    """The interpreter of the environment with the judges of what we send; skips without it, and fails where CI is set."""
    if not _ORACLE.exists():
        missing("the environment of tests/exporters/oracle_env is not there; `make unit` makes it")
    return str(_ORACLE)
