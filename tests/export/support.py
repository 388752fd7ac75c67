"""What the tests of the way out share: items, and exporters that do as they are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import msgspec

from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.core.span import Endpoint, Span
from sentinel_agent.export.base import ExporterOptions, ReadingSet, Signal, SpanGroup
from sentinel_agent.testing import make_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.export.base import Item

TARGET = make_target(TargetId(4711, 99), Role("gateway", "host-1"), python="3.11.7")
NOW = 1_700_000_000.0


def span(number: int = 1, *, at: float = NOW, **changes: object) -> Span:
    """A server span with this number for an id, begun `at` seconds since the epoch."""
    given: dict[str, object] = {
        "trace_id": f"{number:032x}",
        "span_id": f"{number:016x}",
        "name": "GET /orders",
        "kind": "server",
        "start": int(at * 1e9),
        "duration": 1_500_000,
        "service": "gateway",
        "instance": "host-1",
        "attributes": {"http.request.method": "GET", "http.response.status_code": 200, "url.path": "/orders"},
        "remote": Endpoint("", "127.0.0.1", 50123),
    }
    return Span(**(given | changes))  # type: ignore[arg-type]  # the names are checked by msgspec


def group(number: int = 1, *, at: float = NOW) -> SpanGroup:
    """One request through a proxy: its server span and the client span below it."""
    server = span(number, at=at)
    client = span(
        number,
        at=at,
        span_id=f"{number + 2**32:016x}",
        parent_id=server.span_id,
        kind="client",
        duration=1_000_000,
        remote=Endpoint("orders", "10.0.0.7", 8080),
    )
    return (server, client)


def readings(at: float = NOW, **values: float) -> ReadingSet:
    """One tick of the target."""
    return ReadingSet(at, TARGET, values or {"cpu": 12.5, "rss": 2.0**26, "tasks": 17.0})


class Scripted:
    """A backend whose answers are given: an exception is raised, anything else is the answer. Keeps what it took."""

    Options: ClassVar[type[ExporterOptions]] = ExporterOptions
    signals: ClassVar[tuple[Signal, ...]] = ("metrics", "spans", "events")

    def __init__(self) -> None:
        self.answers: list[Exception | str | asyncio.Future[str]] = []
        self.down: Exception | None = None
        self.taken: list[tuple[Signal, list[object]]] = []
        self.attempts = 0
        self.closed = False

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        return msgspec.json.encode(items)

    async def send(self, signal: Signal, body: bytes) -> str:
        self.attempts += 1
        answer = self.answers.pop(0) if self.answers else (self.down or "taken")
        if isinstance(answer, asyncio.Future):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        self.taken.append((signal, msgspec.json.decode(body)))
        return answer

    async def close(self) -> None:
        self.closed = True

    def ids(self) -> list[int]:
        """The numbers of the spans taken, in order."""
        return [
            int(each["trace_id"], 16)
            for signal, items in self.taken
            if signal == "spans"
            for group in items
            for each in group  # type: ignore[attr-defined]  # plain data from JSON
        ]
