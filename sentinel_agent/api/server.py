"""Listens from the start and loads the HTTP stack when somebody comes: an agent that nobody asks stays small.

The socket is bound before the agent starts, so that an address that cannot be had is said at once.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from sentinel_agent.config.settings import ApiSettings
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.api.guard import Guard
    from sentinel_agent.api.live import Live
    from sentinel_agent.clock import Clock
    from sentinel_agent.store.store import Store

_BACKLOG = 64
_SHUTDOWN_SECONDS = 1.0
_KEEP_ALIVE = 30.0


class AddressInUseError(OperatorError):
    """Somebody else listens there."""


class HttpServer:
    """One listening address. `live` and `metrics` may be set until the first request comes."""

    def __init__(
        self,
        guard: Guard,
        store: Store,
        clock: Clock,
        settings: ApiSettings = ApiSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Bind it.

        Raises:
            AddressInUseError: it is taken.
            OperatorError: it cannot be had.
        """
        self.live: Live | None = None
        self.metrics: Callable[[str | None], tuple[str, bytes]] | None = None
        self._store = store
        self._clock = clock
        self._settings = settings
        self._socket = _bound(guard.address.host, guard.address.port)
        self.address = replace(guard.address, port=self._socket.getsockname()[1])
        self._guard = replace(guard, address=self.address)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            await _readable(self._socket)
            await asyncio.to_thread(importlib.import_module, "sentinel_agent.api.app")
            await self._serve()
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        from aiohttp import web  # noqa: PLC0415 - heavy; see the module

        from sentinel_agent.api.app import make_app  # noqa: PLC0415 - as above
        from sentinel_agent.api.context import Context  # noqa: PLC0415 - as above

        context = Context(self._store, self._clock, self._guard, self.live, self.metrics, self._settings)
        runner = web.AppRunner(
            make_app(context),
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            handle_signals=False,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket, backlog=_BACKLOG).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def close(self) -> None:
        """Give the address back without having run."""
        self._socket.close()


async def _readable(listening: socket.socket) -> None:
    """Wait for the first connection, and leave it to be accepted."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(listening, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(listening)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OperatorError(f"{host} is no address of this machine: {error.strerror}") from error
    listening = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"{host}:{port} is in use",
                hint="another agent may run; choose another address with --listen, or --listen off",
            ) from error
        raise OperatorError(
            f"{host}:{port} cannot be listened on: {error.strerror}", hint="choose another --listen"
        ) from error
    return listening
