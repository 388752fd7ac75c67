"""The admin side: HTTP on a Unix socket in the state directory, in the words of Envoy's admin interface.

`GET /server_info /ready /config_dump /clusters /listeners /stats` and `POST /drain_listeners`; `?format=json` where Envoy
has it. Whoever may open the socket may do all of it: its mode is 0600. It is served by the supervisor, never by a worker.

The path belongs to who binds it first. Another proxy over the same state directory, which during an upgrade is its
successor, takes it as soon as it is free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from aiohttp import web

from sentinel_agent.proxy import admin_views as views
from sentinel_agent.proxy.sockets import reachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.proxy.admin_views import State, WorkerAnswer
    from sentinel_agent.proxy.questions import Question

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0
_DIRECTORY_MODE: Final = 0o700


class Managed(Protocol):
    """What is administrated: a supervisor."""

    @property
    def state(self) -> State: ...
    def info(self, workers: Sequence[WorkerAnswer]) -> dict[str, Any]: ...
    def config_dump(self) -> dict[str, Any]: ...
    def listeners(self) -> Sequence[tuple[str, str]]:
        """Names and addresses."""
        ...

    async def ask(self, question: Question) -> list[WorkerAnswer]:
        """Ask every worker; none is waited for longer than a few seconds."""
        ...

    async def drain_listeners(self) -> list[WorkerAnswer]: ...


def _bind(path: Path) -> socket.socket | None:
    """The socket at a path, for its owner only; None if somebody answers there.

    Raises:
        OSError: it cannot be had.
    """
    path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with reachable(path) as reached:
        name, fresh = Path(reached), Path(f"{reached}.{os.getpid()}")
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
            probe.settimeout(1.0)
            probe.connect(reached)
            return None
        sock = socket.socket(socket.AF_UNIX)
        try:
            fresh.unlink(missing_ok=True)
            os.fchmod(sock.fileno(), 0o600)  # what the file gets, so that it is never open to others
            sock.bind(str(fresh))
            sock.listen(16)
            fresh.replace(name)
        except BaseException:
            sock.close()
            raise
    return sock


async def serve(path: Path, managed: Managed) -> None:
    """Until cancelled. Trouble is logged once; the proxy serves on without."""
    said = ""
    while True:
        try:
            sock = _bind(path)
            words = "" if sock is not None else f"another proxy answers at {path}"
        except OSError as error:
            sock, words = None, f"{path}: {error}"
        if sock is not None:
            await _serve_on(sock, path, managed)
            return
        if words != said:
            said = words
            log.warning("no admin socket for now: %s; to have both, give one --admin PATH", words)
        await asyncio.sleep(RETRY_SECONDS)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def _unlink(path: Path, inode: int) -> None:
    """Take a socket's name away, if it is still that of this socket."""
    with suppress(OSError):
        if _inode(path) == inode:
            path.unlink()


async def _serve_on(sock: socket.socket, path: Path, managed: Managed) -> None:
    inode = _inode(path)
    runner = web.AppRunner(make_app(managed), access_log=None, shutdown_timeout=0.5, handle_signals=False)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        await asyncio.Event().wait()
    finally:
        _unlink(path, inode)
        await runner.cleanup()


def make_app(managed: Managed) -> web.Application:
    """The paths, over something that is administrated."""
    pages = _Pages(managed)
    app = web.Application(client_max_size=65536)
    app.add_routes(
        [
            web.get("/", pages.help),
            web.get("/help", pages.help),
            web.get("/server_info", pages.server_info),
            web.get("/ready", pages.ready),
            web.get("/config_dump", pages.config_dump),
            web.get("/clusters", pages.clusters),
            web.get("/listeners", pages.listeners),
            web.get("/stats", pages.stats),
            web.post("/drain_listeners", pages.drain_listeners),
        ]
    )
    return app


class _Pages:
    """One method for each path."""

    def __init__(self, managed: Managed) -> None:
        self._managed = managed

    async def help(self, _request: web.Request) -> web.Response:
        return web.Response(
            text="GET /server_info /ready /config_dump /clusters /listeners /stats, POST /drain_listeners\n"
        )

    async def server_info(self, _request: web.Request) -> web.Response:
        return _json(self._managed.info(await self._managed.ask("snapshot")))

    async def ready(self, _request: web.Request) -> web.Response:
        state = self._managed.state
        return web.Response(text=f"{state}\n", status=200 if state == "LIVE" else 503)

    async def config_dump(self, _request: web.Request) -> web.Response:
        return _json(self._managed.config_dump())

    async def clusters(self, request: web.Request) -> web.Response:
        found = views.clusters_of(await self._managed.ask("snapshot"))
        if _wants_json(request):
            return _json(views.clusters_json(found))
        return web.Response(text=views.clusters_text(found))

    async def listeners(self, request: web.Request) -> web.Response:
        found = self._managed.listeners()
        if _wants_json(request):
            return _json({"listener_statuses": [{"name": name, "local_address": at} for name, at in found]})
        return web.Response(text="".join(f"{name}::{at}\n" for name, at in found))

    async def stats(self, request: web.Request) -> web.Response:
        found = views.stats(await self._managed.ask("snapshot"))
        return (
            _json(views.stats_json(found))
            if _wants_json(request)
            else web.Response(text=views.stats_text(found))
        )

    async def drain_listeners(self, _request: web.Request) -> web.Response:
        silent = [each for each in await self._managed.drain_listeners() if each.facts is None]
        if silent:
            words = "".join(f"worker {each.slot} (pid {each.pid}): {each.fault}\n" for each in silent)
            return web.Response(text=words, status=500)
        return web.Response(text="OK\n")


def _wants_json(request: web.Request) -> bool:
    return request.query.get("format") == "json"


def _json(document: dict[str, Any]) -> web.Response:
    return web.Response(
        body=msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n",
        content_type="application/json",
    )
