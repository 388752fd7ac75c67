"""One active health check: a connection, and a GET where that is asked for. Its outcome is a word; nothing is raised."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, cast

from sentinel_agent.proxy.wire.buffer import HeadBuffer
from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import parse_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sentinel_agent.proxy.config_upstream import HealthCheck, HttpHealthCheck

MAX_HEAD = 16 * 1024


class _Probe(asyncio.Protocol):
    """Says what it was made with, and waits for the status of the answer."""

    def __init__(self, request: bytes, outcome: asyncio.Future[int]) -> None:
        self._request = request
        self._outcome = outcome
        self._heads = HeadBuffer(MAX_HEAD, 502)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        if self._request:
            cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """The answer, of which only the head counts."""
        if self._outcome.done():
            return
        try:
            while (taken := self._heads.take(data)) is not None:
                raw, data = taken
                status = parse_response(raw, b"GET").status
                if status >= 200:
                    self._outcome.set_result(status)
                    return
        except WireError as error:
            self._outcome.set_exception(OSError(error.message))

    def connection_lost(self, exc: Exception | None) -> None:
        """No answer will come any more."""
        if not self._outcome.done():
            self._outcome.set_exception(exc or OSError("closed before its answer"))


async def check(
    dial: Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Transport]],
    spec: HealthCheck,
    address: str,
) -> str:
    """What is wrong with a server, nothing if nothing is. `dial` opens a connection for a protocol."""
    outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ask = spec.http_health_check
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(spec.timeout):
            transport = await dial(lambda: _Probe(_request(ask, address), outcome))
            if ask is None:
                return ""
            status = await outcome
            return "" if status in ask.expected_statuses else f"status {status}"
    except TimeoutError:
        return f"no answer in {spec.timeout:g} s"
    except OSError as error:
        number = error.errno or 0
        return os.strerror(number) if number > 0 else str(error) or type(error).__name__
    finally:
        outcome.cancel()
        if outcome.done() and not outcome.cancelled():
            outcome.exception()  # it was taken note of, or nobody waits for it any more
        if transport is not None:
            transport.abort()


def _request(ask: HttpHealthCheck | None, address: str) -> bytes:
    if ask is None:
        return b""
    words = f"GET {ask.path} HTTP/1.1\r\nHost: {ask.host or address}\r\nUser-Agent: sentinel-agent/health\r\nConnection: close\r\n\r\n"
    return words.encode("ascii", "replace")
