"""A request of the proxy's own to one of its clusters: what filters ask and copy, over the same pools as everything else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy.filters import Answer
from sentinel_agent.proxy.recovery import IDEMPOTENT
from sentinel_agent.proxy.wire.body import ChunkedBody, FixedBody
from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import parse_response

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.wire.head import ResponseHead
    from sentinel_agent.proxy.worker import Worker

MAX_READ: Final = 1024 * 1024
"""Bytes of an answer's body that are read, so that the connection may be used again; a longer one costs the connection."""
_STALE_TRIES: Final = 2


class _StaleError(ConnectionError):
    """A connection of the pool was closing while it was chosen."""


async def ask(
    worker: Worker, cluster: ClusterPool, message: bytes, *, key: bytes, keep: int, again: bool
) -> Answer:
    """Send a whole request, and return what is answered with the first `keep` bytes of its body.

    Where a connection of the pool was closing while it was chosen, the request goes to another one if it may be sent
    `again` or is idempotent.

    Raises:
        OSError: there was no answer.
    """
    if not cluster.may_request():
        raise ConnectionError(f"{cluster.name} has all it may have")
    cluster.active += 1
    try:
        for left in range(_STALE_TRIES, -1, -1):
            connection = await _connection(worker, cluster, key, fresh=not left)
            try:
                return await Subrequest(connection, message, keep).answer()
            except _StaleError:
                if not again and message.partition(b" ")[0] not in IDEMPOTENT:
                    raise
        raise AssertionError("unreachable: the last connection is a fresh one")
    finally:
        cluster.active -= 1


async def _connection(worker: Worker, cluster: ClusterPool, key: bytes, *, fresh: bool) -> UpstreamConnection:
    server = cluster.pick(key, worker.now())
    if server is None:
        raise ConnectionError(f"no server of {cluster.name} is healthy")
    connection = None if fresh else cluster.take(server)
    if connection is not None:
        return connection
    if not cluster.may_connect():
        raise ConnectionError(f"{cluster.name} has all the connections that it may have")
    cluster.pending += 1
    try:
        connection = await worker.open(cluster, server)
    finally:
        cluster.pending -= 1
    if connection.closing:
        raise ConnectionError(f"{server.address} closed at once")
    return connection


class Subrequest:
    """One request on one connection, which it takes over and gives back; see `UpstreamConnection.exchange`."""

    def __init__(self, connection: UpstreamConnection, message: bytes, keep: int) -> None:
        self._connection = connection
        self._message = message
        self._method = message.partition(b" ")[0]
        self._keep = keep
        self._head: ResponseHead | None = None
        self._body: ChunkedBody | FixedBody = FixedBody(None)
        self._kept: list[bytes] = []
        self._read = 0
        self._future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def answer(self) -> Answer:
        """Send, and wait for the whole answer.

        Raises:
            OSError: there was none.
        """
        connection = self._connection
        connection.exchange = self
        connection.server.active += 1
        connection.transport.write(self._message)
        try:
            return await self._future
        finally:
            if connection.exchange is self:  # nobody waits for it any more
                self._leave(reusable=False)

    def _leave(self, *, reusable: bool) -> None:
        connection = self._connection
        connection.server.active -= 1
        connection.served += 1
        if reusable and not connection.full:
            connection.release(connection.worker.now())
        else:
            connection.close()

    def answered(self, data: bytes) -> None:
        """A piece of the answer."""
        try:
            self._take(data)
        except WireError as error:
            self._fail(ConnectionError(error.message))

    def _take(self, data: bytes) -> None:
        while self._head is None:
            taken = self._connection.heads.take(data)
            if taken is None:
                return
            raw, data = taken
            head = parse_response(raw, self._method)
            if head.status == 101:
                raise WireError(502, "the upstream changed to a protocol that nobody asked for")
            if head.status >= 200:
                self._head = head
                self._body = ChunkedBody(502) if head.chunked else FixedBody(head.length)
        pieces: list[bytes] = []
        end = self._body.feed(data, 0, pieces)
        for piece in pieces:
            if self._read < self._keep:
                self._kept.append(piece[: self._keep - self._read])
            self._read += len(piece)
        if self._body.done:
            self._done(reusable=self._head.keep_alive and end == len(data))
        elif self._read > MAX_READ:
            self._done(reusable=False)

    def _done(self, *, reusable: bool) -> None:
        self._leave(reusable=reusable)
        head = self._head
        if head is not None and not self._future.done():
            self._future.set_result(Answer(head.status, _headers(head), b"".join(self._kept)))

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection is gone: the end of an answer that has no other, or a failure."""
        head, connection = self._head, self._connection
        if head is not None and head.until_close and exc is None:
            self._done(reusable=False)
        elif head is None and connection.served and not connection.heads.held:
            self._fail(_StaleError(f"{connection.server.address} was ending the connection"))
        else:
            self._fail(ConnectionError(f"{connection.server.address} ended the connection"))

    def _fail(self, error: ConnectionError) -> None:
        self._leave(reusable=False)
        if not self._future.done():
            self._future.set_exception(error)

    def pause_sender(self) -> None:
        """The message is whole and bounded: it waits in the transport."""

    def resume_sender(self) -> None:
        """As above."""


def _headers(head: ResponseHead) -> tuple[tuple[str, str], ...]:
    lines = head.raw[head.line_end : -4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines if line)
    return tuple(
        (name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")) for name, _, value in pairs
    )
