"""One worker process's data plane: listeners, clusters, and the few periodic duties, on one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from random import Random
from typing import TYPE_CHECKING, Any

import httptools

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.acceptor import Acceptor
from sentinel_agent.proxy.accesslog import AccessLog
from sentinel_agent.proxy.accounting import record_of
from sentinel_agent.proxy.cluster import ClusterPool, Server
from sentinel_agent.proxy.listener import BaseListener, HttpListener, TcpListener
from sentinel_agent.proxy.numbers import RouteNumbers
from sentinel_agent.proxy.recovery import connect_failed, refused
from sentinel_agent.proxy.shedding import Shedding
from sentinel_agent.proxy.tls import words_of
from sentinel_agent.proxy.tracing import Tracer
from sentinel_agent.proxy.upkeep import Upkeep
from sentinel_agent.proxy.upstream import UpstreamConnection
from sentinel_agent.proxy.wheel import SLOTS_PER_SECOND, Wheel
from sentinel_agent.proxy.wire.head import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from sentinel_agent.proxy.config import ProxyConfig
    from sentinel_agent.proxy.downstream import Downstream
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.records import RequestRecord
    from sentinel_agent.proxy.relay import Relay
    from sentinel_agent.proxy.tap import Tap

log = logging.getLogger(__name__)

BACKLOG = 1024
FLUSH_SECONDS = 0.1


class Worker:
    """Serves `config` on `sockets` (listener name -> a bound socket) until it is stopped."""

    def __init__(
        self,
        config: ProxyConfig,
        sockets: Mapping[str, socket.socket],
        *,
        tap: Tap | None = None,
    ) -> None:
        """Build everything; `tap` is told of the requests that are worth it (sampled, failed, slow).

        Raises:
            OperatorError: a filter or a resolver cannot be made.
            OSError: the access log cannot be opened.
        """
        self.now = time.monotonic  # noqa: TID251 - on the path of every request a call through a Clock is too dear
        self.config = config
        self.random = Random()  # noqa: S311 - shares and ids of traces are no secrets
        self.draining = False
        self.wheel = Wheel(self.now())
        self.new_judges()
        self.exchanges: set[Exchange] = set()
        self.relays: set[Relay] = set()
        self.tracer = Tracer(config.tracing, config.service, socket.gethostname(), self.random)
        self.upkeep = Upkeep(self)
        self.clusters: dict[str, ClusterPool] = {}
        self.clusters = self.make_clusters(config)
        self.http: list[HttpListener] = []
        self.tcp: list[TcpListener] = []
        self.take_listeners(self.make_listeners(config, self.clusters))
        self.access_log = open_log(config)
        self.tap = tap
        self.inflight = tap.table if tap is not None else None
        self.routes = RouteNumbers()
        self.routes.assign(self.http)
        self._sockets = sockets
        self.shedding = Shedding(self)
        self._lag = 0.0
        self.observing = 0
        self._servers: dict[str, asyncio.Server | Acceptor] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wall_offset = time.time() - self.now()  # noqa: TID251 - as above

    def new_judges(self) -> None:
        """Parsers that judge one whole plain message after the other; after a fault they are of no more use."""
        self.request_judge = httptools.HttpRequestParser(SILENT)
        self.response_judge = httptools.HttpResponseParser(SILENT)

    def wall(self, monotonic: float | None = None) -> float:
        """Seconds since the epoch at a monotonic time, or now."""
        return self._wall_offset + (self.now() if monotonic is None else monotonic)

    def make_clusters(self, config: ProxyConfig) -> dict[str, ClusterPool]:
        """The clusters of a configuration; one that is as it was stays what it is.

        Raises:
            OperatorError: a file of one is of no use, or nothing can look its names up.
        """
        now, found = self.now(), {}
        for spec in config.clusters:
            before = self.clusters.get(spec.name)
            same = before is not None and before.spec == spec
            found[spec.name] = before if before is not None and same else ClusterPool(spec, self.random, now)
        self.upkeep.resolvers(found.values())
        return found

    def make_listeners(self, config: ProxyConfig, clusters: Mapping[str, ClusterPool]) -> list[BaseListener]:
        """The listeners of a configuration, which accept nothing yet.

        Raises:
            OperatorError: a filter cannot be made, or a file is of no use.
        """
        found: list[BaseListener] = []
        for spec in config.listeners:
            if spec.protocol == "tcp":
                assert spec.cluster is not None, "the configuration was checked"
                found.append(TcpListener(self, spec, clusters[spec.cluster]))
            else:
                found.append(HttpListener(self, spec, clusters, config))
        return found

    def take_listeners(self, listeners: Sequence[BaseListener]) -> None:
        """These are the worker's from now on."""
        self.http = [each for each in listeners if isinstance(each, HttpListener)]
        self.tcp = [each for each in listeners if isinstance(each, TcpListener)]

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections, once the clusters have had a moment to find their servers."""
        self._loop = asyncio.get_running_loop()
        await self.upkeep.keep(self.clusters.values())
        for listener in (*self.http, *self.tcp):
            await self.listen(listener, self._sockets[listener.spec.name])
        self.spawn(self._turn_wheel(), "deadlines")
        self.spawn(self._flush(), "flush")
        self.spawn(self.shedding.run(), "adaptive limit")
        if self.tap is not None:
            self.spawn(self.tap.run(self), "tap")

    async def listen(self, listener: BaseListener, sock: socket.socket) -> None:
        """Accept a listener's connections on `sock`, which is taken over; an earlier one of its name no more."""
        self.accept_no_more(listener.spec.name)
        if listener.tls is not None:
            self._servers[listener.spec.name] = Acceptor(listener, sock)
        else:
            server = await self._loop.create_server(listener, sock=sock, backlog=BACKLOG)
            self._servers[listener.spec.name] = server

    def accept_no_more(self, name: str) -> None:
        """Close this process's share of a listener's socket; what waits there is for those that have it too."""
        server = self._servers.pop(name, None)
        if server is not None:
            server.close()

    def accepts_tls(self, name: str) -> bool:
        """Whether what accepts a listener's connections is made for TLS."""
        return isinstance(self._servers.get(name), Acceptor)

    async def drain(self, listener: BaseListener, seconds: float) -> None:
        """Let a listener that accepts no more come to its end.

        Every answer from now on is its connection's last; idle connections wait for their next request, so that none is
        lost that is already on its way; what is left after `seconds` is ended.
        """
        listener.draining = True
        deadline = self.now() + seconds
        while (listener.connections or listener.opening) and self.now() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(0.05)
        for each in tuple(listener.connections):
            each.end()

    def drain_listeners(self) -> None:
        """Accept no more; every answer from now on is its connection's last, and idle connections may have one more."""
        for name in tuple(self._servers):
            self.accept_no_more(name)
        for listener in (*self.http, *self.tcp):
            listener.draining = True

    async def stop(self, drain: float, *, leave_idle: bool = False) -> None:
        """Accept no more, let requests under way end for `drain` seconds, and close what is left.

        With `leave_idle`, idle connections may have one more request: somebody else serves on, and nobody is to notice.
        """
        if self.draining:
            return
        self.draining = True
        self.drain_listeners()
        listeners = (*self.http, *self.tcp)
        clients = [client for listener in self.http for client in listener.connections]
        if leave_idle:
            await asyncio.gather(*(self.drain(listener, drain) for listener in listeners))
        else:
            for client in clients:
                if client.exchange is None:
                    client.close()
        deadline = self.now() + drain
        while (self.exchanges or self.relays) and self.now() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(0.02)
        await self._break_off(clients)
        if self.tap is not None:
            self.tap.close()
        if self.access_log is not None:
            await asyncio.to_thread(self.access_log.close)

    async def _break_off(self, clients: list[Downstream]) -> None:
        for exchange in tuple(self.exchanges):
            refused(exchange, flags.DRAINED, 503, "the proxy is being stopped")
        for relay in tuple(self.relays):
            relay.end()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        idle = [each for pool in self.clusters.values() for host in pool.servers for each in host.idle]
        for client in clients:
            client.close()
        for connection in idle:
            connection.close()
        await self.upkeep.close()
        await asyncio.sleep(0)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` as a task that is cancelled with the worker; its name shows in a task dump."""
        _ = self.start_task(work, name)

    def start_task(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """The same, for who wants to end it before."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal fault in %s", task.get_name(), exc_info=error)

    def soon(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call from the loop, after what is being done now."""
        self._loop.call_soon(call, *arguments)

    async def _turn_wheel(self) -> None:
        while True:
            planned = self.now() + 1 / SLOTS_PER_SECOND
            await asyncio.sleep(1 / SLOTS_PER_SECOND)
            now = self.now()
            self._lag = max(self._lag, now - planned)
            self.wheel.turn(now)

    def take_lag(self) -> float:
        """The longest delay of the event loop since the last call, in seconds."""
        lag, self._lag = self._lag, 0.0
        return lag

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            if self.access_log is not None:
                self.access_log.flush()
            self._wall_offset = time.time() - self.now()  # noqa: TID251 - as above

    # -- for exchanges -------------------------------------------------------------------------------------------

    def connect(self, exchange: Exchange, cluster: ClusterPool, server: Server) -> None:
        """Open a connection for an exchange; one that is not needed any more goes to the pool."""
        cluster.pending += 1
        self.spawn(self._connect(exchange, cluster, server), f"connect {cluster.name} {server.address}")

    async def _connect(self, exchange: Exchange, cluster: ClusterPool, server: Server) -> None:
        try:
            connection = await self.open(cluster, server)
        except (OSError, TimeoutError) as error:
            connect_failed(exchange, f"{server.address}: {_reason(error)}")
            return
        finally:
            cluster.pending -= 1
        if connection.closing:
            connect_failed(exchange, f"{server.address}: closed at once")
        elif exchange.over:
            connection.release(self.now())
        else:
            exchange.send(connection)

    async def open(self, cluster: ClusterPool, server: Server) -> UpstreamConnection:
        """A new connection to a server.

        Raises:
            OSError, TimeoutError: it did not come about.
        """
        counts = cluster.statistics
        counts.upstream_cx_total += 1
        connection = UpstreamConnection(self, cluster, server)
        try:
            async with asyncio.timeout(cluster.spec.connect_timeout):
                transport = await self.dial(lambda: connection, cluster, server)
        except (OSError, TimeoutError):
            counts.upstream_cx_connect_fail += 1
            raise
        transport.set_write_buffer_limits(high=64 * 1024)
        return connection

    async def dial(
        self, make: Callable[[], asyncio.Protocol], cluster: ClusterPool, server: Server
    ) -> asyncio.Transport:
        """Connect to a server as its cluster wants it, for requests and for health checks alike.

        Raises:
            OSError: it did not come about.
        """
        tls = cluster.tls
        secured: dict[str, Any] = {}
        if tls is not None:
            secured = {"ssl": tls.context, "server_hostname": tls.spec.sni or server.name}
        transport, _ = await self._loop.create_connection(make, server.host, server.port, **secured)
        if tls is not None and (stranger := tls.stranger(transport)):
            transport.abort()
            raise ssl.SSLError(stranger)
        return transport

    def keep(self, record: RequestRecord, *, notable: bool) -> None:
        """To the access log, and to the agent if it is worth it."""
        if self.access_log is not None:
            self.access_log.add(record)
        if notable and self.tap is not None:
            self.tap.keep(record)


def open_log(config: ProxyConfig) -> AccessLog | None:
    """The access log that a configuration wants.

    Raises:
        OSError: it cannot be opened.
    """
    spec = config.access_log
    return AccessLog(spec.path, spec.buffer, record_of) if spec.path is not None else None


def _reason(error: OSError) -> str:
    """Why a connection did not come about."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {words_of(error)}"
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error) or "no connection in time"
