"""Accepts the connections of a listener with TLS; plaintext beside it on the same port, told apart by the first byte.

The first byte is looked at and left in the kernel (recv(2), MSG_PEEK), so that whoever reads the connection next, the
TLS library or the reader of requests, gets all of it: no byte is ever copied from one to the other. Accepting itself is
done here, and not by the event loop's server, because that says nothing of a handshake that fails.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.tls import HANDSHAKE, SHUTDOWN_SECONDS, words_of

if TYPE_CHECKING:
    from sentinel_agent.proxy.listener import BaseListener

log = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Connections accepted before the loop does something else."""
REST_SECONDS: Final = 0.5
"""Accept no more for so long when the process has no descriptor left."""


class Acceptor:
    """Accepts on `sock`, which it takes over, until it is closed; `listener` makes the protocols."""

    def __init__(self, listener: BaseListener, sock: socket.socket) -> None:
        self._listener = listener
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept no more; what waits in the kernel is for whoever else has the socket."""
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        listener = self._listener
        self._sock.setblocking(False)  # a property of the socket, not of our descriptor: others have it too
        for _ in range(AT_ONCE):
            try:
                client, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                log.warning("listener %s cannot accept: %s", listener.spec.name, words_of(error))
                self._loop.remove_reader(self._sock)
                self._later = self._loop.call_later(
                    REST_SECONDS, self._loop.add_reader, self._sock, self._accept
                )
                return
            client.setblocking(False)
            if listener.opening >= listener.spec.limits.connections:
                listener.refused += 1
                client.close()
                continue
            listener.opening += 1
            listener.worker.spawn(self._open(client), f"accept {listener.spec.name}")

    async def _open(self, client: socket.socket) -> None:
        """Until a protocol has the connection, or it is clear that none gets it."""
        listener, address = self._listener, ""
        tls = listener.tls
        assert tls is not None, "a listener without TLS has no need of this"
        taken = False
        try:
            address = client.getpeername()[0]
            if tls.spec.allow_plaintext:
                async with asyncio.timeout(listener.spec.timeouts.idle):
                    first = await _first_byte(client)
                if not first:
                    return
                if first[0] != HANDSHAKE:
                    taken = True
                    await self._loop.connect_accepted_socket(listener, client)
                    return
            taken = True
            await self._loop.connect_accepted_socket(
                listener,
                client,
                ssl=tls.context,
                ssl_handshake_timeout=tls.spec.handshake_timeout,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except ConnectionAbortedError:  # so the event loop says that a handshake took too long
            listener.note_fault(address, flags.CLIENT_TIMEOUT, 0, "the TLS handshake did not end in time")
        except (ConnectionError, TimeoutError):
            listener.count_fault(flags.CLIENT_LEFT)  # a port scan, a health check: not worth a line each
        except OSError as error:
            listener.note_fault(address, flags.TLS_FAILED, 0, words_of(error))
        finally:
            listener.opening -= 1
            if not taken:
                client.close()


async def _first_byte(client: socket.socket) -> bytes:
    """The first byte, which stays where it is; nothing at the end of the stream."""
    with suppress(BlockingIOError):
        return client.recv(1, socket.MSG_PEEK)
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(client, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(client)
    return client.recv(1, socket.MSG_PEEK)
