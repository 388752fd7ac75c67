"""A client's connection: requests are read from it one after the other, in order, bounded in bytes and time.

The life of a request: its head is read here, an `Exchange` routes it, tries upstreams and writes the answer to this
connection, then says `finished`. What the client sends meanwhile is held, up to a bound, and then not read.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.exchange import Exchange
from sentinel_agent.proxy.lean import begin
from sentinel_agent.proxy.recovery import client_left, expired, refused
from sentinel_agent.proxy.wheel import NOWHERE
from sentinel_agent.proxy.wire.body import ChunkedBody
from sentinel_agent.proxy.wire.buffer import HeadBuffer
from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import parse_request
from sentinel_agent.proxy.wire.reply import reply

if TYPE_CHECKING:
    from sentinel_agent.proxy.listener import HttpListener
    from sentinel_agent.proxy.tls import ServerTls

log = logging.getLogger(__name__)

_NOTHING_SEEN = (None, b"")
LINGER_SECONDS = 2.0
"""How long what a client still sends is read and thrown away, so that it gets our last answer and no reset."""
LINGER_BYTES = 1024 * 1024


class Downstream(asyncio.Protocol):
    """Reads requests and bodies; knows nothing of routes and upstreams."""

    __slots__ = (
        "_body_left",
        "_body_seen",
        "_busy",
        "_chunks",
        "_heads",
        "_held",
        "_lingering",
        "_reading_head",
        "client",
        "closed",
        "deadline",
        "exchange",
        "forwarded",
        "full",
        "listener",
        "paused",
        "scheme",
        "seen_fields",
        "slot",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, listener: HttpListener) -> None:
        self.listener = listener
        self.exchange: Exchange | None = None
        self.client = ""
        self.forwarded = b""
        self.closed = False
        self.full = False
        self.paused = False
        self.scheme = b"http"
        self.deadline = 0.0
        self.slot = NOWHERE
        self.seen_fields: tuple[bytes | None, bytes] = (
            _NOTHING_SEEN  # the last plain header lines, and their host
        )
        self._heads = HeadBuffer(listener.limits.head, 431)
        self._held = b""
        self._body_left = 0
        self._body_seen = 0
        self._chunks: ChunkedBody | None = None
        self._reading_head = False
        self._lingering = 0
        self._busy = False

    # -- what the loop calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come; one too many is answered 503."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if peer else "local"
        self.forwarded = self.client.encode()
        listener = self.listener
        transport.set_write_buffer_limits(high=listener.spec.limits.buffer)
        listener.connections.add(self)
        worker = listener.worker
        if len(listener.connections) > listener.spec.limits.connections:
            listener.refused += 1
            transport.write(reply(503, b"too many connections\n", close=True))
            self.close()
        elif listener.tls is None or self._is_let_in(listener.tls):
            worker.wheel.arm(self, worker.now() + listener.spec.timeouts.idle)

    def _is_let_in(self, tls: ServerTls) -> bool:
        """Whether the client may speak; one whose certificate names nobody we know may not."""
        if self.transport.get_extra_info("ssl_object") is None:
            return True
        self.scheme = b"https"
        stranger = tls.stranger(self.transport)
        if stranger:
            self.listener.note_fault(self.client, flags.TLS_FAILED, 0, stranger)
            self.abort()
        return not stranger

    def data_received(self, data: bytes) -> None:
        """Bytes of the client. Whatever goes wrong ends this connection and no other."""
        try:
            if self._lingering:
                self._linger(data)
            elif self.exchange is None:
                if not self._reading_head and not self._held and len(data) > 4 and begin(self, data):
                    return
                if self._held:
                    data, self._held = self._held + data, b""
                self._read(data)
            else:
                rest = self._take_body(self.exchange, data)
                if rest:
                    self._hold(rest)
        except WireError as error:
            self.refuse(error)
        except Exception as error:
            log.exception("internal fault while a request was read")
            self._internal_fault(error)

    def eof_received(self) -> None:
        """The client says no more: it has left (asyncio closes the connection)."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.closed = True
        self.listener.connections.discard(self)
        self.listener.worker.wheel.drop(self)
        exchange = self.exchange
        if exchange is not None:
            client_left(exchange)
        elif self._reading_head and self._heads.held and not self._lingering:
            self.listener.note_fault(
                self.client, flags.CLIENT_LEFT, 0, "the client left in the middle of a head"
            )

    def pause_writing(self) -> None:
        """The client does not read: the upstream is not read from either."""
        self.full = True
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.full = False
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.resume_reading()

    def expire(self, now: float) -> None:
        """Somebody took too long; who, depends on what is under way."""
        if self._lingering or (self.exchange is None and not self._reading_head):
            self.close()
        elif self.exchange is None:
            self.refuse(WireError(408, "the head did not come in time"), flags.CLIENT_TIMEOUT)
        else:
            expired(self.exchange, now)

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        """Read heads, and start an exchange with each, until one is under way that is not over at once."""
        listener = self.listener
        self._busy = True
        try:
            while data and self.exchange is None and not self._lingering:
                taken = self._heads.take(data)
                if taken is None:
                    if not self._reading_head:
                        self._reading_head = True
                        worker = listener.worker
                        worker.wheel.arm(self, worker.now() + listener.spec.timeouts.head)
                    return
                raw, data = taken
                self._reading_head = False
                head = parse_request(raw, listener.limits, listener.pattern)
                exchange = self.exchange = Exchange(self, head)
                if head.chunked:
                    self._chunks = ChunkedBody(400)
                    self._body_seen = 0
                elif head.length:
                    self._body_left = head.length
                    self._body_seen = 0
                    if 0 < listener.spec.limits.body < head.length:
                        raise WireError(413, f"the body has {head.length} bytes")
                else:
                    exchange.body_done = True
                if data and not exchange.body_done:
                    data = self._take_body(exchange, data)
                exchange.start()
        finally:
            self._busy = False
        if data and not self._lingering:
            self._hold(data)

    def _take_body(self, exchange: Exchange, data: bytes) -> bytes:
        """Hand on what of `data` belongs to the body; the rest."""
        if exchange.body_done:
            return data
        if self._chunks is not None:
            end = self._chunks.feed(data)
            done = self._chunks.done
            if done:
                self._chunks = None
        else:
            end = min(self._body_left, len(data))
            self._body_left -= end
            done = not self._body_left
        self._body_seen += end
        if 0 < self.listener.spec.limits.body < self._body_seen:
            raise WireError(413, f"the body has more than {self.listener.spec.limits.body} bytes")
        if end == len(data):
            exchange.body(data, done)
            return b""
        exchange.body(data[:end], done)
        return data[end:]

    def _hold(self, data: bytes) -> None:
        """Keep what comes before its turn (pipelining)."""
        self._held += data
        if len(self._held) > self.listener.spec.limits.buffer:
            self.pause_reading()

    def take_held(self) -> bytes:
        """What came before its turn, for whoever reads this connection from now on."""
        held, self._held = self._held, b""
        return held

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self.paused and not self.closed:
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.paused and not self.closed:
            self.paused = False
            self.transport.resume_reading()

    # -- endings -------------------------------------------------------------------------------------------------

    def finished(self, *, close: bool, now: float) -> None:
        """The exchange is over, its answer is written; the next request may come unless `close`."""
        self.exchange = None
        if self.closed:
            return
        self.resume_reading()
        if close:
            self._say_goodbye()
            return
        worker = self.listener.worker
        worker.wheel.arm(self, now + self.listener.spec.timeouts.idle)
        if self._held and not self._busy:
            worker.soon(self._read_held)

    def _read_held(self) -> None:
        if self._held and self.exchange is None and not self.closed:
            self.data_received(b"")

    def refuse(self, error: WireError, flag: flags.Flag | None = None) -> None:
        """Answer what broke the protocol, if nothing was answered yet, and end the connection."""
        if flag is None:
            flag = flags.TOO_LARGE if error.status == 413 else flags.CLIENT_FAULT
        exchange = self.exchange
        if exchange is not None:
            refused(exchange, flag, error.status, error.message)
            return
        self.listener.note_fault(self.client, flag, error.status, error.message)
        self.transport.write(reply(error.status, f"{error.message}\n".encode(), close=True))
        self._say_goodbye()

    def _internal_fault(self, error: Exception) -> None:
        exchange = self.exchange
        if exchange is not None:
            refused(exchange, flags.INTERNAL, 500, f"{type(error).__name__}: {error}")
        else:
            self.close()

    def _say_goodbye(self) -> None:
        """Close once the answer is out: at once where the client owes nothing, else after what it still sends."""
        self._held = b""
        self._lingering = 1
        if self.closed:
            return
        if (
            not self.transport.can_write_eof()
        ):  # TLS: it says that it ends, and waits for the client to say so too
            self.transport.close()
            return
        self.transport.write_eof()
        self.resume_reading()
        worker = self.listener.worker
        worker.wheel.arm(self, worker.now() + LINGER_SECONDS)

    def _linger(self, data: bytes) -> None:
        self._lingering += len(data)
        if self._lingering > LINGER_BYTES:
            self.close()

    def close(self) -> None:
        """End the connection when what is written is out."""
        if not self.closed:
            self.transport.close()

    def forget(self) -> None:
        """The routes have changed: what was found out about header lines may be too little for them."""
        self.seen_fields = _NOTHING_SEEN

    def end(self) -> None:
        """Its time is over: answer what is under way so, and close."""
        if self.closed:  # it changed to another protocol, and a relay has it
            self.transport.abort()
            return
        if self.exchange is not None:
            refused(self.exchange, flags.DRAINED, 503, flags.DRAINED.words)
        self.close()

    def abort(self) -> None:
        """End the connection so that the client cannot take a part of an answer for all of it."""
        if not self.closed:
            self.transport.abort()
