"""Joining two connections: after a change of protocol (101), and for clients of a TCP listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.accounting import settle
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.proxy.relay import Relay

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.downstream import Downstream
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.listener import TcpListener
    from sentinel_agent.proxy.relay import Waiting
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.worker import Worker


def join_upgraded(
    exchange: Exchange, downstream: Downstream, connection: UpstreamConnection, first: bytes
) -> None:
    """Join a client and an upstream that changed protocols; `first` goes to the client."""
    worker, route = exchange.worker, exchange.route
    assert route is not None, "it was routed"

    def ended(relay: Relay) -> None:
        worker.relays.discard(relay)
        connection.cluster.connections -= 1
        connection.server.active -= 1
        downstream.listener.connections.discard(downstream)
        exchange.bytes_in += relay.left.carried
        exchange.bytes_out += relay.right.carried
        exchange.over = True
        settle(exchange, worker.now())

    worker.wheel.drop(downstream)
    worker.wheel.drop(connection)
    downstream.closed = connection.closing = True
    relay = Relay(worker.wheel, worker.now, route.spec.idle_timeout, ended)
    worker.relays.add(relay)
    downstream.transport.write(first)
    relay.join(downstream.transport, connection.transport, downstream.listener.spec.limits.buffer)
    if held := downstream.take_held():
        relay.left.data_received(held)


class TcpSession:
    """One client of a TCP listener: an upstream is found, the two are joined, the record is kept."""

    def __init__(self, worker: Worker, listener: TcpListener, client: Waiting) -> None:
        self._worker = worker
        self._listener = listener
        self._client = client
        self._started = worker.now()
        self._server: Server | None = None
        peer = client.transport.get_extra_info("peername")
        self._address = peer[0] if peer else "local"

    async def run(self) -> None:
        """Until both are joined, or it is clear that they cannot be."""
        listener, client = self._listener, self._client
        try:
            connection, fault = await self._connect(listener.cluster)
        finally:
            listener.waiting -= 1
        if connection is None or connection.closing or client.lost:
            if connection is not None:
                connection.close()
            client.transport.abort()
            self._record(None, fault or (flags.CLIENT_LEFT if client.lost else flags.CONNECT_FAILED))
            return
        connection.closing = True
        worker = self._worker
        relay = Relay(worker.wheel, worker.now, listener.cluster.spec.idle_timeout, self._ended)
        listener.connections.add(relay)
        worker.relays.add(relay)
        relay.join(client.transport, connection.transport, listener.spec.limits.buffer)
        if client.held:
            relay.left.data_received(client.held)
        if client.ended:
            relay.left.eof_received()
        else:
            client.transport.resume_reading()

    async def _connect(self, cluster: ClusterPool) -> tuple[UpstreamConnection | None, flags.Flag | None]:
        server = self._server = cluster.pick(self._address.encode(), self._started)
        if server is None:
            return None, flags.NO_HEALTHY
        if not cluster.may_connect():
            return None, flags.OVERFLOW
        cluster.pending += 1
        failed = True
        try:
            connection = await self._worker.open(cluster, server)
            failed = False
        except (OSError, TimeoutError):
            return None, flags.CONNECT_FAILED
        else:
            return connection, None
        finally:
            cluster.pending -= 1
            if cluster.measured:
                now = self._worker.now()
                server.measure(now - self._started, failed, now)

    def _ended(self, relay: Relay) -> None:
        self._listener.connections.discard(relay)
        self._worker.relays.discard(relay)
        self._listener.cluster.connections -= 1
        self._record(relay, None)

    def _record(self, relay: Relay | None, fault: flags.Flag | None) -> None:
        worker, listener = self._worker, self._listener
        record = RequestRecord(
            time=worker.wall(self._started),
            listener=listener.spec.name,
            route="",
            cluster=listener.cluster.name,
            upstream=self._server.address if self._server else "",
            client=self._address,
            method="TCP",
            path="",
            host="",
            status=0,
            seconds=worker.now() - self._started,
            upstream_seconds=0.0,
            bytes_in=relay.left.carried if relay else 0,
            bytes_out=relay.right.carried if relay else 0,
            flags=fault.code if fault else "",
        )
        worker.keep(record, notable=fault is not None)
