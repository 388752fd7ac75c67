"""The tour's faults, as a filter of the embedded proxy: what wakes people at night, each on a route of its own.

`report` computes on the event loop, `subscribe` leaves a task behind with its connection to the upstream open, `cached`
keeps every answer for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs

import msgspec

from sentinel_agent.proxy.filters import Hooks, Reply

if TYPE_CHECKING:
    from sentinel_agent.proxy.filters import Request

MAX_REPORT_SECONDS = 10.0
MAX_ANSWER_MIB = 64

_kept: list[bytes] = []
_subscriptions: set[asyncio.Task[None]] = set()


def checksum_every_row(seconds: float) -> str:
    """The spike: CPU work in the middle of the event loop."""
    digest = hashlib.sha256()
    end = time.process_time() + seconds
    row = 0
    while time.process_time() < end:
        row += 1
        digest.update(f"row {row}".encode())
    return digest.hexdigest()


async def wait_for_events(host: str, port: int) -> None:
    """The leak: a task that nobody awaits or cancels, holding a connection that never answers."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /never HTTP/1.1\r\nHost: upstream\r\n\r\n")
    await reader.read()


def _report(request: Request) -> Reply:
    return Reply(200, checksum_every_row(min(_number(request, "seconds", 2.0), MAX_REPORT_SECONDS)).encode())


def _cached(request: Request) -> Reply:
    size = int(min(_number(request, "mib", 8), MAX_ANSWER_MIB))
    _kept.append(bytes(1) * (size * 1024 * 1024))
    return Reply(200, b"%d answers kept" % len(_kept))


def _number(request: Request, name: str, default: float) -> float:
    query = parse_qs(request.target.partition(b"?")[2].decode("ascii", "replace"))
    return float(query.get(name, [str(default)])[0])


class FaultOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which fault; `upstream` HOST:PORT for subscribe."""

    kind: Literal["report", "subscribe", "cached"]
    upstream: str = "127.0.0.1:80"


class Fault:
    """The filter `demo-fault`."""

    Options = FaultOptions

    def __init__(self, options: FaultOptions) -> None:
        if options.kind == "subscribe":
            self.hooks = Hooks(request=self._subscribe)
        else:
            self.hooks = Hooks(request=_report if options.kind == "report" else _cached)
        self._upstream = options.upstream

    async def _subscribe(self, request: Request) -> Reply:
        host, _, port = self._upstream.rpartition(":")
        task = asyncio.create_task(wait_for_events(host, int(port)), name="subscription")
        _subscriptions.add(task)
        return Reply(200, b"subscribed")
