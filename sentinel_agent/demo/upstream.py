"""The service behind the demo's proxy: a small aiohttp application.

Run as `python -m sentinel_agent.demo.upstream`; the port that was taken is the only line on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text=f"upstream served {request.path}\n")


async def _never(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError("unreachable: nobody sets the event")


def application() -> web.Application:
    """Answers everything, except `/never`."""
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


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(application()))
