"""The demo's target: a small aiohttp gateway in front of a small aiohttp upstream, each its own process.

The gateway forwards every request, and three of its paths have a fault of the kind that wakes people at night:
`/report` computes on the event loop, `/subscribe` leaves a task behind with its connection to the upstream
open, `/cached` keeps every answer for ever. Run as `python -m sentinel_agent.demo.service ROLE ...`; the port
that was taken is the only line on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import time
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_UPSTREAM = web.AppKey("upstream", str)
_CLIENT = web.AppKey("client", ClientSession)
_KEPT = web.AppKey("kept", list[bytes])
_SUBSCRIPTIONS = web.AppKey("subscriptions", set[asyncio.Task[None]])


def checksum_every_row(seconds: float) -> str:
    """The spike: CPU work in the middle of an async handler."""
    digest = hashlib.sha256()
    end = time.process_time() + seconds
    row = 0
    while time.process_time() < end:
        row += 1
        digest.update(f"row {row}".encode())
    return digest.hexdigest()


async def wait_for_events(client: ClientSession, url: str) -> None:
    """The leak: a task that nobody awaits or cancels, holding a connection that never answers."""
    async with client.get(url, timeout=ClientTimeout(total=None)) as response:
        await response.read()


async def _report(request: web.Request) -> web.Response:
    seconds = min(float(request.query.get("seconds", "2")), 10.0)
    return web.Response(text=checksum_every_row(seconds))


async def _subscribe(request: web.Request) -> web.Response:
    url = f"{request.app[_UPSTREAM]}/never"
    task = asyncio.create_task(wait_for_events(request.app[_CLIENT], url), name="subscription")
    request.app[_SUBSCRIPTIONS].add(task)
    return web.Response(text="subscribed")


async def _cached(request: web.Request) -> web.Response:
    size = min(int(request.query.get("mib", "8")), 64)
    request.app[_KEPT].append(bytes(1) * (size * 1024 * 1024))
    return web.Response(text=f"{len(request.app[_KEPT])} answers kept")


async def _forward(request: web.Request) -> web.Response:
    async with request.app[_CLIENT].get(f"{request.app[_UPSTREAM]}{request.path_qs}") as response:
        return web.Response(status=response.status, body=await response.read())


async def _client_context(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as client:
        app[_CLIENT] = client
        yield
        for task in app[_SUBSCRIPTIONS]:
            task.cancel()
        await asyncio.gather(*app[_SUBSCRIPTIONS], return_exceptions=True)


def gateway(upstream: str) -> web.Application:
    """The gateway's application; `upstream` is the base URL that it forwards to."""
    app = web.Application()
    app[_UPSTREAM] = upstream
    app[_KEPT] = []
    app[_SUBSCRIPTIONS] = set()
    app.cleanup_ctx.append(_client_context)
    app.router.add_get("/report", _report)
    app.router.add_get("/subscribe", _subscribe)
    app.router.add_get("/cached", _cached)
    app.router.add_get("/{path:.*}", _forward)
    return app


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text=f"upstream served {request.path}\n")


async def _never(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError("unreachable: nobody sets the event")


def upstream() -> web.Application:
    """The service behind the gateway."""
    app = web.Application()
    app.router.add_get("/never", _never)
    app.router.add_get("/{path:.*}", _hello)
    return app


async def _serve(app: web.Application) -> None:
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201 - the one line that the parent waits for
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Start one of the two roles and serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["gateway", "upstream"])
    parser.add_argument("--upstream", default="")
    arguments = parser.parse_args()
    app = gateway(arguments.upstream) if arguments.role == "gateway" else upstream()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(app))


if __name__ == "__main__":
    main()
