"""Bytes both ways, whatever they are: TCP listeners, and connections that changed to another protocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from sentinel_agent.proxy.wheel import NOWHERE, Wheel

if TYPE_CHECKING:
    from collections.abc import Callable


class Relay:
    """Two connections joined. Ends when both have ended, one is lost, or nothing moves for `idle` seconds."""

    __slots__ = (
        "_idle",
        "_now",
        "_on_end",
        "_over",
        "_wheel",
        "deadline",
        "left",
        "right",
        "slot",
        "timed_out",
    )

    def __init__(
        self, wheel: Wheel, now: Callable[[], float], idle: float, on_end: Callable[[Relay], None]
    ) -> None:
        self._wheel = wheel
        self._now = now
        self._idle = idle
        self._on_end = on_end
        self._over = False
        self.timed_out = False
        self.deadline = 0.0
        self.slot = NOWHERE
        self.left = Pipe(self)
        self.right = Pipe(self)
        self.left.peer, self.right.peer = self.right, self.left

    def join(self, left: asyncio.Transport, right: asyncio.Transport, high: int) -> None:
        """Take both connections over from their protocols."""
        for pipe, transport in ((self.left, left), (self.right, right)):
            pipe.transport = transport
            transport.set_write_buffer_limits(high=high)
            transport.set_protocol(pipe)
        self.moved()

    def moved(self) -> None:
        """Something was carried: the silence begins anew."""
        self._wheel.arm(self, self._now() + self._idle)

    def expire(self, now: float) -> None:
        """Nothing moved for too long."""
        self.timed_out = True
        self.end()

    def end(self) -> None:
        """Close both sides."""
        if self._over:
            return
        self._over = True
        self._wheel.drop(self)
        for pipe in (self.left, self.right):
            if pipe.transport is not None and not pipe.lost:
                pipe.transport.close()
        self._on_end(self)


class Pipe(asyncio.Protocol):
    """One side: what it receives is written to the other, no faster than the other reads."""

    __slots__ = ("_relay", "carried", "ended", "lost", "peer", "transport")

    peer: Pipe

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.transport: asyncio.Transport | None = None
        self.carried = 0
        self.ended = False
        self.lost = False

    def data_received(self, data: bytes) -> None:
        """Carry it over."""
        self.carried += len(data)
        peer = self.peer.transport
        if peer is not None and not self.peer.lost:
            peer.write(data)
        self._relay.moved()

    def eof_received(self) -> bool:
        """This side says no more; the other may still.

        A TLS connection is never half closed (uvloop cannot): a client's is closed when the server has said all, and a
        server is not told that the client has, so that its answer still comes.
        """
        self.ended = True
        peer = self.peer.transport
        half = peer is not None and peer.can_write_eof()
        if half and peer is not None and not self.peer.lost:
            peer.write_eof()
        if self.peer.ended or (not half and self is self._relay.right):
            self._relay.end()
        return self.transport is not None and self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """One side gone ends both."""
        self.lost = True
        self._relay.end()

    def pause_writing(self) -> None:
        """This side does not read: read no more from the other."""
        peer = self.peer.transport
        if peer is not None and not self.peer.lost and not self.peer.ended:
            peer.pause_reading()

    def resume_writing(self) -> None:
        """This side reads again."""
        peer = self.peer.transport
        if peer is not None and not self.peer.lost and not self.peer.ended:
            peer.resume_reading()


class Waiting(asyncio.Protocol):
    """A client of a TCP listener until its upstream is there: what it sends first is held, then nothing is read."""

    transport: asyncio.Transport

    def __init__(self, arrived: Callable[[Waiting], None]) -> None:
        self._arrived = arrived
        self.held = b""
        self.ended = False
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._arrived(self)

    def data_received(self, data: bytes) -> None:
        """Its first words."""
        self.held += data
        self.transport.pause_reading()

    def eof_received(self) -> bool:
        """It may have said all it has to say; the answer is still wanted, where the connection can be half-closed."""
        self.ended = True
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """It left before."""
        self.lost = True
